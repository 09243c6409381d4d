"""Settings that were written for one release, for another one: what moves, what goes, what the recipe changes.

Only what a preset says is moved. What the caller says himself (a key on the command line) stays as it is, and the
rules judge it. A value of an older official recipe becomes the newer recipe's; any other value is the preset's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.fields import dotted, plain
from jobs.core.foreign import from_yaml
from jobs.core.layout import local_sizes
from jobs.engines.ascend import Release, is_true, order, release, releases
from jobs.engines.ascend.mc2 import advised_buffsize, mc2_capacity
from jobs.engines.ascend.weights import weights
from jobs.engines.base import engine_of
from jobs.engines.checkpoint.architecture import architecture_of
from jobs.engines.prediction import Layout
from jobs.engines.vllm.environment import HCCL_VARIABLES

HCCL_KEYS = {variable: key for key, variable in HCCL_VARIABLES.items()}
"""Variables of a recipe that are keys of the section `hccl`."""

GRAPH_MODE = "FULL_DECODE_ONLY"
_GRAPH = "vllm-ascend v0.13.0, docs/source/tutorials/DeepSeek-R1.md; v0.12.0rc1, release notes"


@dataclass(frozen=True)
class Move:
    """What takes the place of one name; moves.yaml says what each field means."""

    reason: str
    source: str
    to: str | None = None
    value: Any = "same"
    if_not: tuple[str, ...] = ()
    key: str | None = None


TOLD = from_yaml(Path(__file__).with_name("moves.yaml").read_text(encoding="utf-8"))
FLAGS, KEYS, VARIABLES = (
    {name: Move(**told) for name, told in TOLD[part].items()} for part in ("flags", "keys", "variables")
)


@dataclass(frozen=True)
class Change:
    """One difference to the config as written; None: not set."""

    key: str
    before: Any
    after: Any
    reason: str
    source: str


class Draft:
    """The parts of a config that a migration changes, and the record of what it changed."""

    def __init__(self, config: Config, explicit: Iterable[str]) -> None:
        self.config, self.explicit = config, tuple(explicit)
        self.parts: dict[str, dict[str, Any]] = {
            "engine.args": plain(config.engine.args),
            "engine.additional_config": plain(config.engine.additional_config or {}),
            "engine.env": dict(config.engine.env),
            "hccl": {key: getattr(config.hccl, key) for key in HCCL_VARIABLES},
        }
        self.changes: list[Change] = []

    def get(self, part: str, name: str) -> Any:
        """Return a setting; None: not set."""
        return self.parts[part].get(name)

    def is_explicit(self, key: str) -> bool:
        """Whether the caller set this key, the mapping that holds it, or something inside it."""
        return any(key == one or key.startswith(one + ".") or one.startswith(key + ".") for one in self.explicit)

    def set(self, part: str, name: str, value: Any, reason: str, source: str) -> None:
        """Set or, with None, remove a setting (dotted: inside a mapping), unless the caller set it."""
        key = f"{part}.{name}"
        *path, last = name.split(".")
        if self.is_explicit(key):
            return
        tree = self.parts[part]
        for word in path:
            if not isinstance(tree.get(word), dict):
                tree[word] = {}
            tree = tree[word]
        before = tree.get(last)
        if before == value:
            return
        if value is None and part != "hccl":
            del tree[last]
        else:
            tree[last] = value
        self.changes.append(Change(key, before, value, reason, source))

    def move(self, part: str, name: str, move: Move, to: str) -> None:
        """Carry a setting to its new place, and take it from the old one."""
        value = self.get(part, name)
        if self.is_explicit(f"{part}.{name}") or str(value) in move.if_not:
            return
        if value is None:  # a null setting is not emitted: there is nothing to carry
            self.parts[part].pop(name, None)
            return
        self.set(part, name, None, move.reason, move.source)
        if move.to is not None and dotted(self.parts[to], move.to) is None:
            self.set(to, move.to, value if move.value == "same" else move.value, move.reason, move.source)

    def config_for(self, target: str) -> Config:
        """Return the config with what was changed, as one that was written for `target`."""
        engine = replace(
            self.config.engine,
            args=self.parts["engine.args"],
            additional_config=self.parts["engine.additional_config"],
            env=self.parts["engine.env"],
            written_for=target,
        )
        return replace(self.config, engine=engine, hccl=replace(self.config.hccl, **self.parts["hccl"]))


def migrate(config: Config, explicit: Iterable[str] = ()) -> tuple[Config, tuple[Change, ...]]:
    """Return the config for its engine.release, and what that changed against the config as written.

    `engine.written_for` names the release that its settings were written for; null: they stay. The keys that the caller
    set himself (`explicit`) are never changed.
    """
    written, wanted = config.engine.written_for, config.engine.release
    if written is None or written == wanted or not engine_of(config).traits.released:
        return config, ()
    if not {written, wanted} <= set(releases()) or order(wanted) < order(written):
        return config, ()  # an unknown release is a finding; nothing is known about the way back
    draft = Draft(config, explicit)
    before, after = release(written), release(wanted)
    for step in STEPS:
        step(draft, before, after)
    return draft.config_for(wanted), tuple(draft.changes)


def defaults(config: Config, given: Iterable[str]) -> tuple[Change, ...]:
    """Return what the config leaves to the engine and what the engine now decides differently.

    `given`: names of the flags, variables and keys of additional_config that its new form sets.
    """
    written, wanted = config.engine.written_for, config.engine.release
    if written is None or written == wanted or not {written, wanted} <= set(releases()):
        return ()
    before, after, told = release(written), release(wanted), set(given)
    data = f"jobs/engines/ascend/releases/{wanted}.yaml"
    found = [(f"--{name}", one.default, after.flags[name].default, data) for name, one in before.flags.items()
             if name in after.flags and name not in told and name not in _NO_MATTER]  # fmt: skip
    for name, now in after.variables.items():
        if name.startswith("VLLM_ASCEND") and not {name, after.have_a_key.get(name)} & told:
            # What is new and off changes nothing; what is new and on was off before.
            was = before.variables.get(name, "0" if now == "1" else None)
            found.append((name, was, now, data))
    for name, fact in after.key_defaults.items():
        if name.lstrip("-").split(".")[0] not in told and name in before.key_defaults:
            old, flag = before.key_defaults[name].value, name.startswith("--")  # one that vLLM computes
            found.append((name if flag else f"engine.additional_config.{name}", old, fact.value, fact.source))
    return tuple(
        Change(name, old, new, _differs(config, name, new), source)
        for name, old, new, source in found
        if old is not None and new is not None and old != new
    )


def _differs(config: Config, name: str, value: Any) -> str:
    reason = "the config does not set it, and the default is another one"
    arch = architecture_of(config) if name == "VLLM_ASCEND_ENABLE_MLAPO" and value == "1" else None
    if arch is None:
        return reason
    size = 1 if config.model.quantization == "ascend" else 2  # unquantized models have no second copy
    lines = weights(arch, Layout(config.parallel.tensor_parallel_size, 1), linear_bytes=size, mlapo=True)
    more = sum(line.gib for line in lines if line.name == "MLAPO")
    return f"{reason}: {more:.3f} GiB more weights on each NPU" if more else reason


_NO_MATTER = ("model", "config")
"""Flags whose default says nothing: the model is always given."""

Step = Callable[[Draft, Release, Release], None]


def graph_mode(draft: Draft, before: Release, after: Release) -> None:
    """Turn torchair into vLLM's own graph mode (from 0.12 on)."""
    part, name = "engine.additional_config", "torchair_graph_config"
    graph = draft.get(part, name)
    if not isinstance(graph, Mapping) or draft.is_explicit(f"{part}.{name}"):
        return
    known = after.keys.get(name)
    if "enable_multistream_moe" in graph and (known is None or "enable_multistream_moe" not in (known.keys or ())):
        reason, source = "the option lives outside of torchair", "vllm-ascend v0.11.0, ascend_config.py"
        draft.set(part, "multistream_overlap_shared_expert", graph["enable_multistream_moe"], reason, source)
        draft.set(part, f"{name}.enable_multistream_moe", None, reason, source)
    if known is not None:
        return
    if is_true(graph.get("enabled")) and draft.get("engine.args", "compilation-config") is None:
        form: dict[str, Any] = {"cudagraph_mode": GRAPH_MODE}
        if isinstance(graph.get("graph_batch_sizes"), list | tuple) and graph["graph_batch_sizes"]:
            form["cudagraph_capture_sizes"] = list(graph["graph_batch_sizes"])
        draft.set("engine.args", "compilation-config", form, "graph mode is an option of vLLM itself", _GRAPH)
    others = sorted(set(graph) - {"enabled", "graph_batch_sizes"})
    also = f"; {', '.join(others)} {'has' if len(others) == 1 else 'have'} no successor" if others else ""
    draft.set(part, name, None, f"torchair is gone; this release would silently ignore the section{also}", _GRAPH)


