"""A number in a line is a rank only where somebody says so who counts as we do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.diagnose.classify import classify
from jobs.diagnose.diagnosis import RankLog


def blamed(line: str, *, own: bool = True, rank: int | None = 1) -> int | None:
    """Return the rank that one line in a log is put down to, of a service on two nodes with eight NPUs each."""
    return classify([replace(RankLog.of(rank, "server.log", line), own=own)], local_sizes=(1, 1)).rank


@pytest.mark.parametrize(
    "line",
    [
        "ERROR 11-24 10:00:08 [w.py:5] RuntimeError: rank 5 is lost",
        "[rank0]: RuntimeError: rank 0 is gone",
        "3: RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB (NPU 3)",
        "0: RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB (NPU 0)",
        "srun: error: npu-node2: task 0: Out Of Memory",
        "slurmstepd-npu-node2: error: pyxis:     [ERROR] No such file or directory: task 0: Killed",
    ],
)
def test_numbers_in_an_engines_own_log_are_workers_and_steps_and_never_its_rank(line: str) -> None:
    assert blamed(line) == 1


def test_a_rank_that_the_service_has_not_is_none() -> None:
    assert blamed("srun: error: npu-node2: task 1: Killed", own=False, rank=None) == 1
    assert blamed("RuntimeError: rank 13 is lost", own=False, rank=None) is None
