"""What is wrong or risky with a config for an engine that takes the flags of `vllm serve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.layout import span
from jobs.engines.ascend import Release, release, releases, rules
from jobs.engines.ascend.lookup import architecture_of
from jobs.engines.ascend.rules import Question
from jobs.engines.base import Finding, Traits, caught, engine_of
from jobs.engines.placement import planned
from jobs.engines.vllm import command, environment


def findings(config: Config, traits: Traits) -> tuple[Finding, ...]:
    """Return what the tool itself, and then the rules have against a config."""
    checks: tuple[Callable[[Config], object], ...] = (
        *((lambda config: release(config.engine.release),) if traits.released else ()),
        lambda config: command.check_args(config.engine.args),
        lambda config: environment.check_env(config.engine.env),
        _layout_of_the_release,
    )
    own = [error for check in checks if (error := caught(check, config))]
    found = rules.findings(question(config))
    if any(one.key.startswith("engine.args.") for one in own):
        # A refused flag is rendered all the same: what R2 finds in it is no fault of the tool.
        found = tuple(one for one in found if one.rule != "R2")
    return (*own, *found)


def question(config: Config) -> Question:
    """Return what the rules judge: the config and what it renders to."""
    try:
        places = planned(config)
    except ConfigError:  # an impossible layout: a finding of its own
        places = ()
    return Question(
        config=config,
        settings=command.settings(config),
        env=_variables(config),
        ranks=tuple(command.flags(config, place) for place in places),
        release=_release(config, engine_of(config).traits),
        arch=architecture_of(config),
    )


def _variables(config: Config) -> Mapping[str, str]:
    """Return what the config sets, as text, whatever the rank: nothing of a node."""
    plain = replace(config.engine, env={k: v for k, v in config.engine.env.items() if _plain(v)})
    return environment.variables(replace(config, engine=plain), _NOWHERE)


def _plain(value: Any) -> bool:
    return not isinstance(value, Mapping | list | tuple)


_NOWHERE = planned(Config())[0]


def _release(config: Config, traits: Traits) -> Release | None:
    try:
        return release(config.engine.release) if traits.released else None
    except ConfigError:  # a finding of its own
        return None


def _layout_of_the_release(config: Config) -> None:
    """Refuse layouts whose flags the release does not have."""
    parallel, engine = config.parallel, config.engine
    across = parallel.tensor_parallel_size if span(config) > 1 else None
    needed = {
        "decode-context-parallel-size": ("decode_context_parallel_size", parallel.decode_context_parallel_size),
        "prefill-context-parallel-size": ("prefill_context_parallel_size", parallel.prefill_context_parallel_size),
        "nnodes": ("tensor_parallel_size", across),
    }
    for flag, (key, value) in needed.items():
        if value is None:
            continue
        if engine.release in releases() and flag not in release(engine.release).flags:
            reason = f"release {engine.release} has no --{flag}, which this needs"
            raise ConfigError(
                f"parallel.{key}", value, reason, "Choose engine.release=0.13.0 or later, or another layout."
            )
