"""Rows that other sweeps have for the points of this one: found, judged, taken over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.allocation.node import fingerprint
from jobs.core import ways
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import write_bytes, write_json
from jobs.core.foreign import LARGE, load_bytes
from jobs.core.planfile import read_plan
from jobs.core.rundir import SweepDir, sweeps_in
from jobs.core.sweep_settings import Launch
from jobs.measure import dataset
from jobs.results.fingerprint import Fingerprint, of_mapping
from jobs.results.row import outdated, read_row
from jobs.results.stale import _kind
from jobs.sweep.points import Point


@dataclass(frozen=True)
class Past:
    """A valid row of another sweep for one of our points. `stale` says what has changed since."""

    point: str
    sweep: SweepDir
    row: Mapping[str, Any]
    stale: tuple[str, ...]


def roots_of(root: str, roots: Sequence[str]) -> tuple[Path, ...]:
    """Return where rows are looked for: `results.root`, then `results.roots`, each once."""
    return tuple(dict.fromkeys(Path(one).absolute() for one in (root, *roots)))


def find(points: Iterable[Point], roots: Iterable[Path]) -> dict[str, Past]:
    """Return for each point its newest valid row in other sweeps; one that is not stale goes before one that is.

    What has changed since is judged by what this host sees, where that counts (`Fingerprint.trusted`), and by the
    newest row of the same engine and model: what it says of a driver is what the nodes have.
    """
    wanted = {point.point: point for point in points}
    rows = [one for root in roots for sweep in sweeps_in(root) for one in _rows(sweep, wanted)]
    rows.sort(key=lambda one: one.written)
    newest: dict[tuple[str, ...], Fingerprint] = {}
    for one in rows:
        kind = _kind(wanted[one.point].config)
        newest[kind] = of_mapping(one.row).or_else(newest.get(kind, Fingerprint()))
    found: dict[str, Past] = {}
    for one in rows:
        config = wanted[one.point].config
        now = fingerprint.of_this_host(config).trusted(one.seen, one.row).or_else(newest[_kind(config)])
        changes = (
            [reason] if (reason := outdated(one.row, one.sweep)) else now.changes(one.row) + of_dataset(config, one.row)
        )
        past = Past(one.point, one.sweep, one.row, tuple(changes))
        if one.point not in found or not past.stale or found[one.point].stale:
            found[one.point] = past
    return found


def of_dataset(config: Config, row: Mapping[str, Any]) -> list[str]:
    """Return whether the content of the data set is another one than at the time of a row, for people."""
    now, then = dataset.digest(config.bench), row.get("dataset_digest")
    return [f"dataset_digest {then} -> {now}"] if now and then and now != then else []


def taken(earlier: Mapping[str, Past], launch: Launch) -> list[Past]:
    """Return the rows of other sweeps that are taken over."""
    return [one for one in earlier.values() if launch.reuse and not one.stale]


@dataclass(frozen=True)
class _Row:
    point: str
    sweep: SweepDir
    row: Mapping[str, Any]
    written: float
    seen: Fingerprint


def _rows(sweep: SweepDir, wanted: Collection[str]) -> Iterator[_Row]:
    names = sweep.point_names() & set(wanted)
    seen = launch_view(sweep) if names else {}
    for name in names:
        with suppress(RunError, OSError):  # half written, or not ours to read
            row = read_row(sweep.point(name).row)
            written = sweep.point(name).row.stat().st_mtime
            if row["valid"] and not row["truncated"]:
                yield _Row(name, sweep, row, written, seen.get(str(row.get("service")), Fingerprint()))


def launch_view(sweep: SweepDir) -> dict[str, Fingerprint]:
    """Return by service what the launching host saw when this sweep was started."""
    with suppress(RunError):
        return {item.service: of_mapping(item.seen) for item in read_plan(sweep).services}
    return {}


def take(sweep: SweepDir, found: Iterable[Past]) -> None:
    """Copy rows, their windows and requests into a sweep; the column `reused_from` says where they were measured."""
    for past in found:
        source, target = past.sweep.point(past.point), sweep.point(past.point)
        origin = None  # of another user's row only where it lay is certain, and of one that is gone by now
        with suppress(OSError):
            origin = past.row.get("reused_from") if ways.is_ours(source.row.lstat()) else None
        write_json(target.row, dict(past.row) | {"reused_from": origin or str(past.sweep.path)})
        for name in ("requests", "windows"):
            with suppress(OSError, RunError):  # without them the row is still the row
                write_bytes(getattr(target, name), load_bytes(getattr(source, name), LARGE))


def offer_text(found: Mapping[str, Past], *, taken: bool) -> list[str]:
    """Return what is said of earlier rows before anything is submitted."""
    fresh = [past for past in found.values() if not past.stale]
    lines = []
    if fresh:
        places = ", ".join(dict.fromkeys(str(past.sweep.path) for past in fresh))
        count = f"{len(fresh)} point{'' if len(fresh) == 1 else 's'}"
        offer = f"{count} measured before in {places}: launch.reuse=true takes them"
        lines.append(f"{count} reused from {places}" if taken else offer)
    stale: dict[tuple[Path, str], list[str]] = {}
    for past in found.values():
        if past.stale:
            stale.setdefault((past.sweep.path, ", ".join(past.stale)), []).append(past.point)
    return lines + [
        f"stale, not reused: point{'s' if len(points) > 1 else ''} {', '.join(points)} of {path}: {reason}"
        for (path, reason), points in stale.items()
    ]
