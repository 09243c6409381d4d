"""The engine's own limit of a load against the predicted load."""

from __future__ import annotations

import pytest
from core_help import config

from jobs.sweep import check

SLOW = "cluster.model_read_gb_s=0.5"


def limits(*overrides: str) -> list[tuple[str, str]]:
    return [(one.key, one.reason) for one in check.findings(config(*overrides)) if one.rule == "C5"]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("experiment=official_0_23", SLOW, "engine.env.VLLM_ENGINE_READY_TIMEOUT_S=900"), "READY_TIMEOUT_S"),
        (("experiment=official_0_23", SLOW, "engine.env.VLLM_ENGINE_READY_TIMEOUT_S=7200"), None),
        (("experiment=official_0_23", "engine.env.VLLM_ENGINE_READY_TIMEOUT_S=900"), "READY_TIMEOUT_S"),
        (("experiment=official_0_23", "engine.env.VLLM_ENGINE_READY_TIMEOUT_S=1800"), None),
        (("experiment=official_0_13", SLOW, "+engine.args.api-server-count=4"), "api-server-count"),
        (("experiment=official_0_13", SLOW), None),
        (("engine=simulator", "model=tiny_llama"), None),
    ],
)
def test_a_load_that_takes_longer_than_the_engine_waits_is_told(overrides: tuple[str, ...], key: str | None) -> None:
    found = limits(*overrides)
    assert len(found) == (key is not None)
    if key:
        assert key in found[0][0]
        assert ("is predicted to take" if SLOW in overrides else "limits.load_s allows") in found[0][1]
