"""What all engines with the command line of `vllm serve` have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jobs.core.config import Config
from jobs.core.layout import Placement
from jobs.engines.base import EngineLog, Finding, Traits
from jobs.engines.vllm import command, environment

_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_WEIGHTS_S = re.compile(r"Loading weights took (\d+(?:\.\d+)?) seconds")
"""vLLM from 0.8 on, model_loader/default_loader.py, a line of each worker."""

_WEIGHTS = re.compile(r"(?:Loading model weights|Model loading) took ([\d.]+) Gi?B")
_AVAILABLE = re.compile(r"Available KV cache memory: (-?[\d.]+) GiB")
_AVAILABLE_0_9_1 = re.compile(r"Available memory: (-?\d+), total memory: (\d+)")
_SHARDS = re.compile(r"checkpoint shards:\s+\d+% Completed \| (\d+/\d+)")
_MET = re.compile(r"\brank \d+ in world size \d+ is assigned as DP rank")
"""vLLM's parallel_state.py, from 0.9.1 to 0.32: its process group is made, so that every rank of it has come."""


class VllmServe:
    """Renders flags and variables, judges them by the rules, and reads vLLM's log lines."""

    traits = Traits()

    def argv(self, config: Config, place: Placement) -> list[str]:
        """Return the command line of one rank."""
        return command.argv(config, place)

    def environment(self, config: Config, place: Placement) -> dict[str, str]:
        """Return the variables that the config sets for one rank."""
        return environment.variables(config, place)

    def findings(self, config: Config) -> Iterable[Finding]:
        """Return what the tool and the rules of jobs/engines/ascend/rules have against a config."""
        from jobs.engines.vllm.findings import findings  # a rank, which judges nothing, starts without all the rules

        return findings(config, self.traits)

    def read_log(self, text: str) -> EngineLog:
        """Read a start (memory: bytes in vllm-ascend 0.9.1, worker_v1.py; from 0.11 on GiB, as in vLLM)."""
        old = [(int(available) / 2**30, int(total) / 2**30) for available, total in _AVAILABLE_0_9_1.findall(text)]
        available = [float(found) for found in _AVAILABLE.findall(text)] + [one for one, _ in old]
        tokens = [int(found.replace(",", "")) for found in _KV_TOKENS.findall(text)]
        shards = _SHARDS.findall(text)
        return EngineLog(
            kv_tokens=min(tokens, default=None),
            first_kv_tokens=tokens[0] if tokens else None,
            weights_gib=max((float(found) for found in _WEIGHTS.findall(text)), default=None),
            available_gib=min(available, default=None),
            device_gib=min((total for _, total in old), default=None),
            load_progress=shards[-1] if shards else None,
            ranks_met=_MET.search(text) is not None,
            weights_s=max((float(found) for found in _WEIGHTS_S.findall(text)), default=None),
        )
