"""The run directory: the only place that knows file names. Files are the record; writes are atomic."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.core import sharing
from jobs.core.errors import RunError
from jobs.core.files import append_json, nearest_there, write_bytes, write_text

NO_ROOT = "Choose a results.root that you can write and that all nodes see."


@dataclass(frozen=True)
class Root:
    """`results.root`: the sweeps, what they taught about each layout, and what is known against nodes."""

    path: Path

    def calibration(self, layout: str) -> Path:
        """What earlier runs of one layout showed; one file a layout, so that two writers replace it, never mix."""
        return self.path / ".calibration" / f"{layout}.json"

    def node(self, host: str) -> Path:
        """The evidence against one node."""
        return self.path / ".nodes" / f"{host}.json"

    def nodes(self) -> list[Path]:
        """The evidence against every node that has any."""
        return sorted((self.path / ".nodes").glob("*.json"))


@dataclass(frozen=True)
class RankDir:
    """`services/<service>/<attempt>/rank<k>/`."""

    path: Path

    @property
    def command(self) -> Path:
        """Intended argv and environment."""
        return self.path / "command.json"

    @property
    def effective(self) -> Path:
        """Argv and environment as read back from the running process."""
        return self.path / "effective.json"

    @property
    def states(self) -> Path:
        """One line for every state that the rank entered."""
        return self.path / "state.jsonl"

    @property
    def log(self) -> Path:
        """Output of the engine."""
        return self.path / "server.log"

    @property
    def staging(self) -> Path:
        """What is to be staged and checked before the engine starts."""
        return self.path / "staging.json"

    @property
    def staging_log(self) -> Path:
        """Progress of that."""
        return self.path / "staging.log"

    @property
    def checkpoint(self) -> Path:
        """What this rank's checkpoint is: path, sizes, hashes; or why it is not right."""
        return self.path / "checkpoint.json"

    @property
    def plogs(self) -> Path:
        """Logs of CANN: debug/plog is in it."""
        return self.path / "ascend"

    @property
    def image_order(self) -> Path:
        """What of its container is to be made before the engine starts."""
        return self.path / "image-order.json"

    @property
    def image_log(self) -> Path:
        """Output of that: import, pull, unpacking."""
        return self.path / "image.log"

    @property
    def image(self) -> Path:
        """What was made, or why it could not be."""
        return self.path / "image.json"

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

    @property
    def record(self) -> Path:
        """What the service was and how it went."""
        return self.path / "service.json"

    @property
    def diagnosis(self) -> Path:
        """Why it failed: first failing rank, cause, remedy, evidence."""
        return self.path / "diagnosis.txt"

    def rank(self, rank: int) -> RankDir:
        """Directory of one rank."""
        return RankDir(self.path / f"rank{rank}")

    def ranks(self) -> list[RankDir]:
        """Return the directories of the ranks that have one, in order."""
        return [RankDir(path) for path in sorted(self.path.glob("rank*"), key=lambda p: int(p.name[4:]))]


@dataclass(frozen=True)
class PointDir:
    """`points/<point>/`."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config of the point."""
        return self.path / "config.yaml"

    @property
    def row(self) -> Path:
        """The point's row of the sweep table."""
        return self.path / "row.json"

    @property
    def client(self) -> Path:
        """What an external client wrote: its log, its own results."""
        return self.path / "client"

    @property
    def requests(self) -> Path:
        """Per-request records."""
        return self.path / "requests.parquet"

    @property
    def series(self) -> Path:
        """What the service said of itself, once a second."""
        return self.path / "series.parquet"

    @property
    def power(self) -> Path:
        """Power and memory of the head's NPUs, where `npu-smi` tells."""
        return self.path / "npu.parquet"

    @property
    def windows(self) -> Path:
        """One line for every window: repeats, or the probes of a search."""
        return self.path / "windows.jsonl"

    @property
    def canary(self) -> Path:
        """The known question before and after the windows, and its answers."""
        return self.path / "canary.json"

    @property
    def quality(self) -> Path:
        """The questions on long texts, and their answers."""
        return self.path / "quality.json"


