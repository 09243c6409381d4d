"""What all engines with the command line of `vllm serve` have in common."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.core.config import Config
from jobs.engines.base import EngineLog, Finding, Traits
from jobs.engines.placement import Placement
from jobs.engines.vllm import command, environment, logs


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
        """Read vLLM's log."""
        return logs.read(text)
