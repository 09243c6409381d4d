"""The schema of all settings: frozen dataclasses, registered in Hydra's ConfigStore; unknown keys are errors.

Each field carries `help` (for people) and, where it differs from its section, `scope`:
    service  a change needs a restart of the engine (a new weight load)
    point    a change needs only another measuring window on the same service
    sweep    a change does not alter what is asked; it cannot be swept
The scope is the one place that decides what the planner groups (issue 2, planner; issue 4, "one place").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from jobs.errors import ConfigError, nearest

ROOT = Path(__file__).resolve().parent.parent
"""The project's root: relative `model.path` and `engine.command` are taken from here."""

CONF = ROOT / "conf"


def from_root(text: str) -> str:
    """Return a relative path with a slash as an absolute one from the project's root; other text as it is."""
    return text if text.startswith(("/", "{")) or "/" not in text else str(ROOT / text)


def _one_of(*valid: str) -> AfterValidator:
    def check(value: str) -> str:
        if value not in valid:
            raise ValueError(f"valid values are {', '.join(valid)}")
        return value

    return AfterValidator(check)


def _setting(default: Any, text: str, *, scope: str | None = None) -> Any:
    metadata = {"help": text} | ({"scope": scope} if scope else {})
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _section(cls: type, text: str, *, scope: str | None = None) -> Any:
    return field(default_factory=cls, metadata={"help": text} | ({"scope": scope} if scope else {}))


def _local_sizes(value: Any) -> Any:
    sizes = value if isinstance(value, list | tuple) else [value]
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError("a whole number of at least 1 is needed, or a list of them")
    return tuple(sizes) if isinstance(value, list | tuple) else value


def _number_as_text(value: Any) -> Any:
    """A number stands for its text where text is asked for (`cluster.mem=0`), as in Hydra."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True), BeforeValidator(_number_as_text)]


class Section:
    """Base of all sections: a key that is not a field is an error."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Shape(Section):
    """What a model costs, for prompts, the rehearsal engine and first estimates."""

    parameters: Positive = _setting(1e6, "all parameters, a count")
    active_parameters: Positive = _setting(1e6, "parameters used for one token, a count")
    weight_gib: Positive = _setting(0.01, "weights of the whole model in GiB")
    kv_bytes_per_token: Count = _setting(1024, "KV cache bytes of one token in one data-parallel rank")
    max_position_embeddings: Count = _setting(131072, "longest sequence that the model was made for, tokens")
    token_ids: tuple[int, int] = _setting((100, 1000), "[low, high): ordinary token ids for random prompts")


@dataclass(frozen=True)
class Model(Section):
    """The checkpoint that is served."""

    name: Text = _setting("", "short name, used in tables")
    path: Text = _setting("", "checkpoint directory on the nodes (in the container, where one is used)")
    served_model_name: Text | None = _setting(None, "--served-model-name; null: clients use the path")
    trust_remote_code: Flag = _setting(False, "--trust-remote-code")
    quantization: Text | None = _setting(None, "--quantization; null: not emitted")
    load_format: Text | None = _setting(None, "--load-format; null: not emitted")
    shape: Shape = _section(Shape, "sizes of the model")

    @property
    def name_for_clients(self) -> str:
        """The value of "model" in a request."""
        return self.served_model_name or self.path


@dataclass(frozen=True)
class Rehearsal(Section):
    """The hardware that the rehearsal engine pretends to be, and the faults it acts out.

    The defaults are fitted to published figures of DeepSeek-R1 W8A8 on 16 NPUs (jobs/simulator/roofline.py).
    """

    peak_tflops: Positive = _setting(376.0, "dense compute of one NPU, TFLOP/s")
    hbm_gb_s: Positive = _setting(1600.0, "memory bandwidth of one NPU, GB/s")
    npu_memory_gib: Positive = _setting(61.2, "memory of one NPU that the engine can see, GiB")
    allowance_gib: NotNegative = _setting(4.5, "memory of one NPU for activations and HCCL buffers, GiB")
    replicated_share: NotNegative = _setting(0.00124, "share of the weights that every NPU holds in full")
    overhead_ms: NotNegative = _setting(22.0, "fixed cost of one engine step: launch, collectives, ms")
    prefill_overhead_ms: NotNegative = _setting(200.0, "further fixed cost of a step that holds prompt tokens, ms")
    prefill_efficiency: Positive = _setting(0.22, "share of peak compute that is reached")
    decode_efficiency: Positive = _setting(0.8, "share of memory bandwidth that is reached")
    attention_flops_per_kv_byte: NotNegative = _setting(
        71.0, "compute of one query token on one context token, per KV cache byte of that token, FLOP (MLA: 71)"
    )
    load_s: NotNegative = _setting(0.5, "seconds that loading takes")
    handshake_s: Positive = _setting(300.0, "how long a headless rank waits for the head (vLLM: 5 minutes), s")
    release_gaps: Flag = _setting(
        False, "act out what 0.9.1 lacks: X-data-parallel-rank is ignored, /metrics shows the last engine only"
    )
    faults: tuple[dict[str, Any], ...] = _setting((), "faults to act out; see jobs/simulator/faults.py")


