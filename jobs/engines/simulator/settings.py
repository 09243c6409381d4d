"""What a rehearsal is told, and the numbers that this makes together: the command line of `vllm serve`, as the chosen
release reads it, and REHEARSAL_SPEC, what the flags cannot say, as one JSON object in one variable.

The checks at the end are those of vLLM 0.9.1 and vllm-ascend 0.9.1 at start, with their words. Later releases have
other flags (jobs/engines/ascend/releases), and neither torchair nor the Ascend scheduler from 0.12 on.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from yaml import YAMLError

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.fields import Count, NotNegative, Positive, Section, Share, Text, Whole, from_root
from jobs.core.foreign import from_yaml, text_of
from jobs.core.service_config import Shape
from jobs.engines.ascend import Flag, Release, as_mapping, version
from jobs.engines.checkpoint.architecture import architecture_of
from jobs.engines.prediction import Layout
from jobs.engines.simulator.faults import checked, parse_faults
from jobs.engines.simulator.log import error
from jobs.engines.steptime import Sizes

BLOCK = 128
"""Tokens of a KV cache block where `--block-size` is not given."""

Convert = Callable[[str], Any]
_SIZES = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def _human_int(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kmgKMG])|(\d+\.\d+)([kmg])", text.strip())  # no decimals of binary sizes
    if not match:
        return int(text)
    return int(float(match[1] or match[3]) * _SIZES[match[2] or match[4]])


_human_int.__name__ = "human_readable_int"  # argparse puts the name into its error


def _human_int_or_auto(text: str) -> int:
    """`--max-model-len auto` of later releases: vLLM's own -1."""
    return -1 if text.strip().lower() in ("-1", "auto") else _human_int(text)


def _json_or_text(text: str) -> Any:
    return json.loads(text) if re.match("^{.*}$", text) else text


def _config(text: str) -> Any:
    value = json.loads(text)
    if not isinstance(value, dict | int):  # a number is a level of --compilation-config
        raise ValueError
    return value


_PLAIN: Mapping[str, Convert] = {
    "str": str,
    "int": int,
    "float": float,
    "json": json.loads,
    "bool": bool,
    "lower-snake": lambda text: text.lower().replace("-", "_"),
    "human-int": _human_int,
    "human-int-or-auto": _human_int_or_auto,
    "json-or-pairs": _json_or_text,
    "json-or-str": _json_or_text,
    "config": _config,
}


def converter(name: str) -> Convert:
    """Return what turns the text of a value into the value, by the type's name in releases/*.yaml."""
    if not name.startswith("optional-"):
        return _PLAIN[name]
    convert = _PLAIN[name.removeprefix("optional-")]

    def optional(text: str) -> Any:
        return None if text in ("", "None") else convert(text)

    optional.__name__ = convert.__name__
    return optional


def _add(parser: argparse.ArgumentParser, name: str, flag: Flag) -> None:
    action = argparse.BooleanOptionalAction if flag.action == "boolean" else flag.action
    kwargs: dict[str, Any] = {"default": flag.default, "action": action}
    if flag.action not in ("boolean", "store_true"):
        given = {"nargs": flag.nargs, "const": flag.const, "choices": flag.choices}
        kwargs |= {key: value for key, value in given.items() if value is not None}
        kwargs["type"] = converter(flag.type or "str")
    parser.add_argument(f"--{name}", *flag.aliases, **kwargs)


@dataclass(frozen=True)
class CommandLine:
    """A command line that was accepted.

    `changed`: values that differ from their defaults (vLLM logs them as "non-default args"). `deprecated`: names of the
    flags given that vLLM warns about.
    """

    args: argparse.Namespace
    changed: Mapping[str, Any]
    deprecated: tuple[str, ...]


def parse(argv: Sequence[str], release: Release) -> CommandLine:
    """Read a command line that begins with `serve`.

    Raises:
        SystemExit: code 2, for what argparse refuses; its text is on stderr.
    """
    main = argparse.ArgumentParser(prog="vllm", allow_abbrev=release.abbreviations)
    commands = main.add_subparsers(dest="subparser", required=True)
    serve = commands.add_parser("serve", usage="vllm serve [model_tag] [options]", allow_abbrev=release.abbreviations)
    serve.add_argument("model_tag", help="the model to serve")
    for name, flag in release.flags.items():
        _add(serve, name, flag)
    args = main.parse_args(argv)
    args.model = args.model_tag
    defaults = {name.replace("-", "_"): flag for name, flag in release.flags.items()}
    changed = {name: getattr(args, name) for name, flag in defaults.items() if getattr(args, name) != flag.default}
    return CommandLine(args, changed, tuple(name for name in changed if defaults[name].deprecated))


VARIABLE = "REHEARSAL_SPEC"
DEFAULT = "atlas_800i_a2"

