"""Every YAML file of conf/ composes, builds and can run, alone and with every other that matters to it."""

from __future__ import annotations

import itertools

import pytest
from core_help import checked, config

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines.ascend import releases, version
from jobs.engines.checkpoint.architecture import architecture_of
from jobs.sweep import grammar

GROUPS = grammar.groups()


def test_the_groups_are_those_of_the_issue() -> None:
    assert set(GROUPS) == {
        "model", "engine", "parallel", "hccl", "container", "cluster", "bench", "limits", "experiment", "moe", "lever",
    }  # fmt: skip
    assert {"deepseek_r1_0528_w8a8", "tiny_llama"} <= set(GROUPS["model"])
    assert {"vllm_ascend", "vllm_cpu", "simulator"} <= set(GROUPS["engine"])
    assert {"dp2_tp8", "dp4_tp4", "dp2_tp1"} <= set(GROUPS["parallel"])
    assert {"auto", "slurm", "local"} <= set(GROUPS["cluster"])
    assert {"article", "demo"} <= set(GROUPS["experiment"])
    assert {"none", "enroot", "pyxis", "docker", "podman", "apptainer"} == set(GROUPS["container"])


LATER = {"dp2_tp8_dcp8": "decode-context-parallel-size", "dp1_tp16": "nnodes", "pp2_tp8": "nnodes"}
"""Layouts that 0.9.1 has no flag for."""


SERVED_FROM = {"deepseek_v3_2_w8a8": "0.13.0", "kimi_k2_5_w4a8": "0.18.0", "glm_5_2_w4a8": "0.23.0",
               "glm_5_3_flash_w8a8": releases()[-1]}  # fmt: skip
"""Models that 0.9.1 does not serve."""

LEVERS = {"dynamic_chunks": ["engine.release=0.23.0", "parallel=pp2_tp8"], "mtp1": ["engine.release=0.13.0"],
          "mtp3": ["engine.release=0.13.0"], "kv_int8": ["engine.release=0.23.0"],
          "kvpp": [f"engine.release={releases()[-1]}"],
          "short_request_first": [f"engine.release={releases()[-1]}"]}  # fmt: skip

UNDESCRIBED = (
    {"glm_5_3_flash_w8a8", "official_glm_5_3_flash", "kvpp", "short_request_first"}
    if max(map(version, releases())) < (0, 30)
    else set()
)
"""What needs a release that is not described here yet."""


def for_layout(layout: str, *overrides: str) -> Config:
    """Return a config with this layout, of a release that has it and serves the model."""
    model = next((word.removeprefix("model=") for word in overrides if word.startswith("model=")), "")
    release = SERVED_FROM.get(model, "0.13.0" if layout in LATER else None)
    return config(f"parallel={layout}", *overrides, *([f"engine.release={release}"] if release else []))


@pytest.mark.parametrize("layout", LATER)
def test_a_layout_that_the_release_has_no_flag_for_is_refused(layout: str) -> None:
    with pytest.raises(ConfigError, match=f"release 0.9.1 has no --{LATER[layout]}"):
        checked(config(f"parallel={layout}"))
    checked(for_layout(layout))


@pytest.mark.parametrize("choice", [f"{group}={option}" for group, options in GROUPS.items() for option in options])
def test_every_file_composes_builds_and_can_run(choice: str) -> None:
    group, _, option = choice.partition("=")
    if option in UNDESCRIBED:
        with pytest.raises(ConfigError):
            checked(config(choice))
        return
    # A container has no image of its own: which one fits is the engine's and the site's business.
    image = ["container.image=test/image:v1"] if group == "container" else []
    # Four heads cannot be cut over eight NPUs; the key of FlashComm 1 came with 0.23.
    needed = {"tiny_llama": ["parallel=dp2_tp1"], "flashcomm1": ["engine.release=0.23.0"]}.get(option, [])
    needed += LEVERS.get(option, [])
    needed = [*needed, *([f"engine.release={SERVED_FROM[option]}"] if option in SERVED_FROM else [])]
    checked(for_layout(option) if group == "parallel" else config(choice, *image, *needed))


@pytest.mark.parametrize(
    "choices", list(itertools.product(GROUPS["model"], GROUPS["engine"], GROUPS["parallel"])), ids="-".join
)
def test_every_combination_of_model_engine_and_layout_can_run(choices: tuple[str, str, str]) -> None:
    model, engine, parallel = choices
    if model in UNDESCRIBED and engine != "vllm_cpu":
        return
    made = for_layout(parallel, f"model={model}", f"engine={engine}")
    if (arch := architecture_of(made)) and arch.heads % made.parallel.tensor_parallel_size:
        with pytest.raises(ConfigError, match="attention heads of the model cannot be cut"):
            checked(made)
        return
    checked(made)
    assert (made.model.name, made.engine.name) == (model, engine)
