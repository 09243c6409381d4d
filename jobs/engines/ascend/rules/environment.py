"""What stands around the engine: variables of HCCL, torch_npu and vLLM (E1 to E20), and the container of an NPU engine
(K1 to K4): its image's tag, and what the official `docker run` lines have."""

from __future__ import annotations

import re
from collections.abc import Iterator

from containers.spec import size_bytes
from jobs.core.config import in_container
from jobs.core.errors import ConfigError
from jobs.engines.ascend import ADVISED, is_true, releases
from jobs.engines.ascend import release as described
from jobs.engines.ascend.mc2 import advised_buffsize
from jobs.engines.ascend.rules.base import NPU, Problem, Question, covers, rule, table
from jobs.engines.base import Severity

CANN = "CANN 8.5.0, maintenance reference, environment variables"


@rule("E1", "error", "all", CANN)
def ranges(q: Question) -> Iterator[Problem]:
    """Whole numbers and their ranges."""
    for name, (key, low, high, source) in table("ranges").items():
        text = q.env.get(name)
        if text is None:
            continue
        good = re.fullmatch(r"-?\d+", text) and int(text) >= low and (high is None or int(text) <= high)
        if not good:
            wanted = f"a whole number from {low} to {high}" if high is not None else f"a whole number from {low} on"
            reason, remedy = f"{name} must be {wanted}", "Give one in that range, or null."
            yield Problem(key, text, reason, remedy, source=f"{CANN}, {source}")


_EARLY = ("DBO", "BALANCE_SCHEDULING", "FLASHCOMM1", "FLASHCOMM2_PARALLEL_SIZE")
"""Ends of the plugin's variables that it reads for its configuration, also before 0.23."""
_LATE = {"VLLM_USE_V2_MODEL_RUNNER": "<0.23", "VLLM_MLA_DISABLE": "0.11..0.13", "VLLM_ASCEND_ENABLE_DBO": "0.11..0.18"}
"""Variables of vLLM, and the releases whose workers are the first to read them."""


@rule("E19", "error", "all", "vllm and vllm-ascend, envs.py: int(...) of the variable")
def whole_numbers(q: Question) -> Iterator[Problem]:
    """Variables of vLLM and its plugin that are read as whole numbers when the engine begins."""
    if q.release is None:
        return
    for name, default in q.release.variables.items():
        if (text := q.env.get(name)) is None:
            continue
        is_number = name in table("whole_numbers") or (name.startswith("VLLM_ASCEND") and str(default).isdecimal())
        if is_number and not re.fullmatch(r"\s*[+-]?\d+\s*", text):
            late = q.release.version < (0, 23) and name.startswith("VLLM_ASCEND") and not name.endswith(_EARLY)
            late = late or covers(_LATE.get(name, "<0"), q.release.version)
            severity: Severity | None = "warning" if late else None  # its workers read it, after the load
            remedy = "Give one, most often 0 or 1."
            yield Problem(f"engine.env.{name}", text, "a whole number is needed", remedy, severity)


@rule("E20", "error", "0.13", "vllm 0.13.0, envs.py: env_with_choices, read by config/parallel.py")
def named_backend(q: Question) -> Iterator[Problem]:
    """The way between the experts takes the names of its flag; in 0.11 its workers read it, later ones have it not."""
    text, flag = q.env.get("VLLM_ALL2ALL_BACKEND"), q.described.flags.get("all2all-backend")
    known = [one for one in (flag.choices or () if flag else ()) if one and one != "None"]
    if text is not None and known and text not in known and q.settings.get("all2all-backend") is None:
        remedy = f"Set one of {', '.join(known)}, or null."
        yield Problem("engine.env.VLLM_ALL2ALL_BACKEND", text, "this release does not know it", remedy)


_ALGO = r"(\w+=)?level0:NA;level1:(ring|H-D_R|NHR|NHR_V1|NB|AHC|pipeline|pairwise)(;level2:[\w-]+)?"