@dataclass(frozen=True)
class Engine(Section):
    """The program that serves."""

    name: Text = _setting("vllm_ascend", "vllm_ascend, vllm_cpu or simulator; stands in every row")
    release: Text = _setting("0.9.1", "release whose flags and environment are rendered")
    command: tuple[Text, ...] = _setting(("vllm",), "program and first words; {python}: this Python")
    source: tuple[Text, ...] = _setting((), "shell files sourced before the engine starts, in this order")
    env: dict[str, Any] = _setting({}, "environment of the engine; null: not set")
    args: dict[str, Any] = _setting({}, "further `vllm serve` flags by name, without dashes; null: not emitted")
    additional_config: dict[str, Any] | None = _setting({}, "--additional-config; null or empty: not emitted")
    api_key: Annotated[Text, _one_of("auto")] | None = _setting(
        "auto", "auto: a new key for each allocation; null: the API is open to every user of the cluster", scope="sweep"
    )
    host: Text = _setting("0.0.0.0", "bind address of the API server", scope="sweep")
    port: Port | None = _setting(None, "API port; null: derived from the job id", scope="sweep")
    data_parallel_rpc_port: Port | None = _setting(None, "null: derived from the job id", scope="sweep")
    checks_model_path: Flag = _setting(True, "model.path must exist on every node", scope="sweep")
    rehearsal: Rehearsal = _section(Rehearsal, "for engine=simulator only")


@dataclass(frozen=True)
class Parallel(Section):
    """Layout, lengths and batch sizes: the `vllm serve` flags of the same names."""

    data_parallel_size: Count = _setting(2, "data-parallel ranks in all")
    data_parallel_size_local: Annotated[Any, AfterValidator(_local_sizes)] = _setting(
        1, "data-parallel ranks of a node: one number for all nodes, or a list in node order"
    )
    tensor_parallel_size: Count = _setting(8, "NPUs of one data-parallel rank")
    enable_expert_parallel: Flag = _setting(False, "shard experts over all NPUs (DeepSeek-R1 on 16 NPUs needs it)")
    max_model_len: Count = _setting(8192, "longest prompt plus output, tokens")
    max_num_batched_tokens: Count | None = _setting(8192, "tokens of one engine step")
    max_num_seqs: Count | None = _setting(256, "sequences of one engine step, per data-parallel rank")
    block_size: Count | None = _setting(None, "tokens of one KV cache block")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1, strict=True)] | None = _setting(
        None, "share of device memory that the engine may use"
    )
    enable_prefix_caching: Flag | None = _setting(False, "null: the engine's own default")
    seed: Whole | None = _setting(1024, "engine seed")


@dataclass(frozen=True)
class Hccl(Section):
    """Network card and HCCL variables, the same on every node. A null key is not set."""

    socket_ifname: Text | None = _setting(
        "auto",
        "card of the nodes' network (HCCL_, TP_, GLOO_SOCKET_IFNAME); auto: the card of the host's name",
    )
    if_ip: Text | None = _setting("auto", "HCCL_IF_IP: auto is the card's own address; an address; null")
    buffsize: Count | None = _setting(None, "HCCL_BUFFSIZE, MB; each communicator takes twice this")
    connect_timeout: Count | None = _setting(None, "HCCL_CONNECT_TIMEOUT, s")
    exec_timeout: Count | None = _setting(None, "HCCL_EXEC_TIMEOUT, s")
    op_expansion_mode: Text | None = _setting(None, "HCCL_OP_EXPANSION_MODE")
    if_base_port: Port | None = _setting(None, "HCCL_IF_BASE_PORT")
    intra_pcie_enable: Whole | None = _setting(None, "HCCL_INTRA_PCIE_ENABLE")
    intra_roce_enable: Whole | None = _setting(None, "HCCL_INTRA_ROCE_ENABLE")
    rdma_timeout: Count | None = _setting(None, "HCCL_RDMA_TIMEOUT")


@dataclass(frozen=True)
class Container(Section):
    """Where the engine runs."""

    runtime: Annotated[Text, _one_of("none")] = _setting("none", "none: directly on the node")


