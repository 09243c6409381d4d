"""What every registered container runtime owes, those of others too. Started: tests/local/test_runtimes.py."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from containers.base import Local, Order, Runtime
from containers.spec import Mount, Spec, parse_image
from jobs.core.errors import RunError
from jobs.core.registry import RUNTIMES

COMMAND = ("bash", "/tmp/sv/enter.sh", "vllm", "serve", "--additional-config", '{"a": "b c"}')
METHODS = {"check", "look", "fetch", "start", "reach", "sweep"}


@pytest.fixture(params=RUNTIMES.names())
def runtime(request: pytest.FixtureRequest) -> Runtime:
    found: Runtime = RUNTIMES.get(request.param)
    assert found.name == request.param
    return found


@pytest.fixture
def order(runtime: Runtime, tmp_path: Path) -> Order:
    """What a rank of this runtime orders, with a secret among the variables."""
    spec = Spec(
        runtime.name,
        parse_image("r.example#a/b:v1"),
        None if runtime.unnamed else "mine",
        (Mount("/models", "/models", ("ro",)),),
        env={"VLLM_API_KEY": "the-secret", "HCCL_BUFFSIZE": "200"},
    )
    local, store = Local(tmp_path / "local"), tmp_path / "images"
    return Order(spec, "7/service/0", local, store, "node1", tmp_path, COMMAND, {"PATH": "/usr/bin"})


def test_the_seam_has_six_methods() -> None:
    assert {name for name, what in vars(Runtime).items() if callable(what) and not name.startswith("_")} == METHODS


def test_a_plain_container_is_accepted(runtime: Runtime, order: Order) -> None:
    runtime.check(order.spec)


def test_each_program_that_is_not_there_is_named(
    runtime: Runtime, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for missing in runtime.programs:
        for name in runtime.programs:
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
        (folder / missing).unlink()
        with pytest.raises(RunError) as caught:
            runtime.check(order.spec, here=True)
        assert (caught.value.key, caught.value.value) == ("container.runtime", runtime.name)
        assert f"no {missing} on PATH" in caught.value.reason


def test_the_last_command_runs_ours_inside_and_no_secret_stands_on_a_line(
    runtime: Runtime, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # nothing is run for it
    planned = replace(order, tag="", node="{node}", folder=Path("/tmp/{scratch}"))
    for one in (order, planned):
        commands = runtime.start(one).commands
        assert tuple(commands[-1][-len(COMMAND) :]) == COMMAND
        assert not [word for command in commands for word in command if "the-secret" in word]
    assert "the-secret" not in repr(order)


def test_a_closed_container_is_one_command_without_a_network_that_changes_nothing(
    runtime: Runtime, order: Order
) -> None:
    if not runtime.closes:
        assert runtime.brings == ""
        return
    spec = replace(order.spec, writable=False, closed=True, env={})
    [argv] = runtime.start(replace(order, spec=spec, command=("python3", "/x/run.py"))).commands
    assert argv[argv.index("--network") + 1] == "none"
    assert [word for word in argv if word.startswith("/models")] == ["/models:/models:ro"]
    assert argv[-1] == "/x/run.py"
    assert "r.example/a/b:v1" in argv or any(word.endswith(".sif") for word in argv)
    assert not {"--net=host", "--device", "--env", "--writable-tmpfs", "/dev/shm:/dev/shm"} & set(argv)
    assert "IMAGE" in runtime.brings


def test_an_order_is_read_as_it_was_written(order: Order, tmp_path: Path) -> None:
    order.write(tmp_path / "order.json", 0o600)
    assert Order.read(tmp_path / "order.json") == order
    assert (tmp_path / "order.json").stat().st_mode & 0o77 == 0, "the API key is in it"


def test_a_further_command_joins_a_container_that_has_said_where_it_is(runtime: Runtime, order: Order) -> None:
    order.files.pid.write_text(f"{os.getpid()}\n")
    order.files.proof.write_text("namespace mnt:[1]\nstep 7.3\n")
    joining = runtime.reach(order, {}).join(["vllm", "bench"])
    assert joining.commands[-1][-2:] == ["vllm", "bench"]


def test_where_no_engine_was_started_nothing_is_left(runtime: Runtime, order: Order) -> None:
    assert runtime.reach(replace(order, folder=None), {}).remove() == []
