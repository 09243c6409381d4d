"""Graph mode: torchair until 0.11, ACL graph from 0.12 on (R7 to R12)."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.engines.ascend.rules.base import NPU, Problem, Question, is_true, rule

GRAPH = "engine.additional_config.torchair_graph_config"
CONFIG = "vllm-ascend v0.9.1, ascend_config.py"
NEED_ENABLED = (
    "mode",  # 0.11
    "use_cached_graph",
    "use_cached_kv_cache_bytes",
    "graph_batch_sizes",
    "graph_batch_sizes_init",
    "enable_multistream_mla",
    "enable_multistream_moe",
    "enable_kv_nz",
    "enable_super_kernel",
)
"""Options of torchair that are refused while it is off; the others are not looked at then."""


def _graph(q: Question) -> bool:
    return is_true(q.section("torchair_graph_config").get("enabled"))


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
        yield Problem(
            f"{GRAPH}.enabled", False, reason, f"Set {GRAPH}.enabled=true, or engine.args.enforce-eager=true."
        )


@rule("R9", "error", "<0.12", f"{CONFIG}, TorchairGraphConfig")
def torchair_options(q: Question) -> Iterator[Problem]:
    """Options of torchair that need others."""
    graph = q.section("torchair_graph_config")

    def missing(name: str, needed: str) -> Problem:
        return Problem(f"{GRAPH}.{name}", graph[name], f"it needs {needed}", f"Set {needed}, or remove {name}.")

    if not _graph(q):
        yield from (missing(name, "torchair_graph_config.enabled=true") for name in NEED_ENABLED if graph.get(name))
        return
    if graph.get("graph_batch_sizes") and is_true(graph.get("graph_batch_sizes_init")):
        reason = "graph_batch_sizes is given, so there is nothing to choose"
        yield Problem(f"{GRAPH}.graph_batch_sizes_init", True, reason, "Remove one of them.")
    if graph.get("use_cached_kv_cache_bytes") and not graph.get("use_cached_graph"):
        yield missing("use_cached_kv_cache_bytes", "use_cached_graph=true")
    if graph.get("enable_super_kernel") and q.release is not None:
        if q.release.name == "0.9.1" and not graph.get("enable_multistream_moe"):
            yield missing("enable_super_kernel", "enable_multistream_moe=true")
        if q.release.name != "0.9.1" and q.config.parallel.tensor_parallel_size > 1:
            yield missing("enable_super_kernel", "parallel.tensor_parallel_size=1")
        if q.release.name != "0.9.1" and not is_true(q.additional.get("multistream_overlap_shared_expert")):
            yield missing("enable_super_kernel", "additional_config.multistream_overlap_shared_expert=true")
    sizes = graph.get("graph_batch_sizes", [])
    if not isinstance(sizes, list | tuple) or any(type(size) is not int for size in sizes):
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
    graph, seqs, tp = q.section("torchair_graph_config"), q.config.parallel.max_num_seqs, None
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
        ("torchair_graph_config", """Set engine.args.compilation-config={cudagraph_mode: FULL_DECODE_ONLY} instead."""),
        ("ascend_scheduler_config", "Remove it: vLLM's own scheduler with chunked prefill is the only one."),
    ):
        if name in q.additional:
            reason = "this release does not read it any more and says nothing"
            yield Problem(f"engine.additional_config.{name}", q.additional[name], reason, remedy)


RULES = (
    graph_and_eager,
    neither_graph_nor_eager,
    torchair_options,
    largest_graph,
    padded_decode,
    removed_sections,
)
