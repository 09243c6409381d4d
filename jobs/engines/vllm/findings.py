"""What is wrong or risky with a config for an engine that takes the flags of `vllm serve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.layout import planned, span
from jobs.engines import speculation
from jobs.engines.ascend import release, releases, rules
from jobs.engines.ascend.rules import Question
from jobs.engines.base import Finding, Traits, caught, engine_of
from jobs.engines.checkpoint.architecture import architecture_of
from jobs.engines.vllm import command, environment


def findings(config: Config, traits: Traits) -> tuple[Finding, ...]:
    """Return what the tool itself, and then the rules have against a config."""
    checks: tuple[Callable[[Config], object], ...] = (
        *((lambda config: release(config.engine.release),) if traits.released else ()),
        lambda config: command.check_args(config.engine.args),
        lambda config: environment.check_env(config.engine.env),
        speculation.check,
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
    name = config.engine.release  # an unknown one is a finding of its own
    return Question(
        config=config,
        settings=command.settings(config),
        env=_variables(config),
        ranks=tuple(command.flags(config, place) for place in places),
        release=release(name) if engine_of(config).traits.released and name in releases() else None,
        arch=architecture_of(config),
    )


def _variables(config: Config) -> Mapping[str, str]:
    """Return what the config sets, as text, whatever the rank: nothing of a node."""
    plain = {name: value for name, value in config.engine.env.items() if not isinstance(value, Mapping | list | tuple)}
    return environment.variables(replace(config, engine=replace(config.engine, env=plain)), _NOWHERE)


_NOWHERE = planned(Config())[0]


def _layout_of_the_release(config: Config) -> None:
    """Refuse layouts whose flags the release does not have."""
    parallel, engine = config.parallel, config.engine
    over = "tensor_parallel_size" if parallel.pipeline_parallel_size is None else "pipeline_parallel_size"
    across = getattr(parallel, over) if span(config) > 1 else None
    needed = {
        "decode-context-parallel-size": ("decode_context_parallel_size", parallel.decode_context_parallel_size),
        "prefill-context-parallel-size": ("prefill_context_parallel_size", parallel.prefill_context_parallel_size),
        "nnodes": (over, across),
    }
    for flag, (key, value) in needed.items():
        if value is not None and engine.release in releases() and flag not in release(engine.release).flags:
            reason = f"release {engine.release} has no --{flag}, which this needs"
            remedy = "Choose engine.release=0.13.0 or later, or another layout."
            raise ConfigError(f"parallel.{key}", value, reason, remedy)
