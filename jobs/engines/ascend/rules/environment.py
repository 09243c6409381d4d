"""Variables of HCCL, torch_npu and vLLM: ranges and combinations (E1 to E14)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from jobs.engines.ascend.mc2 import advised_buffsize
from jobs.engines.ascend.rules.base import NPU, Problem, Question, is_true, rule

CANN = "CANN 8.5.0, maintenance reference, environment variables"
RANGES = {
    "HCCL_CONNECT_TIMEOUT": ("hccl.connect_timeout", 120, 7200, f"{CANN}, envref_07_0077 (EI0001 outside)"),
    "HCCL_BUFFSIZE": ("hccl.buffsize", 1, None, f"{CANN}, envref_07_0080"),
    "HCCL_IF_BASE_PORT": ("engine.env.HCCL_IF_BASE_PORT", 1024, 65520, f"{CANN}, envref_07_0074: the first of 16"),
    "HCCL_RDMA_TIMEOUT": ("engine.env.HCCL_RDMA_TIMEOUT", 5, 20, f"{CANN}, HCCL_RDMA_TIMEOUT on A2"),
    "HCCL_INTRA_PCIE_ENABLE": ("hccl.intra_pcie_enable", 0, 1, f"{CANN}, envref_07_0081"),
    "HCCL_INTRA_ROCE_ENABLE": ("hccl.intra_roce_enable", 0, 1, f"{CANN}, envref_07_0082"),
}
"""Variable -> its config key, smallest and largest whole number, source."""


@rule("E1", "error", "all", CANN)
def ranges(q: Question) -> Iterator[Problem]:
    """Whole numbers and their ranges."""
    for name, (key, low, high, source) in RANGES.items():
        text = q.env.get(name)
        if text is None:
            continue
        good = re.fullmatch(r"-?\d+", text) and int(text) >= low and (high is None or int(text) <= high)
        if not good:
            wanted = f"a whole number from {low} to {high}" if high is not None else f"a whole number from {low} on"
            yield Problem(key, text, f"{name} must be {wanted}", "Give one in that range, or null.", source=source)


@rule("E2", "warning", "all", f"{CANN}, envref_07_0077: the wait for a peer that never comes", NPU)
def long_wait(q: Question) -> Iterator[Problem]:
    """A dead peer is reported only after the timeout."""
    value = q.config.hccl.connect_timeout
    if value is not None and 1800 < value <= 7200:
        reason = f"a peer that died is reported only after {value} s, which two nodes spend waiting"
        yield Problem("hccl.connect_timeout", value, reason, "Set 600 to 1800 for batch jobs.")


@rule("E4", "warning", "all", f"{CANN}, envref_07_0080: each communicator takes twice HCCL_BUFFSIZE", NPU)
def costly_buffers(q: Question) -> Iterator[Problem]:
    """Large buffers take memory from the KV cache."""
    value = q.config.hccl.buffsize
    if value is None or value < 512 or q.release is None:
        return
    recipe = int(q.release.recipe["HCCL_BUFFSIZE"].value or 0)
    advised = advised_buffsize(q.config, q.arch, recipe) if q.arch else recipe
    if q.release.version < (0, 11):
        reason = f"every communicator (tp, dp, ep, ...) takes 2 x {value} MB of each NPU: some GiB less KV cache"
        yield Problem("hccl.buffsize", value, reason, "Set 256 to 512, as far as parallel.max_num_seqs allows.")
    elif value > advised and value != recipe:
        reason = f"the MC2 communicator takes 2 x {value} MB of each NPU; the official recipe has {recipe}"
        yield Problem(
            "hccl.buffsize", value, reason, f"Set {advised}.", source=q.release.recipe["HCCL_BUFFSIZE"].source
        )


@rule("E5", "error", "all", f"{CANN}, envref_07_0096", NPU)
def expansion_mode(q: Question) -> Iterator[Problem]:
    """Where collectives are unrolled. On A2: AIV, or HOST (the default)."""
    mode, key = q.config.hccl.op_expansion_mode, "hccl.op_expansion_mode"
    if mode not in (None, "AIV", "HOST"):
        yield Problem(key, mode, "A2 knows AIV and HOST", "Set null, which is HOST.")
    if mode == "AIV" and len(q.ranks) > 1:
        reason = (
            "AIV is not supported with several communicators in parallel and for AlltoAllV over several nodes; "
            "the official two-node A2 recipes do not set it"
        )
        yield Problem(key, mode, reason, "Set null.", "warning")
    if mode == "AIV" and is_true(q.env.get("HCCL_DETERMINISTIC")):
        yield Problem(key, mode, "it is ignored with HCCL_DETERMINISTIC=true", "Remove one of them.", "warning")


@rule("E6", "error", "all", f"{CANN}, envref_07_0081 and envref_07_0082", NPU)
def inside_a_node(q: Question) -> Iterator[Problem]:
    """NPUs of one node talk by PCIe or by RoCE; the pair PCIe=1, RoCE=0 makes MC2 hierarchical."""
    pcie, roce = q.config.hccl.intra_pcie_enable, q.config.hccl.intra_roce_enable
    if pcie == 1 and roce == 1:
        yield Problem("hccl.intra_roce_enable", 1, "hccl.intra_pcie_enable is 1 too: only one may be", "Set it to 0.")
    elif roce == 0 and pcie is None:
        reason = "RoCE is off and PCIe is not set: CANN 9 does not support this"
        yield Problem("hccl.intra_pcie_enable", None, reason, "Set it to 1.", "warning")
    elif len(q.ranks) > 1 and (pcie, roce) != (1, 0) and q.release and "HCCL_INTRA_PCIE_ENABLE" in q.release.recipe:
        reason = "the official two-node A2 recipe sets 1 and hccl.intra_roce_enable=0: less traffic between the nodes"
        source = q.release.recipe["HCCL_INTRA_PCIE_ENABLE"].source
        remedy = "Set hccl.intra_pcie_enable=1 hccl.intra_roce_enable=0."
        yield Problem("hccl.intra_pcie_enable", pcie, reason, remedy, "warning", source)


@rule("E7", "error", "all", f"{CANN}, envref_07_0144", NPU)
def device_ports(q: Question) -> Iterator[Problem]:
    """The device port range must not be set on A2 with MC2."""
    value = q.env.get("HCCL_NPU_SOCKET_PORT_RANGE")
    if value is not None:
        reason = "it is not supported on A2 together with MC2's fused operators"
        yield Problem("engine.env.HCCL_NPU_SOCKET_PORT_RANGE", value, reason, "Remove it.")


@rule("E8", "error", "all", "torch_npu, PYTORCH_NPU_ALLOC_CONF", NPU)
def allocator(q: Question) -> Iterator[Problem]:
    """Expandable segments exclude the other options of the allocator."""
    value = q.env.get("PYTORCH_NPU_ALLOC_CONF", "")
    others = [name for name in ("max_split_size_mb", "garbage_collection_threshold") if name in value]
    if "expandable_segments:True" in value and others:
        reason = f"expandable_segments:True cannot be combined with {others[0]}"
        yield Problem("engine.env.PYTORCH_NPU_ALLOC_CONF", value, reason, "Keep expandable_segments:True alone.")


@rule("E9", "error", ">=0.11", "vllm-ascend v0.11.0, platform.py", NPU)
def blocking_launch(q: Question) -> Iterator[Problem]:
    """Graphs cannot be captured with blocking launches."""
    if q.env.get("ASCEND_LAUNCH_BLOCKING") == "1" and not q.on("enforce-eager"):
        reason = "the ACL graph cannot be captured with it"
        yield Problem("engine.env.ASCEND_LAUNCH_BLOCKING", "1", reason, "Remove it, or set engine.args.enforce-eager.")


@rule("E10", "warning", ">=0.18", "vllm 0.18.0, v1/engine/core_client.py: 600 s by default", NPU)
def load_deadline(q: Question) -> Iterator[Problem]:
    """The engine gives up a load of its own after ten minutes."""
    text, name = q.env.get("VLLM_ENGINE_READY_TIMEOUT_S", "600"), "VLLM_ENGINE_READY_TIMEOUT_S"
    allowed = q.config.limits.load_s
    if text.isdigit() and int(text) < min(allowed, 1800) and q.config.model.shape.weight_gib >= 100:
        reason = f"the engine gives up a load after {text} s, though limits.load_s allows {allowed:.0f} s"
        yield Problem(f"engine.env.{name}", q.env.get(name), reason, f"Set +engine.env.{name}={allowed:.0f}.")


@rule("E11", "warning", "all", "vllm, logger.py: the sizes that are read from the log are INFO lines", NPU)
def quiet_log(q: Question) -> Iterator[Problem]:
    """Above INFO the log does not hold what is read from it."""
    level = q.env.get("VLLM_LOGGING_LEVEL", "INFO").upper()
    if level not in ("INFO", "DEBUG"):
        reason = "the lines with weight and KV cache sizes are not logged, so the table cannot have them"
        yield Problem("engine.env.VLLM_LOGGING_LEVEL", level, reason, "Set INFO.")


@rule("E12", "warning", "all", "vllm-ascend, two-node recipes: 100 in 0.9.1, 10 in 0.11.0, 1 from 0.13.0 on", NPU)
def many_threads(q: Question) -> Iterator[Problem]:
    """Threads of every worker: eight workers share a node."""
    text = q.env.get("OMP_NUM_THREADS", "1")
    if text.isdigit() and int(text) > 10:
        reason = f"each of {q.config.cluster.npus_per_node} workers of a node starts {text} threads"
        yield Problem("engine.env.OMP_NUM_THREADS", text, reason, "Set 10 (recipe of 0.11), or 1 (from 0.13 on).")


@rule("E13", "error", "<0.12", "vllm-ascend v0.9.1, ascend_config.py; v0.11.0, platform.py")
def first_engine(q: Question) -> Iterator[Problem]:
    """The V0 engine has neither torchair nor the Ascend scheduler, and is gone in 0.11."""
    if q.env.get("VLLM_USE_V1", "1") in ("0", "false"):
        reason = "the V0 engine is not supported by vllm-ascend"
        yield Problem("engine.env.VLLM_USE_V1", q.env["VLLM_USE_V1"], reason, "Set 1, or remove it.")


@rule("E14", "warning", "all", "article, 4.1: its request names the checkpoint's path", NPU)
def unnamed_model(q: Question) -> Iterator[Problem]:
    """Without a name clients must send the path."""
    if q.config.model.served_model_name is None:
        reason = f"clients must send the path {q.config.model.path} as the model's name"
        yield Problem("model.served_model_name", None, reason, "Set a short name.")


RULES = (
    ranges,
    long_wait,
    costly_buffers,
    expansion_mode,
    inside_a_node,
    device_ports,
    allocator,
    blocking_launch,
    load_deadline,
    quiet_log,
    many_threads,
    first_engine,
    unnamed_model,
)
