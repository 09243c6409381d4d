"""Keys of additional_config that the engine refuses at its start unless something else is set (N7): one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.engines.ascend import as_mapping
from jobs.engines.ascend.rules.base import Problem, Question, covers, is_true, rule

Condition = Callable[[Question], bool]


@dataclass(frozen=True)
class Needs:
    """A key and what the engine asks for where it is set.

    Attributes:
        key: inside additional_config, dotted where it stands in a section.
        releases: as in `Rule.releases`.
        met: whether the config has what is asked for; `needs` says it in words.
        source: where the engine refuses it, and with which error.
    """

    key: str
    releases: str
    met: Condition
    needs: str
    source: str


def _role(q: Question) -> str | None:
    """Return `kv_role` of --kv-transfer-config; None: prefill and decode are not disaggregated."""
    role = as_mapping(q.settings.get("kv-transfer-config")).get("kv_role")
    return role if isinstance(role, str) else None


def _consumer(q: Question) -> bool:
    return _role(q) in ("kv_consumer", "kv_both")


def _one_npu(q: Question) -> bool:
    return q.config.parallel.tensor_parallel_size == 1


def _graphs(q: Question) -> bool:
    return not q.on("enforce-eager")


DECODE_NODE = "a decode node (kv_role=kv_consumer), and prefill and decode are not disaggregated here"
CONFIG = "vllm-ascend v{}, ascend_config.py: {}"

TABLE = (
    Needs("recompute_scheduler_enable", ">=0.23", lambda q: _role(q) == "kv_consumer", DECODE_NODE,
          "vllm-ascend v0.23.0, platform.py: ValueError"),
    Needs("layer_sharding", ">=0.23", lambda q: _role(q) == "kv_producer",
          "a prefill node (kv_role=kv_producer), and prefill and decode are not disaggregated here",
          CONFIG.format("0.23.0", "ValueError")),
    Needs("enable_kv_nz", ">=0.13", _consumer, DECODE_NODE, CONFIG.format("0.13.0", "NotImplementedError")),
    Needs("lmhead_tensor_parallel_size", "0.11", _one_npu, "parallel.tensor_parallel_size=1",
          CONFIG.format("0.11.0", "AssertionError")),
    Needs("oproj_tensor_parallel_size", "0.11", _one_npu, "parallel.tensor_parallel_size=1",
          CONFIG.format("0.11.0", "AssertionError")),
    Needs("oproj_tensor_parallel_size", "0.11", _graphs, "graph mode", CONFIG.format("0.11.0", "AssertionError")),
    Needs("oproj_tensor_parallel_size", "0.11", _consumer, DECODE_NODE, CONFIG.format("0.11.0", "AssertionError")),
    Needs("finegrained_tp_config.oproj_tensor_parallel_size", ">=0.13", _graphs, "graph mode",
          CONFIG.format("0.13.0", "FinegrainedTPConfig, AssertionError")),
    Needs("finegrained_tp_config.oproj_tensor_parallel_size", ">=0.13", _consumer, DECODE_NODE,
          CONFIG.format("0.13.0", "FinegrainedTPConfig, AssertionError")),
)  # fmt: skip


@rule("N7", "error", ">=0.11", "vllm-ascend, ascend_config.py and platform.py")
def refused_keys(q: Question) -> Iterator[Problem]:
    """Keys that the engine refuses at its start, after the queue: each one once, with the first thing it lacks."""
    assert q.release is not None
    seen: set[str] = set()
    for one in TABLE:
        value = _value(q.additional, one.key)
        if one.key in seen or not _is_on(value) or not covers(one.releases, q.release.version) or one.met(q):
            continue
        seen.add(one.key)
        reason = f"the engine does not start with it: it needs {one.needs}"
        yield Problem(f"engine.additional_config.{one.key}", value, reason, "Remove it.", source=one.source)


def _value(tree: Any, key: str) -> Any:
    for word in key.split("."):
        tree = tree.get(word) if isinstance(tree, Mapping) else None
    return tree


def _is_on(value: Any) -> bool:
    """Whether a key is set to more than off: true, a number above 0, a list that holds something."""
    return is_true(value) or (bool(value) and str(value).lower() not in ("false", "0", "none"))


RULES = (refused_keys,)
