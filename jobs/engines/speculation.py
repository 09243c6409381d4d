"""Speculative decoding, as a config asks for it on the command line of `vllm serve`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines.ascend import mapping_of

_FLAG = "speculative_config"
ALONE = {
    "spec_method": "method",
    "spec_model": "model",
    "spec_tokens": "num_speculative_tokens",
    "speculative_model": "model",
    "num_speculative_tokens": "num_speculative_tokens",
}
"""Flags that say one thing of it: those of vLLM from 0.23 on (engine/arg_utils.py), and those before 0.9."""


@dataclass(frozen=True)
class Speculation:
    """What drafts tokens, by vLLM's name ("mtp", "ngram", "eagle3"); empty: it follows from the draft model.

    `tokens`: drafted for one step; None: as many as the method has by itself.
    """

    method: str
    tokens: int | None

    @property
    def is_mtp(self) -> bool:
        """Whether the checkpoint's own multi-token prediction layer drafts ("mtp", "deepseek_mtp")."""
        return self.method.endswith("mtp")


def asked_of(config: Config) -> dict[str, Any]:
    """Return what a config says of speculation, by the names inside --speculative-config; empty: nothing."""
    flags = given_flags(config)
    return {**mapping_of(flags, _FLAG), **{name: flags[flag] for flag, name in ALONE.items() if flag in flags}}


def speculation_of(config: Config) -> Speculation | None:
    """Return what a config asks for; None: every step gives one token, or it cannot be read (`check`)."""
    asked = asked_of(config)
    if not asked:
        return None
    count = str(asked.get("num_speculative_tokens"))
    return Speculation(str(asked.get("method") or ""), int(count) if count.isdecimal() else None)


def check(config: Config) -> None:
    """Raise ConfigError where the text that is given for the flag is no JSON."""
    value = given_flags(config).get(_FLAG)
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError as error:
            key = "engine.args.speculative-config"
            raise ConfigError(key, value, f"it is not JSON: {error}", "Give a mapping.") from None


def given_flags(config: Config) -> dict[str, Any]:
    """Return the flags that `engine.args` gives, with underscores."""
    return {key.lstrip("-").replace("-", "_"): value for key, value in config.engine.args.items() if value is not None}
