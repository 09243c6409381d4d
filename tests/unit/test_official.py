"""The official two-node recipes, token for token (tests/golden/official_*.sh are the documentation's commands)."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from core_help import GOLDEN, config, plan_of

from jobs.sweep.record import as_json

JSON_FLAGS = ("--speculative-config", "--compilation-config")
PATHS = ("vllm-ascend/DeepSeek-R1-W8A8", "/models/DeepSeek-R1-0528-W8A8")
"""The checkpoint in the documentation, and where this project's presets have it."""


def documented(name: str) -> tuple[dict[str, str], list[str]]:
    """Return what the documentation exports, and its command as a shell splits it."""
    exports: dict[str, str] = {}
    lines = (GOLDEN / name).read_text().replace("\\\n", " ").splitlines()
    for line in lines[:-1]:
        word, _, rest = line.partition(" ")
        assert word == "export"
        key, _, value = rest.partition("=")
        exports[key] = value
    return exports, shlex.split(lines[-1])


def flags(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rest = words[3:]
    while rest:
        name = rest.pop(0)
        assert name.startswith("--")
        assert name not in found
        value: Any = rest.pop(0) if rest and not rest[0].startswith("--") else True
        found[name] = json.loads(value) if name in JSON_FLAGS else value
    return found


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("preset", "ours_alone"),
    [("official_0_13", {}), ("official_0_23", {"VLLM_ENGINE_READY_TIMEOUT_S": "5400"})],
)
def test_token_for_token(preset: str, ours_alone: dict[str, str], rank: int) -> None:
    made = config(f"experiment={preset}")
    [service] = as_json(plan_of(made))["services"]
    ours = service["ranks"][rank]
    exports, words = documented(f"{preset}_{'headless' if rank else 'head'}.sh")
    assert ours["argv"][:3] == [PATHS[1] if word == PATHS[0] else word for word in words[:3]]
    assert flags(ours["argv"]) == flags(words) | {"--data-parallel-address": "{master_address}"}
    local, interface = "{address}" if rank else "{master_address}", "{interface}"
    filled = {key: {"$local_ip": local, "$nic_name": interface}.get(value, value) for key, value in exports.items()}
    secret = {} if rank else {"VLLM_API_KEY": "{api_key}"}  # the tool's own, so that the API is not open to all
    assert ours["env"] == filled | ours_alone | secret