_FILES = Path(__file__).parent / "hardware"
_KEY = "engine.rehearsal.hardware"


@dataclass(frozen=True)
class Hardware(Section):
    """The NPU that a rehearsal pretends to run on; hardware/*.yaml says what each figure is."""

    peak_tflops: Positive
    hbm_gb_s: Positive
    npu_memory_gib: Positive
    allowance_gib: NotNegative
    replicated_share: NotNegative
    overhead_ms: NotNegative
    prefill_overhead_ms: NotNegative
    prefill_efficiency: Positive
    attention_tflops: Positive
    decode_efficiency: Positive
    launch_ms: NotNegative
    sequence_us: NotNegative
    inside_gb_s: Positive
    link_gb_s: Positive
    link_us: NotNegative
    recall_tokens: Whole


@cache
def hardware(name: str = DEFAULT) -> Hardware:
    """Return the hardware of `engine.rehearsal.hardware`: the name of a file in hardware/, or the path of a YAML file.

    Raises:
        ConfigError: there is no such file; one of its keys is unknown, missing or wrong.
    """
    path = Path(from_root(name)) if "/" in name else _FILES / f"{name}.yaml"
    valid = ", ".join(sorted(file.stem for file in _FILES.glob("*.yaml")))
    try:
        values = from_yaml(text_of(path))
    except (OSError, ValueError, YAMLError, RecursionError) as wrong:
        reason = f"no hardware file: {wrong}"
        raise ConfigError(_KEY, name, reason, f"Valid: {valid}, or the path of a YAML file.") from None
    return checked(Hardware, values, f"{_KEY}={name} ", f"See {_FILES / DEFAULT}.yaml.")


@dataclass(frozen=True)
class RehearsalSpec(Section):
    """What one rank of a rehearsal pretends to be.

    Attributes:
        release: whose flags are accepted.
        rank: of this process in the allocation; faults name it.
        shape: sizes of the model.
        npus_per_node: local data-parallel ranks x tensor parallel size must fit.
        load_s: seconds that loading takes.
        handshake_s: how long a headless rank waits for the head (vLLM: 5 minutes), seconds.
        faults: to act out; see faults.py.
        acceptance, half_length, draft_cost: of speculative decoding, as `engine.rehearsal` has them.
        sizes: of the model's layers; None: they are not known.
    """

    release: Text = "0.9.1"
    rank: Whole = 0
    shape: Shape = field(default_factory=Shape)
    hardware: Hardware = field(default_factory=hardware)
    npus_per_node: Count = 8
    load_s: NotNegative = 0.5
    handshake_s: Positive = 300.0
    faults: tuple[dict[str, Any], ...] = ()
    acceptance: Share = 0.8
    half_length: NotNegative = 0.0
    draft_cost: NotNegative = 0.05
    sizes: Sizes | None = None


def spec_json(config: Config, rank: int) -> str:
    """Return the value of REHEARSAL_SPEC for one rank.

    Raises:
        ConfigError: `engine.rehearsal` names no hardware, or an unknown fault.
    """
    rehearsal = config.engine.rehearsal
    parse_faults(rehearsal.faults)
    spec = RehearsalSpec(
        release=config.engine.release,
        rank=rank,
        shape=config.model.shape,
        hardware=hardware(rehearsal.hardware),
        npus_per_node=config.cluster.npus_per_node,
        load_s=rehearsal.load_s,
        faults=rehearsal.faults,
        acceptance=rehearsal.acceptance,
        half_length=rehearsal.half_length,
        draft_cost=rehearsal.draft_cost,
        sizes=Sizes.of(config.model.shape, arch) if (arch := architecture_of(config)) and arch.experts else None,
    )
    return json.dumps(asdict(spec))


def read_spec(text: str | None) -> RehearsalSpec:
    """Return the spec that `text` describes; without one, or for keys left out, the defaults.

    Raises:
        ConfigError: no JSON object, an unknown key, a wrong value.
    """
    try:
        values = json.loads(text or "{}")
    except json.JSONDecodeError as wrong:
        raise ConfigError(VARIABLE, str(text)[:80], f"no JSON: {wrong}", "The tool writes it.") from None
    spec = checked(RehearsalSpec, values, f"{VARIABLE} ", "The tool writes it.")
    parse_faults(spec.faults)
    return spec


class StartError(Exception):
    """The engine does not start; the text is the exception that vLLM would print."""


