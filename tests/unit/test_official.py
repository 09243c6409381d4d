"""The official two-node recipes, token for token (tests/golden/official_*.sh are the documentation's commands)."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from core_help import GOLDEN, config, plan_of

from jobs.engines.ascend import releases
from jobs.sweep.record import as_json

JSON_FLAGS = ("--speculative-config", "--compilation-config", "--additional-config", "--limit-mm-per-prompt")

READY = {"VLLM_ENGINE_READY_TIMEOUT_S": "5400"}
"""Beside the recipe: time to load."""

PRESETS: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    ("official_0_13", {}, {}),
    ("official_0_23", READY, {}),
    ("official_deepseek_v3_1", READY, {}),
    ("official_deepseek_v3_2", READY, {}),
    ("official_glm_5_2", {}, {"--host": "0.0.0.0"}),
    ("official_glm_5_3_flash", {}, {}),
    ("official_kimi_k2_5", READY, {}),
]
"""Presets, and the variables and flags that are the preset's own."""


def documented(name: str) -> tuple[dict[str, str], list[str]]:
    """Return what the documentation exports, and its command as a shell splits it."""
    exports: dict[str, str] = {}
    lines = (GOLDEN / name).read_text().replace("\\\n", " ").splitlines()
    for line in lines[:-1]:
        word, _, rest = line.partition(" ")
        assert word == "export"
        key, _, value = rest.partition("=")
        exports[key] = value.strip('"').removesuffix(f":${key}")
    return exports, shlex.split(lines[-1])


def flags(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rest = words[3:]
    while rest:
        name = rest.pop(0).replace("_", "-")
        assert name.startswith("--")
        assert name not in found
        value: Any = rest.pop(0) if rest and not rest[0].startswith("--") else True
        found[name] = json.loads(value) if name in JSON_FLAGS else value
    return found


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("preset", "ours_alone", "own_flags"), PRESETS, ids=[name for name, *_ in PRESETS])
def test_token_for_token(preset: str, ours_alone: dict[str, str], own_flags: dict[str, Any], rank: int) -> None:
    made = config(f"experiment={preset}")
    if made.engine.release not in releases():
        pytest.skip(f"release {made.engine.release} is not described here")
    [service] = as_json(plan_of(made))["services"]
    ours = service["ranks"][rank]
    exports, words = documented(f"{preset}_{'headless' if rank else 'head'}.sh")
    assert ours["argv"][:3] == [*words[:2], made.model.path]  # the checkpoint lies elsewhere
    asked = flags(words)
    if rank == 0 and asked.get("--data-parallel-start-rank") == "0":
        del asked["--data-parallel-start-rank"]  # vLLM's default
    assert flags(ours["argv"]) == asked | own_flags | {"--data-parallel-address": "{master_address}"}
    local, interface = "{address}" if rank else "{master_address}", "{interface}"
    filled = {key: {"$local_ip": local, "$nic_name": interface}.get(value, value) for key, value in exports.items()}
    secret = {} if rank else {"VLLM_API_KEY": "{api_key}"}  # the tool's own, so that the API is not open to all
    assert ours["env"] == filled | ours_alone | secret
