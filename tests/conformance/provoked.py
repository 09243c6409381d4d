"""What is asked of the real code of a release and of `check`: command lines that provoke a refusal, and others.

Made from the release's own fields (flags, the settings inside them, keys: a value of another type, one that is no
choice, a name that does not exist), and such as need to be thought of: the table below, and by kind cases.yaml.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core_help import config

from jobs.core.config import Config
from jobs.core.foreign import from_yaml
from jobs.engines.ascend import order, release
from jobs.engines.ascend.rules.base import covers
from jobs.engines.ascend.rules.names import find_flag
from jobs.engines.vllm.command import CONFIGURED

PRESETS = {"0.9.1": "article", "0.11.0": "article", "0.13.0": "official_0_13", "0.18.0": "official_0_13"}
"""What a release's cases start from; the recipe of 0.23 where nothing is named."""


@dataclass(frozen=True)
class Provoked:
    """One change to a preset, in its own words, and how a config gets it."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    parallel: Mapping[str, Any] = field(default_factory=dict)

    def of(self, base: Config) -> Config:
        """Return the preset with the change; None takes a setting away."""
        engine = replace(
            base.engine,
            args={**base.engine.args, **self.args},
            additional_config={**(base.engine.additional_config or {}), **self.keys},
            env={**base.engine.env, **self.env},
        )
        return replace(base, engine=engine, parallel=replace(base.parallel, **self.parallel))


def base(name: str) -> Config:
    """Return the preset that a release's cases start from."""
    return config(f"experiment={PRESETS.get(name, 'official_0_23')}", f"engine.release={name}")


def provoked(name: str) -> list[Provoked]:
    """Return the cases of a release, each once; the preset alone is the first, and imports for the others."""
    found = {
        one.name: one
        for one in (
            Provoked("the preset"),
            *of_flags(name),
            *of_settings(name),
            *of_keys(name),
            *by_hand(name),
            *by_kind(name),
        )
    }
    return list(found.values())


OWNED = ("headless", "config", "port", "data-parallel-start-rank", "data-parallel-address", "data-parallel-rpc-port")
"""Flags that the tool writes itself: `check` refuses them by another rule, whatever their value."""

WRONG = {"int": "many", "float": "much", "bool": "perhaps", "list": "no-list", "mapping": "no-mapping",
         "section": "no-section", "str": 5}  # fmt: skip
"""A value that is none of the type, by the first word of a kind (releases/*.yaml)."""


def of_flags(name: str) -> Iterator[Provoked]:
    """Yield, for all flags with choices and some with numbers, a value that is none."""
    numbers = 0
    for flag, told in release(name).flags.items():
        if flag in OWNED or flag.startswith(("data-parallel", "node-rank", "nnodes", "master-")):
            continue
        if told.choices and told.nargs is None:
            yield Provoked(f"--{flag} no-such", args={flag: "no-such"})
        elif told.range and flag not in CONFIGURED:
            yield Provoked(f"--{flag} -1", args={flag: -1})
        elif told.type in ("int", "float", "optional-int"):
            numbers += 1
            if numbers % 6 == 0:
                yield Provoked(f"--{flag} many", args={flag: "many"})
    yield Provoked("--no-such-flag", args={"no-such-flag": 1})


def of_settings(name: str) -> Iterator[Provoked]:
    """Yield, for the fields inside the flags that take a mapping, a value of another type, and a name that is none."""
    start = base(name).engine.args
    for flag, fields in release(name).settings.items():
        given = start.get(flag) or (_TRANSFER if flag == "kv-transfer-config" else {})
        if flag == "speculative-config" and not given:
            given = {"method": "deepseek_mtp", "num_speculative_tokens": 1}
        yield Provoked(f"{flag}.no_such", args={flag: {**given, "no_such": 1}})
        for inner, kind in fields.items():
            wrong = wrong_for(kind)
            if wrong is not None and not inner.startswith(("draft_", "target_")):
                value = functools.reduce(lambda part, name: {name: part}, reversed(inner.split(".")), wrong)
                yield Provoked(f"{flag}.{inner}={wrong}", args={flag: {**given, **value}})


def wrong_for(kind: Any) -> Any:
    """Return a value that a kind does not take; None: there is none."""
    if isinstance(kind, str):
        return WRONG.get(re.findall(r"\w+", kind)[0])
    return "no-such" if kind else None


_TRANSFER = {"kv_connector": "MooncakeConnectorV1", "kv_role": "kv_producer"}


def of_keys(name: str) -> Iterator[Provoked]:
    """Yield a key that is none, one inside each section that refuses others, and of typed keys another type."""
    known = release(name)
    if known.strict:  # before, what nobody asks for is ignored: `check` refuses it, the engine does not
        yield Provoked("no_such_key", keys={"no_such_key": True})
    for key, told in known.keys.items():
        if told.keys and told.unknown == "error":
            yield Provoked(f"{key}.no_such", keys={key: {"no_such": 1}})
        kind = told.type
        if kind:
            yield Provoked(f"{key}: type", keys={key: wrong_for(kind)})
        for inner, inside in told.types.items():
            if isinstance(inside, str) and "." not in inner:
                yield Provoked(f"{key}.{inner}: type", keys={key: {inner: wrong_for(inside)}})