@dataclass(frozen=True)
class Cluster(Section):
    """How an allocation is asked for. A null key is not emitted."""

    kind: Annotated[Text, _one_of("auto", "slurm", "local")] = _setting("auto", "auto: Slurm where sbatch is found")
    partition: Text | None = _setting(None, "sbatch --partition")
    account: Text | None = _setting(None, "sbatch --account")
    qos: Text | None = _setting(None, "sbatch --qos")
    gres: Text | None = _setting(None, "sbatch --gres of one node, for example npu:8")
    reservation: Text | None = _setting(None, "sbatch --reservation")
    constraint: Text | None = _setting(None, "sbatch --constraint")
    nodelist: Text | None = _setting(None, "sbatch --nodelist")
    exclude: Text | None = _setting(None, "sbatch --exclude")
    nodes: Count | None = _setting(None, "null: as many as the data-parallel ranks need")
    time_limit: Text | None = _setting("8:00:00", "of one allocation: minutes, or a Slurm time")
    exclusive: Flag = _setting(True, "sbatch --exclusive")
    mem: Text | None = _setting(None, "sbatch --mem; 0 is all memory of a node")
    model_read_gb_s: Positive = _setting(1.0, "rate at which one node reads the weights, GB/s; for the plan")
    cpus_per_task: Count | None = _setting(None, "sbatch --cpus-per-task")
    sbatch_args: dict[str, Any] = _setting({}, "further sbatch options by name, without dashes")
    srun_args: tuple[Text, ...] = _setting((), "further srun options, word by word")
    setup: tuple[Text, ...] = _setting((), "shell lines of the batch script before srun, for example module load")
    npus_per_node: Count = _setting(8, "local ranks x tensor parallel size must fit in this")
    max_allocations: Count = _setting(1, "allocations of one sweep that may run at a time")
    share_group: Text | None = _setting(None, "Unix group that may read the run directory; null: the owner alone")
    yield_to_others: Flag = _setting(False, "stop after a point when other users' jobs wait in the partition")
    master_address: Text | None = _setting(None, "null: address of the HCCL card on the first host")
    control_port: Port | None = _setting(None, "port on which the ranks talk; null: derived from the job id")


@dataclass(frozen=True)
class Bench(Section):
    """The load of one point."""

    client: Annotated[Text, _one_of("window")] = _setting("window", "window: this tool's own steady-state client")
    endpoint: Annotated[Text, _one_of("completions", "chat")] = _setting("completions", "API that is called")
    concurrency: Count | None = _setting(None, "closed loop: requests kept in flight; with a rate: a cap")
    request_rate: Positive | None = _setting(None, "open loop: mean arrivals per second, Poisson")
    input_tokens: Count = _setting(1024, "prompt length, tokens (words for endpoint=chat)")
    output_tokens: Count = _setting(128, "output length, tokens")
    ignore_eos: Flag = _setting(True, "always produce output_tokens")
    temperature: NotNegative = _setting(0.0, "sampling temperature")
    warmup_s: NotNegative = _setting(15.0, "load before the window opens, s")
    window_s: Positive = _setting(120.0, "steady-state window that is measured, s")
    hold_load: Flag = _setting(True, "keep the load on until every request of the window has ended")
    seed: Whole = _setting(0, "seed of prompts and arrivals")


@dataclass(frozen=True)
class Limits(Section):
    """How long each phase may take, in seconds. Each has its own reason when it is exceeded."""

    rendezvous_s: Positive = _setting(300.0, "until all ranks of the allocation have met")
    load_s: Positive = _setting(5400.0, "engine start until /health is 200")
    load_silence_s: Positive = _setting(1800.0, "time without a new line in a rank's log before the service is ready")
    first_token_s: Positive = _setting(300.0, "first token of every data-parallel rank (graph compilation)")
    probe_s: Positive = _setting(10.0, "one-token request on an engine in use, plus 1 ms a token of max_model_len")
    drain_s: Positive = _setting(600.0, "end of the window until its last request has ended")
    idle_s: Positive = _setting(900.0, "a ready service in which no request ran for so long ends")
    stop_s: Positive = _setting(30.0, "SIGTERM until SIGKILL")
    heartbeat_s: Positive = _setting(15.0, "silence after which a rank counts as lost")
    attempts: Count = _setting(3, "jobs in a row for one allocation: what the time limit left is submitted again")
    srun_wait_s: Count = _setting(60, "srun --wait: from the first task's end to the step's end")


@dataclass(frozen=True)
class Results(Section):
    """Where results go."""

    root: Text = _setting("runs", "directory on the shared file system that holds the sweeps")
    name: Text | None = _setting(None, "name of the sweep's directory; null: the time of day")


