"""The fault matrix: what is done, at which moment, and how it must end. Test and benchmark both run it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import injure
from harness import POINTS, End, Started
from lab import Lab

HEARTBEAT_S = 4.0
"""limits.heartbeat_s of every case (harness.SHORT)."""

DEAD_S = 10.0
"""The goal for a dead process."""

HANG_S = HEARTBEAT_S + 10.0
"""The goal for a hang or a cut."""

SLURM_GIVES_UP_S = 20.0
"""The node with srun is cut off: so long does slurmstepd on the other node try to tell srun that its task has ended
(measured on Slurm 22.05 with MessageTimeout=10), before it gives its own node back."""

SIMULATOR = ("engine=simulator",)
VLLM = ("engine=vllm_cpu", "model=tiny_llama", "parallel=dp2_tp1", "bench.warmup_s=1", "bench.repeats=1")
MOE = (*VLLM, "model.path=.engines/models/tiny_moe", "model.served_model_name=tiny_moe")
SHARED = ("cluster.exclusive=false",)
HELD = "cluster.sbatch_args={hold: true}"
SHORT_WINDOW = "bench.window_s=1,4"

VALID, CUT, NEVER = (True, False), (False, True), (False, False)
"""(valid, truncated) of a row: measured; its window was cut short; its window never opened, or was no good."""


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        name: what is done, for the table.
        on: "rank 0", "rank 1" or "job".
        act: waits for the moment, does it, returns the time of the fault (Unix seconds).
        states: final states that Slurm may give.
        rows: (valid, truncated) of both points, in their order.
        reason: how the reason of every invalid row begins, and words that it has.
        goal_s: seconds from the fault to the released allocation; None: the job goes on and ends by itself.
        slack_s: what is added to the goal by something that is not ours.
        overrides: of the launcher.
        alive: nodes that can be released at all.
        repair: makes the lab whole again, after the release and before the table is completed.
        prepare: before the launcher is started, with its results.root.
        follows: launch.py stays (the fault is about it).
        alone: it takes whole nodes away, so that no other case can run beside it.
        rehearsed: the tests, which have minutes, take the rehearsal engine for it; the benchmark the real one.
    """

    name: str
    on: str
    act: Callable[[Started], float]
    states: tuple[str, ...]
    rows: tuple[tuple[bool, bool], tuple[bool, bool]]
    reason: tuple[str, ...]
    goal_s: float | None
    slack_s: float = 0.0
    overrides: tuple[str, ...] = SIMULATOR
    alive: tuple[str, ...] | None = None
    repair: Callable[[Started], None] = injure.nothing
    prepare: Callable[[Path], None] = injure.nothing
    follows: bool = False
    alone: bool = False
    rehearsed: bool = False

    @property
    def real(self) -> bool:
        """Whether the engine is the real vLLM."""
        return "engine=vllm_cpu" in self.overrides

    @property
    def id(self) -> str:
        words = f"{self.name} {self.on}{' vllm' if self.real else ''}"
        return "-".join("".join(c if c.isalnum() else " " for c in words).split())


@dataclass(frozen=True)
class Result:
    """What one run of a case came to: how it ended, and the seconds from the fault to the released allocation."""

    end: End
    seconds: float
    launcher: int | None
    table: bool


def run(case: Case, lab: Lab, root: Path, limit_s: float = 90.0, *, shared: bool = False) -> Result:
    """Run one case.

    Args:
        case: what is done.
        lab: idle and whole before and after, unless it is shared.
        root: where its results go.
        limit_s: how long the release may take.
        shared: other cases run on the same nodes at the same time.
    """
    if not shared:
        lab.wait_idle(120)
    root.mkdir(exist_ok=True)
    case.prepare(root)
    started: Started | None = None
    try:
        words = (*POINTS, *case.overrides, *(SHARED if shared else ()))
        started = Started(lab, root, words, case.follows)
        moment = case.act(started)
        released = started.wait_released(limit_s, case.alive)
        table = started.sweep.table("csv").exists()
        case.repair(started)
        return Result(started.end(), released - moment, started.launcher.poll(), table)
    finally:
        if not shared:
            for node in ("1", "2"):
                lab.heal(node)
                lab.start_slurmd(node)
        if started:
            started.close()
        injure.unmount(root)
        if not shared:
            lab.wait_idle(120)


