"""Config to the environment of one rank's engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from core_help import change, config

from jobs.core.errors import ConfigError
from jobs.core.layout import Placement
from jobs.engines.base import engine_of
from jobs.engines.simulator.settings import read_spec
from jobs.engines.vllm import environment

PLACE = Placement(1, 2, "10.0.0.2", "eth0", "10.0.0.1", "8000", "8001")
SLURM = config("cluster=slurm")


def variables(**values: Any) -> dict[str, str]:
    return environment.variables(change(SLURM, **values), PLACE)


def test_each_rank_has_the_address_of_its_own_interface() -> None:
    assert variables()["HCCL_IF_IP"] == "10.0.0.2"
    assert variables(hccl__if_ip="10.9.9.9")["HCCL_IF_IP"] == "10.9.9.9"
    assert "HCCL_IF_IP" not in variables(hccl__if_ip=None)


@pytest.mark.parametrize(
    ("setting", "hccl", "bare"),
    [
        ("auto", "eth0", "eth0"),
        ("enp61s0f0", "enp61s0f0", "enp61s0f0"),
        ("=enp61s0f0", "=enp61s0f0", "enp61s0f0"),  # HCCL's exact form; GLOO and TP know only names
        ("enp,eth", "enp,eth", "eth0"),
        ("^docker", "^docker", "eth0"),
        (None, None, None),
    ],
)
def test_the_interface_of_hccl_tp_and_gloo(setting: str | None, hccl: str | None, bare: str | None) -> None:
    made = variables(hccl__socket_ifname=setting)
    assert made.get("HCCL_SOCKET_IFNAME") == hccl
    assert made.get("GLOO_SOCKET_IFNAME") == made.get("TP_SOCKET_IFNAME") == bare


@pytest.mark.parametrize(("key", "name"), environment.HCCL_VARIABLES.items())
def test_an_hccl_key_is_its_variable_and_null_is_not_set(key: str, name: str) -> None:
    assert variables(**{f"hccl__{key}": 17})[name] == "17"
    assert name not in variables(**{f"hccl__{key}": None})


def test_values_reach_the_engine_as_text() -> None:
    env = {"A": 1, "B": True, "C": False, "D": "a b'\"$(x)\n", "E": None, "F": 0.5, "G": ""}
    made = variables(engine__env=env)
    assert {name: made.get(name) for name in env} == {
        "A": "1", "B": "true", "C": "false", "D": "a b'\"$(x)\n", "E": None, "F": "0.5", "G": "",
    }  # fmt: skip


def test_words_in_braces_are_filled_in_on_the_node_and_other_braces_stay() -> None:
    env = {"A": "{address}", "B": "tcp://{master_address}:1/{rank}", "C": "{interface}", "D": "{unknown} {} {{x}}"}
    made = variables(engine__env=env)
    assert (made["A"], made["B"], made["C"]) == ("10.0.0.2", "tcp://10.0.0.1:1/1", "eth0")
    assert made["D"] == "{unknown} {} {{x}}"


def test_the_rehearsal_engine_is_told_what_flags_cannot_say() -> None:
    assert "REHEARSAL_SPEC" not in variables()
    made = engine_of(config("engine=simulator")).environment(config("engine=simulator"), PLACE)
    spec = read_spec(made["REHEARSAL_SPEC"])
    assert (spec.rank, spec.release, spec.npus_per_node) == (1, "0.9.1", 8)
    assert spec.shape == config().model.shape
    assert json.loads(made["REHEARSAL_SPEC"])["hardware"]["peak_tflops"] == 752.0


def test_launcher_and_proxy_variables_do_not_reach_the_engine() -> None:
    inherited = {
        "PATH": "/bin", "HOME": "/root", "LD_LIBRARY_PATH": "/x", "SLURM_PROCID": "1", "SLURM_JOB_ID": "7",
        "SBATCH_PARTITION": "p", "SRUN_CPUS": "1", "PMI_RANK": "0", "PMIX_RANK": "0", "PMI2_X": "1",
        "OMPI_COMM_WORLD_RANK": "0", "SUBMITIT_EXECUTOR": "slurm", "HYDRA_FULL_ERROR": "1",
        "http_proxy": "p", "HTTPS_PROXY": "p", "no_proxy": "localhost",
    }  # fmt: skip
    assert environment.whole({"A": "1", "PATH": "/ours"}, inherited) == {
        "A": "1", "PATH": "/ours", "HOME": "/root", "LD_LIBRARY_PATH": "/x", "no_proxy": "localhost",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "key"), environment.OWNED.items())
def test_a_variable_with_a_key_of_its_own_is_refused(name: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        environment.check_env({name: "x"})
    assert caught.value.key == f"engine.env.{name}"
    assert key in caught.value.remedy
    environment.check_env({name: None})  # taking one out of an experiment is no second value


@pytest.mark.parametrize("env", [{"A": [1]}, {"A": {"b": 1}}, {"A=B": "1"}, {"": 1}, {"1A": 1}, {"A B": 1}])
def test_what_cannot_be_a_variable_is_refused(env: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        environment.check_env(env)
    assert caught.value.key == f"engine.env.{next(iter(env))}"
