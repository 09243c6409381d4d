"""How the engine computes: graph mode, by torchair until 0.11, as ACL graph from 0.12 on (R7 to R12); experts, their
dispatch and combine between the NPUs, and their load balance (R16, R17, R22, R23, R26 to R31, and MC2's buffer)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.engines.ascend import is_true
from jobs.engines.ascend.mc2 import MC2_RANKS, advised_buffsize, decode_tokens, hierarchical_buffer_mb, mc2_capacity
from jobs.engines.ascend.memory import DEFAULT_BUFFSIZE
from jobs.engines.ascend.rules.base import NPU, Problem, Question, rule, table
from jobs.engines.prediction import Layout

GRAPH = "engine.additional_config.torchair_graph_config"
CONFIG = "vllm-ascend v0.9.1, ascend_config.py"


def _graph(q: Question) -> bool:
    return q.switched(q.section("torchair_graph_config").get("enabled"))


@rule("R7", "error", "<0.12", f"{CONFIG}, check_ascend_config")
def graph_and_eager(q: Question) -> Iterator[Problem]:
    """Graph mode and eager mode exclude each other."""
    if _graph(q) and q.on("enforce-eager"):
        reason = "torchair_graph_config is enabled: graph mode and eager mode exclude each other"
        yield Problem("engine.args.enforce-eager", True, reason, "Remove it, or disable torchair_graph_config.")


@rule("R8", "error", "0.9.1", f"{CONFIG}, check_ascend_config")
def neither_graph_nor_eager(q: Question) -> Iterator[Problem]:
    """0.9.1 serves DeepSeek with torchair or eagerly, not with the ACL graph."""
    name = f"{q.config.model.name} {q.config.model.path}".lower()
    deepseek = "deepseek" in name and "distill" not in name
    if deepseek and not _graph(q) and not q.on("enforce-eager"):
        reason = "ACL graph does not support DeepSeek in this release"
        remedy = f"Set {GRAPH}.enabled=true, or engine.args.enforce-eager=true."
        yield Problem(f"{GRAPH}.enabled", False, reason, remedy)


@rule("R9", "error", "<0.12", f"{CONFIG}, TorchairGraphConfig")
def torchair_options(q: Question) -> Iterator[Problem]:
    """Options of torchair that need others."""
    graph = q.section("torchair_graph_config")

    def missing(name: str, needed: str) -> Problem:
        return Problem(f"{GRAPH}.{name}", graph[name], f"it needs {needed}", f"Set {needed}, or remove {name}.")

    if not _graph(q):
        yield from (
            missing(name, "torchair_graph_config.enabled=true")
            for name in table("need_torchair")
            if graph.get(name) and name in (q.described.keys["torchair_graph_config"].keys or ())
        )
        return
    if graph.get("graph_batch_sizes") and is_true(graph.get("graph_batch_sizes_init")):
        reason = "graph_batch_sizes is given, so there is nothing to choose"
        yield Problem(f"{GRAPH}.graph_batch_sizes_init", True, reason, "Remove one of them.")
    if graph.get("use_cached_kv_cache_bytes") and not graph.get("use_cached_graph"):
        yield missing("use_cached_kv_cache_bytes", "use_cached_graph=true")
    if graph.get("enable_super_kernel"):
        first = q.described.name == "0.9.1"
        if first and not graph.get("enable_multistream_moe"):
            yield missing("enable_super_kernel", "enable_multistream_moe=true")
        if not first and q.config.parallel.tensor_parallel_size > 1:
            yield missing("enable_super_kernel", "parallel.tensor_parallel_size=1")
        if not first and not is_true(q.additional.get("multistream_overlap_shared_expert")):
            yield missing("enable_super_kernel", "additional_config.multistream_overlap_shared_expert=true")
    sizes = graph.get("graph_batch_sizes", [])
    if not isinstance(sizes, list | tuple):
        yield Problem(f"{GRAPH}.graph_batch_sizes", sizes, "a list of whole numbers is needed", "Write [8, 16, 32].")


@rule("R39", "error", "<0.12", "vllm-ascend v0.9.1, worker/model_runner_v1.py: after the load")
def sizes_are_numbers(q: Question) -> Iterator[Problem]:
    """Sizes of graphs that are no numbers end the workers, when these sort them."""
    sizes = q.section("torchair_graph_config").get("graph_batch_sizes", ())
    if isinstance(sizes, list | tuple) and any(type(size) is not int for size in sizes):
        yield Problem(f"{GRAPH}.graph_batch_sizes", sizes, "a list of whole numbers is needed", "Write [8, 16, 32].")


@rule("R10", "error", "<0.12", "vllm-ascend v0.9.1, worker/model_runner_v1.py, check_torchair_graph_batch_sizes")
def largest_graph(q: Question) -> Iterator[Problem]:
    """With expert parallel the largest graph is rounded up to tp, and must fit into one step."""
    p = q.config.parallel
    if not (_graph(q) and p.enable_expert_parallel and p.max_num_seqs and p.max_num_batched_tokens):
        return
    tp = p.tensor_parallel_size
    largest = -(-p.max_num_seqs // tp) * tp
    if largest > p.max_num_batched_tokens:
        reason = f"rounded up to a multiple of tp = {tp} it is {largest}, above max_num_batched_tokens: decoding fails"
        yield Problem("parallel.max_num_seqs", p.max_num_seqs, reason, "Raise parallel.max_num_batched_tokens.")


@rule("R11", "warning", "0.9.1", "vllm-ascend v0.9.1, worker/model_runner_v1.py, torchair_graph_batch_sizes", NPU)
def padded_decode(q: Question) -> Iterator[Problem]:
    """Without sizes only the smallest and the largest batch are compiled."""
    graph, seqs = q.section("torchair_graph_config"), q.config.parallel.max_num_seqs
    tp = q.config.parallel.tensor_parallel_size
    given = graph.get("graph_batch_sizes") or graph.get("graph_batch_sizes_init")
    if _graph(q) and not given and seqs is not None and seqs > 2 * tp:
        largest = -(-seqs // tp) * tp
        sizes = ",".join(str(tp << step) for step in range(16) if tp << step < largest)
        reason = f"only batches of {tp} and {largest} are compiled: every decode step above {tp} is padded to {largest}"
        yield Problem(f"{GRAPH}.graph_batch_sizes", None, reason, f"Give sizes, for example [{sizes},{largest}].")


@rule("R12", "error", ">=0.12", "vllm-ascend v0.12.0rc1, release notes; pull requests 4814 and 4623")
def removed_sections(q: Question) -> Iterator[Problem]:
    """The two sections are silently ignored from 0.12 on."""
    for name, remedy in (
        ("torchair_graph_config", "Set engine.args.compilation-config={cudagraph_mode: FULL_DECODE_ONLY} instead."),
        ("ascend_scheduler_config", "Remove it: vLLM's own scheduler with chunked prefill is the only one."),
    ):
        if name in q.additional:
            reason = "this release does not read it any more and says nothing"
            yield Problem(f"engine.additional_config.{name}", q.additional[name], reason, remedy)


MC2_EXPERTS = 24
"""MC2 takes at most so many experts of one NPU on A2 (vllm-ascend, ascend_forward_context.py)."""


def fused_mc2(q: Question) -> tuple[str, Any]:
    """Return key and value of the fused MC2 setting, as a key or as a variable."""
    if "enable_fused_mc2" in q.additional:
        return "engine.additional_config.enable_fused_mc2", q.additional["enable_fused_mc2"]
    name = "VLLM_ASCEND_ENABLE_FUSED_MC2"
    return f"engine.env.{name}", q.env.get(name) if name in q.described.variables else None


@rule("R16", "error", "0.9.1", "vllm-ascend v0.9.1, platform.py")
def dual_batch_and_mtp(q: Question) -> Iterator[Problem]:
    """Dual batch overlap does not work with multi-token prediction."""
    if is_true(q.env.get("VLLM_ASCEND_ENABLE_DBO")) and q.speculative:
        reason = "dual batch overlap does not work with multi-token prediction"
        yield Problem("engine.env.VLLM_ASCEND_ENABLE_DBO", "1", reason, "Remove it, or engine.args.speculative-config.")


@rule("R17", "error", ">=0.18", "vllm-ascend v0.18.0, platform.py")
def fused_and_hierarchical(q: Question) -> Iterator[Problem]:
    """Fused MC2 and hierarchical communication exclude each other."""
    hierarchical = q.switched(q.additional.get("enable_mc2_hierarchy_comm"))
    hierarchical = hierarchical or q.additional.get("mc2_comm_alg") == "hierarchy"  # from 0.26 on
    key, value = fused_mc2(q)
    if key.startswith("engine.env") and value not in (None, "0", "1") and q.described.version >= (0, 26):
        yield Problem(key, value, "this release takes 0 and 1", "Set 0 or 1.")
    if hierarchical and str(value) not in ("None", "0", "False", "false"):
        reason = "hierarchical communication is on: the two exclude each other"
        yield Problem(key, value, reason, "Set it to 0, or remove enable_mc2_hierarchy_comm and mc2_comm_alg.")


@rule("R22", "error", ">=0.13", "vllm-ascend v0.18.0, ascend_config.py, EplbConfig")
def dynamic_balance(q: Question) -> Iterator[Problem]:
    """Dynamic expert load balance needs its variable as well. (Unknown keys of eplb_config: see N4.)"""
    wanted = q.switched(q.section("eplb_config").get("dynamic_eplb"))
    if wanted and not recording(q):
        reason = "the engine also asks for the variable DYNAMIC_EPLB"
        key = "engine.additional_config.eplb_config.dynamic_eplb"
        yield Problem(key, True, reason, "Set +engine.env.DYNAMIC_EPLB='true'.")


@rule("R23", "warning", ">=0.11", "vllm-ascend v0.13.0, ascend_forward_context.py, select_moe_comm_method", NPU)
def without_mc2(q: Question) -> Iterator[Problem]:
    """On A2 MC2 is used for enough NPUs, few enough experts and tokens; else experts talk by all-gather."""
    p = q.config.parallel
    if not (q.arch and q.arch.experts and p.enable_expert_parallel):
        return
    ranks = Layout.of(q.config).npus
    experts = -(-q.arch.experts // ranks)
    if ranks < MC2_RANKS or experts > MC2_EXPERTS:
        reason = (
            f"{ranks} NPUs with {experts} experts each: MC2 needs {MC2_RANKS} NPUs or more and {MC2_EXPERTS} experts "
            "or fewer, so experts are reached by the slower all-gather"
        )
        yield Problem("parallel.enable_expert_parallel", True, reason, "Use more NPUs, or expect lower throughput.")
        return
    step, capacity = decode_tokens(q.config), mc2_capacity(q.config, q.config.engine.release)
    if step is not None and capacity is not None and step > capacity:
        reason = (
            f"a full decode step has {step} tokens (sequences x (1 + draft tokens)) and MC2 takes {capacity}: "
            "steps above that reach the experts by the slower all-gather"
        )
        remedy = f"Lower it, or give a graph size of {step}, or expect lower throughput at full load."
        yield Problem("parallel.max_num_seqs", p.max_num_seqs, reason, remedy)


@rule("R25", "error", "all", "vllm-ascend issue 6636: Tensor scale not implemented for DT_FLOAT16", NPU)
def other_type(q: Question) -> Iterator[Problem]:
    """The scales of a W8A8 checkpoint are for bfloat16: its kernels refuse another type, after the load."""
    given = q.settings.get("dtype")
    if q.config.model.quantization == "ascend" and str(given) not in ("None", "auto", "bfloat16"):
        reason = (
            "the kernels of a W8A8 checkpoint take bfloat16 only: the engine dies at its first step, after the load"
        )
        yield Problem("engine.args.dtype", given, reason, "Remove it.")


@rule("E16", "warning", ">=0.18", "vllm-ascend issue 16835: HCCL_BUFFSIZE_EP is too SMALL, hierarchical (A3)", NPU)
def hierarchical_buffer(q: Question) -> Iterator[Problem]:
    """Hierarchical dispatch that is asked for by its key needs a buffer of its own size, large even for one token."""
    key = "enable_mc2_hierarchy_comm"
    tokens, tp = mc2_capacity(q.config, q.config.engine.release), q.config.parallel.tensor_parallel_size
    if not (is_true(q.additional.get(key)) and q.arch and q.arch.experts and tokens):
        return
    given, needed = q.config.hccl.buffsize or DEFAULT_BUFFSIZE, hierarchical_buffer_mb(q.arch, -(-tokens // tp))
    if given < needed:
        reason = (
            f"engine.additional_config.{key} is on: A3's kernels ask for {needed} MB then; A2's are not published, and "
            "its recipes run with 200 without the key"
        )
        yield Problem("hccl.buffsize", q.config.hccl.buffsize, reason, f"Set {needed}, or remove {key}.")


@rule("E3", "warning", "all", "vllm-ascend issues 5287 and 2674: HCCL_BUFFSIZE is too SMALL", NPU)
def mc2_buffer(q: Question) -> Iterator[Problem]:
    """MC2 needs a buffer that grows with the tokens of a step that it takes."""
    given, tokens = q.config.hccl.buffsize, mc2_capacity(q.config, q.config.engine.release)
    advised = advised_buffsize(q.config, q.arch, given or DEFAULT_BUFFSIZE) if q.arch else 0
    if advised > (given or DEFAULT_BUFFSIZE):
        reason = f"expert dispatch of {tokens} tokens a step needs up to {advised} MB (formula of A3)"
        remedy = f"Set {advised}, or lower parallel.max_num_seqs, or the graph sizes."
        yield Problem("hccl.buffsize", given, reason, remedy)


@rule("R27", "error", ">=0.11", "vllm, config/parallel.py: expert load balance is for CUDA and ROCm")
def foreign_balance(q: Question) -> Iterator[Problem]:
    """vLLM's own expert load balance is not for NPUs: the plugin has one of its own."""
    if q.on("enable-eplb"):
        reason = "vLLM's own expert load balance is not for NPUs: the engine does not start with it"
        yield Problem("engine.args.enable-eplb", True, reason, "Use engine.additional_config.eplb_config.")