def fault(rank: int, kind: str, when: str, **more: Any) -> str:
    """Return the override that makes the rehearsal engine act out a fault."""
    words = {"rank": rank, "kind": kind, "when": when, **more}
    text = ", ".join(f"{key}: {json.dumps(value)}" for key, value in words.items())
    return f"engine.rehearsal.faults=[{{{text}}}]"


def _engines(rank: int) -> list[Case]:
    """Faults of one rank's engine."""
    on, who, failed = f"rank {rank}", f"rank {rank}", ("FAILED",)

    def case(name: str, act: Callable[[Started], float], goal_s: float, **more: Any) -> Case:
        return Case(name, on, act, failed, goal_s=goal_s, **{"rows": (VALID, CUT), "reason": (who,), **more})

    broken = "RuntimeError: the checkpoint is broken"
    exit_1 = fault(rank, "error_text", "load", text=broken, code=1, after_s=0.3)
    return [
        case(
            "SIGKILL of the engine tree",
            injure.engine(rank, signal.SIGKILL),
            DEAD_S,
            overrides=VLLM,
            rehearsed=rank == 0,
        ),
        case(
            "SIGSTOP of the engine tree",
            injure.engine(rank, signal.SIGSTOP),
            HANG_S,
            overrides=VLLM,
            rehearsed=True,
        ),
        case(
            "SIGKILL of the rank's task",
            injure.task(rank, signal.SIGKILL),
            DEAD_S,
            reason=("rank 0", "lost in state") if rank == 0 else (who, "connection"),
        ),
        case(
            "SIGTERM to the rank's task alone",
            injure.task(rank, signal.SIGTERM),
            DEAD_S,
            reason=("cancelled or preempted (SIGTERM)",) if rank == 0 else (who, "SIGTERM"),
        ),
        case("engine exits 0 (SIGTERM from elsewhere)", injure.engine(rank, signal.SIGTERM), DEAD_S),
        case(
            "engine exits 1 while loading",
            injure.engine_gone(rank),
            DEAD_S,
            overrides=(*SIMULATOR, exit_1),
            rows=(NEVER, NEVER),
            reason=(who, broken),
        ),
        case(
            "never ready: limits.load_s exceeded",
            injure.limit_of_loading(rank, 4.0),
            DEAD_S,
            overrides=(*SIMULATOR, fault(rank, "never_ready", "load"), "limits.load_s=4"),
            rows=(NEVER, NEVER),
            reason=(who, "limits.load_s"),
        ),
        case(
            "engine dies in the window",
            injure.engine_gone(rank),
            DEAD_S,
            overrides=(*SIMULATOR, fault(rank, "crash", "window", after_s=6)),
            reason=(who, "SIGKILL"),
        ),
        case(
            "log flood of 20 MB/s, then SIGKILL",
            injure.engine(rank, signal.SIGKILL),
            DEAD_S,
            overrides=(*SIMULATOR, fault(rank, "log_flood", "load", mb_s=20)),
            reason=(who, "SIGKILL"),
        ),
    ]


