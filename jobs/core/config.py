"""All settings: frozen dataclasses, registered in Hydra's ConfigStore by jobs/core/schema.py.

Each field carries `help` (for people) and, where it differs from its section, `scope`:
    service  a change needs a restart of the engine (a new weight load)
    point    a change needs only another measuring window on the same service
    sweep    a change does not alter what is asked; it cannot be swept
The scope is the one place that decides what the planner groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from jobs.core import registry
from jobs.core.fields import (
    Count,
    Flag,
    Line,
    NotNegative,
    Options,
    Port,
    Positive,
    Section,
    Share,
    Text,
    Whole,
    one_of,
    registered,
    section,
    setting,
)


def _local_sizes(value: Any) -> Any:
    sizes = value if isinstance(value, list | tuple) else [value]
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError("a whole number of at least 1 is needed, or a list of them")
    return tuple(sizes) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Shape(Section):
    """What a model costs, for prompts, the rehearsal engine and first estimates."""

    parameters: Positive = setting(1e6, "all parameters, a count")
    active_parameters: Positive = setting(1e6, "parameters used for one token, a count")
    weight_gib: Positive = setting(0.01, "weights of the whole model in GiB")
    kv_bytes_per_token: Count = setting(1024, "KV cache bytes of one token in one data-parallel rank")
    max_position_embeddings: Count = setting(131072, "longest sequence that the model was made for, tokens")
    token_ids: tuple[int, int] = setting((100, 1000), "[low, high): ordinary token ids for random prompts")


@dataclass(frozen=True)
class Model(Section):
    """The checkpoint that is served."""

    name: Text = setting("", "short name, used in tables")
    path: Text = setting("", "checkpoint directory on the nodes (in the container, where one is used)")
    served_model_name: Text | None = setting(None, "--served-model-name; null: clients use the path")
    trust_remote_code: Flag = setting(False, "--trust-remote-code")
    quantization: Text | None = setting(None, "--quantization; null: not emitted")
    load_format: Text | None = setting(None, "--load-format; null: not emitted")
    shape: Shape = section(Shape, "sizes of the model")
    source: Text | None = setting(None, "name at ModelScope, for `python -m jobs model fetch`", scope="sweep")
    stage_to: Text | None = setting(
        None,
        "directory on each node's own disk: the checkpoint is copied there once and served from there; with a"
        " container it must be mounted under the same path. null: not staged",
        scope="sweep",
    )
    verify: Annotated[Text, one_of("sizes", "sampled", "none")] = setting(
        "sizes",
        "before a load: whole shards, W8A8 if asked for, equal nodes; sampled: their content too",
        scope="sweep",
    )

    @property
    def name_for_clients(self) -> str:
        """The value of "model" in a request."""
        return self.served_model_name or self.path


@dataclass(frozen=True)
class Rehearsal(Section):
    """The hardware that the rehearsal engine pretends to be, and the faults it acts out.

    The defaults are fitted to published figures of DeepSeek-R1 W8A8 on 16 NPUs (jobs/engines/simulator/roofline.py).
    """

    peak_tflops: Positive = setting(376.0, "dense compute of one NPU, TFLOP/s")
    hbm_gb_s: Positive = setting(1600.0, "memory bandwidth of one NPU, GB/s")
    npu_memory_gib: Positive = setting(61.2, "memory of one NPU that the engine can see, GiB")
    allowance_gib: NotNegative = setting(4.5, "memory of one NPU for activations and HCCL buffers, GiB")
    replicated_share: NotNegative = setting(0.00124, "share of the weights that every NPU holds in full")
    overhead_ms: NotNegative = setting(22.0, "fixed cost of one engine step: launch, collectives, ms")
    prefill_overhead_ms: NotNegative = setting(200.0, "further fixed cost of a step that holds prompt tokens, ms")
    prefill_efficiency: Positive = setting(0.22, "share of peak compute that is reached")
    decode_efficiency: Positive = setting(0.8, "share of memory bandwidth that is reached")
    attention_flops_per_kv_byte: NotNegative = setting(
        71.0, "compute of one query token on one context token, per KV cache byte of that token, FLOP (MLA: 71)"
    )
    load_s: NotNegative = setting(0.5, "seconds that loading takes")
    recall_tokens: Whole = setting(131072, "questions on longer texts get a wrong answer (bench.quality=needle)")
    handshake_s: Positive = setting(300.0, "how long a headless rank waits for the head (vLLM: 5 minutes), s")
    release_gaps: Flag = setting(
        False, "act out what 0.9.1 lacks: X-data-parallel-rank is ignored, /metrics shows the last engine only"
    )
    faults: tuple[dict[str, Any], ...] = setting((), "faults to act out; see jobs/engines/simulator/faults.py")


@dataclass(frozen=True)
class Engine(Section):
    """The program that serves."""

    name: Text = setting("vllm_ascend", "vllm_ascend, vllm_cpu or simulator; stands in every row")
    release: Text = setting("0.9.1", "release whose flags and environment are rendered")
    written_for: Text | None = setting(
        None,
        "release that this preset was written for; another engine.release migrates it: python -m jobs explain",
        scope="sweep",
    )
    command: tuple[Text, ...] = setting(("vllm",), "program and first words; {python}: this Python")
    source: tuple[Text, ...] = setting((), "shell files sourced before the engine starts, in this order")
    env: dict[str, Any] = setting({}, "environment of the engine; null: not set")
    args: dict[str, Any] = setting({}, "further `vllm serve` flags by name, without dashes; null: not emitted")
    additional_config: dict[str, Any] | None = setting({}, "--additional-config; null or empty: not emitted")
    api_key: Annotated[Text, one_of("auto")] | None = setting(
        "auto", "auto: a new key for each allocation; null: the API is open to every user of the cluster", scope="sweep"
    )
    host: Text = setting("0.0.0.0", "bind address of the API server", scope="sweep")
    port: Port | None = setting(None, "API port; null: derived from the job id", scope="sweep")
    data_parallel_rpc_port: Port | None = setting(None, "null: derived from the job id", scope="sweep")
    checks_release: Flag = setting(True, "refuse an image of another vllm-ascend; false: warn", scope="sweep")
    checks_model_path: Flag = setting(True, "model.path must exist on every node", scope="sweep")
    rehearsal: Rehearsal = section(Rehearsal, "for engine=simulator only")


@dataclass(frozen=True)
class Parallel(Section):
    """Layout, lengths and batch sizes: the `vllm serve` flags of the same names."""

    data_parallel_size: Count = setting(2, "data-parallel ranks in all")
    data_parallel_size_local: Annotated[Any, AfterValidator(_local_sizes)] = setting(
        1, "data-parallel ranks of a node: one number for all nodes, or a list in node order"
    )
    tensor_parallel_size: Count = setting(8, "NPUs of one data-parallel rank")
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
    op_expansion_mode: Text | None = setting(None, "HCCL_OP_EXPANSION_MODE")
    if_base_port: Port | None = setting(None, "HCCL_IF_BASE_PORT")
    intra_pcie_enable: Whole | None = setting(None, "HCCL_INTRA_PCIE_ENABLE")
    intra_roce_enable: Whole | None = setting(None, "HCCL_INTRA_ROCE_ENABLE")
    rdma_timeout: Count | None = setting(None, "HCCL_RDMA_TIMEOUT")


@dataclass(frozen=True)
class Container(Section):
    """Where the engine runs. Words in braces in a name or path: {uid}, {user}, {job}, {rank}, {host}."""

    runtime: Annotated[Text, one_of("none", "enroot", "pyxis", "docker")] = setting(
        "none", "none: directly on the node; enroot, pyxis or docker"
    )
    image: Text | None = setting(None, "registry#image:tag, registry/image:tag, or a .sqsh path")
    registry: Text | None = setting(None, "host put before an image that names no registry", scope="sweep")
    mounts: tuple[Text, ...] = setting((), "SRC:DST[:FLAGS], flags joined by +; SRC alone: the same path inside")
    devices: tuple[Text, ...] | None = setting(None, "null: the NPU devices, for engine=vllm_ascend", scope="sweep")
    driver_mounts: tuple[Text, ...] | None = setting(
        None, "mounts of which those that exist are made; null: driver, tools and version files", scope="sweep"
    )
    name: Text | None = setting(None, "null: made of job, service and rank; pyxis: no name", scope="sweep")
    workdir: Text | None = setting(None, "directory inside; null: a writable one of the node", scope="sweep")
    writable: Flag = setting(True, "the image's files may be changed; the changes go with the container", scope="sweep")
    remap_root: Flag = setting(True, "the user is root inside", scope="sweep")
    mount_home: Flag = setting(False, "mount the user's home directory", scope="sweep")
    shm_size: Text | None = setting(
        "1g", "size of /dev/shm; enroot and pyxis show the node's own, so there it is the least that is accepted",
        scope="sweep",
    )  # fmt: skip
    publish: tuple[Text, ...] = setting(
        (), "docker run -p; without effect, since the network is the node's", scope="sweep"
    )
    enroot_conf: Text | None = setting(None, "enroot start --conf: a script of the site", scope="sweep")
    images_path: Text | None = setting(
        None, "imported images, on the shared file system; null: .images in results.root", scope="sweep"
    )
    data_path: Text = setting("/tmp/enroot-{uid}/data", "ENROOT_DATA_PATH: unpacked images, on the node", scope="sweep")
    cache_path: Text = setting("/tmp/enroot-{uid}/cache", "ENROOT_CACHE_PATH: downloaded layers", scope="sweep")
    runtime_path: Text = setting("/tmp/enroot-{uid}/run", "ENROOT_RUNTIME_PATH, on the node", scope="sweep")
    caches_path: Text | None = setting(
        "/tmp/serving-sweep-{uid}/caches", "compiled kernels, on the node; null: lost with the container", scope="sweep"
    )
    temp_path: Text = setting("/tmp", "ENROOT_TEMP_PATH: two to three times the image, for an import", scope="sweep")


@dataclass(frozen=True)
class Cluster(Section):
    """How an allocation is asked for. A null key is not emitted."""

    kind: Annotated[Text, one_of("auto", "slurm", "local")] = setting("auto", "auto: Slurm where sbatch is found")
    partition: Line | None = setting(None, "sbatch --partition")
    account: Line | None = setting(None, "sbatch --account")
    qos: Line | None = setting(None, "sbatch --qos")
    gres: Line | None = setting(None, "sbatch --gres of one node, for example npu:8")
    reservation: Line | None = setting(None, "sbatch --reservation")
    constraint: Line | None = setting(None, "sbatch --constraint")
    nodelist: Line | None = setting(None, "sbatch --nodelist")
    exclude: Line | None = setting(None, "sbatch --exclude")
    nodes: Count | None = setting(None, "null: as many as the data-parallel ranks need")
    time_limit: Line | None = setting("8:00:00", "of one allocation: minutes, or a Slurm time")
    exclusive: Flag = setting(True, "sbatch --exclusive")
    mem: Line | None = setting(None, "sbatch --mem; 0 is all memory of a node")
    model_read_gb_s: Positive = setting(1.0, "rate at which one node reads the weights, GB/s; for the plan")
    cpus_per_task: Count | None = setting(None, "sbatch --cpus-per-task")
    sbatch_args: Options = setting({}, "further sbatch options by name, without dashes")
    srun_args: tuple[Line, ...] = setting((), "further srun options, word by word")
    setup: tuple[Text, ...] = setting((), "shell lines of the batch script before srun, for example module load")
    npus_per_node: Count = setting(8, "local ranks x tensor parallel size must fit in this")
    max_allocations: Count = setting(1, "allocations of one sweep that may run at a time")
    share_group: Line | None = setting(None, "Unix group that may read the run directory; null: the owner alone")
    yield_to_others: Flag = setting(False, "stop after a point when other users' jobs wait in the partition")
    master_address: Text | None = setting(None, "null: address of the HCCL interface on the first host")
    control_port: Port | None = setting(None, "port on which the ranks talk; null: derived from the job id")


@dataclass(frozen=True)
class Slo(Section):
    """A service-level objective: limits that a load has to keep. null: no limit."""

    ttft_ms_p99: Positive | None = setting(None, "time to first token, 99th percentile, ms")
    tpot_ms_p99: Positive | None = setting(None, "time per output token after the first, 99th percentile, ms")
    itl_ms_p99: Positive | None = setting(None, "gap between token chunks, 99th percentile, ms")
    e2el_ms_p99: Positive | None = setting(None, "end-to-end latency, 99th percentile, ms")


@dataclass(frozen=True)
class Bench(Section):
    """The load of one point."""

    client: Annotated[Text, registered(registry.CLIENTS, "window")] = setting(
        "window", "window: this tool's own steady-state client; `vllm bench serve`; AISBench"
    )
    program: Text | None = setting(
        None,
        "program of an external client; null: the engine's own vllm, or .engines/ais_bench (in an image: ais_bench)",
        scope="sweep",
    )
    where: Annotated[Text, one_of("auto", "node", "container")] = setting(
        "auto",
        "where an external client runs. auto: vllm_bench where the engine runs, its container or the node; ais_bench"
        " on the node, in an environment of its own. container: the image has the client",
        scope="sweep",
    )
    endpoint: Annotated[Text, one_of("completions", "chat")] = setting("completions", "API that is called")
    workload: Annotated[Text, one_of("random", "shared_prefix", "multi_turn", "needle", "sharegpt", "trace")] = setting(
        "random", "where prompts come from; see jobs/measure/workload.py"
    )
    dataset: Text | None = setting(None, "file of workload=sharegpt (JSON) or trace (JSONL)")
    concurrency: Count | None = setting(None, "closed loop: requests kept in flight; with a rate: a cap")
    request_rate: Positive | None = setting(None, "open loop: mean arrivals per second, Poisson")
    num_requests: Count | None = setting(None, "measure exactly so many requests instead of a window of time")
    input_tokens: Count = setting(1024, "prompt length, tokens (words for endpoint=chat and workload=needle)")
    output_tokens: Count = setting(128, "output length, tokens")
    lengths: Annotated[Text, one_of("fixed", "uniform", "lognormal")] = setting(
        "fixed", "how the lengths of single requests lie around input_tokens and output_tokens, their means"
    )
    length_spread: Share = setting(0.5, "uniform: half width as a share of the mean; lognormal: deviation / mean")
    prefix_share: Share = setting(0.5, "workload=shared_prefix: share of a prompt that others have too")
    prefix_groups: Count = setting(1, "workload=shared_prefix: number of different prefixes")
    turns: Count = setting(4, "workload=multi_turn: requests of one conversation, each input_tokens longer")
    needle_depth: Share = setting(0.5, "workload=needle: place of the needle, 0 (begin of the prompt) to 1 (end)")
    trace_speed: Positive = setting(1.0, "workload=trace: 2 replays twice as fast")
    ignore_eos: Flag = setting(True, "always produce output_tokens")
    temperature: NotNegative = setting(0.0, "sampling temperature")
    warmup_s: NotNegative = setting(15.0, "load before the window opens, s")
    window_s: Positive = setting(120.0, "steady-state window that is measured, s")
    hold_load: Flag = setting(True, "keep the load on until every request of the window has ended")
    seed: Whole = setting(0, "seed of prompts and arrivals")
    slo: Slo = section(Slo, "service-level objective: for goodput and search")
    search: Annotated[Text, one_of("concurrency", "request_rate")] | None = setting(
        None, "find the highest concurrency or rate that keeps bench.slo, beginning at the one that is set"
    )
    search_most: Positive = setting(1024.0, "the search goes no higher")
    search_precision: Annotated[float, Field(gt=0, lt=1, strict=True)] = setting(
        0.05, "the search ends once its limits are so close, as a share of the lower one"
    )
    repeats: Count = setting(1, "windows on the same service; the row holds medians and their spread")
    min_success: Share = setting(0.99, "share of the window's requests that must be answered whole")
    canary: Annotated[Text, one_of("off", "answer", "sane")] = setting(
        "sane", "a known question before and after: off; answer: any words will do; sane: see canary.py"
    )
    canary_tokens: Count = setting(100, "length of the canary's answer, tokens")
    quality: Annotated[Text, one_of("off", "needle")] = setting(
        "off", "needle: long-context questions at max_model_len, once a service, outside the windows"
    )
    min_quality: Share = setting(
        0.5, "share of the quality questions that must be answered right for valid rows; 0: any answers will do"
    )
    quality_tokens: Count = setting(1024, "longest answer to such a question, tokens; reasoning models think first")


@dataclass(frozen=True)
class Limits(Section):
    """How long each phase may take, in seconds. Each has its own reason when it is exceeded."""

    rendezvous_s: Positive = setting(300.0, "until all ranks of the allocation have met")
    stage_s: Positive = setting(7200.0, "staging and checking the checkpoint on every node")
    image_s: Positive = setting(3600.0, "importing, pulling and unpacking the container's image on every node")
    preflight_s: Positive = setting(120.0, "all checks of the nodes before the first service")
    load_s: Positive = setting(5400.0, "engine start until /health is 200")
    load_silence_s: Positive = setting(1800.0, "time without a new line in a rank's log before the service is ready")
    first_token_s: Positive = setting(300.0, "first token of every data-parallel rank (graph compilation)")
    probe_s: Positive = setting(10.0, "one-token request on an engine in use, plus 1 ms a token that may be read first")
    warmup_s: Positive = setting(600.0, "after bench.warmup_s until the first answer; then the window does not open")
    window_s: Positive | None = setting(
        None, "a window of bench.num_requests or of a trace; null: an hour, more where its requests need it"
    )
    drain_s: Positive = setting(600.0, "end of the window until its last request has ended")
    idle_s: Positive = setting(900.0, "a ready service in which no request ran for so long ends")
    client_s: Positive = setting(3600.0, "one run of an external client (vllm_bench, ais_bench)")
    stop_s: Positive = setting(30.0, "SIGTERM until SIGKILL")
    heartbeat_s: Positive = setting(15.0, "silence after which a rank counts as lost")
    attempts: Count = setting(3, "jobs in a row for one allocation: what the time limit left is submitted again")
    srun_wait_s: Count = setting(60, "srun --wait: from the first task's end to the step's end")


@dataclass(frozen=True)
class Preflight(Section):
    """Checks of all nodes before the first service loads. One that fails ends the allocation."""

    enabled: Flag = setting(True, "check the nodes at all")
    npus: Flag | None = setting(None, "check NPUs and their fabric; null: where the engine is vllm_ascend")
    skip: tuple[Text, ...] = setting((), "ids or groups (host, network, npu, fabric) of checks that are not made")
    warn_only: tuple[Text, ...] = setting((), "ids or groups of checks whose failure is only a warning")
    chip: Text = setting("910B", "beginning of the chip's name in npu-smi; an Atlas 800I A2 has 910B1 to 910B4")
    npu_memory_mb: Count = setting(65536, "least memory of one NPU as npu-smi shows it, MB")
    npu_idle_mb: Count = setting(4500, "most memory of an idle NPU that is in use, MB (2.9 to 3.5 GB are usual)")
    shm_gib: NotNegative = setting(1.0, "least size of /dev/shm, and of what is free in it, GiB")
    memory_gib: NotNegative = setting(2.0, "least memory that is available on a node, GiB")
    disk_gib: NotNegative = setting(1.0, "least free space in results.root and in TMPDIR, GiB")
    image_gib: NotNegative = setting(
        15.0, "unpacked size of an image that is not on the node yet, GiB; an import needs several times this"
    )
    clock_s: Positive = setting(5.0, "largest difference of a node's clock from the first node's, s")
    evidence_hours: NotNegative = setting(24.0, "how long a failed node is proposed for --exclude, hours")
    exclude_sick: Flag = setting(False, "add those nodes to --exclude instead of only proposing it")


@dataclass(frozen=True)
class Results(Section):
    """Where results go."""

    root: Line = setting("runs", "directory on the shared file system that holds the sweeps")
    name: Line | None = setting(None, "name of the sweep's directory; null: the time of day")
    roots: tuple[Text, ...] = setting((), "further directories of sweeps whose valid rows may be reused")
    objective: Text = setting("output_tok_s", "column that decides who won, and that hydra/sweeper=optuna optimises")
    price_node_hour: Positive | None = setting(None, "price of a node for an hour, any currency; null: no price column")


@dataclass(frozen=True)
class Launch(Section):
    """What launch.py does."""

    dry_run: Flag = setting(False, "print plan and exact commands, submit nothing")
    resume: Text | None = setting(None, "directory of a sweep that is to be finished; its own points are run")
    retry_failed: Flag = setting(False, "with resume: run failed points again as well")
    reuse: Flag = setting(False, "take valid rows of the same points from results.root and results.roots")
    infeasible: Annotated[Text, one_of("fail", "drop", "keep")] = setting(
        "fail", "points whose longest request cannot fit: fail: refuse the sweep; drop: rows without a run; keep: run"
    )
    budget_node_hours: Positive | None = setting(
        None, "cut the plan to so many predicted node-hours: the least informative points go; null: no limit"
    )
    follow: Flag = setting(True, "stay and show progress until the table is there; Ctrl-C detaches")


@dataclass(frozen=True)
class Config(Section):
    """All settings of one point."""

    model: Model = section(Model, "what is served", scope="service")
    engine: Engine = section(Engine, "the program that serves", scope="service")
    parallel: Parallel = section(Parallel, "layout and sizes", scope="service")
    hccl: Hccl = section(Hccl, "network between the nodes", scope="service")
    container: Container = section(Container, "where the engine runs", scope="service")
    cluster: Cluster = section(Cluster, "how an allocation is asked for", scope="sweep")
    bench: Bench = section(Bench, "the load", scope="point")
    limits: Limits = section(Limits, "time limits", scope="sweep")
    preflight: Preflight = section(Preflight, "checks of the nodes before the first service", scope="sweep")
    results: Results = section(Results, "where results go", scope="sweep")
    launch: Launch = section(Launch, "what launch.py does", scope="sweep")


def usual_windows(bench: Bench) -> int:
    """Predict how many windows a point takes: its repeats, or the probes of a search that ends 8 x higher."""
    if bench.search is None:
        return bench.repeats
    return 3 + math.ceil(math.log2(1 / bench.search_precision)) + 1


def in_container(config: Config) -> bool:
    """Return whether the engine runs in a container."""
    return config.container.runtime != "none"


def client_inside(config: Config) -> bool:
    """Return whether the external client of a point runs in the container of rank 0's engine.

    `vllm bench serve` belongs to the engine and is where the engine is. AISBench wants packages that suit no engine.
    """
    bench = config.bench
    if bench.client == "window" or not in_container(config):
        return False
    return bench.where == "container" or (bench.where == "auto" and bench.client == "vllm_bench")
