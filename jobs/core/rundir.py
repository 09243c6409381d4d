"""The run directory: the only place that knows file names. Files are the record; writes are atomic."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.core import names, sharing, ways
from jobs.core.errors import RunError
from jobs.core.files import SECRET, append_json, is_there, nearest_there, own_folder, write_bytes, write_text
from jobs.core.filetable import File, Files, Place

NO_ROOT = "Choose a results.root that you can write and that all nodes see."


@dataclass(frozen=True)
class Root:
    """`results.root`: the sweeps, what they taught about each layout, and what is known against nodes."""

    path: Path

    # One file a layout, so that two writers replace it and never mix.
    calibration = Files(".calibration/<layout>.json", "what earlier runs of one layout showed", own=own_folder)
    starts = Files(".calibration/starts/<layout>.json", "what single starts of one layout showed", own=own_folder)
    figures = Files(".calibration/figures/<engine>.json", "what rows of one engine showed", own=own_folder)
    deciding = Files(
        ".decide/<question>.lock", "held while a `decide` looks what to begin, and begins it", own=own_folder
    )
    node = Files(".nodes/<host>.json", "the evidence against one node", own=own_folder)

    def nodes(self) -> list[Path]:
        """The evidence against every node that has any."""
        return sorted(self.node("*").parent.glob("*.json"))


@dataclass(frozen=True)
class RankDir:
    """`services/<service>/<attempt>/rank<k>/`."""

    path: Path

    command = File("command.json", "intended argv and environment")
    effective = File("effective.json", "argv and environment as read back from the running process")
    states = File("state.jsonl", "one line for every state that the rank entered")
    log = File("server.log", "output of the engine")
    staging = File("staging.json", "what is to be staged and checked before the engine starts")
    staging_log = File("staging.log", "progress of the staging")
    checkpoint = File("checkpoint.json", "what this rank's checkpoint is: path, sizes, hashes; or why it is not right")
    plogs = File("ascend", "logs of CANN: debug/plog is in it")
    image_order = File("image-order.json", "what of its container is to be made before the engine starts")
    image_log = File("image.log", "output of making the container: import, pull, unpacking")
    image = File("image.json", "what of the container was made, or why it could not be")

    def enter(self, state: str, **details: Any) -> None:
        """Record a state of this rank with the wall clock (Unix seconds)."""
        append_json(self.states, {"time": time.time(), "state": state} | details)

    def note(self, state: str, **details: Any) -> None:
        """Record a state where that is possible: a full disk must not keep an engine alive, nor end a window."""
        with contextlib.suppress(RunError):
            self.enter(state, **details)


@dataclass(frozen=True)
class ServiceDir:
    """`services/<service>/<attempt>/`."""

    path: Path

    record = File("service.json", "what the service was and how it went")
    diagnosis = File("diagnosis.txt", "why it failed: first failing rank, cause, remedy, evidence")

    def rank(self, rank: int) -> RankDir:
        """Directory of one rank."""
        return RankDir(self.path / f"rank{rank}")

    def ranks(self) -> list[RankDir]:
        """Return the directories of the ranks that have one, in order."""
        return [RankDir(path) for _, path in _numbered(self.path, "rank")]


@dataclass(frozen=True)
class PointDir:
    """`points/<point>/`."""

    path: Path

    config = File("config.yaml", "the resolved config of the point")
    secrets = File("secrets.key", "secret values of its engine.env, readable by the owner only; there where it has any")
    row = File("row.json", "the point's row of the sweep table")
    client = File("client", "what an external client wrote: its log, its own results")
    requests = File("requests.parquet", "per-request records")
    series = File("series.parquet", "what the service said of itself, once a second")
    power = File("npu.parquet", "power and memory of the head's NPUs, where `npu-smi` tells")
    windows = File(
        "windows.jsonl",
        "one line for every window: repeats, or the probes of a search; when it was opened (`opened_s`, Unix time)",
    )
    canary = File("canary.json", "the known question before and after the windows, and its answers")
    quality = File("quality.json", "the questions on long texts, and their answers")


@dataclass(frozen=True)
class AllocationDir:
    """`allocations/<n>/<attempt>/`."""

    path: Path

    task = File("allocation.json", "what the ranks of this allocation have to do")
    key = File("control.key", "shared secret of the ranks, readable by the owner only")
    api_key = File("api.key", "key of the service that runs, of each its own, readable by the owner only")
    head = File("head.json", "what rank 0 published: address, interface, ports")
    submitting = File("submitting.lock", "held while the allocation is being submitted")
    job = File("job.json", "job id, kind of cluster, time of submission")
    submission = File("submission.sh", "the batch script as submitted")
    submitit = File("submitit", "submitit's own files")
    srun_log = File("srun.log", "what srun says in an allocation that the user holds (cluster=current)")
    outcome = File("outcome.json", "how the allocation ended, written by rank 0 last of all")
    serving = File("serving.json", "how to reach a service that is kept up for hand tests; there while it is")
    preflight = File("preflight.json", "what the checks of the nodes found, before the first service")
    stdout = Files("stdout-<rank>.log", "output of one task")
    reserve = File("reserve", "space that is held for the last rows")

    def take_reserve(self) -> None:
        """Hold some space while services run: on a full disk the last rows are written in its place.

        Raises:
            RunError: it is full already.
        """
        write_bytes(self.reserve, os.urandom(4 << 20))  # a thousand rows and their table

    def free_reserve(self) -> None:
        """Give the held space back, where that is possible."""
        with contextlib.suppress(OSError):
            self.reserve.unlink(missing_ok=True)

    @property
    def index(self) -> int:
        """Number of the allocation in its sweep."""
        return int(self.path.parent.name)

    @property
    def attempt(self) -> int:
        """Number of this try at its services."""
        return int(self.path.name)

    @property
    def tries(self) -> int:
        """How many tries at this allocation there were, this one included."""
        return len(list(self.path.parent.iterdir()))

    @property
    def sweep(self) -> SweepDir:
        """The sweep that this allocation belongs to."""
        return SweepDir(self.path.parent.parent.parent)

    def new_key(self) -> None:
        """Make the secret that the ranks of this allocation share."""
        write_text(self.key, secrets.token_hex(16), SECRET)

    def keep_api_key(self, key: str) -> None:
        """Keep the key of a service for its user; the one before it is of no more use."""
        write_text(self.api_key, key, SECRET)


@dataclass(frozen=True)
class SweepDir:
    """`runs/<sweep>/`."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Place(self.path))  # and so is every path in it

    @property
    def root(self) -> Root:
        """The directory that holds this sweep and others."""
        return Root(self.path.parent)

    @property
    def writable(self) -> bool:
        """Whether this user writes here: a colleague's sweep is for reading alone, whatever its modes are."""
        return os.access(self.path, os.W_OK) and not ways.is_anothers(self.path.stat())

    def check_owner(self, what: str) -> None:
        """Raise RunError where it is another user's: what stands in it is run, or names jobs. `what`: "resume it"."""
        if ways.is_anothers(self.path.stat()):
            reason, remedy = "this sweep belongs to another user", f"Only its owner can {what}."
            raise RunError("RUN", self.path, reason, remedy)

    plan = File("plan.json", "the plan as submitted")
    search = File("tune.json", "of a search: its settings, what was forecast of them, its goal and its budget")
    answer = File("answer.json", "of a search: what it has found so far, what it cost, and what was ruled out by what")
    question = File("question.json", "what `python -m jobs decide` asks of it: A or B, by which figure and difference")
    resuming = File("resume.lock", "held while a resume submits what is left")
    log = File("sweep.log", "what the launcher did, with tracebacks")
    provenance = File("provenance.json", "commit, versions and command line of its start; how its nodes are tuned")
    noting = File("provenance.lock", "held while an allocation adds how its nodes are tuned")
    report = File("report.html", "the report for people: one page that needs no network")
    exported = Files("export/<target>", "results in the form of another tool")
    table = Files("table.<form>", "the sweep table: csv, parquet, md")

    def point(self, point: str) -> PointDir:
        """Directory of one point."""
        return PointDir(self.path.joinpath("points", point))

    def point_names(self) -> set[str]:
        """Return the ids of the points that have a directory."""
        with contextlib.suppress(OSError):
            return {path.name for path in (self.path / "points").iterdir()}
        return set()

    def service(self, service: str, attempt: int) -> ServiceDir:
        """Directory of one attempt at a service."""
        return ServiceDir(self.path / "services" / service / str(attempt))

    def service_attempts(self, service: str) -> list[ServiceDir]:
        """Return the directories of all attempts at a service, oldest first."""
        return [ServiceDir(path) for _, path in _numbered(self.path / "services" / service)]

    def next_attempt(self, services: Iterable[str]) -> int:
        """Return a number that no attempt at any of these services has."""
        taken = [number for name in services for number, _ in _numbered(self.path / "services" / name)]
        return max(taken, default=0) + 1

    def all_attempts(self, service: str) -> Iterator[ServiceDir]:
        """The attempts at a service in this sweep and in the sweeps beside it: what its load took before."""
        return map(ServiceDir, self.path.parent.glob(f"*/services/{service}/*"))

    def allocation(self, index: int, attempt: int) -> AllocationDir:
        """Directory of one attempt at an allocation."""
        return AllocationDir(self.path / "allocations" / str(index) / str(attempt))

    def next_allocation(self) -> int:
        """Return a number that no allocation has, a half-written one neither."""
        return max((number for number, _ in _numbered(self.path / "allocations")), default=-1) + 1

    def attempts(self, index: int) -> list[AllocationDir]:
        """Return the directories of all attempts at an allocation, oldest first."""
        return [AllocationDir(path) for _, path in _numbered(self.path / "allocations" / str(index))]

    def allocations(self) -> Iterator[AllocationDir]:
        """The latest attempt of every allocation."""
        for index, _ in _numbered(self.path / "allocations"):
            attempts = self.attempts(index)
            written = [attempt for attempt in attempts if attempt.task.exists()]
            if written:
                yield written[-1]