@dataclass(frozen=True)
class AllocationDir:
    """`allocations/<n>/<attempt>/`."""

    path: Path

    @property
    def task(self) -> Path:
        """What the ranks of this allocation have to do."""
        return self.path / "allocation.json"

    @property
    def key(self) -> Path:
        """Shared secret of the ranks, readable by the owner only."""
        return self.path / "control.key"

    @property
    def api_key(self) -> Path:
        """Key of the API servers of this allocation, readable by the owner only."""
        return self.path / "api.key"

    @property
    def head(self) -> Path:
        """What rank 0 published: address, interface, ports."""
        return self.path / "head.json"

    @property
    def job(self) -> Path:
        """Job id, kind of cluster, time of submission."""
        return self.path / "job.json"

    @property
    def submission(self) -> Path:
        """The batch script as submitted."""
        return self.path / "submission.sh"

    @property
    def submitit(self) -> Path:
        """submitit's own files."""
        return self.path / "submitit"

    @property
    def outcome(self) -> Path:
        """How the allocation ended, written by rank 0 last of all."""
        return self.path / "outcome.json"

    @property
    def serving(self) -> Path:
        """How to reach a service that is kept up for hand tests; there while it is."""
        return self.path / "serving.json"

    @property
    def preflight(self) -> Path:
        """What the checks of the nodes found, before the first service."""
        return self.path / "preflight.json"

    @property
    def reserve(self) -> Path:
        """Space that is held for the last rows."""
        return self.path / "reserve"

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

    def stdout(self, rank: int) -> Path:
        """Output of one task."""
        return self.path / f"stdout-{rank}.log"

    @property
    def sweep(self) -> SweepDir:
        """The sweep that this allocation belongs to."""
        return SweepDir(self.path.parent.parent.parent)

    def new_keys(self) -> None:
        """Make the two secrets of this allocation."""
        for path in (self.key, self.api_key):
            write_text(path, secrets.token_hex(16), mode=0o600)


@dataclass(frozen=True)
class SweepDir:
    """`runs/<sweep>/`."""

    path: Path

    @property
    def root(self) -> Root:
        """The directory that holds this sweep and others."""
        return Root(self.path.parent)

    @property
    def plan(self) -> Path:
        """The plan as submitted."""
        return self.path / "plan.json"

    @property
    def log(self) -> Path:
        """What the launcher did, with tracebacks."""
        return self.path / "sweep.log"

    @property
    def provenance(self) -> Path:
        """Commit, versions and command line with which the sweep was started."""
        return self.path / "provenance.json"

    @property
    def report(self) -> Path:
        """The report for people: one page that needs no network."""
        return self.path / "report.html"

    def exported(self, target: str) -> Path:
        """Directory of results in the form of another tool."""
        return self.path / "export" / target

    def table(self, suffix: str) -> Path:
        """The sweep table: csv, parquet or md."""
        return self.path / f"table.{suffix}"

    def point(self, point: str) -> PointDir:
        """Directory of one point."""
        return PointDir(self.path / "points" / point)

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
        paths = sorted((self.path / "services" / service).glob("*"), key=lambda path: int(path.name))
        return [ServiceDir(path) for path in paths]

    def next_attempt(self, services: Iterable[str]) -> int:
        """Return a number that no attempt at any of these services has."""
        taken = [int(path.name) for name in services for path in (self.path / "services" / name).glob("*")]
        return max(taken, default=0) + 1

    def service_records(self, service: str) -> Iterator[Path]:
        """The records of a service in this sweep and in the sweeps beside it: what its load took before."""
        return self.path.parent.glob(f"*/services/{service}/*/service.json")

    def allocation(self, index: int, attempt: int) -> AllocationDir:
        """Directory of one attempt at an allocation."""
        return AllocationDir(self.path / "allocations" / str(index) / str(attempt))

    def allocations(self) -> Iterator[AllocationDir]:
        """The latest attempt of every allocation."""
        for folder in sorted((self.path / "allocations").glob("*"), key=lambda p: int(p.name)):
            attempts = [AllocationDir(path) for path in sorted(folder.glob("*"), key=lambda p: int(p.name))]
            written = [attempt for attempt in attempts if attempt.task.exists()]
            if written:
                yield written[-1]


def sweeps_in(root: Path) -> list[SweepDir]:
    """Return the sweeps in a directory, by name; none where it is not there or not ours to read."""
    with contextlib.suppress(OSError):
        folders = sorted(path for path in root.iterdir() if not path.is_symlink())
        return [sweep for sweep in map(SweepDir, folders) if sweep.plan.exists()]
    return []


def open_sweep(path: Path) -> SweepDir:
    """Return the sweep in this directory.

    Raises:
        RunError: there is none.
    """
    found = SweepDir(path.resolve())
    if not found.plan.exists():
        raise RunError("RUN", path, "there is no plan.json in it", "Give the directory of a sweep, runs/<sweep>.")
    return found


def check_root(root: Path) -> None:
    """Raise RunError where no sweep can be made in this directory, which may be still to be made itself."""
    there = nearest_there(root)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RunError(
            "results.root", root, f"it cannot be written: {there} is no directory that you can write", NO_ROOT
        )


def images_path(root: Path) -> Path:
    """Return the directory of imported container images beside the sweeps of a results.root."""
    return root / ".images"


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
            path.mkdir(parents=True, mode=0o700)
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
