"""What an engine is: the program that serves, and all that the rest of the tool must know of it.

A back end is one file. It registers a class under the value of `engine.name` (jobs/core/registry.py); no other file
compares with that name. docs/extending.md says how a site adds one, tests/unit/test_engines.py holds every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.layout import Placement
from jobs.core.registry import ENGINES, Registry
from jobs.engines.prediction import Allowance, Prediction

if TYPE_CHECKING:
    from jobs.engines.checkpoint.architecture import Architecture

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or risky, with one config.

    Attributes:
        rule: id of the rule.
        severity: error: the engine refuses it, or silently does something else; warning: it runs, at a price.
        key, value: the config key at fault and what it says.
        reason: why. remedy: what to do instead.
        source: where the engine or its documentation says so.
    """

    rule: str
    severity: Severity
    key: str
    value: Any
    reason: str
    remedy: str
    source: str

    @classmethod
    def of(cls, error: ConfigError, rule: str = "C1") -> Finding:
        """Return an error of composing or checking as a finding."""
        return cls(rule, "error", error.key, error.value, error.reason, error.remedy, "this tool")


def caught(check: Callable[[Config], object], config: Config, rule: str = "C1") -> Finding | None:
    """Return as a finding what a check of a config raises; None: nothing."""
    try:
        check(config)
    except ConfigError as error:
        return Finding.of(error, rule)
    return None


@dataclass(frozen=True)
class Traits:
    """What an engine is, for those who only have to tell one kind from another.

    Attributes:
        npus: it runs on NPUs: driver, devices and fabric are checked, mounted and recorded.
        simulated: it acts, and computes nothing: its rows are no measurements, it has no tokenizer, its load takes
            `engine.rehearsal.load_s`.
        released: its flags and variables are those of the vllm-ascend release in `engine.release`.
    """

    npus: bool = False
    simulated: bool = False
    released: bool = True


@dataclass(frozen=True)
class EngineLog:
    """What an engine has printed; None: it has not, or not yet. Of several ranks the worst.

    Attributes:
        kv_tokens: KV cache capacity of one data-parallel rank, tokens.
        first_kv_tokens: the same of the rank that printed it first.
        weights_gib: of one device.
        weights_s: seconds that reading the weights took.
        available_gib: for the KV cache of one device.
        device_gib: of one device in all.
        load_progress: how much of the checkpoint is loaded, as "20/163".
        ranks_met: its processes have found each other.
    """

    kv_tokens: int | None = None
    first_kv_tokens: int | None = None
    weights_gib: float | None = None
    available_gib: float | None = None
    device_gib: float | None = None
    load_progress: str | None = None
    ranks_met: bool = False
    weights_s: float | None = None


Load = Callable[[Config], "Architecture"]
"""Returns the architecture of a config's model, or raises ConfigError."""


class Engine(Protocol):
    """One engine. Nothing here starts a process or touches a node."""

    traits: Traits

    def argv(self, config: Config, place: Placement) -> list[str]:
        """Return the command line of one rank. Text that is known only on the node may stand in braces."""

    def environment(self, config: Config, place: Placement) -> dict[str, str]:
        """Return the variables that the config sets for one rank."""

    def findings(self, config: Config) -> Iterable[Finding]:
        """Return what is wrong or risky with a config for this engine, whatever else there is to say of it."""

    def memory(
        self, config: Config, load: Load, allowance: Allowance | None = None, device_gib: float | None = None
    ) -> Prediction:
        """Return what will fit with the config of any point of the service.

        `allowance`, `device_gib`: what earlier runs of this release and layout showed; None: the engine's default.

        Raises:
            ConfigError: nothing can be said; it is no error of the config.
        """

    def read_log(self, text: str) -> EngineLog:
        """Read the log of one rank, or a part of it."""


REGISTRY: Registry[Engine] = ENGINES
register = REGISTRY.register


def engine_of(config: Config) -> Engine:
    """Return the engine of a config."""
    return REGISTRY.get(config.engine.name)


def is_simulated(name: object) -> bool:
    """Return whether rows of this engine are no measurements; an engine that is not installed here measures."""
    return name in REGISTRY and REGISTRY.get(str(name)).traits.simulated