def _nodes() -> list[Case]:
    """Faults of a node and of the network between the nodes. The batch script with srun is on rank 0's node."""
    one, two = "npu-node1", "npu-node2"
    ended = ("CANCELLED", "FAILED", "NODE_FAIL")
    cut, down, partial = "network cut between the nodes", "node down", (VALID, CUT)
    # The files are on this machine, so that the rank that is cut off can still write what it saw.
    return [
        Case(cut, "rank 0", injure.cut("1"), ended, partial, ("rank 1", "heartbeat"), HANG_S, SLURM_GIVES_UP_S,
             alive=(two,), repair=injure.heal("1"), alone=True),
        Case(cut, "rank 1", injure.cut("2"), ended, partial, ("rank 1", "heartbeat"), HANG_S,
             alive=(one,), repair=injure.heal("2"), alone=True),
        Case(down, "rank 0", injure.node_down("1"), ended, partial, ("rank 0", "lost"), DEAD_S,
             alive=(two,), repair=injure.node_up("1"), alone=True),
        Case(down, "rank 1", injure.node_down("2"), ended, partial, ("rank 1", "connection"), DEAD_S,
             alive=(one,), repair=injure.node_up("2"), alone=True),
    ]  # fmt: skip


def _disks() -> list[Case]:
    """Faults of the run directory: all of it for rank 0 in its window, rank 1's part before its start."""
    full, unwritable = "disk full in the run directory", "run directory read-only"
    window = (*SIMULATOR, SHORT_WINDOW)
    before = (*SIMULATOR, SHORT_WINDOW, HELD)
    # Rank 0 meets it when the window of 4 s is over: that is when it has something to write.
    return [
        Case(full, "rank 0", injure.fill_root, ("FAILED",), (VALID, NEVER), ("rank 0", "No space left"), DEAD_S, 4.0,
             overrides=window, prepare=injure.mount_small),
        Case(full, "rank 1", injure.rank_directory(1, "full"), ("FAILED",), (NEVER, NEVER), ("rank 1", "No space left"),
             DEAD_S, overrides=before, repair=injure.mend),
        Case(unwritable, "rank 0", injure.lock_root, ("FAILED",), (VALID, CUT), ("rank 0", "Read-only"), DEAD_S, 4.0,
             overrides=window, repair=injure.mend),
        Case(unwritable, "rank 1", injure.rank_directory(1, "locked"), ("FAILED",), (NEVER, NEVER),
             ("rank 1", "Read-only"), DEAD_S, overrides=before, repair=injure.mend),
    ]  # fmt: skip


def _jobs() -> list[Case]:
    """What Slurm and people do to the job and to the launcher."""
    signalled = ("cancelled or preempted (SIGTERM)",)
    goes_on: dict[str, Any] = {
        "states": ("COMPLETED",),
        "rows": (VALID, VALID),
        "reason": (),
        "goal_s": None,
        "follows": True,
        "overrides": (*SIMULATOR, SHORT_WINDOW),
    }
    flood = {**goes_on, "follows": False}
    return [
        Case("scancel", "job", injure.scancel, ("CANCELLED",), (VALID, CUT), signalled, DEAD_S, overrides=VLLM,
             rehearsed=True),
        Case("time limit (from SIGUSR2)", "job", injure.time_limit, ("FAILED",), (VALID, CUT),
             ("the time limit is near",), DEAD_S, overrides=VLLM, rehearsed=True),
        Case("preemption by a job in `urgent`", "job", injure.preempt, ("PREEMPTED",), (VALID, CUT), signalled, DEAD_S,
             alone=True),
        Case("a model that dies at its first request, /health 200 before", "job", injure.healthy, ("FAILED",),
             (NEVER, NEVER), ("rank ", "mixture-of-experts"), DEAD_S, overrides=MOE),
        Case("Ctrl-C in launch.py", "job", injure.launcher(signal.SIGINT), **goes_on),
        Case("login process SIGKILLed", "job", injure.launcher(signal.SIGKILL), **goes_on),
        *(
            Case("log flood of 20 MB/s", f"rank {rank}", injure.done, **{
                **flood, "overrides": (*SIMULATOR, SHORT_WINDOW, fault(rank, "log_flood", "load", mb_s=20))})
            for rank in (0, 1)
        ),
    ]  # fmt: skip


CASES: tuple[Case, ...] = (*_engines(0), *_engines(1), *_disks(), *_jobs(), *_nodes())
