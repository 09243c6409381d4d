"""Find the logs of a run directory, or of any other tool, and diagnose them."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count, takewhile
from pathlib import Path

from jobs.core.errors import RunError, UserError
from jobs.core.filetable import Place
from jobs.core.foreign import regular
from jobs.core.layout import local_sizes
from jobs.core.rundir import AllocationDir, RankDir, ServiceDir, SweepDir
from jobs.core.tasks import read_config, read_task
from jobs.diagnose.classify import classify
from jobs.diagnose.diagnosis import Diagnosis, RankLog
from jobs.diagnose.sift import sift
from jobs.diagnose.unpack import Unpacked

_SUFFIXES = frozenset((".log", ".out", ".err"))
_IF_NOTHING_ELSE = ".txt"
"""Suffix of logs where there are no others: beside them it is notes, requirements, our own diagnosis."""

_BUDGET_S = 120.0
"""After so many seconds of reading the answer is that of the lines read so far."""

_MOST = 400
"""Logs of one directory that are read; a directory with more of them is not one service's."""

_RANK_IN_NAME = (
    re.compile(r"rank[-_.]?(\d{1,3})(?!\d)", re.IGNORECASE),
    re.compile(r"^\d+_(\d{1,3})_log\.(?:out|err)$"),  # submitit
    re.compile(r"(?<!slurm)[-_.](\d{1,2})\.(?:log|out|err|txt)$"),
)
_NODE_IN_NAME = re.compile(r"node[-_.]?(\d{1,3})(?!\d)", re.IGNORECASE)
_SERVICE_STARTS = re.compile(r" service (\w+): start\b")

_OURS = re.compile(
    r"(?:rank \d{1,9} \(\w{1,20}\): )?(?:engine [^:]{1,80}: )?(?:error: )?(?:container|model)\.\w{1,40} = "
)
"""How an error of this tool begins that says itself why a rank could not start its engine."""


@dataclass(frozen=True)
class Source:
    """One log file. `service`: only the lines about this one count (an allocation's output is about several).

    `own`: it is an engine's own.
    """

    path: Path
    rank: int | None
    name: str
    service: str | None = None
    own: bool = False


@dataclass(frozen=True)
class Case:
    """Logs of one failure: those of one service, or whatever was named together.

    Attributes:
        local_sizes: data-parallel ranks of each node, in order; empty: not known.
    """

    name: str
    sources: tuple[Source, ...]
    local_sizes: tuple[int, ...] = ()


def diagnose(paths: Sequence[Path]) -> Diagnosis:
    """Return the first failure in the order of time.

    Args:
        paths: run directories of this tool, directories of one service, or any log files or directories with logs,
            also of other tools; their names may tell the rank (rank1, node1, -1.log, 7_1_log.out).

    Raises:
        RunError: a path does not exist, or there is no log.
    """
    all_found = [found for _, found in diagnose_each(paths)]
    failed = [found for found in all_found if found.found]
    return min(failed, key=_time) if failed else all_found[0]


def diagnose_each(paths: Sequence[Path]) -> tuple[tuple[str, Diagnosis], ...]:
    """Return (name, diagnosis) of every service of run directories, and one of all other paths together.

    Args, raises: see `diagnose`.
    """
    return tuple((name, classify(logs, sizes)) for name, logs, sizes in read_each(paths))


def read_each(paths: Sequence[Path]) -> Iterator[tuple[str, list[RankLog], tuple[int, ...]]]:
    """Yield name, logs and data-parallel ranks of each node of every failure. Args, raises: see `diagnose`."""
    found = cases(paths)
    if not found:
        raise RunError(
            "DIR_OR_LOG",
            ", ".join(map(str, paths)),
            f"there is no log in it (a file named *{', *'.join(sorted(_SUFFIXES))} or *{_IF_NOTHING_ELSE})",
            "Name the log itself: any name will do.",
        )
    for case in found:
        enough = _budget()
        yield case.name, [read(source, enough) for source in case.sources], case.local_sizes


def _budget() -> Callable[[], bool]:
    """Return what says whether the time for reading is over."""
    end = time.monotonic() + _BUDGET_S
    return lambda: time.monotonic() > end


def explain(service: ServiceDir, own: str, sizes: Sequence[int] = ()) -> tuple[Diagnosis, str]:
    """Return what the logs of a failed service say, and why it failed in one line; each log is read once.

    Args:
        service: the failed attempt.
        own: what rank 0 itself can say (`ServiceFailed.reason`); it is the answer where the logs say nothing.
        sizes: data-parallel ranks of each node, see `classify`.
    """
    enough = _budget()
    logs = [read(source, enough) for source in _service(service)]
    words = RankLog.of(0, "rank 0", own, datetime.now())
    found = classify([*logs, words], sizes, alone=False)
    reason = own
    if _OURS.match(own):  # it names key, value, reason and remedy; a word in it may look like something else
        pass
    elif found.signature:
        reason = found.summary()
    elif found.first and found.first.line not in own:
        reason = f"{own}; first error: {found.summary()}"
    return classify(logs, sizes), reason