@dataclass(frozen=True)
class Settings:
    """One rank's resolved settings; lengths in tokens.

    Attributes:
        names: served model names; the first one stands in answers and metrics.
        drafts: tokens that speculative decoding drafts for a step; 0: it is off.
        chunked_prefill: whether a prompt may be cut over several steps.
        local: data-parallel ranks of this process: `range(first, first + size)`.
        node, nodes: which of the nodes of one data-parallel rank this is (--node-rank), and how many there are.
    """

    spec: RehearsalSpec
    model: str
    names: tuple[str, ...]
    drafts: int
    seed: int
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int
    utilization: float
    prefix_caching: bool
    chunked_prefill: bool
    layout: Layout
    headless: bool
    local: range
    node: int
    nodes: int
    rpc_address: tuple[str, int]
    http_address: tuple[str, int]
    api_key: str | None
    log_stats: bool
    access_log: bool
    uvicorn_level: str

    @property
    def block(self) -> int:
        """Tokens that are given out together: a block on each of the context parallel ranks."""
        return self.block_size * self.layout.dcp * self.layout.pcp

    @property
    def workers(self) -> int:
        """NPUs that one data-parallel rank has on this node."""
        return self.layout.tp * self.layout.pp * self.layout.pcp // self.nodes


def _layout(args: argparse.Namespace) -> Layout:
    dcp, pcp = (getattr(args, f"{kind}_context_parallel_size", 1) for kind in ("decode", "prefill"))
    whole = args.tensor_parallel_size, args.data_parallel_size, bool(args.enable_expert_parallel)
    return Layout(*whole, dcp, pcp, args.pipeline_parallel_size)


def _meeting(args: argparse.Namespace, nodes: int) -> tuple[str, int]:
    """Return where the ranks of other nodes, or the other nodes of the one rank, find the head."""
    if nodes > 1:
        return args.master_addr, args.master_port
    return args.data_parallel_address or "127.0.0.1", args.data_parallel_rpc_port or 29550


def settle(args: argparse.Namespace, spec: RehearsalSpec, environment: Mapping[str, str]) -> Settings:
    """Resolve vLLM's defaults and check what vLLM checks before it starts an engine. StartError: with vLLM's words."""
    size, tp, npus = args.data_parallel_size, args.tensor_parallel_size, spec.npus_per_node
    local = size if args.data_parallel_size_local is None else args.data_parallel_size_local
    first = (args.data_parallel_start_rank or 0) if args.headless else 0
    layout, nodes = _layout(args), getattr(args, "nnodes", 1)
    own = tp * layout.pp * layout.pcp
    extras = as_mapping(args.additional_config) if version(spec.release) < (0, 12) else {}
    torchair, ascend = (as_mapping(extras.get(f"{name}_config")) for name in ("torchair_graph", "ascend_scheduler"))
    # vllm-ascend's own scheduler, without chunked prefill (ascend_config.py, 0.9.1)
    whole = bool(ascend.get("enabled")) and not ascend.get("enable_chunked_prefill")
    chunked, derived = args.enable_chunked_prefill is not False, spec.shape.max_position_embeddings
    # Not given, or -1 (auto, from 0.23 on): what the model was made for.
    length = args.max_model_len if (args.max_model_len or 0) > 0 else derived
    batched, seqs = args.max_num_batched_tokens or 2048, args.max_num_seqs or 256
    for name, wrong in (
        ("no_tool_parser", args.enable_auto_tool_choice and not args.tool_call_parser),
        ("headless_api_servers", args.headless and (args.api_server_count or 1) > 1),
        ("headless_without_rank", args.headless and local <= 0),
        ("too_many_ranks", local > size),
        ("uneven_nodes", own % nodes),
        ("too_few_npus", local * own > npus * nodes),
        ("too_long", length > derived),
        ("few_tokens", batched < seqs),
        ("ascend_scheduler", batched < length and whole and chunked),
        ("whole_prompts", batched < length and not chunked),
        ("graph_and_eager", torchair.get("enabled") and args.enforce_eager),
    ):
        if wrong:
            lengths = {"length": length, "derived": derived, "batched": batched, "seqs": seqs}
            raise StartError(error(name, local=local, size=size, tp=own, npus=npus, nodes=nodes, **lengths))
    return Settings(
        spec=spec,
        model=args.model,
        names=tuple(args.served_model_name or (args.model,)),
        drafts=int(as_mapping(args.speculative_config).get("num_speculative_tokens") or 0),
        seed=args.seed or 0,
        max_model_len=length,
        max_num_batched_tokens=batched,
        max_num_seqs=seqs,
        block_size=args.block_size or BLOCK,
        utilization=args.gpu_memory_utilization,
        prefix_caching=args.enable_prefix_caching is not False,
        chunked_prefill=chunked and not whole,
        layout=layout,
        headless=args.headless,
        local=range(first, first + local),
        node=getattr(args, "node_rank", 0),
        nodes=nodes,
        rpc_address=_meeting(args, nodes),
        http_address=(args.host or "", args.port),
        api_key=args.api_key or environment.get("VLLM_API_KEY") or None,
        log_stats=not args.disable_log_stats,
        access_log=not args.disable_uvicorn_access_log,
        uvicorn_level=args.uvicorn_log_level,
    )