@rule("E15", "error", "all", f"{CANN}, envref_07_0079")
def algorithm(q: Question) -> Iterator[Problem]:
    """The algorithm between the nodes has one form, for all operators or for each."""
    if (algo := q.config.hccl.algo) is not None and not re.fullmatch(f"{_ALGO}(/{_ALGO})*", algo):
        reason = "it is not level0:NA;level1:ALGORITHM, nor OPERATOR=level0:NA;level1:ALGORITHM joined by /"
        yield Problem("hccl.algo", algo, reason, "Give ring, H-D_R, NHR, NB, pipeline or pairwise, or null.")


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
        source = q.release.recipe["HCCL_BUFFSIZE"].source
        yield Problem("hccl.buffsize", value, reason, f"Set {advised}.", source=source)


@rule("E5", "error", "all", f"{CANN}, envref_07_0096", NPU)
def expansion_mode(q: Question) -> Iterator[Problem]:
    """Where collectives are unrolled. On A2: AIV, or HOST (the default)."""
    mode, key = q.config.hccl.op_expansion_mode, "hccl.op_expansion_mode"
    if mode not in (None, "AIV", "HOST"):
        yield Problem(key, mode, "A2 knows AIV and HOST", "Set null, which is HOST.")
    if mode == "AIV" and len(q.ranks) > 1:
        reason = (
            "AIV is not supported with several communicators in parallel; the official two-node A2 recipes of R1 and "
            "V3.1 do not set it (that of V3.2 does)"
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


@rule("E9", "error", "0.11..0.26", "vllm-ascend v0.11.0, platform.py; gone in v0.30.0rc2", NPU)
def blocking_launch(q: Question) -> Iterator[Problem]:
    """Graphs cannot be captured with blocking launches."""
    torchair = is_true(q.section("torchair_graph_config").get("enabled")) and q.described.version < (0, 12)
    if q.env.get("ASCEND_LAUNCH_BLOCKING") == "1" and not q.on("enforce-eager") and not torchair:
        reason = "the ACL graph cannot be captured with it"
        yield Problem("engine.env.ASCEND_LAUNCH_BLOCKING", "1", reason, "Remove it, or set engine.args.enforce-eager.")


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
    if text.isdecimal() and int(text) > 10:
        reason = f"each of {q.config.cluster.npus_per_node} workers of a node starts {text} threads"
        yield Problem("engine.env.OMP_NUM_THREADS", text, reason, "Set 10 (recipe of 0.11), or 1 (from 0.13 on).")


@rule("E13", "error", "<0.12", "vllm-ascend v0.9.1, ascend_config.py; v0.11.0, platform.py")
def first_engine(q: Question) -> Iterator[Problem]:
    """The V0 engine has neither torchair nor the Ascend scheduler, and is gone in 0.11."""
    if q.env.get("VLLM_USE_V1", "1") in ("0", "false"):
        reason = "the V0 engine is not supported by vllm-ascend"
        yield Problem("engine.env.VLLM_USE_V1", q.env["VLLM_USE_V1"], reason, "Set 1, or remove it.")


@rule("E17", "warning", "0.23", "vllm-ascend v0.23.0.post1, worker/model_runner_v1.py; pull request 15362", NPU)
def stale_kv(q: Question) -> Iterator[Problem]:
    """0.23.0 lets an idle data-parallel rank write into KV blocks that are in use."""
    ranks, image = q.config.parallel.data_parallel_size, q.config.container.image or ""
    tagged = image.endswith(("v0.23.0", "v0.23.0-openeuler")) and in_container(q.config)
    if ranks > 1 and (q.described.name == "0.23.0" or tagged):
        known = q.described.name == "0.23.0"
        key, value = ("engine.release", q.described.name) if known else ("container.image", image)
        reason = (
            f"with {ranks} data-parallel ranks an idle one writes stale KV into blocks in use: silent wrong answers"
        )
        remedy = f"Set engine.release={ADVISED}" + (" and its image." if tagged else ".")
        yield Problem(key, value, reason, remedy)


@rule("E14", "warning", "all", "article, 4.1: its request names the checkpoint's path", NPU)
def unnamed_model(q: Question) -> Iterator[Problem]:
    """Without a name clients must send the path."""
    if q.config.model.served_model_name is None:
        reason = f"clients must send the path {q.config.model.path} as the model's name"
        yield Problem("model.served_model_name", None, reason, "Set a short name.")


@rule("E18", "warning", "all", "SECURITY.md, what is not promised: other hosts of the site reach the API's port", NPU)
def open_to_all(q: Question) -> Iterator[Problem]:
    """Without a key everybody whom the network lets through can use the service."""
    if q.config.engine.api_key is None:
        reason = "every user whom the site's network lets reach the head can send requests while it is measured"
        yield Problem("engine.api_key", None, reason, "Leave engine.api_key=auto: a key for each service.")


RUN = "vllm-ascend v0.13.0, docs/source/tutorials/DeepSeek-R1.md, docker run"
TOOLS = ("hccn_tool", "hccn.conf")
"""Ends of what the HCCN tool needs in a container; the guides mount both since v0.13."""


def _tag(q: Question) -> str:
    """Return the tag of the image; empty: there is no container, no tag (a recipe's name), or another repository."""
    container = q.config.container
    repository, _, tag = (container.image or "").rpartition(":")
    if not in_container(q.config) or "/" in tag:
        return ""
    return tag if repository.endswith("vllm-ascend") else ""


@rule("K1", "warning", "all", "vllm-ascend, image workflows: a branch's tag follows the branch", NPU)
def moving_tag(q: Question) -> Iterator[Problem]:
    """A tag that changes its content: two runs of one config may be two engines."""
    tag, image = _tag(q), q.config.container.image
    reason = "it is the tag of a branch: its content changes, and rows of two days may be of two engines"
    for name in releases() if tag else ():
        if fixed := described(name).moving_images.get(tag):
            base = described(name).images.get(str(fixed.value))
            remedy = f"Pin {fixed.value}" + (f" ({base.value})." if base else ".")
            yield Problem("container.image", image, reason, remedy, source=fixed.source)
            return
    if tag and (tag in ("latest", "main") or tag.endswith("-dev") or "-dev-" in tag):
        pinned = " or ".join(q.release.images) if q.release else "a release's tag"
        yield Problem("container.image", image, reason, f"Pin {pinned}.")


@rule("K3", "warning", "all", RUN, NPU)
def hccn_mounts(q: Question) -> Iterator[Problem]:
    """Without hccn_tool and its file nothing inside can look at the NPUs' network."""
    container = q.config.container
    if not in_container(q.config) or container.driver_mounts is None:  # null: all that the guides have
        return
    mounts = [text.split(":")[0].rstrip("/") for text in (*container.driver_mounts, *container.mounts)]
    missing = [name for name in TOOLS if not any(source.endswith(name) for source in mounts)]
    if missing:
        reason = f"{' and '.join(missing)} not mounted: the NPUs' network cannot be looked at from inside"
        remedy = "Set container.driver_mounts=null, or add /usr/local/Ascend/driver/tools/hccn_tool and /etc/hccn.conf."
        yield Problem("container.driver_mounts", list(container.driver_mounts), reason, remedy)


@rule("K4", "warning", "all", f"{RUN}: --shm-size=1g", NPU)
def large_shm(q: Question) -> Iterator[Problem]:
    """/dev/shm may take the node's memory up to its size."""
    container = q.config.container
    try:
        size = size_bytes(container.shm_size) if container.shm_size else 0
    except ConfigError:  # a finding of its own
        return
    if in_container(q.config) and size > 64 << 30:
        reason = "the official commands have 1g; what a larger one holds is missing in the page cache of the weights"
        yield Problem("container.shm_size", container.shm_size, reason, "Set 1g.")
