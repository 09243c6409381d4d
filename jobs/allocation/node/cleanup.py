"""What a service leaves on its node: shared memory, ports, NPU memory. Found, removed where it is ours, named."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster.ports import listeners
from jobs.core import process
from jobs.core.errors import RunError
from jobs.engines.ascend import npu_smi

SHM = Path("/dev/shm")

SEGMENTS = re.compile(r"^(psm_|sem\.mp-|sem\.loky-|torch_|vllm|nccl-|__KMP_REGISTERED_LIB_)")
"""Shared memory of Python's multiprocessing, torch and OpenMP: killed engines leave it (0.4 GB each was seen)."""

NPU_SLACK_MB = 512
"""HBM use may settle a little above its level before; a living process holds gigabytes."""


@dataclass(frozen=True)
class Baseline:
    """The node before the engine started: names in /dev/shm, and HBM in use by NPU in MB (empty: no npu-smi)."""

    segments: frozenset[str]
    npu_memory_mb: tuple[int, ...]


def baseline() -> Baseline:
    """Look at the node before the start."""
    return Baseline(frozenset(_segments()), npu_memory())


def leftovers(before: Baseline, ports: Iterable[int], address: str = "127.0.0.1") -> list[str]:
    """Remove our leaked shared memory and name everything that is still there after the stop.

    A segment is removed only if it came after the start, belongs to this user, has a name that engines give,
    and no living process has it open or mapped.
    """
    found = []
    for name in unused(_segments() - before.segments):
        path = SHM / name
        with contextlib.suppress(OSError):
            path.unlink()
        if path.exists():
            found.append(f"shared memory {path}")
    found += [f"port {port} is still open" for port in ports if listeners(port, address)]
    for index, (then, now) in enumerate(zip(before.npu_memory_mb, npu_memory(), strict=False)):
        if now > then + NPU_SLACK_MB:
            found.append(f"NPU {index} holds {now} MB, {then} MB before")
    return found


def _segments() -> set[str]:
    found = set()
    for entry in SHM.iterdir() if SHM.is_dir() else ():
        with contextlib.suppress(OSError):
            info = entry.lstat()  # of others a link may lead to a file of ours
            if SEGMENTS.match(entry.name) and info.st_uid == os.getuid() and stat.S_ISREG(info.st_mode):
                found.add(entry.name)
    return found


def unused(names: Iterable[str]) -> list[str]:
    """Return those names in /dev/shm that no living process has mapped or open.

    A file is known by its inode: glibc makes a semaphore under a passing name, and /proc shows that one for ever.
    """
    inodes = {}
    for name in names:
        with contextlib.suppress(OSError):
            inodes[name] = (SHM / name).lstat().st_ino
    used = _inodes_in_use() if inodes else set()
    return sorted(name for name, inode in inodes.items() if inode not in used)


def _inodes_in_use() -> set[int]:
    """Return the inodes in /dev/shm that some living process has mapped or open."""
    used: set[int] = set()
    prefix = f"{SHM}/"
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for line in (folder / "maps").read_text("utf-8", errors="replace").splitlines():
                if prefix in line:
                    used.add(int(line.split(maxsplit=5)[4]))  # address, rights, offset, device, inode, path: proc(5)
        with contextlib.suppress(OSError):
            for handle in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(handle.readlink()).startswith(prefix):
                        used.add(handle.stat().st_ino)
    return used


def npu_memory() -> tuple[int, ...]:
    """Return HBM in use of every NPU in MB, by `npu-smi info`; empty where there is no such tool."""
    if not shutil.which("npu-smi"):
        return ()
    with contextlib.suppress(RunError):
        return tuple(npu.used_mb for npu in npu_smi.npus(process.run(["npu-smi", "info"]).stdout))
    return ()