def scheduler(draft: Draft, before: Release, after: Release) -> None:
    """Turn the Ascend scheduler into vLLM's own (from 0.12 on). Other fields stay, and are refused."""
    part, name = "engine.additional_config", "ascend_scheduler_config"
    section = draft.get(part, name)
    if name in after.keys or not isinstance(section, Mapping) or set(section) - {"enabled", "enable_chunked_prefill"}:
        return
    if draft.is_explicit(f"{part}.{name}"):
        return
    source = "vllm-ascend v0.12.0rc1, release notes; pull request 4623"
    if is_true(section.get("enabled")) and not is_true(section.get("enable_chunked_prefill")):
        reason = "the Ascend scheduler took whole prompts; vLLM's own does so without chunked prefill"
        draft.set("engine.args", "enable-chunked-prefill", False, reason, source)
    draft.set(part, name, None, "vLLM's own scheduler is the only one; the section would be silently ignored", source)


def names(draft: Draft, before: Release, after: Release) -> None:
    """Move flags, keys and variables that the release does not have any more."""
    for given in list(draft.parts["engine.args"]):
        flag = given.lstrip("-").replace("_", "-")
        if flag not in after.flags and (move := FLAGS.get(flag)):
            draft.move("engine.args", given, move, "engine.args")
    part = "engine.additional_config"
    # A new name may have a successor too; one that `if_not` keeps stays, so each name is looked at once.
    seen: set[str] = set()

    def goes(key: str) -> bool:
        return key not in seen | after.keys.keys() and key in KEYS and not draft.is_explicit(f"{part}.{key}")

    while going := [key for key in draft.parts[part] if goes(key)]:
        seen.update(going)
        for key in going:
            draft.move(part, key, KEYS[key], part)
    for name in list(draft.parts["engine.env"]):
        if name in after.variables or not name.startswith("VLLM_"):
            continue
        move = VARIABLES.get(name)
        if move and move.key and move.key.partition(".")[0] in after.keys:
            _to_key(draft, name, move.key, move.reason, move.source)
        elif move and not move.key:
            draft.move("engine.env", name, move, "engine.env")
        elif name in before.variables:
            reason = f"vllm-ascend {after.name} does not read it any more"
            draft.set("engine.env", name, None, reason, "vllm and vllm-ascend, envs.py of both releases")