MTP = {"method": "deepseek_mtp", "num_speculative_tokens": 1}
SIZES = {"cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [8, 16]}

HAND: tuple[tuple[str, dict[str, Any]], ...] = (
    # releases, and the change: args, keys, env, parallel
    ("all", {"parallel": {"max_num_seqs": 64, "max_num_batched_tokens": 32}}),
    ("all", {"parallel": {"max_model_len": 200000}}),
    ("all", {"parallel": {"tensor_parallel_size": 3, "data_parallel_size": 4}}),
    ("all", {"args": {"quantization": "no-such"}}),
    ("0.9.1", {"keys": {"torchair_graph_config": {"enabled": False}}}),
    ("<0.12", {"args": {"enforce-eager": True}}),
    ("<0.12", {"keys": {"torchair_graph_config": {"enabled": True, "graph_batch_sizes": "8"}}}),
    ("<0.12", {"keys": {"torchair_graph_config": {"enabled": True, "use_cached_kv_cache_bytes": True}}}),
    ("<0.12", {"keys": {"torchair_graph_config": {"enabled": True, "no_such": 1}}}),
    ("<0.12", {"keys": {"ascend_scheduler_config": {"enabled": True}}, "parallel": {"max_num_batched_tokens": 4096}}),
    ("0.11", {"args": {"async-scheduling": True, "speculative-config": MTP}}),
    ("0.11", {"args": {"async-scheduling": True}}),
    ("0.11", {"keys": {"lmhead_tensor_parallel_size": 2}}),
    ("0.11", {"keys": {"oproj_tensor_parallel_size": 2}}),
    (">=0.13", {"args": {"compilation-config": {"cudagraph_mode": "FULL_DECODE"}}}),
    (">=0.13", {"args": {"compilation-config": {"cudagraph_mode": "full_decode_only"}}}),
    (">=0.13", {"args": {"compilation-config": {"cudagraph_modes": "FULL"}}}),
    (">=0.13", {"args": {"compilation-config": {**SIZES, "max_cudagraph_capture_size": 32}}}),
    (">=0.13", {"args": {"compilation-config": {**SIZES, "max_cudagraph_capture_size": 16}}}),
    (">=0.13", {"args": {"speculative-config": {"method": "mtpp", "num_speculative_tokens": 1}}}),
    (">=0.13", {"args": {"speculative-config": {"method": "mtp", "num_spec_tokens": 3}}}),
    (">=0.13", {"args": {"speculative-config": {"method": "mtp", "num_speculative_tokens": 0}}}),
    (">=0.13", {"args": {"enable-eplb": True}}),
    (">=0.13", {"keys": {"xlite_graph_config": {"enabled": True}}}),
    (">=0.13", {"keys": {"xlite_graph_config": {"enabled": True}}, "args": {"speculative-config": None}}),
    (">=0.13", {"keys": {"finegrained_tp_config": {"lmhead_tensor_parallel_size": 3}}}),
    (">=0.13", {"keys": {"finegrained_tp_config": {"lmhead_tensor_parallel_size": 2}}}),
    (">=0.13", {"keys": {"finegrained_tp_config": {"embedding_tensor_parallel_size": 2}}}),
    (">=0.13", {"keys": {"finegrained_tp_config": {"oproj_tensor_parallel_size": 2}}}),
    (">=0.13", {"keys": {"finegrained_tp_config": {"mlp_tensor_parallel_size": 2}}}),
    (">=0.13", {"keys": {"enable_kv_nz": True}}),
    (">=0.13", {"env": {"ASCEND_LAUNCH_BLOCKING": "1"}}),
    (">=0.13", {"parallel": {"prefill_context_parallel_size": 2, "data_parallel_size": 2,
                             "data_parallel_size_local": 1}}),
    (">=0.18", {"args": {"fail-on-environ-validation": True}}),
    (">=0.18", {"keys": {"recompute_scheduler_enable": True}}),
    ("0.18..0.23", {"keys": {"layer_sharding": ["q_b_proj"]}}),
    (">=0.18", {"keys": {"enable_mc2_hierarchy_comm": True}}),
    ("0.18..0.26", {"env": {"VLLM_ASCEND_ENABLE_FUSED_MC2": "1"}}),
    (">=0.23", {"keys": {"enable_fused_mc2": 1}}),
    (">=0.23", {"keys": {"enable_fused_mc2": 5}}),
    (">=0.23", {"keys": {"enable_fused_mc2": 1, "enable_mc2_hierarchy_comm": True}}),
    (">=0.18", {"keys": {"eplb_config": {"dynamic_eplb": True}}}),
    (">=0.18", {"keys": {"eplb_config": {"dynamic_eplb": True}}, "env": {"DYNAMIC_EPLB": "true"}}),
    (">=0.18", {"keys": {"eplb_config": {"expert_heat_collection_interval": "many"}}}),
    (">=0.18", {"keys": {"eplb_config": {"expert_heat_collection_interval": -1}}}),
    (">=0.18", {"keys": {"eplb_config": {"eplb_policy_type": 7}}}),
    (">=0.18", {"keys": {"eplb_config": {"expert_map_record_path": "/tmp/releases.json"}}}),
    (">=0.18", {"keys": {"eplb_config": {"expert_map_path": "/no/such.txt"}}}),
    ("0.23", {"keys": {"finegrained_tp_config": {"olora_tensor_parallel_size": 2}}}),
    (">=0.23", {"keys": {"profiling_chunk_config": {"enabled": True}}}),
    (">=0.23", {"keys": {"mega_moe_max_tokens": "many"}}),
    (">=0.23", {"keys": {"mega_moe_max_tokens": 0}}),
    (">=0.23", {"keys": {"weight_nz_mode": 7}}),
    ("0.23", {"keys": {"hamming_sparse": {"enabled": False, "sparse_json_location": ""}}}),
    ("0.23", {"keys": {"hamming_sparse": {"enable_hamming_sparse": True}}}),
    (">=0.23", {"keys": {"dump_config": "a"}}),
    (">=0.23", {"keys": {"rejection_sampler_config": {"posterior_threshold": 2.0}}}),
    (">=0.23", {"keys": {"rejection_sampler_config": {"posterior_alpha": -1.0}}}),
    (">=0.18", {"keys": {"ascend_compilation_config": {"enable_static_kernel": True, "enable_npugraph_ex": False}}}),
    (">=0.18", {"keys": {"mix_placement": True, "multistream_overlap_shared_expert": True}}),
    (">=0.23", {"keys": {"enable_reduce_sample": True, "finegrained_tp_config": {"lmhead_tensor_parallel_size": 2}}}),
    (">=0.26", {"keys": {"scheduler_config": {"enable_balance_scheduling": True}}}),
    (">=0.26", {"keys": {"scheduler_config": {"recompute_scheduler_enable": True}}}),
    (">=0.26", {"keys": {"scheduler_config": {"profiling_chunk_config": {"enabled": True}}}}),
    (">=0.26", {"keys": {"scheduler_config": {"short_request_first_config": {"enabled": True, "threshold": -1}}}}),
    (">=0.26", {"keys": {"mc2_comm_alg": "hierarchy"}}),
    (">=0.26", {"keys": {"mc2_comm_alg": "no-such"}}),
    (">=0.30", {"keys": {"enable_kvpp": True}}),
    (">=0.30", {"keys": {"enable_mlapo": "yes please"}}),
    (">=0.30", {"keys": {"torchair_graph_config": {"enabled": True}}}),
    (">=0.30", {"keys": {"mlapo_keep_prefill_weights": True, "enable_mlapo": False}}),
    (">=0.30", {"keys": {"dynamic_spec_config": {"method": "mtp"}}}),
    (">=0.30", {"keys": {"sparse_kv_offload_config": {"enabled": True}}}),
)  # fmt: skip


KINDS = Path(__file__).with_name("cases.yaml")
PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "speculative": lambda one: {"args": {"speculative-config": one}},
    "compilation": lambda one: {"args": {"compilation-config": one}},
    "flags": lambda one: {"args": one},
    "keys": lambda one: {"keys": one},
    "variables": lambda one: {"env": one},
    "layouts": lambda one: {"parallel": one},
    "mixed": lambda one: one,
}
"""A kind of cases.yaml -> what it changes of a config."""


def by_kind(name: str) -> Iterator[Provoked]:
    """Yield the cases of cases.yaml, as far as the release has their names."""
    known = release(name)
    for kind, cases in from_yaml(KINDS.read_text("utf-8")).items():
        for change in map(PLACES[kind], cases):
            args, keys = change.get("args", {}), change.get("keys", {})
            inside = [
                (flag, given) for flag, given in args.items() if isinstance(given, dict) and flag in known.settings
            ]
            if (
                all(value is None or find_flag(flag.partition(".")[0], known) for flag, value in args.items())
                and (known.strict or set(keys) <= set(known.keys))
                and all(field in known.settings[flag] for flag, given in inside for field in given)
            ):
                yield Provoked(json.dumps(change), **change)


def by_hand(name: str) -> Iterator[Provoked]:
    """Yield the cases of the table that are for this release."""
    at = order(name)[0]
    for releases, change in HAND:
        if covers(releases, at):
            yield Provoked(json.dumps(change), **change)
