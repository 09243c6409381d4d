"""What belongs to a service: a change needs a restart of the engine, a new weight load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from jobs.core import registry
from jobs.core.fields import (
    Count,
    Flag,
    NotNegative,
    OneKey,
    Place,
    Positive,
    Section,
    Share,
    Text,
    Whole,
    registered,
    section,
    setting,
)


def _local_sizes(value: Any) -> Any:
    sizes = value if isinstance(value, list | tuple) else [value]
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError("a whole number of at least 1 is needed, or a list of them")
    return tuple(sizes) if isinstance(value, list | tuple) else value


def _without_nulls(value: dict[str, Any] | None) -> dict[str, Any] | None:
    return value and {key: item for key, item in value.items() if item is not None}


@dataclass(frozen=True)
class Shape(OneKey):
    """What a model costs, for prompts, the rehearsal engine and first estimates."""

    parameters: Positive = setting(1e6, "all parameters, a count")
    active_parameters: Positive = setting(1e6, "parameters used for one token, a count")
    weight_gib: Positive = setting(0.01, "weights of the whole model in GiB")
    kv_bytes_per_token: Count = setting(1024, "KV cache bytes of one token in one data-parallel rank")
    max_position_embeddings: Count = setting(131072, "longest sequence that the model was made for, tokens")
    expert_bits: Count | None = setting(None, "bits of a routed expert's weight (W4A8: 4); null: as model.quantization")
    token_ids: tuple[int, int] = setting((100, 1000), "[low, high): ordinary token ids for random prompts")


@dataclass(frozen=True)
class ServedModel(Section):
    """The checkpoint that is served."""

    name: Place = setting("", "short name, used in tables")
    path: Place = setting("", "checkpoint directory on the nodes (in the container, where one is used)")
    served_model_name: Text | None = setting(None, "--served-model-name; null: clients use the path")
    trust_remote_code: Flag = setting(False, "--trust-remote-code")
    quantization: Text | None = setting(None, "--quantization; null: not emitted")
    load_format: Text | None = setting(None, "--load-format; null: not emitted")
    shape: Shape = section(Shape, "sizes of the model")

    @property
    def quantized(self) -> str:
        """What its checkpoint holds, for vllm-ascend: W8A8, or W4A8 where the experts have 4 bits; else empty."""
        if self.quantization != "ascend":
            return ""
        return "W4A8" if self.shape.expert_bits == 4 else "W8A8"

    @property
    def name_for_clients(self) -> str:
        """The value of "model" in a request."""
        return self.served_model_name or self.path


@dataclass(frozen=True)
class Rehearsal(OneKey):
    """What the rehearsal engine pretends, and the faults it acts out."""

    hardware: Text = setting(
        "atlas_800i_a2", "a file of jobs/engines/simulator/hardware, or the path of a YAML file with the same keys"
    )
    load_s: NotNegative = setting(0.5, "seconds that loading takes")
    faults: tuple[dict[str, Any], ...] = setting((), "faults to act out; see jobs/engines/simulator/faults.py")
    acceptance: Share = setting(0.8, "speculation: share of drafted tokens accepted, if those before them were")
    half_length: NotNegative = setting(
        0.0, "tokens of context at which acceptance is half as large; 0: it does not fall"
    )
    draft_cost: NotNegative = setting(0.05, "speculation: by how much each drafted token lengthens a step")


@dataclass(frozen=True)
class ServedEngine(Section):
    """The program that serves."""

    name: Annotated[Text, registered(registry.ENGINES)] = setting(
        "vllm_ascend", "the program that serves; stands in every row"
    )
    release: Text = setting("0.9.1", "release whose flags and environment are rendered")
    command: tuple[Text, ...] = setting(("vllm",), "program and first words; {python}: this Python")
    source: tuple[Text, ...] = setting((), "shell files sourced before the engine starts, in this order")
    env: dict[str, Any] = setting({}, "environment of the engine; null: not set")
    args: dict[str, Any] = setting({}, "further `vllm serve` flags by name, without dashes; null: not emitted")
    additional_config: Annotated[dict[str, Any] | None, AfterValidator(_without_nulls)] = setting(
        {}, "--additional-config; null or empty: not emitted, and so is a key that is null"
    )
    rehearsal: Rehearsal = section(Rehearsal, "for engine=simulator only")


@dataclass(frozen=True)
class Parallel(Section):
    """Layout, lengths and batch sizes: the `vllm serve` flags of the same names."""

    data_parallel_size: Count = setting(2, "data-parallel ranks in all")
    data_parallel_size_local: Annotated[Any, AfterValidator(_local_sizes)] = setting(
        1,
        "data-parallel ranks of a node: one number for all nodes, or a list in node order; all of them on each of"
        " several nodes: a whole service on each, independent of the others (replicas)",
    )
    tensor_parallel_size: Count = setting(8, "NPUs of one data-parallel rank, or of one of its pipeline stages")
    pipeline_parallel_size: Count | None = setting(
        None, "cut the layers into so many stages, each of tensor_parallel_size NPUs; null: not emitted"
    )
    decode_context_parallel_size: Count | None = setting(
        None, "spread the KV cache of a sequence over so many tensor parallel ranks (from 0.13); null: not emitted"
    )
    prefill_context_parallel_size: Count | None = setting(
        None, "cut long prompts over so many further groups of NPUs (from 0.13); null: not emitted"
    )
    enable_expert_parallel: Flag = setting(False, "shard experts over all NPUs (DeepSeek-R1 on 16 NPUs needs it)")
    max_model_len: Count = setting(8192, "longest prompt plus output, tokens")
    max_num_batched_tokens: Count | None = setting(8192, "tokens of one engine step")
    max_num_seqs: Count | None = setting(256, "sequences of one engine step, per data-parallel rank")
    block_size: Count | None = setting(None, "tokens of one KV cache block")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1, strict=True)] | None = setting(
        None, "share of device memory that the engine may use"
    )
    enable_prefix_caching: Flag | None = setting(False, "null: the engine's own default")
    seed: Whole | None = setting(1024, "engine seed")

    @property
    def sequences(self) -> int | None:
        """How many requests all engines together run at once; None: nothing limits their number."""
        return None if self.max_num_seqs is None else self.max_num_seqs * self.engines

    @property
    def replicas(self) -> int:
        """How many independent services there are, each on a node of its own; 1: the nodes serve together."""
        local = self.data_parallel_size_local
        alike = isinstance(local, tuple) and set(local) == {self.data_parallel_size}
        return len(local) if alike else 1

    @property
    def engines(self) -> int:
        """Data-parallel ranks of all replicas; they are numbered through in the order of the nodes."""
        return self.data_parallel_size * self.replicas


@dataclass(frozen=True)
class Hccl(Section):
    """Network interface and HCCL variables, the same on every node. A null key is not set."""

    socket_ifname: Text | None = setting(
        "auto",
        "interface of the nodes' network (HCCL_, TP_, GLOO_SOCKET_IFNAME); auto: the interface of the host's name",
    )
    if_ip: Text | None = setting("auto", "HCCL_IF_IP: auto is the interface's own address; an address; null")
    buffsize: Count | None = setting(None, "HCCL_BUFFSIZE, MB; each communicator takes twice this")
    connect_timeout: Count | None = setting(None, "HCCL_CONNECT_TIMEOUT, s")
    exec_timeout: Count | None = setting(None, "HCCL_EXEC_TIMEOUT, s")
    algo: Text | None = setting(None, "HCCL_ALGO, such as level0:NA;level1:pipeline; null: HCCL chooses")
    op_expansion_mode: Text | None = setting(None, "HCCL_OP_EXPANSION_MODE")
    intra_pcie_enable: Whole | None = setting(None, "HCCL_INTRA_PCIE_ENABLE")
    intra_roce_enable: Whole | None = setting(None, "HCCL_INTRA_ROCE_ENABLE")


@dataclass(frozen=True)
class ServedContainer(Section):
    """Where the engine runs."""

    runtime: Annotated[Text, registered(registry.RUNTIMES, "none")] = setting(
        "none", "none: directly on the node; enroot, pyxis, docker, podman or apptainer"
    )
    image: Text | None = setting(
        None, "registry#image:tag, registry/image:tag, or the path of a .sqsh (apptainer: .sif) file"
    )
    mounts: tuple[Text, ...] = setting((), "SRC:DST[:FLAGS], flags joined by +; SRC alone: the same path inside")