def variables_to_keys(draft: Draft, before: Release, after: Release) -> None:
    """Set keys instead of variables that are deprecated."""
    for name, source in after.deprecated_variables.items():
        _to_key(draft, name, after.have_a_key[name], "the variable is deprecated in favour of a key", source)


def _to_key(draft: Draft, name: str, key: str, reason: str, source: str) -> None:
    """Set a key of additional_config instead of a variable, unless the caller set the variable himself."""
    value = draft.get("engine.env", name)
    if value is None or draft.is_explicit(f"engine.env.{name}"):
        return
    text = str(value)
    new = int(text) if key in TOLD["became_numbers"] and text.isdecimal() else is_true(text)
    draft.set("engine.env", name, None, reason, source)
    if dotted(draft.parts["engine.additional_config"], key) is None:
        draft.set("engine.additional_config", key, new, reason, source)


def recipe(draft: Draft, before: Release, after: Release) -> None:
    """Follow the release's official two-node A2 recipe where an older recipe, or nothing, was followed."""
    nodes = _nodes(draft.config)
    older = [release(name) for name in releases() if order(name) < order(after.name)]
    for name, fact in after.recipe.items():
        part, key = ("hccl", HCCL_KEYS[name]) if name in HCCL_KEYS else ("engine.env", name)
        value, wanted = draft.get(part, key), str(fact.value)
        recipes = {one.recipe[name].value for one in older if name in one.recipe}
        text, tokens = str(value).lower(), None
        if name == "HCCL_BUFFSIZE" and (arch := architecture_of(draft.config)):
            made = draft.config_for(after.name)  # its graph sizes are those of the new release
            wanted, tokens = str(advised_buffsize(made, arch, int(wanted))), mc2_capacity(made, after.name)
        is_new = value is None and name in HCCL_KEYS and name not in before.recipe and nodes > 1
        if (text in recipes and text != wanted) or is_new:
            reason = f"the official two-node A2 recipe of {after.name} has {fact.value}"
            if wanted != fact.value:
                reason = (
                    f"the official two-node A2 recipe of {after.name} has {fact.value} for 16 sequences;"
                    f" expert dispatch of {tokens} tokens a step needs {wanted} MB"
                )
            draft.set(part, key, int(wanted) if part == "hccl" else _typed(wanted), reason, fact.source)
    if after.version >= (0, 13) and nodes > 1 and draft.get("hccl", "op_expansion_mode") == "AIV":
        reason = "the official two-node A2 recipe does not set it; AIV does not work with several communicators at once"
        draft.set("hccl", "op_expansion_mode", None, reason, after.recipe["HCCL_BUFFSIZE"].source)


def _nodes(config: Config) -> int:
    try:
        return len(local_sizes(config))
    except ConfigError:  # an impossible layout is a finding of its own
        return 1


def deadline(draft: Draft, before: Release, after: Release) -> None:
    """Give the load the time that the tool gives it (the engine's own limit of 600 s came with 0.18)."""
    name = "VLLM_ENGINE_READY_TIMEOUT_S"
    if name in after.variables and name not in before.variables and draft.get("engine.env", name) is None:
        seconds = int(draft.config.limits.load_s)
        reason = f"the engine gives up a load after 600 s by itself; limits.load_s allows {seconds} s"
        draft.set("engine.env", name, seconds, reason, "vllm 0.18.0, v1/engine/core_client.py")


STEPS: tuple[Step, ...] = (graph_mode, scheduler, names, variables_to_keys, recipe, deadline)


def _typed(text: str) -> Any:
    return int(text) if text.isdecimal() else text == "true" if text in ("true", "false") else text
