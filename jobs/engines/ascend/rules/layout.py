"""Data, tensor, pipeline and context parallel layout (R2, R14, R15, L1 to L4)."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.engines.ascend import is_true
from jobs.engines.ascend.memory import PARTITION
from jobs.engines.ascend.rules.base import DCP, EVERY, PCP, PP, Problem, Question, rule
from jobs.engines.checkpoint.parts import stages

PCP_KEY, TP = "parallel.prefill_context_parallel_size", "parallel.tensor_parallel_size"
MASTER = ("data-parallel-address", "data-parallel-rpc-port", "master-addr", "master-port")


@rule("R2", "error", "all", "vllm, engine/arg_utils.py: start rank without --headless is another topology", EVERY)
def head_and_headless(q: Question) -> Iterator[Problem]:
    """Exactly the first rank is the head; start ranks follow from the sizes before; all know the same master."""
    start, alone = 0, "nnodes" in (q.ranks[0] if q.ranks else {})
    if q.config.parallel.replicas > 1 and not any("headless" in flags for flags in q.ranks):
        return  # each is the head of a service of its own
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


@rule("L2", "error", "all", "vllm, distributed/utils.py, get_pp_indices", EVERY)
def pipeline_stages(q: Question) -> Iterator[Problem]:
    """The stages hold the model's layers, each at least one; prefill context parallel is not made for them."""
    count, layers = q.size(PP), q.arch.layers if q.arch else None
    if count == 1:
        return
    if layers is not None:
        try:
            stages(layers, count, q.env.get(PARTITION))
        except ValueError as error:
            key = f"engine.env.{PARTITION}"
            yield Problem(key, q.env.get(PARTITION), str(error), f"Leave {key} out: {layers} layers are cut evenly.")
    if layers is not None and layers < count:
        reason = f"the model has {layers} layers"
        yield Problem("parallel.pipeline_parallel_size", count, reason, "Give as many stages at most.")
    if q.size(PCP) > 1:
        source = "vllm-ascend 0.30.0rc2, feature guide, pipeline parallel"
        reason = "prefill context parallel together with pipeline stages is not supported"
        yield Problem(PCP_KEY, q.size(PCP), reason, "Leave one of them out.", "warning", source)


@rule("L3", "error", ">=0.27", "vllm-ascend 0.30.0rc2, feature guide, KVPP, supported features")
def caches_by_layer(q: Question) -> Iterator[Problem]:
    """Caches that are spread by layer are sent around without graphs, and are not spread by token as well."""
    if not is_true(q.additional.get("enable_kvpp")):
        return
    key = "engine.additional_config.enable_kvpp"
    if not q.on("enforce-eager"):
        yield Problem(key, True, "it works without graphs only", "Set engine.args.enforce-eager=true.")
    if q.size(DCP) > 1:
        reason = f"it does not work together with decode context parallel {q.size(DCP)}"
        yield Problem(key, True, reason, "Leave one of them out.")


@rule("L4", "error", ">=0.26", "vllm-ascend 0.30.0rc2, platform.py: PCP is not supported; with Model Runner V2 it is")
def runner_of_context_parallel(q: Question) -> Iterator[Problem]:
    """Prefill context parallel is a thing of the second model runner."""
    name = "VLLM_USE_V2_MODEL_RUNNER"
    if q.size(PCP) > 1 and not is_true(q.env.get(name)):
        reason = f"prefill context parallel {q.size(PCP)} needs the second model runner in this release"
        yield Problem(f"engine.env.{name}", q.env.get(name), reason, f"Set +engine.env.{name}=1.")


@rule("R14", "error", ">=0.23", "vllm-ascend v0.23.0, platform.py, _validate_parallel_config")
def context_and_data_parallel(q: Question) -> Iterator[Problem]:
    """Prefill context parallel and data parallel exclude each other."""
    ranks = q.config.parallel.data_parallel_size
    if q.size(PCP) > 1 and ranks > 1:
        reason = f"prefill context parallel does not work together with {ranks} data-parallel ranks"
        yield Problem(PCP_KEY, q.size(PCP), reason, "Set parallel.data_parallel_size=1, or leave it out.")


@rule("R15", "error", ">=0.11", "vllm 0.18.0, config/parallel.py; vllm-ascend feature guide, context parallel")
def decode_context_parallel(q: Question) -> Iterator[Problem]:
    """Decode context parallel reuses the tensor parallel ranks."""
    dcp, tp, key = q.size(DCP), q.config.parallel.tensor_parallel_size, "parallel.decode_context_parallel_size"
    if q.described.version < (0, 13) and (dcp > 1 or q.size(PCP) > 1):
        at, size = (key, dcp) if dcp > 1 else (PCP_KEY, q.size(PCP))
        reason = (
            f"vllm {q.described.name} has the flag for decoding, but the Ascend worker of this release has no context "
            "parallelism: the KV cache would not be spread"
        )
        remedy = "Choose engine.release=0.13.0 or later, or another layout."
        yield Problem(at, size, reason, remedy, source="vllm-ascend v0.11.0, worker: no code for context parallelism")
    pcp = q.size(PCP)
    if pcp > 1 and q.described.version >= (0, 26) and dcp not in (1, pcp, tp * pcp):
        reason = f"with prefill context parallel {pcp} it must be 1, {pcp} or tp x pcp = {tp * pcp}"
        yield Problem(key, dcp, reason, "Give one of these.", source="vllm 0.26.0, config/parallel.py")
    elif tp % dcp and dcp != tp * pcp:
        yield Problem(key, dcp, f"it must divide {TP} = {tp}", "Give a divisor of it.")
    if (dcp > 1 or q.size(PCP) > 1) and q.speculative:
        source = "vllm-ascend v0.23.0, feature guide, context parallel, table of supported features"
        reason = "multi-token prediction with context parallel is not supported for MLA models on A2"
        remedy, flag = "Leave one of them out.", "speculative-config"
        yield Problem(f"engine.args.{flag}", q.settings.get(flag), reason, remedy, "warning", source)


@rule("R40", "error", ">=0.13", "vllm, config/vllm.py: Block_size should be divisible by cp_kv_cache_interleave_size")
def interleaved_blocks(q: Question) -> Iterator[Problem]:
    """With context parallelism a block is cut into whole pieces."""
    name, blocks = "cp-kv-cache-interleave-size", q.config.parallel.block_size or 128
    given = str(q.settings.get(name, 1))
    if q.size(DCP) > 1 and given.isdecimal() and (int(given) == 0 or blocks % int(given)):
        reason = f"it must divide the block size, {blocks}"
        yield Problem(f"engine.args.{name}", q.settings[name], reason, "Give a divisor of it.")


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
