"""Ranks that share this host: two sweeps at once do not meet, and no rank waits for one that has ended."""

from __future__ import annotations

import socket
from pathlib import Path

import pandas as pd
import pytest
from test_rehearsal import SHORT, finish, start, the_sweep

from jobs.core.files import read_json

pytestmark = pytest.mark.usefixtures("warm")

PORTS = ("api_port", "data_parallel_rpc_port", "control_port")


def test_two_sweeps_at_once_do_not_meet(tmp_path: Path) -> None:
    roots = [tmp_path / "one", tmp_path / "two"]
    running = [start(root, *SHORT) for root in roots]
    for one in running:
        finish(one, 0)
    heads = [read_json(next(iter(the_sweep(root).allocations())).head) for root in roots]
    assert len({head[name] for head in heads for name in PORTS}) == 6


@pytest.mark.timeout(120)
def test_rank_1_does_not_wait_for_a_rank_0_that_ended_at_its_start(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:  # in the backlog of which rank 1 would wait
        port = taken.getsockname()[1]
        finish(start(tmp_path, *SHORT, f"cluster.control_port={port}"), 1)  # limits.rendezvous_s is 300
    sweep = the_sweep(tmp_path)
    [reason] = pd.read_parquet(sweep.table("parquet"))["invalid_reason"]
    assert f"cluster.control_port = {port}: it is taken by process " in reason
    [allocation] = sweep.allocations()
    assert "error: rank 0 = localhost: it has ended." in allocation.stdout(1).read_text()
