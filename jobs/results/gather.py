"""Read sweeps from their files: this user's or others', whole or half-written. Nothing that is there is dropped."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.core import hidden, schema
from jobs.core.errors import RunError
from jobs.core.fields import dotted
from jobs.core.foreign import load_yaml, refused
from jobs.core.planfile import PlanFile, in_words, read_plan
from jobs.core.rundir import SweepDir
from jobs.results.row import columns
from jobs.results.table import cell, column, row_of_plan

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Skipped:
    """Something that could not be read: its path and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Run:
    """One sweep as its files tell it.

    Args:
        sweep: its directory.
        swept: full dotted names of its swept keys.
        plan: plan.json.
        rows: one for each point, in the order of the plan; swept values are cells of their own.
        config: the resolved config of one point as plain data, of any version of the schema. What is not swept
            is the same for all points.
        skipped: files that could not be read.
    """

    sweep: SweepDir
    swept: tuple[str, ...]
    plan: PlanFile
    rows: tuple[dict[str, Any], ...]
    config: Mapping[str, Any]
    skipped: tuple[Skipped, ...] = ()

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.sweep.path.name

    @cached_property
    def by_service(self) -> Mapping[Any, list[dict[str, Any]]]:
        """The rows of each service."""
        found: dict[Any, list[dict[str, Any]]] = {}
        for row in self.rows:
            found.setdefault(row.get("service"), []).append(row)
        return found

    def words(self, keys: Iterable[str], row: Mapping[str, Any]) -> str:
        """Return keys of a row with their values in one line; what a preset set is told by its name."""
        return in_words(keys, row, self.plan.presets.get(row["point"], {}))

    def name_of(self, row: Mapping[str, Any]) -> str:
        """Return a row's point with what was swept."""
        return f"{row['point']} ({self.words(self.swept, row)})" if self.swept else str(row["point"])

    def value(self, row: Mapping[str, Any], key: str) -> Any:
        """Return a config value of a row's point by its dotted key; None where the config has none."""
        return row[key] if key in self.swept else dotted(self.config, key)


def read_config_plain(path: Path) -> dict[str, Any]:
    """Return a config.yaml as plain data, whatever version of the schema wrote it.

    Raises:
        RunError: it cannot be read, or is no mapping.
    """
    found = load_yaml(path, visible=True)
    if not isinstance(found, dict):
        raise refused(path, "it is no mapping")
    return found


def read_run(path: Path) -> Run:
    """Read one sweep; what is half-written in it becomes an invalid row with the reason.

    Raises:
        RunError: it has no plan that can be read, so that nothing is known of it; its rows are of an older version.
    """
    sweep = SweepDir(path.resolve())
    plan = read_plan(sweep)
    skipped: list[Skipped] = []
    config = _any_config(sweep, plan, skipped)
    services = {one.service: one for one in plan.services}
    rows = []
    for point in plan.points:
        row, error = row_of_plan(sweep, point, services.get(point.service))
        rows.append(row)
        skipped += [Skipped(error.key, error.reason)] if error else []
    return Run(sweep, plan.swept, plan, tuple(rows), config, tuple(skipped))


def _any_config(sweep: SweepDir, plan: PlanFile, skipped: list[Skipped]) -> dict[str, Any]:
    for point in plan.points:
        try:
            return read_config_plain(sweep.point(point.point).config)
        except RunError as error:
            skipped.append(Skipped(error.key, error.reason))
    return {}


def read_runs(paths: Sequence[Path]) -> tuple[tuple[Run, ...], tuple[Skipped, ...]]:
    """Read several sweeps. Returns those that could be read, and everything that was skipped with its reason."""
    runs: list[Run] = []
    skipped: list[Skipped] = []
    with _plain_data():
        for path in dict.fromkeys(path.resolve() for path in paths):
            try:
                run = read_run(path)
            except RunError as error:
                skipped.append(Skipped(str(path), error.reason))
            else:
                runs.append(run)
                skipped += run.skipped
    return tuple(runs), tuple(skipped)


@contextmanager
def _plain_data() -> Iterator[None]:
    """Look for no cycles meanwhile: rows have none, and looking takes a twentieth of the time of ten thousand."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def collect(runs: Sequence[Run]) -> pd.DataFrame:
    """Merge sweeps into one table.

    Returns:
        one row for each point of each sweep. In front stand `run` (the sweep's name; its whole path where two have
        the same one) and `owner` (the user). A key that is swept in one sweep, or differs between
        them, has its fixed value in the others. Columns that this version does not know are kept, at the end.
    """
    import pandas as pd

    names = [hidden.visible(run.name) for run in runs]
    shown = [
        name if names.count(name) == 1 else hidden.visible(str(run.sweep.path))
        for name, run in zip(names, runs, strict=True)
    ]
    swept = tuple(dict.fromkeys([*(key for run in runs for key in run.swept), *unlike(runs)]))
    keys = dict.fromkeys(tuple(row) for run in runs for row in run.rows)  # most rows have the same
    order = dict.fromkeys(chain(["run", "owner", *columns(swept)], *keys))
    rows: list[tuple[Any, ...]] = []
    for name, run in zip(shown, runs, strict=True):
        fixed = {key: cell(dotted(run.config, key)) for key in swept if key not in run.swept}
        first = order | {"run": name, "owner": _owner(run.sweep.path)} | fixed
        rows += [tuple((first | row).values()) for row in run.rows]
    cells = zip(*rows, strict=True) if rows else ([] for _ in order)
    return pd.DataFrame({name: column(list(values)) for name, values in zip(order, cells, strict=True)})


_AGAIN = ("bench.repeats", "parallel.seed")
"""Keys that say how often the same is measured."""


def unlike(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the keys that no sweep swept and that differ between them and change what is asked."""
    swept = {key for run in runs for key in run.swept}
    configs = [flat(run.config) for run in runs if run.config]
    names = dict.fromkeys(chain.from_iterable(configs))
    asked = (name for name in names if name not in swept and changes_question(name) and not name.startswith(_AGAIN))
    return tuple(name for name in asked if len({str(one.get(name)) for one in configs}) > 1)


def changes_question(key: str) -> bool:
    """Return whether a key changes what is asked: those of scope `sweep` do not."""
    return schema.schema().get(schema.leaf_of(key) or key) != "sweep"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config by its dotted keys."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (OSError, KeyError):  # a user that this host does not know
        return "?"