SIZES = ("cudagraph_capture_sizes", "max_cudagraph_capture_size")


@rule("R28", "error", ">=0.13", "vllm, config/vllm.py, _set_cudagraph_sizes")
def graph_sizes(q: Question) -> Iterator[Problem]:
    """Sizes of graphs that are given: some fit into a step, and the largest is the last of them."""
    inside, most_tokens = q.inside("compilation-config"), q.config.parallel.max_num_batched_tokens
    for name in SIZES:
        flag = name.replace("_", "-")
        if name in inside and q.settings.get(flag) is not None:
            reason = f"--compilation-config has {name} too"
            yield Problem(f"engine.args.{flag}", q.settings[flag], reason, "Remove one of them.")
    if q.on("enforce-eager") or str(inside.get("cudagraph_mode", "")).upper() in ("NONE", "0"):
        return
    sizes, most = (inside.get(name, q.settings.get(name.replace("_", "-"))) for name in SIZES)
    key = f"engine.args.compilation-config.{SIZES[0]}"
    if isinstance(sizes, list | tuple):
        numbers = [int(one) for one in sizes if str(one).lstrip("-").isdecimal()]
        fitting = [one for one in numbers if most_tokens is None or one <= most_tokens]
        if len(numbers) == len(sizes) and (not fitting or max(fitting) < 1):
            reason = f"none of them is from 1 to parallel.max_num_batched_tokens = {most_tokens}"
            yield Problem(key, sizes, reason, "Give at least one such size.")
        elif fitting and most is not None and str(most) != str(max(fitting)):
            reason = f"the largest of the sizes that fit into a step is {max(fitting)}"
            yield Problem(f"engine.args.compilation-config.{SIZES[1]}", most, reason, "Leave it out.")
    elif type(most) is int and most < 1:
        where = f"engine.args.compilation-config.{SIZES[1]}"
        yield Problem(where, most, "graphs are on, and their largest size is below 1", "Leave it out.")


