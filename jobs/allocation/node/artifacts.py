"""What outlives an engine: its plogs, in the rank's directory, and compiled kernels, in a cache on its node.

CANN writes plogs to $HOME/ascend/log unless ASCEND_PROCESS_LOG_PATH names another directory, which it makes (CANN
environment reference, envref_07_0120). In a container both this directory and the caches of torchair, triton and vLLM
would go with it, and every start would compile again.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from containers.base import Inside
from jobs.allocation.node import container
from jobs.core.config import Config, in_container
from jobs.core.errors import RunError
from jobs.core.rundir import RankDir
from jobs.engines.base import engine_of

PLOGS = ("ASCEND_PROCESS_LOG_PATH", "ASCEND_WORK_PATH")
"""Variables that say where plogs go; the first one wins."""

COPIED = "/tmp/serving-sweep-plogs"
"""Where a container without mounts of ours has them: they are copied out."""


def plog_variables(config: Config, folder: RankDir, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return what sends plogs to the rank's directory; nothing where the user has said where they go.

    `engine.env.ASCEND_PROCESS_LOG_PATH=null` leaves them where CANN puts them.
    """
    inside = in_container(config)
    said = {*config.engine.env, *(() if inside else inherited)}
    if not engine_of(config).traits.npus or said & set(PLOGS):
        return {}
    if inside and container.of(config).copies:
        return {PLOGS[0]: COPIED}
    path = str(folder.plogs.absolute())
    # No runtime can be told of a mount with such characters.
    return {} if inside and re.search(r"[\s:,]", path) else {PLOGS[0]: path}


def make_plogs(folder: RankDir, variables: Mapping[str, str]) -> Path | None:
    """Make the rank's directory of plogs, where they go there. Returns it."""
    path = folder.plogs.absolute()
    if variables.get(PLOGS[0]) != str(path):
        return None
    path.mkdir(parents=True, exist_ok=True)
    return path


def cache_variables(config: Config, rank: int, service: str) -> dict[str, str]:
    """Return what sends the caches of compilers to `container.local_dir`, which is made, by image.

    torchair's graphs are of one service and rank: they hold its lengths and batch sizes.

    Raises:
        RunError: the directory cannot be made, or is somebody else's.
    """
    mount = container.caches(config, rank, container.Words.here())
    if mount is None:
        return {}
    where = container.local(config, container.Words.here(), rank)
    where.make(where.caches)
    image = container.known_digest(config) or str(container.wanted(config, rank).image)
    folder = f"{mount.target.rstrip('/')}/{hashlib.sha256(image.encode()).hexdigest()[:12]}"
    known = {
        "XDG_CACHE_HOME": folder,
        "TRITON_CACHE_DIR": f"{folder}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TORCHAIR_CACHE_HOME": f"{folder}/torchair/{service}-{rank}",
    }
    return {name: value for name, value in known.items() if name not in config.engine.env}


def copy_plogs(inside: Inside, folder: RankDir) -> None:
    """Copy the plogs out of a container in which they are not the node's, as far as there are any."""
    folder.plogs.mkdir(parents=True, exist_ok=True)
    try:
        inside.take(Path(COPIED), folder.plogs)
    except RunError as error:
        folder.note("draining", plogs=f"not copied: {error.reason}")
    with contextlib.suppress(OSError):
        folder.plogs.rmdir()  # there were none
