"""Intended against effective: what the running engine really got, read back from /proc and from its own log.

srun, a container runtime or a sourced shell file may change argv and environment without a word.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.core import masking

STRICT = ("HCCL_", "GLOO_", "TP_", "ASCEND_")
"""A difference in one of these is an error: it changes the network or the devices under the figures."""

WATCHED = ("HCCL_", "GLOO_", "TP_SOCKET_", "VLLM_")
"""A variable of one of these that nobody set in the config is a difference too. ASCEND_ is not among them: the
toolkit's set_env.sh sets many of its own."""

_ALLOCATORS = re.compile(r"lib(jemalloc|tcmalloc)\w*\.so")
_NON_DEFAULT = re.compile(r"non-default args: (\{.*\})")


@dataclass(frozen=True)
class Difference:
    """One thing that is not as intended. None: it is not there."""

    key: str
    intended: str | None
    effective: str | None
    error: bool

    def __str__(self) -> str:
        return f"{self.key}: intended {self.intended!r}, effective {self.effective!r}"


def compare(
    argv: Sequence[str],
    env: Mapping[str, str],
    real_argv: Sequence[str],
    real_env: Mapping[str, str],
    reported: Mapping[str, Any],
) -> tuple[Difference, ...]:
    """Return every difference, errors first.

    Args:
        argv, env: as intended (command.json).
        real_argv, real_env: of the running main process.
        reported: vLLM's "non-default args".
    """
    found = [
        Difference(name, _shown(name, value), _shown(name, real_env.get(name)), name.startswith(STRICT))
        for name, value in env.items()
        if real_env.get(name) != value
    ]
    found += [
        Difference(name, None, _shown(name, value), name.startswith(STRICT))
        for name, value in real_env.items()
        if name.startswith(WATCHED) and name not in env
    ]
    wanted, got = _after_serve(argv), _after_serve(real_argv)
    if wanted != got:
        found.append(Difference("argv", " ".join(wanted), " ".join(got), error=True))
    for name, value in _flags(wanted).items():
        key = name.replace("-", "_")
        said = reported.get(key)
        if isinstance(said, int | float | str) and not isinstance(said, bool) and str(said) != value:
            found.append(Difference(f"--{name}", value, str(said), error=True))
    return tuple(sorted(found, key=lambda one: (not one.error, one.key)))


def read_process(pid: int) -> tuple[list[str], dict[str, str]]:
    """Return argv and environment of a living process as they were at its start (proc(5)); empty if it is gone."""
    with contextlib.suppress(OSError):
        folder = Path("/proc") / str(pid)
        return parse(*((folder / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ")))
    return [], {}


def allocator_of(pid: int) -> str | None:
    """Return the allocator in the maps of a living process (proc(5)); None: they are not to be seen."""
    with contextlib.suppress(OSError):
        return allocator((Path("/proc") / str(pid) / "maps").read_text(encoding="utf-8", errors="replace"))
    return None


def allocator(text: str) -> str:
    """Return the allocator that a text names (LD_PRELOAD, /proc/PID/maps): jemalloc, tcmalloc, or libc's own."""
    found = _ALLOCATORS.search(text)
    return found[1] if found else "libc"


def allocator_difference(intended: Mapping[str, str], real: str | None) -> tuple[Difference, ...]:
    """Return that an allocator of LD_PRELOAD is not in the process: the loader only warns where its file is missing."""
    wanted = allocator(intended.get("LD_PRELOAD", ""))
    return (Difference("allocator", wanted, real, error=False),) if real and wanted not in (real, "libc") else ()


def parse(cmdline: str, environ: str) -> tuple[list[str], dict[str, str]]:
    """Return argv and environment from the text of the two files of proc(5)."""
    pairs = [line.partition("=") for line in environ.split("\0")]
    return cmdline.split("\0")[:-1], {name: value for name, _, value in pairs if name}


def reported_args(log: str) -> dict[str, Any]:
    """Return vLLM's own line of non-default arguments; empty where it printed none."""
    match = _NON_DEFAULT.search(log)
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(match.group(1)) if match else {}
        return value if isinstance(value, dict) else {}
    return {}


def record(
    argv: Sequence[str], env: Mapping[str, str], differences: Sequence[Difference], reported: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of effective.json."""
    kept = {name: value for name, value in env.items() if name.startswith((*STRICT, *WATCHED, "OMP_", "PYTORCH_"))}
    return {
        "argv": masking.mask(list(argv)),
        "env": masking.mask(kept),
        "non_default_args": masking.mask(dict(reported)),
        "differences": [asdict(one) for one in differences],
    }


def _shown(name: str, value: str | None) -> str | None:
    return None if value is None else str(masking.mask(value, name))


def _after_serve(argv: Sequence[str]) -> list[str]:
    """Leave out the program: an entry script shows as its interpreter and its path."""
    words = list(argv)
    return words[words.index("serve") :] if "serve" in words else words


def _flags(words: Sequence[str]) -> dict[str, str]:
    """Return the flags that have one plain value."""
    pairs = itertools.pairwise(words)
    return {name[2:]: value for name, value in pairs if name.startswith("--") and not value.startswith(("-", "{", "["))}
