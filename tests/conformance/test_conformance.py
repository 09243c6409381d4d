"""The vendor's own code as a test: what it makes of every preset, and that `check` refuses what it refuses.

Three releases in `make test`: the default, the advised and the newest; CONFORMANCE=all, or release names, for others
(`make ascend-conformance`). Where the packages cannot come, all is skipped, and says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from compare import cases, differences, refusal
from core_help import ROOT, config

from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.layout import local_sizes
from jobs.engines.ascend import ADVISED, release, releases
from jobs.engines.ascend.mc2 import mc2_capacity
from jobs.engines.ascend.real import ask, sources
from jobs.sweep import check

DEFAULT = config("engine=vllm_ascend").engine.release
ASKED = os.environ.get("CONFORMANCE", "")
RELEASES = releases() if ASKED == "all" else tuple(ASKED.split()) or (DEFAULT, ADVISED, releases()[-1])
PRESETS = (
    "experiment=article", "experiment=official_0_13", "experiment=official_0_23",
    "experiment=article parallel=pp2_tp8", "experiment=article parallel=dp1_tp16",
    "experiment=article parallel=dp2_tp8_dcp8", "experiment=official_deepseek_v3_1",
    "experiment=official_deepseek_v3_2", "experiment=official_glm_5_2", "experiment=official_kimi_k2_5",
    "experiment=official_glm_5_3_flash", "experiment=two_replicas parallel=replicas2_tp8 bench.concurrency=4",
    "experiment=article_bench", "experiment=speculation", "experiment=expert_parallel",
    "experiment=official_glm_5_2 lever=kv_int8", "experiment=long_context lever=dynamic_chunks parallel=pp2_tp8",
    *(f"experiment=long_context parallel={one}" for one in ("dp1_tp16", "dp2_tp8_dcp8", "dp4_tp4", "pp2_tp8")),
    *(f"experiment=long_context lever={one.stem}" for one in sorted((ROOT / "conf/lever").glob("*.yaml"))),
    *(f"experiment=expert_parallel moe={one.stem}" for one in sorted((ROOT / "conf/moe").glob("*.yaml"))),
)  # fmt: skip
"""Recipes, layouts and levers, as far as `check` accepts them at a release; the first three in `make test`."""

SOME = 24
"""Provoked cases of a release in `make test`, where each takes a second; `make ascend-conformance` has all."""

DERIVED = {"enable_sp_by_pass", "pd_tp_ratio", "pd_head_ratio", "num_head_replica", "enable_sparse_li_c4",
           "enable_sparse_sfa_turboquant"}  # fmt: skip
"""What nobody can give: the factory works them out."""

each = pytest.mark.parametrize("name", RELEASES)
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(autouse=True)
def packages(name: str) -> None:
    """Skip where the release's packages, or vLLM's dependencies, are not to be had."""
    if not ask.PYTHON.exists():
        pytest.skip(f"{ask.PYTHON} is not there: run `make setup`")
    try:
        sources.obtain(name)
    except RunError as error:
        pytest.skip(str(error))


def presets(name: str) -> dict[str, Config]:
    """Return the presets that `check` accepts at a release."""
    made = {preset: config(*preset.split(), f"engine.release={name}") for preset in PRESETS[: None if ASKED else 3]}
    return {k: v for k, v in made.items() if not any(one.severity == "error" for one in check.findings(v))}


@each
def test_the_real_code_and_check_say_the_same(name: str) -> None:
    """Both in one go of the real code, whose imports take longest."""
    made, asked = presets(name), cases(name, None if ASKED else SOME)
    assert made and len(asked) >= (60 if ASKED else SOME // 2)
    answers = ask.ask_points(name, made.values(), asked.values())
    accepted_by_both_ranks(name, made, answers[: len(made)])
    provoked = answers[len(made) :]
    found, accepted = differences(name, asked, provoked), sum(refusal(one) is None for one in provoked)
    print(f"{name}: {len(asked)} cases, {accepted} accepted, {len(found)} differences")
    assert not found, "\n".join(map(str, found))


def accepted_by_both_ranks(name: str, made: Mapping[str, Config], told: Sequence[Sequence[ask.Answer]]) -> None:
    """Sizes and hash are equal on both: a difference in the hash is vLLM's "Configuration mismatch" after the load.

    Every attribute that the plugin's finished configuration has under a name of a key is described.
    """
    for (preset, point), answers in zip(made.items(), told, strict=True):
        assert refusal(answers) is None, preset
        head, headless = (one.config or {} for one in answers)
        assert head["parallel_config.hash"] == headless["parallel_config.hash"], preset
        assert _sizes(head) == _sizes(headless) == _asked(point), preset
        if head["mc2_tokens"] is not None:
            assert head["mc2_tokens"] == mc2_capacity(point, name), preset
        if release(name).strict:  # before, attributes and keys are two things
            assert set(head["ascend_config"] or {}) - DERIVED <= set(release(name).keys), preset


def _asked(point: Config) -> dict[str, Any]:
    p = point.parallel
    return {
        "parallel_config.tensor_parallel_size": p.tensor_parallel_size,
        "parallel_config.data_parallel_size": p.data_parallel_size,
        "parallel_config.data_parallel_size_local": local_sizes(point)[0],
        "parallel_config.enable_expert_parallel": p.enable_expert_parallel,
        "scheduler_config.max_num_seqs": p.max_num_seqs,
        "model_config.max_model_len": p.max_model_len,
        "cache_config.gpu_memory_utilization": p.gpu_memory_utilization,
    }


def _sizes(told: Mapping[str, Any]) -> dict[str, Any]:
    return {key: told[key] for key in _asked(config())}
