"""Plogs stay with their rank, and compiled kernels with their node, whatever the engine runs in."""
# ruff: noqa: F811

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from container_fakes import Fakes
from core_help import change, config
from test_runtimes import ENGINE, EVERY, INHERITED, engine, fakes, until_says  # noqa: F401

from jobs.allocation.node import artifacts, container, staging
from jobs.core.errors import ConfigError, RunError
from jobs.core.files import read_json
from jobs.core.registry import RUNTIMES
from jobs.core.rundir import RankDir

WRITES = """
import os
for name in ("ASCEND_PROCESS_LOG_PATH", "TORCHAIR_CACHE_HOME"):
    os.makedirs(os.environ[name], exist_ok=True)
    open(os.environ[name] + "/written", "a").write("x")
"""


def npus(tmp_path: Path, runtime: str, **more: Any) -> Any:
    """An engine of NPUs, without any, that writes plogs and kernels."""
    given = {
        "engine__name": "vllm_ascend",
        "container__devices": (),
        "container__driver_mounts": (),
    }
    one = engine(tmp_path, runtime, **(given | more))
    (tmp_path / "site/engine.py").write_text(WRITES + ENGINE)
    return one


@pytest.mark.parametrize("runtime", EVERY)
async def test_what_an_engine_writes_outlives_its_container(tmp_path: Path, fakes: Fakes, runtime: str) -> None:
    one = npus(tmp_path, runtime)
    await staging.prepare(one, dict(os.environ) | INHERITED)
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    assert [one for one in one.inspect() if one.error] == []
    assert await one.stop() == []
    assert (one.folder.plogs / "written").read_text() == "x"
    [kernels] = (tmp_path / "node/caches").glob("*/torchair/*/written")
    assert kernels.read_text() == "x"
    if RUNTIMES.get(runtime).copies:
        [run] = fakes.calls("docker", "run")
        assert not any("plogs" in word for word in run), "no mount is needed"
    again = npus(tmp_path, runtime)
    again.folder = RankDir(tmp_path / "again")
    await again.start(dict(os.environ) | INHERITED)
    await until_says(again, "up")
    await again.stop()
    assert kernels.read_text() == "xx", "the next start finds them"


async def test_on_the_node_itself_plogs_go_to_the_rank_too(tmp_path: Path, fakes: Fakes) -> None:
    one = npus(tmp_path, "none", engine__env={"TORCHAIR_CACHE_HOME": f"{tmp_path}/own"})
    await one.start(dict(os.environ))
    await until_says(one, "up")
    await one.stop()
    assert (one.folder.plogs / "written").exists()
    assert read_json(one.folder.command)["env"]["ASCEND_PROCESS_LOG_PATH"] == str(one.folder.plogs)
    assert not (tmp_path / "node/caches").exists()


@pytest.mark.parametrize(
    ("env", "inherited", "runtime", "set_"),
    [
        ({}, {}, "none", True),
        ({"ASCEND_PROCESS_LOG_PATH": "/mine"}, {}, "none", False),
        ({"ASCEND_PROCESS_LOG_PATH": None}, {}, "none", False),
        ({"ASCEND_WORK_PATH": "/mine"}, {}, "enroot", False),
        ({}, {"ASCEND_PROCESS_LOG_PATH": "/shell"}, "none", False),
        ({}, {"ASCEND_PROCESS_LOG_PATH": "/shell"}, "enroot", True),  # it does not reach the inside
    ],
)
def test_who_says_where_plogs_go_is_obeyed(
    env: Mapping[str, Any], inherited: Mapping[str, str], runtime: str, set_: bool
) -> None:
    made = change(config("cluster=slurm"), engine__env=dict(env), container__runtime=runtime)
    found = artifacts.plog_variables(made, RankDir(Path("/runs/r/rank0")), inherited)
    assert found == ({"ASCEND_PROCESS_LOG_PATH": "/runs/r/rank0/ascend"} if set_ else {})


def test_other_engines_have_no_plogs() -> None:
    assert artifacts.plog_variables(config("engine=simulator"), RankDir(Path("/r")), {}) == {}


def test_a_directory_that_no_runtime_can_mount_is_left_out() -> None:
    made = change(config("cluster=slurm"), container__runtime="enroot")
    assert artifacts.plog_variables(made, RankDir(Path("/my runs/rank0")), {}) == {}
    assert artifacts.plog_variables(change(made, container__runtime="none"), RankDir(Path("/my runs/rank0")), {})


def boxed(tmp_path: Path, **more: Any) -> Any:
    given = {"container__runtime": "enroot", "container__image": "/m.sqsh", "container__local_dir": f"{tmp_path}/c"}
    return change(config("cluster=slurm"), **(given | more))


def test_caches_are_the_users_alone_and_apart_by_image(tmp_path: Path) -> None:
    one = artifacts.cache_variables(boxed(tmp_path), 0, "service")
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    two = artifacts.cache_variables(boxed(tmp_path, container__image="/other.sqsh"), 0, "service")
    assert one["XDG_CACHE_HOME"] != two["XDG_CACHE_HOME"]
    assert one["TORCHAIR_CACHE_HOME"].endswith("/torchair/service-0")
    mine = artifacts.cache_variables(boxed(tmp_path, engine__env={"TRITON_CACHE_DIR": "/mine"}), 0, "service")
    assert set(one) - set(mine) == {"TRITON_CACHE_DIR"}
    assert artifacts.cache_variables(boxed(tmp_path, container__local_dir=None), 0, "service") == {}


@pytest.fixture
def strangers(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "theirs"
    folder.mkdir()
    if os.getuid():
        pytest.skip("only root can give a directory away")
    os.chown(folder, 12345, -1)
    yield folder


def test_a_directory_of_somebody_else_is_refused(strangers: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="belongs to somebody else"):
        artifacts.cache_variables(boxed(tmp_path, container__local_dir=str(strangers)), 0, "service")
    with pytest.raises(ConfigError, match="it is no mount"):
        container.check(boxed(tmp_path, container__local_dir="relative"))


def test_the_article_gets_no_mount_of_ours() -> None:
    words = ["experiment=article", "container=docker", "container.registry=reg.example"]
    assert container.caches(config(*words), 0, container.Words.here()) is None
    assert container.caches(config(*words, "container.local_dir=/c"), 0, container.Words.here()) is not None
