"""What is left on a node: removed where it is nobody's, left alone where somebody lives with it."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
from preflight_help import fake_node

from jobs.allocation.node import cleanup
from jobs.allocation.node.cleanup import SHM, baseline, leftovers, unused


@pytest.fixture
def segment() -> Iterator[SharedMemory]:
    """Shared memory that this process has mapped."""
    made = SharedMemory(create=True, size=4096)
    yield made
    made.close()
    if (SHM / made.name).exists():
        made.unlink()


def test_what_a_dead_engine_left_is_removed_and_everything_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "SHM", tmp_path)
    (tmp_path / "psm_before").touch()
    before = baseline()
    assert before.segments == {"psm_before"}
    for name in ("psm_1a2b", "sem.mp-x1", "torch_12_34", "something_else"):
        (tmp_path / name).touch()
    with (tmp_path / "psm_open").open("w"):
        assert leftovers(before, []) == []
        assert {path.name for path in tmp_path.iterdir()} == {"psm_before", "psm_open", "something_else"}


def test_mapped_memory_is_in_use(segment: SharedMemory) -> None:
    assert unused([segment.name]) == []


def test_a_semaphore_of_a_living_process_is_in_use_though_it_was_mapped_under_another_name() -> None:
    """Another job of ours that starts its engine on this node: without its semaphores its workers would not start."""
    lock = multiprocessing.get_context("spawn").Lock()
    name = f"sem.{lock._semlock.name[1:]}"  # type: ignore[attr-defined]
    assert (SHM / name).exists()
    assert unused([name]) == []


def test_a_name_that_is_gone_by_now_is_nothing() -> None:
    assert unused(["psm_no_such_thing"]) == []


def test_an_open_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert leftovers(baseline(), [port]) == [f"port {port} is still open"]
    assert leftovers(baseline(), [port]) == []


def test_the_memory_of_every_npu_is_read_from_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert cleanup.npu_memory() == ()
    node = fake_node(tmp_path / "node", {"used_mb": 3400, "npus": {"1": {"used_mb": 61000}}}, count=2)
    monkeypatch.setenv("PATH", f"{node}:/usr/bin:/bin")
    assert cleanup.npu_memory() == (3400, 61000)
