"""How many processes the kernel has killed for lack of memory: it counts them for each cgroup (cgroups v1 and v2).

In no other place does an ordinary user see that: dmesg is closed on most nodes, and SIGKILL names no sender.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from jobs.core.errors import RunError

Read = Callable[[Path], str]

_COUNTERS = {"memory": "/sys/fs/cgroup/memory{}/memory.oom_control", "": "/sys/fs/cgroup{}/memory.events"}
"""The file with `oom_kill N`, by the controller's name in /proc/PID/cgroup (Linux, admin-guide/cgroup-v1, -v2)."""


def kills(read: Read) -> int | None:
    """Return the count of the group of whoever reads; None: it is not to be seen.

    A container sees its own group at the top, under whatever path /proc names it.
    """
    with contextlib.suppress(OSError, RunError):
        for line in read(Path("/proc/self/cgroup")).splitlines():
            _, controllers, path = line.split(":", 2)
            for name, file in _COUNTERS.items():
                if name in controllers.split(","):
                    for place in (path.rstrip("/"), ""):
                        with contextlib.suppress(OSError, RunError):
                            if found := re.search(r"^oom_kill (\d+)$", read(Path(file.format(place))), re.MULTILINE):
                                return int(found[1])
    return None


def told(before: int | None, now: int | None) -> str | None:
    """Return what both counts say; None: none was killed meanwhile."""
    killed = (now or 0) - (before or 0)
    return f"memory cgroup out of memory: the kernel killed {killed} meanwhile" if killed > 0 else None