@rule("R31", "error", "0.13..0.18", "vllm-ascend v0.13.0, ascend_config.py: RuntimeError")
def xlite_blocks(q: Question) -> Iterator[Problem]:
    """The xlite graph asks for the block size that the engine would choose only later."""
    if is_true(q.section("xlite_graph_config").get("enabled")) and q.config.parallel.block_size != 128:
        key = "engine.additional_config.xlite_graph_config.enabled"
        yield Problem(key, True, "it needs parallel.block_size=128 in this release", "Set parallel.block_size=128.")


FINE = "finegrained_tp_config"


@rule("R29", "error", ">=0.13", "vllm-ascend v0.13.0, ascend_config.py, FinegrainedTPConfig")
def fine_grained(q: Question) -> Iterator[Problem]:
    """Sizes of single modules are cut out of the data-parallel group."""
    dp = q.config.parallel.data_parallel_size
    for name, value in q.section(FINE).items():
        if type(value) is int and value > 0 and dp % value:
            reason = f"it must divide parallel.data_parallel_size = {dp}"
        elif isinstance(value, str) and not q.described.strict:
            reason = "a number is needed, and this is a text"
        elif type(value) is int and value < 0 and q.described.strict:
            reason = "a number from 0 on is needed"
        else:
            continue
        yield Problem(f"engine.additional_config.{FINE}.{name}", value, reason, "Give a divisor of it, or 0.")


def recording(q: Question) -> bool:
    """Whether a variable says that the load of experts may be recorded."""
    return is_true(q.env.get("DYNAMIC_EPLB")) or q.env.get("EXPERT_MAP_RECORD") == "true"