def _numbered(folder: Path, before: str = "") -> list[tuple[int, Path]]:
    """Return what has a number for its name in a directory, by number; what else lies there is not ours."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith(before):
                with contextlib.suppress(ValueError):
                    found.append((names.number(path.name.removeprefix(before)), path))
    return sorted(found)


FOLDERS: Mapping[str, type] = {
    "": Root,
    "<sweep>/": SweepDir,
    "<sweep>/points/<point>/": PointDir,
    "<sweep>/services/<service>/<attempt>/": ServiceDir,
    "<sweep>/services/<service>/<attempt>/rank<k>/": RankDir,
    "<sweep>/allocations/<n>/<attempt>/": AllocationDir,
}
"""Where the directories of each kind are, below results.root."""


def sweeps_in(root: Path) -> list[SweepDir]:
    """Return the sweeps in a directory, by name; none where it is not there or not ours to read."""
    with contextlib.suppress(OSError):
        folders = sorted(path for path in root.iterdir() if not path.is_symlink())
        return [sweep for sweep in map(SweepDir, folders) if is_there(sweep.plan)]  # one that is closed to us is no end
    return []


def open_sweep(path: Path) -> SweepDir:
    """Return the sweep in this directory. RunError: there is none."""
    found = SweepDir(path.resolve())
    if not found.plan.exists():
        inside = sorted(one.parent for one in path.glob(f"*/{found.plan.name}"))
        remedy = f"Give one of the sweeps in it, as {inside[-1]}." if inside else "Give that of a sweep, runs/<sweep>."
        reason = "there is no plan.json in it" if path.is_dir() else "there is no such directory"
        raise RunError("RUN", path, reason, remedy)
    return found


def check_root(root: Path) -> None:
    """Raise RunError where no sweep can be made in this directory, which may be still to be made itself."""
    there = nearest_there(root)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = f"it cannot be written: {there} is no directory that you can write"
        raise RunError("results.root", root, reason, NO_ROOT)


def images_path(root: Path) -> Path:
    """Return the directory of imported container images beside the sweeps of a results.root."""
    return own_folder(root, ".images")


def new_sweep(
    root: Path, name: str | None, now: datetime, group: str | None = None, *, latest: bool = True
) -> SweepDir:
    """Make the directory of a new sweep, named after `name` or the time; never one that exists.

    With `latest` the link of that name will lead to it. It is open to its owner alone, or for reading to the Unix
    group `group` too (`cluster.share_group`).

    Raises:
        RunError: the root cannot be written.
    """
    if group:
        sharing.let_group_read()
        sharing.share_root(root, group, is_new=not sweeps_in(root))
    stem = name or now.strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        path = root / f"{stem}{suffix}"
        try:
            with ways.folder(root, named=True) as folder:
                os.mkdir(path.name, 0o700, dir_fd=folder)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError("results.root", root, str(error), NO_ROOT) from None
        if group:
            sharing.share(path, group)
        if latest:
            _point_latest(root, path)
        return SweepDir(path)
    raise RunError("results.name", stem, "a thousand sweeps have this name", "Choose another name.")


def _point_latest(root: Path, path: Path) -> None:
    """Let `latest` name the newest sweep. A convenience for people: where it cannot be made, nothing depends on it."""
    temporary = root / f".latest.{os.getpid()}"
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(path.name)
        temporary.replace(root / "latest")
