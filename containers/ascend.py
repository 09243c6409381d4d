"""What an NPU node lends to a container, and what its image wants from a shell. Pure, but for the look at the node.

Sources: the `docker run` lines of vllm-ascend's installation guide and of its DeepSeek-R1 page (v0.9.1 to v0.23.0), its
Dockerfile.openEuler, and the release notes of CANN 8.5 (toolkit under /usr/local/Ascend/cann).
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from containers.spec import Mount
from jobs.core.files import is_there
from jobs.core.foreign import from_yaml

_NPU = re.compile(r"/dev/davinci\d+")

_FACTS = from_yaml(Path(__file__).with_name("ascend.yaml").read_text(encoding="utf-8"))
DEVICES, HANDED_ON, FILES, JEMALLOC, LIBRARIES = (
    tuple[str, ...](_FACTS[name]) for name in ("devices", "handed_on", "files", "jemalloc", "libraries")
)

_BASHRC_SINCE = (0, 18)
"""From v0.18 the image's ~/.bashrc exports LD_PRELOAD and LD_LIBRARY_PATH; no shell of a batch job reads it."""


@dataclass(frozen=True)
class Lent:
    """What the node has of what was wanted."""

    devices: tuple[str, ...]
    mounts: tuple[Mount, ...]
    missing: tuple[str, ...]


def lend(devices: Sequence[str], mounts: Sequence[Mount], root: Path = Path("/"), *, unseen: bool = False) -> Lent:
    """Return the devices and mounts that exist on this node, and name the others.

    Args:
        devices: character devices.
        mounts: of driver and tools.
        root: where the node's files are; for tests.
        unseen: also mount what this user cannot see, since whoever mounts it is root.
    """
    here = tuple(name for name in devices if _is_device(root / name.lstrip("/")))
    known = {one: not one.bind or is_there(root / one.source.lstrip("/")) for one in mounts}
    there = tuple(one for one in mounts if (unseen if known[one] is None else known[one]))
    missing = [name for name in devices if name not in here] + [one.source for one in mounts if one not in there]
    return Lent(here, there, tuple(missing))


def own(devices: Sequence[str], may_open: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the devices without the NPUs of other jobs, where this job has some NPUs of the node alone.

    Slurm's device cgroup (ConstrainDevices) lets a job open its own. docker's containers are not in it: all NPUs that
    they are lent can be used. Where none may be opened the user lacks the group, which docker's daemon does not need.
    """
    npus = [name for name in devices if _NPU.fullmatch(name)]
    ours = [name for name in npus if may_open(name)]
    return tuple(name for name in devices if name in ours or name not in npus) if ours else tuple(devices)


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False


def sources(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return each shell file with those that may stand in its place."""
    others = _FACTS["elsewhere"]
    return tuple((name, others[name]) if name in others else (name,) for name in names)


def shell_additions(release: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the library directories and the preloaded libraries that the image of a release sets in its ~/.bashrc."""
    numbers = tuple(int(part) for part in release.split(".")[:2] if part.isdecimal())
    return (LIBRARIES, JEMALLOC) if numbers >= _BASHRC_SINCE else ((), ())
