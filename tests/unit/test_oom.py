"""What the kernel counts of processes that it killed for lack of memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from jobs.allocation.node import oom
from jobs.core.errors import RunError

V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill {}\noom_group_kill 0\n"


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"/proc/self/cgroup": "0::/system.slice/job_7\n",
          "/sys/fs/cgroup/system.slice/job_7/memory.events": V2.format(2)}, 2),
        ({"/proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/slurm/job_7\n0::/\n",
          "/sys/fs/cgroup/memory/slurm/job_7/memory.oom_control": V1.format(3),
          "/sys/fs/cgroup/memory/memory.oom_control": V1.format(9)}, 3),
        # Inside of a container its group is at the top, and /proc may name it as the node does.
        ({"/proc/self/cgroup": "4:memory:/docker/abc\n0::/\n",
          "/sys/fs/cgroup/memory/memory.oom_control": V1.format(1)}, 1),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.events": V2.format(4)}, 4),
        ({"/proc/self/cgroup": "0::/x\n"}, None),
        ({"/proc/self/cgroup": "4:memory:/\n", "/sys/fs/cgroup/memory/memory.oom_control": "under_oom 0\n"}, None),
        ({}, None),
    ],
    ids=["v2", "v1", "v1 inside", "v2 inside", "none there", "an old kernel", "nothing to be seen"],
)  # fmt: skip
def test_the_count_of_its_own_group_is_read(files: Mapping[str, str], count: int | None) -> None:
    def read(path: Path) -> str:
        if str(path) not in files:
            raise RunError("container.runtime", "docker", "no such file", "None.")
        return files[str(path)]

    assert oom.kills(read) == count


def test_this_process_can_be_asked() -> None:
    assert oom.kills(lambda path: path.read_text()) in (None, *range(10_000))


@pytest.mark.parametrize(("before", "now"), [(None, None), (0, 0), (3, 3), (3, None), (5, 1)])
def test_nothing_is_said_where_none_was_killed(before: int | None, now: int | None) -> None:
    assert oom.told(before, now) is None
