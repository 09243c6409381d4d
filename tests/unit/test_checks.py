"""What is refused before anything is submitted, in the process (test_launch_cli.py: as a real program)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from core_help import change, checked, composer, config, plan_of

from jobs.cluster.base import settled
from jobs.core.errors import ConfigError, RunError, UserError
from jobs.sweep import road
from jobs.sweep.start import start

BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "sum of local sizes": (
        {"parallel__data_parallel_size": 3, "parallel__data_parallel_size_local": (1, 1)},
        "parallel.data_parallel_size",
        "add up to 2",
    ),
    "more NPUs than a node has": ({"cluster__npus_per_node": 4}, "parallel.tensor_parallel_size", "8 NPUs"),
    "no load": ({"bench__concurrency": None}, "bench.concurrency", "no load"),
    "owned flag": ({"engine__args": {"port": 1}}, "engine.args.port", "owns --port"),
    "flag with a key": ({"engine__args": {"seed": 1}}, "engine.args.seed", "key of its own"),
    "variable with a key": ({"engine__env": {"HCCL_BUFFSIZE": 1}}, "engine.env.HCCL_BUFFSIZE", "key of its own"),
    "variable that is a list": ({"engine__env": {"A": [1]}}, "engine.env.A", "one text"),
    "request longer than the model length": (
        {"parallel__max_model_len": 1151},
        "parallel.max_model_len",
        "= 1152",
    ),
    "no token ids": ({"model__shape__token_ids": (5, 5)}, "model.shape.token_ids", "below"),
    "negative token ids": ({"model__shape__token_ids": (-1, 5)}, "model.shape.token_ids", "below"),
    "the same port twice": (
        {"engine__port": 8000, "cluster__control_port": 8000},
        "cluster.control_port",
        "engine.port",
    ),
    "an interface that is no name": ({"hccl__socket_ifname": "^"}, "hccl.socket_ifname", "misplaced operator"),
    "an unknown fault": (
        {"engine__name": "simulator", "engine__rehearsal__faults": ({"rank": 0, "kind": "nosuch"},)},
        "engine.rehearsal.faults[0].kind",
        "",
    ),
}


@pytest.mark.parametrize(("values", "key", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_error(values: dict[str, Any], key: str, words: str) -> None:
    checked(config())
    bad = change(config(), **values)
    with pytest.raises(ConfigError) as caught:
        checked(bad)
    error = caught.value
    assert error.key == key
    assert words in error.reason
    assert error.exit_code == 2
    assert str(error).startswith(f"{key} = {error.value}: ")
    assert error.remedy
    assert error.remedy in str(error)
    with pytest.raises(ConfigError):
        plan_of(bad)


def test_what_is_allowed() -> None:
    checked(change(config(), parallel__max_model_len=1152))
    checked(change(config(), bench__concurrency=None, bench__request_rate=1.0))
    checked(change(config(), parallel__max_model_len=100, bench__endpoint="chat"))
    # A configured port is not held against ports that only a job id will tell.
    for port in range(17000, 17003):
        checked(change(config(), engine__port=port))
        checked(change(config(), cluster__control_port=port))


def plan(*overrides: str, empty_path: Path) -> Any:
    return road.plan([[*overrides, f"results.root={empty_path / 'runs'}"]], composer)


def refused(made: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        start(made)
    return caught.value


def test_slurm_without_sbatch_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    made = plan("cluster=slurm", empty_path=tmp_path)  # a plan can be made anywhere
    assert settled("auto") == "local"
    error = refused(made)
    assert isinstance(error, ConfigError)
    assert (error.key, error.value, error.exit_code) == ("cluster.kind", "slurm", 2)
    assert "sbatch" in error.reason
    assert not list(tmp_path.rglob("*"))


def test_a_missing_engine_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    overrides = ("cluster=local", "engine.source=[]", f"model.path={model}")
    error = refused(plan(*overrides, "engine.command=[no-such-engine]", empty_path=tmp_path))
    assert isinstance(error, RunError)
    assert (error.key, error.value, error.exit_code) == ("engine.command", "no-such-engine", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_missing_checkpoint_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    error = refused(
        plan("cluster=local", "engine.command=[bash]", "engine.source=[]", "model.path=/no/such", empty_path=tmp_path)
    )
    assert (error.key, str(error.value), error.exit_code) == ("model.path", "/no/such", 1)
    assert not list(tmp_path.iterdir())


def test_a_config_survives_its_file(tmp_path: Path) -> None:
    from jobs.core.rundir import SweepDir
    from jobs.core.tasks import read_config, write_config

    odd = {"A": "no", "B": "1e3", "C": "08", "D": None, "E": True, "F": "a: b #c\n'\"", "G": "8:00:00", "H": 1.0}
    made = change(config("experiment=article"), engine__env=odd, parallel__data_parallel_size_local=(1, 1))
    write_config(SweepDir(tmp_path), "p", made)
    assert asdict(read_config(SweepDir(tmp_path), "p")) == asdict(made)
