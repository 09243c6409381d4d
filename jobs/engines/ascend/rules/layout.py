"""Data, tensor and context parallel layout (R1, R2, R14, R15, L1)."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.engines.ascend.rules.base import EVERY, Problem, Question, rule

PCP, DCP, PP = "prefill-context-parallel-size", "decode-context-parallel-size", "pipeline-parallel-size"
TP = "parallel.tensor_parallel_size"
MASTER = ("data-parallel-address", "data-parallel-rpc-port", "master-addr", "master-port")


@rule("R1", "error", "all", "vllm-ascend docs, multi-node tutorial; vllm, world size = tp x pcp x pp", EVERY)
def npus_of_a_node(q: Question) -> Iterator[Problem]:
    """Local ranks x tp x pcp x pp must fit into a node. (Without pcp and pp the layout itself is refused.)"""
    pcp, pp, tp = q.size(PCP), q.size(PP), q.config.parallel.tensor_parallel_size
    most = q.config.cluster.npus_per_node
    for node, flags in enumerate(q.ranks):
        local = int(flags.get("data-parallel-size-local", 0))  # one rank over several nodes has none
        if pcp * pp > 1 and local * tp * pcp * pp > most:
            reason = (
                f"node {node} needs {local} x tp {tp} x pcp {pcp} x pp {pp} = {local * tp * pcp * pp} NPUs of {most}"
            )
            yield Problem(TP, tp, reason, "Lower one of them.")
            return


@rule("R2", "error", "all", "vllm, engine/arg_utils.py: start rank without --headless is another topology", EVERY)
def head_and_headless(q: Question) -> Iterator[Problem]:
    """Exactly the first rank is the head; start ranks follow from the sizes before; all know the same master."""
    start, alone = 0, "nnodes" in (q.ranks[0] if q.ranks else {})
    for rank, flags in enumerate(q.ranks):
        wrong = (
            bool(flags.get("headless")) != (rank > 0)
            or flags.get("data-parallel-start-rank") != (start if rank and not alone else None)
            or flags.get("node-rank") != (rank if alone else None)
            or any(flags.get(name) != q.ranks[0].get(name) for name in MASTER)
        )
        if wrong:
            reason = "it must be headless with the start rank after the nodes before it, and know the head's address"
            yield Problem(f"rank {rank}", dict(flags), reason, "This is a fault of the tool: please report it.")
        start += int(flags.get("data-parallel-size-local", 0))


@rule("R14", "error", ">=0.13", "vllm-ascend v0.23.0, platform.py, _validate_parallel_config")
def context_and_data_parallel(q: Question) -> Iterator[Problem]:
    """Prefill context parallel and data parallel exclude each other."""
    ranks = q.config.parallel.data_parallel_size
    if q.size(PCP) > 1 and ranks > 1:
        reason = f"prefill context parallel does not work together with {ranks} data-parallel ranks"
        yield Problem(
            "parallel.prefill_context_parallel_size",
            q.size(PCP),
            reason,
            "Set parallel.data_parallel_size=1, or leave it out.",
        )


@rule("R15", "error", ">=0.11", "vllm 0.18.0, config/parallel.py; vllm-ascend feature guide, context parallel")
def decode_context_parallel(q: Question) -> Iterator[Problem]:
    """Decode context parallel reuses the tensor parallel ranks."""
    dcp, tp, key = q.size(DCP), q.config.parallel.tensor_parallel_size, "parallel.decode_context_parallel_size"
    assert q.release is not None
    if q.release.version < (0, 13) and (dcp > 1 or q.size(PCP) > 1):
        at, size = (key, dcp) if dcp > 1 else ("parallel.prefill_context_parallel_size", q.size(PCP))
        reason = (
            f"vllm {q.release.name} has the flag for decoding, but the Ascend worker of this release has no context "
            "parallelism: the KV cache would not be spread"
        )
        remedy = "Choose engine.release=0.13.0 or later, or another layout."
        yield Problem(at, size, reason, remedy, source="vllm-ascend v0.11.0, worker: no code for context parallelism")
    if tp % dcp:
        yield Problem(key, dcp, f"it must divide {TP} = {tp}", "Give a divisor of it.")
    if (dcp > 1 or q.size(PCP) > 1) and q.speculative:
        yield Problem(
            "engine.args.speculative-config",
            q.settings.get("speculative-config"),
            "multi-token prediction with context parallel is not supported for MLA models on A2",
            "Leave one of them out.",
            "warning",
            "vllm-ascend v0.23.0, feature guide, context parallel, table of supported features",
        )


@rule(
    "L1",
    "error",
    "all",
    "vllm, config: Total number of attention heads must be divisible by tensor parallel size",
    EVERY,
)
def whole_heads(q: Question) -> Iterator[Problem]:
    """Each tensor parallel rank holds whole attention heads."""
    tp = q.config.parallel.tensor_parallel_size
    if q.arch is not None and q.arch.heads % tp:
        sizes = [size for size in range(1, q.config.cluster.npus_per_node + 1) if q.arch.heads % size == 0]
        reason = f"the {q.arch.heads} attention heads of the model cannot be cut over {tp} ranks"
        yield Problem(TP, tp, reason, f"Give a divisor of {q.arch.heads}: {', '.join(map(str, sizes))}.")


RULES = (npus_of_a_node, head_and_headless, context_and_data_parallel, decode_context_parallel, whole_heads)
