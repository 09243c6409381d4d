"""What people see: the plan, the exact commands, the table. Text for a terminal; colour only on one."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from jobs.cluster.time_limit import limit_seconds
from jobs.core import chinese, hidden, masking
from jobs.core.planfile import PlanFile, read_plan
from jobs.core.rundir import SweepDir
from jobs.results.columns import STARRED, by_preset, counts, is_work, low_is_best, preset_of, row_name
from jobs.results.table import read_table, text
from jobs.sweep.check import Shared, alike_as_one
from jobs.sweep.plan import Allocation, Plan
from jobs.sweep.points import Point
from jobs.sweep.record import as_json
from jobs.sweep.services_text import folded, point_text, services_lines, which

if TYPE_CHECKING:
    import pandas as pd

SHOWN = (
    *("engine", "valid", "completed", "failed", "ttft_ms_p50", "ttft_ms_p99", "tpot_ms_p50", "e2el_ms_p50"),
    *("output_tok_per_s", "tok_per_s_per_user", "goodput_per_s", "found_concurrency", "found_request_rate"),
    *("needle_score", "price_per_m_output_tok", "engine_tokens", "kv_cache_tokens", "load_s"),
)
"""Columns of the terminal table; the files hold all."""

DROPPED = (
    *("load_s", "kv_cache_tokens", "engine_tokens", "ttft_ms_p99", "e2el_ms_p50", "completed", "tok_per_s_per_user"),
    *("failed", "price_per_m_output_tok", "tpot_ms_p50", "ttft_ms_p50"),
)
"""Columns that go first where the terminal is too narrow. The swept keys, the engine, validity and rate always stay."""

NOTED = "True*"
"""Stands under `valid` for a valid row with a note, and before the note below the table."""


class Terminal(Console):
    """rich would exit with code 1, as for a failed run, where nobody reads any more (jobs/cli/output.py)."""

    def on_broken_pipe(self) -> None:
        """Let the caller end it."""
        raise  # rich calls this while it handles the error

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, for people in the language of their locale; texts without secrets and with their control
        characters visible."""
        super().print(*(_safe(_localized(one)) for one in objects), **options)

    def exact(self, text: str) -> None:
        """Print what is to be typed, or is in this language already."""
        super().print(_safe(text), markup=False)


def _safe(shown: Any) -> Any:
    if isinstance(shown, str):
        return hidden.visible(masking.text(shown))
    if isinstance(shown, Text):
        shown.plain = hidden.visible(masking.text(shown.plain))
    return shown


def _localized(shown: Any) -> Any:
    """Return what is printed in the language of the reader's locale; of a table its headers and words."""
    if isinstance(shown, str):
        return chinese.printed(shown)
    if not chinese.is_asked():
        return shown
    if isinstance(shown, Text):
        edges = sorted({place for span in shown.spans for place in (span.start, span.end)})
        parts = shown.divide(edges)
        for part in parts:
            part.plain = chinese.printed(part.plain)
        return Text.assemble(*parts)
    if isinstance(shown, Table):
        for column in (one for one in shown.columns if isinstance(one.header, str)):  # not those of the sweep table
            column.header, column._cells = _localized(column.header), list(map(_localized, column._cells))
        shown.caption = _localized(shown.caption)
    return shown


