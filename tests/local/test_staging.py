"""Before the engines start: both ranks stage and check, rank 0 compares, and nothing is left of what was stopped."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_help import shard, write
from core_help import change, config
from supervisor_help import PATIENCE_S, Running, tagged
from test_supervisor import Make, run  # noqa: F401

from jobs.allocation.node import staging
from jobs.allocation.node.engine import Engine
from jobs.allocation.supervisor import ServiceFailed
from jobs.core.config import Config
from jobs.core.files import read_json
from jobs.engines.checkpoint import stage

CHECKED = {"engine__checks_model_path": True, "model__served_model_name": "deepseek_r1"}


async def failed(running: Running) -> str:
    with pytest.raises(ServiceFailed) as caught:
        await running.start()
    return caught.value.reason


def argv(running: Running, rank: int) -> list[str]:
    return list(read_json(running.stage.folder.rank(rank).command)["argv"])


async def test_both_ranks_serve_the_staged_copy(run: Make, tmp_path: Path) -> None:  # noqa: F811
    source, local = write(tmp_path / "R1"), tmp_path / "local"
    settings = CHECKED | {"model__path": str(source), "model__stage_to": str(local)}
    running = await run(settings=settings)
    await running.start()
    assert running.supervisor.prepared_s > 0
    [copy] = [path for path in local.iterdir() if path.is_dir()]
    assert stage.is_staged(copy)
    for rank in (0, 1):
        words = argv(running, rank)
        assert words[words.index("serve") + 1] == str(copy)
        states = running.stage.states(rank)
        assert states.index("staging") < states.index("staged") < states.index("loading")
        assert read_json(running.stage.folder.rank(rank).checkpoint)["path"] == str(copy)
    assert await running.stop() == []
    assert tagged(running.stage) == []


async def test_without_staging_sizes_are_checked(run: Make, tmp_path: Path) -> None:  # noqa: F811
    source = write(tmp_path / "R1")
    running = await run(settings=CHECKED | {"model__path": str(source)})
    await running.start()
    assert running.stage.states(1)[:3] == ["checking", "staged", "loading"]
    assert argv(running, 0)[argv(running, 0).index("serve") + 1] == str(source)
    assert await running.stop() == []


async def test_a_damaged_checkpoint_ends_the_service_before_any_engine(run: Make, tmp_path: Path) -> None:  # noqa: F811
    source = write(tmp_path / "R1")
    os.truncate(shard(source), 3000)
    running = await run(settings=CHECKED | {"model__path": str(source)})
    reason = await failed(running)
    assert reason.startswith("rank ")
    assert "model-00001-of-00002.safetensors: it has 3,000 bytes" in reason
    assert "staged" not in running.stage.states(0) + running.stage.states(1)
    assert await running.stop() == []


def other(running: list[Running], **values: Any) -> Callable[[Any], Engine]:
    """Make rank 1's engine with other settings than rank 0's."""

    def make(_: Any) -> Engine:
        engine = running[0].stage.engine(1)
        engine.config = change(engine.config, **values)
        return engine

    return make


async def test_two_nodes_with_two_checkpoints_are_told_apart(run: Make, tmp_path: Path) -> None:  # noqa: F811
    one, two = write(tmp_path / "one"), write(tmp_path / "two", quantized="W8A8")
    made: list[Running] = []
    make_engine = other(made, model__path=str(two))
    made.append(await run(settings=CHECKED | {"model__path": str(one)}, make_engine=make_engine))
    reason = await failed(made[0])
    assert reason.startswith("rank 1 (headless): its checkpoint is not that of rank 0: another quant_model_description")
    assert "config.json (" not in reason
    assert await made[0].stop() == []


async def test_a_checkpoint_that_is_not_w8a8_ends_the_service(run: Make, tmp_path: Path) -> None:  # noqa: F811
    source = write(tmp_path / "R1", dtype="BF16")
    running = await run(settings=CHECKED | {"model__path": str(source), "model__quantization": "ascend"})
    assert "only 0% of the model is INT8" in await failed(running)
    assert await running.stop() == []


async def test_other_weights_may_be_as_they_are(run: Make, tmp_path: Path) -> None:  # noqa: F811
    source = write(tmp_path / "R1", dtype="BF16")
    running = await run(settings=CHECKED | {"model__path": str(source), "model__quantization": None})
    await running.start()
    assert await running.stop() == []


async def test_sampled_content_tells_two_checkpoints_of_one_size_apart(run: Make, tmp_path: Path) -> None:  # noqa: F811
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    content = shard(two).read_bytes()
    shard(two).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    made: list[Running] = []
    settings = CHECKED | {"model__path": str(one), "model__verify": "sampled"}
    made.append(await run(settings=settings, make_engine=other(made, model__path=str(two))))
    assert "another sampled content of weight files (" in await failed(made[0])
    assert await made[0].stop() == []


@pytest.mark.parametrize("rank", [0, 1])
async def test_the_rank_that_cannot_stage_is_named(run: Make, tmp_path: Path, rank: int) -> None:  # noqa: F811
    source = write(tmp_path / "R1")
    (tmp_path / "file").write_text("")
    bad, good = str(tmp_path / "file"), str(tmp_path / "local")
    made: list[Running] = []
    settings = CHECKED | {"model__path": str(source), "model__stage_to": good if rank else bad}
    made.append(await run(settings=settings, make_engine=other(made, model__stage_to=bad if rank else good)))
    reason = await failed(made[0])
    assert reason.startswith(f"rank {rank} ({'headless' if rank else 'head'}): model.stage_to = {bad}")
    assert await made[0].stop() == []


async def test_a_stop_while_staging_leaves_nothing(run: Make, tmp_path: Path) -> None:  # noqa: F811
    """Another job of the node holds the lock, so both ranks wait; then the job is cancelled."""
    source, local = write(tmp_path / "R1"), tmp_path / "local"
    local.mkdir()
    name = f"R1-{stage.identity(source)}"
    handle = os.open(local / f".{name}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    running = await run(settings=CHECKED | {"model__path": str(source), "model__stage_to": str(local)})
    starting = asyncio.create_task(running.start())
    async with asyncio.timeout(PATIENCE_S):
        while len(tagged(running.stage)) < 2:
            await asyncio.sleep(0.02)
    running.stage.stopping.set_result("cancelled or preempted (SIGTERM)")
    with pytest.raises(ServiceFailed, match="cancelled or preempted"):
        await starting
    assert await running.stop() == []
    assert tagged(running.stage) == []
    os.close(handle)


async def test_the_limit_has_its_own_reason(run: Make, tmp_path: Path) -> None:  # noqa: F811
    source, local = write(tmp_path / "R1"), tmp_path / "local"
    local.mkdir()
    handle = os.open(local / f".R1-{stage.identity(source)}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    settings = CHECKED | {"model__path": str(source), "model__stage_to": str(local), "limits__stage_s": 1.5}
    running = await run(settings=settings)
    reason = await failed(running)
    assert "limits.stage_s = 1.5: the checkpoint was not staged and checked in time" in reason
    assert await running.stop() == []
    os.close(handle)


def test_clients_keep_the_name_that_they_know(tmp_path: Path) -> None:
    made: Config = config("model.served_model_name=null", "model.path=/models/R1")
    served = staging.served_from(made, "/local/R1-1")
    assert (served.model.path, served.model.name_for_clients) == ("/local/R1-1", "/models/R1")


def test_nothing_is_done_where_nothing_can_be_seen() -> None:
    assert not staging.wanted(config("engine=simulator"))
    assert staging.wanted(config("cluster=slurm"))
    assert not staging.wanted(config("cluster=slurm", "model.verify=none"))
    assert staging.wanted(config("cluster=slurm", "model.verify=none", "model.stage_to=/local"))