@dataclass(frozen=True)
class Launch(Section):
    """What launch.py does."""

    dry_run: Flag = _setting(False, "print plan and exact commands, submit nothing")
    resume: Text | None = _setting(None, "directory of a sweep that is to be finished; its own points are run")
    retry_failed: Flag = _setting(False, "with resume: run failed points again as well")
    follow: Flag = _setting(True, "stay and show progress until the table is there; Ctrl-C detaches")


@dataclass(frozen=True)
class Config(Section):
    """All settings of one point."""

    model: Model = _section(Model, "what is served", scope="service")
    engine: Engine = _section(Engine, "the program that serves", scope="service")
    parallel: Parallel = _section(Parallel, "layout and sizes", scope="service")
    hccl: Hccl = _section(Hccl, "network between the nodes", scope="service")
    container: Container = _section(Container, "where the engine runs", scope="service")
    cluster: Cluster = _section(Cluster, "how an allocation is asked for", scope="sweep")
    bench: Bench = _section(Bench, "the load", scope="point")
    limits: Limits = _section(Limits, "time limits", scope="sweep")
    results: Results = _section(Results, "where results go", scope="sweep")
    launch: Launch = _section(Launch, "what launch.py does", scope="sweep")


@cache
def schema() -> Mapping[str, str]:
    """Return the scope of every leaf key by its dotted name; open mappings (`engine.env`) are one leaf."""
    return dict(_leaves(Config, "", ""))


def _leaves(cls: type, prefix: str, scope: str) -> Iterator[tuple[str, str]]:
    hints = get_type_hints(cls)
    for item in fields(cls):
        name, here = prefix + item.name, item.metadata.get("scope", scope)
        kind = hints[item.name]
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _leaves(kind, name + ".", here)
        else:
            yield name, here


@cache
def open_mappings() -> frozenset[str]:
    """Return the dotted names of mappings that take any key (`engine.env`, `engine.args`, ...)."""
    return frozenset(k for k in schema() if k in _open(Config, ""))


def _open(cls: type, prefix: str) -> set[str]:
    found: set[str] = set()
    hints = get_type_hints(cls)
    for item in fields(cls):
        kind = hints[item.name]
        if isinstance(kind, type) and issubclass(kind, Section):
            found |= _open(kind, prefix + item.name + ".")
        elif item.default_factory is not MISSING or "dict[" in str(item.type).split("tuple")[0]:
            found.add(prefix + item.name)
    return found


def leaf_of(key: str) -> str | None:
    """Return the schema leaf that a dotted key sets, or None: `engine.env.FOO` belongs to `engine.env`."""
    if key in schema():
        return key
    for name in open_mappings():
        if key.startswith(name + "."):
            return name
    return None


def check_key(key: str, value: object) -> None:
    """Raise ConfigError with the nearest valid key where `key` is neither a leaf nor a section."""
    if leaf_of(key) or any(name.startswith(key + ".") for name in schema()):
        return
    section = key.partition(".")[0] + "."
    listed = [name for name in schema() if name.startswith(section)] or [item.name for item in fields(Config)]
    raise ConfigError(key, value, "there is no such key", nearest(key, schema(), listed))


_ADAPTER = TypeAdapter(Config)


def build(values: Mapping[str, Any]) -> Config:
    """Turn plain nested mappings into a validated `Config`.

    Raises:
        ConfigError: unknown key (with the nearest valid one), wrong type, value out of range. The first
            error is raised; each names key, value, reason and remedy.
    """
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            check_key(key, first["input"])
        # pydantic appends the branch of a union to the location: the leaf is the longest known prefix.
        leaf = next((name for name in schema() if key == name or key.startswith(name + ".")), key)
        raise ConfigError(leaf, repr(first["input"]), first["msg"], f"{leaf}: {help_of(leaf)}") from None


def help_of(key: str) -> str:
    """Return the help text of a leaf key."""
    cls: Any = Config
    text = ""
    for part in key.split("."):
        item = next((f for f in fields(cls) if f.name == part), None)
        if item is None:
            break
        text = item.metadata.get("help", "")
        kind = get_type_hints(cls)[part]
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            break
        cls = kind
    return text


@cache
def register() -> None:
    """Put the schema into Hydra's ConfigStore as `schema`.

    OmegaConf marks frozen dataclasses read-only, which would refuse the YAML files themselves: the flag is
    lifted on the node. The frozen object comes back from `build`.
    """
    node = OmegaConf.structured(Config)
    _thaw(node)
    for name in open_mappings():
        child = OmegaConf.select(node, name)
        if OmegaConf.is_dict(child):
            OmegaConf.set_struct(child, False)
    ConfigStore.instance().store(name="schema", node=node, provider="jobs")


def _thaw(node: Any) -> None:
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if OmegaConf.is_dict(child):
            _thaw(child)