def console(*, stderr: bool = False) -> Terminal:
    """Return the console; without a terminal lines are never cut or wrapped."""
    # An engine's words may hold [brackets] and :colons:, which are neither markup nor emoji.
    found = Terminal(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not found.is_terminal:
        found.width = 2000
    return found


def plan_text(plan: Plan) -> str:
    """Return the plan in a few lines: points, services, allocations, predicted node-hours."""
    hours = sum(allocation.node_hours for allocation in plan.allocations)
    run = len(plan.points) - len(plan.refused)
    lines = [
        f"{count(run, 'point')} in {count(len(plan.services), 'service')}"
        f" (engine starts) in {count(len(plan.allocations), 'allocation')}, about {hours:.2f} node-hours"
    ]
    for index, allocation in enumerate(plan.allocations):
        lines.append(
            f"  allocation {index}: {count(len(allocation.services), 'service')}"
            f" on {count(allocation.nodes, 'node')}, about {_duration(allocation.seconds)}"
            + _too_long(plan, allocation)
        )
        lines += services_lines(plan, allocation)
    if plan.services:
        lines.append(f"predicted (queue apart): {phases_text(plan)}")
    lines += [
        f"not run: point {point.point}  {point_text(plan, point)}  {plan.refused[point.point]}"
        for point in plan.points
        if point.point in plan.refused
    ]
    lines += [
        f"beyond the budget: point {one.point.point}  {_values(one.point)}  ({one.reason})" for one in plan.dropped
    ]
    lines += [f"warning: {text}" for text in plan.warnings]
    return "\n".join(lines)


def print_plan(plan: Plan, out: Terminal) -> None:
    """Print the plan, and what is risky with it."""
    text = chinese.printed(plan_text(plan))
    out.exact(folded(text, out.width) if out.is_terminal else text)
    if warnings := warnings_text(plan):
        out.exact(warnings)


def warnings_text(plan: Plan) -> str:
    """Return one line for every warning; errors are not for here: they stop the sweep."""
    lines = []
    for one in alike_as_one(plan.findings):
        if one.finding.severity == "warning" and one.finding.rule != "R20":  # the plan itself speaks of queueing
            finding, some = one.finding, of_points(one, [point.overrides for point in plan.points])
            words = chinese.error(finding.key, f"{finding.value}{some}", finding.reason, finding.remedy)
            lines.append(f"  {finding.rule} {words}")
    head = chinese.printed(f"{count(len(lines), 'warning')} (python -m jobs check):")
    return "\n".join([head, *lines]) if lines else ""


def of_points(one: Shared, overrides: Sequence[Sequence[str]]) -> str:
    """Return how many points a finding is of and what sets them apart; empty: all, or the only one."""
    name = which(one.points, overrides)
    return f" ({chinese.printed(f'{len(one.points)} of {len(overrides)} points: {name}')})" if name else ""


def phases_text(plan: Plan) -> str:
    """Return the predicted time of the whole plan by phase, and what the load times stand on."""
    spent = [service.phases for service in plan.services if service.phases]
    words = {
        "load": "load {}",
        "warmup": "warm-up {}",
        "window": "windows {}",
        "drain": "drain {}",
        "teardown": "teardown {}",
    }
    parts = [text.format(_duration(sum(getattr(one, name) for one in spent))) for name, text in words.items()]
    sources = ", ".join(dict.fromkeys(one.source for one in spent))
    return f"{', '.join(parts)}; load from {sources}"


def _values(point: Point) -> str:
    return " ".join(f"{key}={value}" for key, value in point.values.items())


def commands_text(plan: Plan) -> str:
    """Return for every rank of every service its environment and command line, as one would type them."""
    lines: list[str] = []
    for service in as_json(plan)["services"]:
        for rank in service["ranks"]:
            lines.append(f"# service {service['service']}, rank {rank['rank']} ({rank['role']})")
            lines += [" ".join(_quote(word) for word in argv) for argv in rank.get("container", [])]
            lines += [f"source {shlex.quote(name)}" for name in rank["source"]]
            lines += [f"export {name}={_quote(value)}" for name, value in rank["env"].items()]
            lines += [" ".join(_quote(word) for word in rank["argv"]), ""]
    return "\n".join(lines)


def _quote(word: str) -> str:
    """Quote for a shell, but leave placeholders such as {address} readable."""
    return word if word.startswith("{") and word.endswith("}") and word[1:-1].isidentifier() else shlex.quote(word)


def print_table(sweep: SweepDir, out: Console, table: pd.DataFrame | None = None) -> None:
    """Print the sweep table, the reason of every invalid row, and where the files are."""
    frame = read_table(sweep) if table is None else table
    frame, swept = _for_people(frame, read_plan(sweep))
    out.print(table_view(frame, swept, out.width if out.is_terminal else None))
    if reasons := reasons_text(frame, swept):
        out.print(reasons, markup=False)
    out.print(f"table: {sweep.table('csv')}", markup=False)


def _for_people(frame: pd.DataFrame, plan: PlanFile) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return a sweep's table and its swept columns: what a preset set is one column with the preset's name."""
    told = [plan.presets.get(point, {}) for point in frame["point"]]
    names = by_preset(plan.swept, told, frame.columns)
    of_groups = {name: [preset_of(one, key) for one in told] for key, name in names.items() if name != key}
    return frame.assign(**of_groups), tuple(dict.fromkeys(names.values()))


def table_view(frame: pd.DataFrame, swept: tuple[str, ...], width: int | None = None) -> Table:
    """Return the terminal table: the best value of each column marked, invalid rows dimmed.

    On a terminal of so many characters columns of DROPPED go, one after the other, until the rest fits; where not even
    that fits, each row is a block of lines. None: all of SHOWN that hold anything. `swept` are full dotted names.
    """
    shown = [name for name in (*swept, *SHOWN) if name in (*swept, "valid") or frame[name].notna().any()]
    dropped = [name for name in DROPPED if name in shown]
    gone = 0
    while True:
        view = _table(frame, swept, [name for name in shown if name not in dropped[:gone]])
        if width is None or gone == len(dropped) or _width(view) <= width:
            break
        gone += 1
    if width is not None and _width(view) > width:
        return _blocks(frame, swept, shown)
    if gone:
        view.caption = Text(f"{count(gone, 'column')} more in the file: {', '.join(dropped[:gone])}")
    return view


def _blocks(frame: pd.DataFrame, swept: tuple[str, ...], shown: list[str]) -> Table:
    """Return each row as lines of name and value, for a terminal that is too narrow for columns."""
    view = Table.grid(padding=(0, 1, 0, 0))
    view.add_column(overflow="fold")
    view.add_column(overflow="fold")
    for place, row in enumerate(_cells(frame, swept, shown)):
        if place:
            view.add_row("", "")
        style = None if bool(frame["valid"].iloc[place]) else "dim"
        for name, cell in zip(shown, row, strict=True):
            if cell.plain:
                view.add_row(Text(name.rpartition(".")[2] if name in swept else name), cell, style=style)
    return view


def _table(frame: pd.DataFrame, swept: tuple[str, ...], shown: list[str]) -> Table:
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", padding=(0, 1, 0, 0))
    for name in shown:
        numeric = name not in swept and name not in ("engine", "valid", "engine_tokens")
        view.add_column(_header(name), justify="right" if numeric else "left", no_wrap=True, vertical="bottom")
    for valid, cells in zip(frame["valid"], _cells(frame, swept, shown), strict=True):
        view.add_row(*cells, style=None if valid else "dim")
    return view


def _cells(frame: pd.DataFrame, swept: tuple[str, ...], shown: list[str]) -> list[list[Text]]:
    best = {name: _best(frame, swept, name) for name in STARRED if name in shown}
    noted = list(_noted(frame) & frame["valid"].astype(bool))
    return [
        [
            Text(NOTED) if name == "valid" and noted[number] else _cell(row[name], name in best and best[name][number])
            for name in shown
        ]
        for number, (_, row) in enumerate(frame.iterrows())
    ]


def _width(view: Table) -> int:
    wide = Console(width=100_000, file=io.StringIO())
    return Measurement.get(wide, wide.options, view).maximum


def reasons_text(frame: pd.DataFrame, swept: tuple[str, ...]) -> str:
    """Return every invalid row with its reason and every valid one with its notes, several below each other.

    Each is named by its point and its values of `swept`.
    """
    bad = frame[~frame["valid"].astype(bool)]
    noted = frame[frame["valid"].astype(bool) & _noted(frame)]
    lines = [f"invalid {row_name(row, swept)}: {row['invalid_reason']}" for row in bad.to_dict("records")]
    for row in noted.to_dict("records"):
        notes = str(row["notes"]).split("; ")
        between = "\n    " if len(notes) > 1 else " "
        lines.append(between.join([f"{NOTED} {row_name(row, swept)}:", *notes]))
    return "\n".join(lines)


def _noted(frame: pd.DataFrame) -> pd.Series[Any]:
    return frame["notes"].notna() & (frame["notes"].astype(str) != "") if "notes" in frame else frame["valid"].isna()


def _best(frame: pd.DataFrame, swept: tuple[str, ...], name: str) -> list[bool]:
    """Return for each row whether its value is the best of the valid rows that did the same work; one alone is not."""
    import pandas as pd

    valid = frame["valid"].astype(bool) & ~frame["saturated"].eq(True)  # a queue that grows wins nothing
    values = pd.to_numeric(frame[name], errors="coerce").where(valid)
    values = values.where(pd.Series([counts(name, value) for value in values], index=values.index))
    # Rows of another work do not compare, and simulated rows never with measured ones.
    kinds = frame[[key for key in (*swept, "engine") if key == "engine" or is_work(key)]].map(str).agg(" ".join, axis=1)
    groups = values.groupby(kinds)
    extreme = groups.transform("min" if low_is_best(name) else "max")
    return list((values == extreme) & (groups.transform("count") > 1))


def _cell(value: Any, is_best: bool) -> Text:
    return Text(f"{text(value)}*", style="bold green") if is_best else Text(text(value))


def _header(name: str) -> Text:
    """A header of two lines: parallel. / max_model_len, ttft ms / p50, output / tok_per_s."""
    for tag, instead in (
        (".", ".\n"),
        ("_ms_", " ms\n"),
        ("_per_m_", "\n1M "),
        ("_per_user", "\nper_user"),
        ("_tok_per_s", "\ntok_per_s"),
        ("_per_s", "\nper_s"),
        ("output_", "output\n"),
        ("_tok", "\ntok"),
    ):
        if tag in name:
            return Text(name.replace(tag, instead, 1))
    return Text(name)


def _too_long(plan: Plan, allocation: Allocation) -> str:
    limit = limit_seconds(plan.points[0].config.cluster.time_limit) if plan.points else None
    return " (more than cluster.time_limit)" if limit and allocation.seconds > limit else ""


def begun_text(kind: str, sweep: SweepDir, name: str | None) -> str:
    """Return where a sweep is that was begun; `name`: what it was to be named, which another may be already."""
    taken = f" (there is a {name} already)" if name and sweep.path.name != name else ""
    return f"{kind} {sweep.path}{taken}"


def count(number: int, noun: str) -> str:
    """Return `1 point`, `2 points`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