def cases(paths: Sequence[Path]) -> tuple[Case, ...]:
    """Return what is to be diagnosed.

    Raises:
        RunError: a path does not exist.
    """
    found: list[Case] = []
    others: list[Path] = []
    for path in map(Place, paths):
        if not path.exists():
            raise RunError("DIR_OR_LOG", path, "there is no such file or directory", "Check the path.")
        sweep = tuple(_sweep(SweepDir(path))) if path.is_dir() else ()
        found += sweep
        if not sweep:
            others.append(path)
    sources = _any(others)
    return (*found, Case("logs", sources)) if sources else tuple(found)


def read(source: Source, enough: Callable[[], bool] = bool) -> RankLog:
    """Read what may matter of one log until it is `enough`; a log that cannot be read is empty, and says why."""
    try:
        with regular(source.path) as file:
            stream = Unpacked(file)
            lines = sift(stream, enough)
        end = datetime.fromtimestamp(source.path.stat().st_mtime)
    except OSError as error:
        return RankLog(source.rank, source.name, (), unread=error.strerror or str(error))
    if source.service is not None:
        lines = tuple(_about(lines, source.service))
    return RankLog(source.rank, source.name, lines, end, enough(), source.own, stream.unread)


def _time(diagnosis: Diagnosis) -> tuple[bool, datetime]:
    time = diagnosis.first.time if diagnosis.first else None
    return time is None, time or datetime.max


def _sweep(sweep: SweepDir) -> Iterator[Case]:
    for allocation in sweep.allocations():
        outputs = tuple(_outputs(sweep, allocation))
        started = False
        for name, attempt, points in _services(allocation):
            logs = tuple(_service(sweep.service(name, attempt), sweep.path))
            if logs:
                started = True
                whole = (*logs, *(Source(s.path, s.rank, s.name, name) for s in outputs))
                yield Case(f"service {name}", whole, _sizes(sweep, points))
        if outputs and not started:
            yield Case(f"allocation {allocation.path.parent.name}", outputs)


def _services(allocation: AllocationDir) -> list[tuple[str, int, list[str]]]:
    try:
        task = read_task(allocation)
    except UserError:
        return []
    return [(item.service, task.attempt, list(item.points)) for item in task.services]


def _sizes(sweep: SweepDir, points: Sequence[str]) -> tuple[int, ...]:
    """Return the data-parallel ranks of each node; nothing where the config cannot be read any more."""
    with contextlib.suppress(OSError, UserError):
        return local_sizes(read_config(sweep, points[0])) if points else ()
    return ()


def _outputs(sweep: SweepDir, allocation: AllocationDir) -> Iterator[Source]:
    for rank in takewhile(lambda rank: allocation.stdout(rank).is_file(), count()):
        path = allocation.stdout(rank)
        yield Source(path, rank, str(path.relative_to(sweep.path)))


def _service(service: ServiceDir, root: Path | None = None) -> Iterator[Source]:
    def there(rank: RankDir) -> bool:
        return rank.path.is_dir()

    for number, rank in enumerate(takewhile(there, map(service.rank, count()))):
        if rank.log.exists():
            yield Source(rank.log, number, str(rank.log.relative_to(root or service.path)), own=True)


def _about(lines: Iterable[tuple[int, str]], service: str) -> Iterator[tuple[int, str]]:
    """Yield the lines from this service's start to the next one's, and those before the first."""
    current: str | None = None
    for number, text in lines:
        if starts := _SERVICE_STARTS.search(text):
            current = starts.group(1)
        if current in (None, service):
            yield number, text


def _any(paths: Sequence[Path]) -> tuple[Source, ...]:
    """Return the logs of any tool, each once; names are relative to what was asked for."""
    files: dict[Path, tuple[Path, str]] = {}
    for path in paths:
        inside = _inside(path) if path.is_dir() else [path]
        for file in inside[:_MOST]:
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            files.setdefault(file.resolve(), (file, name))
    nodes = {int(found.group(1)) for file, _ in files.values() if (found := _NODE_IN_NAME.search(file.name))}
    told = any(pattern.search(file.name) for file, _ in files.values() for pattern in _RANK_IN_NAME)
    first = None if told or not nodes else min(nodes)
    engine = RankDir(Path()).log.name
    return tuple(Source(file, _rank(file, first), name, own=file.name == engine) for file, name in files.values())


def _inside(folder: Path) -> list[Path]:
    """Return the logs in a directory, in order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    own = ServiceDir(folder).diagnosis.name
    texts = [path for path in files if path.suffix == _IF_NOTHING_ELSE and path.name != own]
    return [path for path in files if path.suffix in _SUFFIXES] or texts


def _rank(file: Path, first_node: int | None) -> int | None:
    """Return the rank that a log's name, or else its directory's, tells.

    Nodes count from `first_node`; None: they tell none, as other logs tell ranks, and a node's number is only a name.
    """
    for part in (file.name, file.parent.name):
        for pattern in _RANK_IN_NAME:
            if found := pattern.search(part):
                return int(found.group(1))
        if first_node is not None and (found := _NODE_IN_NAME.search(part)):
            return int(found.group(1)) - min(first_node, int(found.group(1)))
    return None
