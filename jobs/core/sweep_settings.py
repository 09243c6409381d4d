"""What belongs to a sweep as a whole: it does not alter what is asked, and cannot be swept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from jobs.core.fields import (
    Count,
    Directory,
    Flag,
    Line,
    Name,
    NotNegative,
    OneKey,
    Options,
    Port,
    Positive,
    Section,
    Text,
    one_of,
    registered,
    section,
    setting,
)
from jobs.core.registry import SCHEDULERS


@dataclass(frozen=True)
class ModelSettings(Section):
    """How the checkpoint comes to the nodes."""

    source: Text | None = setting(None, "name at ModelScope, for `python -m jobs model fetch`")
    stage_to: Text | None = setting(
        None,
        "directory on each node's own disk: the checkpoint is copied there once and served from there; with a"
        " container it must be mounted under the same path. null: not staged",
    )
    verify: Annotated[Text, one_of("sizes", "sampled", "none")] = setting(
        "sizes", "before a load: whole shards, W8A8 if asked for, equal nodes; sampled: their content too"
    )


@dataclass(frozen=True)
class EngineSettings(Section):
    """Where the engine listens, who may call it, and what is checked of it."""

    written_for: Text | None = setting(
        None, "release that this preset was written for; another engine.release migrates it: python -m jobs explain"
    )
    api_key: Annotated[Text, one_of("auto")] | None = setting(
        "auto", "auto: a new key for each service; null: the API is open to every user of the cluster"
    )
    host: Text = setting("0.0.0.0", "bind address of the API server")
    port: Port | None = setting(None, "API port; null: derived from the job id")
    data_parallel_rpc_port: Port | None = setting(None, "null: derived from the job id")
    checks_release: Flag = setting(True, "refuse an image of another vllm-ascend; false: warn")
    checks_model_path: Flag = setting(True, "model.path must exist on every node")


@dataclass(frozen=True)
class ContainerSettings(Section):
    """How a container is made on a node."""

    registry: Text | None = setting(None, "host put before an image that names no registry")
    devices: tuple[Text, ...] | None = setting(None, "null: the NPU devices, for engine=vllm_ascend")
    driver_mounts: tuple[Text, ...] | None = setting(
        None, "mounts of which those that exist are made; null: driver, tools and version files"
    )
    name: Text | None = setting(None, "null: made of job, service and rank; pyxis: no name")
    workdir: Text | None = setting(None, "directory inside; null: a writable one of the node")
    writable: Flag = setting(True, "the image's files may be changed; the changes go with the container")
    remap_root: Flag = setting(True, "the user is root inside")
    mount_home: Flag = setting(False, "mount the user's home directory")
    shm_size: Text | None = setting(
        "1g", "size of /dev/shm; enroot and pyxis show the node's own, so there it is the least that is accepted",
    )  # fmt: skip
    args: Options = setting({}, "further options of the runtime's run command by name, without dashes")
    images_path: Text | None = setting(
        None, "imported images, on the shared file system; null: .images in results.root"
    )
    local_dir: Text | None = setting(
        "/tmp/serving-sweep-{uid}",
        "directory of the node: enroot's roots, layers and imports, compiled kernels; null: no kernels are kept",
    )


@dataclass(frozen=True)
class ClientSettings(Section):
    """Where an external client is and runs."""

    program: Text | None = setting(
        None, "program of an external client; null: where that client says that it usually is"
    )
    where: Annotated[Text, one_of("auto", "node", "container")] = setting(
        "auto",
        "where an external client runs. auto: one that is the engine's own where the engine runs, its container or the"
        " node; any other on the node, in an environment of its own. container: the image has the client",
    )


@dataclass(frozen=True)
class Cluster(Section):
    """How an allocation is asked for. A null key is not emitted."""

    kind: Annotated[Text, registered(SCHEDULERS, "auto")] = setting("auto", "auto: Slurm where sbatch is found")
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

    @property
    def on_loopback(self) -> bool:
        """Whether all ranks are processes of one host; what `auto` means is known where it is submitted."""
        return self.kind in SCHEDULERS and bool(SCHEDULERS.get(self.kind).on_loopback)


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
    client_s: Positive = setting(3600.0, "one run of an external client")
    stop_s: Positive = setting(30.0, "SIGTERM until SIGKILL")
    heartbeat_s: Positive = setting(15.0, "silence after which a rank counts as lost")
    attempts: Count = setting(3, "jobs in a row for one allocation: what the time limit left is submitted again")


@dataclass(frozen=True)
class Thresholds(OneKey):
    """From what on a node fails a check."""

    chip: Text = setting("910B", "beginning of the name in npu-smi; an Atlas 800I A2 has 910B1 to 910B4")
    npu_memory_mb: NotNegative = setting(65536, "least memory of an NPU")
    npu_idle_mb: NotNegative = setting(4500, "most memory that an idle NPU has in use; 2.9 to 3.5 GB are usual")
    shm_gib: NotNegative = setting(1.0, "least size of /dev/shm, and least free in it")
    memory_gib: NotNegative = setting(2.0, "least memory available on a node")
    disk_gib: NotNegative = setting(1.0, "least free in results.root and TMPDIR")
    image_gib: NotNegative = setting(15.0, "unpacked size of an image that is not on the node yet")
    clock_s: NotNegative = setting(5.0, "largest difference of a node's clock from the first node's")


@dataclass(frozen=True)
class Preflight(Section):
    """Checks of all nodes before the first service loads. One that fails ends the allocation."""

    enabled: Flag = setting(True, "check the nodes at all")
    npus: Flag | None = setting(None, "check NPUs and their fabric; null: where the engine is vllm_ascend")
    skip: tuple[Text, ...] = setting((), "ids or groups (host, network, npu, fabric) of checks that are not made")
    warn_only: tuple[Text, ...] = setting((), "ids or groups of checks whose failure is only a warning")
    thresholds: Thresholds = section(Thresholds, "from what on a node fails a check")
    exclude_sick: Flag = setting(
        False, "add nodes that failed in the last 24 hours to --exclude instead of only proposing it"
    )


@dataclass(frozen=True)
class Results(Section):
    """Where results go."""

    root: Directory = setting("runs", "directory on the shared file system that holds the sweeps")
    name: Name | None = setting(None, "name of the sweep's directory; null: the time of day")
    roots: tuple[Text, ...] = setting((), "further directories of sweeps whose valid rows may be reused")
    objective: Text = setting(
        "output_tok_per_s",
        "column that decides who won, and that hydra/sweeper=optuna and a search (goal=... for short) look for",
    )
    price_node_hour: Positive | None = setting(None, "price of a node for an hour, any currency; null: no price column")


@dataclass(frozen=True)
class Launch(Section):
    """What launch.py does."""

    dry_run: Flag = setting(False, "print plan and exact commands, submit nothing")
    reuse: Flag = setting(False, "take valid rows of the same points from results.root and results.roots")
    infeasible: Annotated[Text, one_of("fail", "drop", "keep")] = setting(
        "fail", "points whose longest request cannot fit: fail: refuse the sweep; drop: rows without a run; keep: run"
    )
    budget_node_hours: Positive | None = setting(
        None, "cut the plan to so many predicted node-hours: the least informative points go; null: no limit"
    )
    follow: Flag = setting(True, "stay and show progress until the table is there; Ctrl-C detaches")


@dataclass(frozen=True)
class Tune(Section):
    """A search (`python -m jobs tune`): what it may spend, and the settings among which it looks."""

    budget_node_hours: Positive | None = setting(None, "node-hours that a search may use, the queue apart")
    space: dict[str, Any] = setting(
        {},
        "settings of a search: a list of values by key or group; speculation: drafted tokens; auto: derived"
        " (hccl.buffsize, parallel.gpu_memory_utilization)",
    )
