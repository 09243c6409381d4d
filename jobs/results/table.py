"""The sweep table, made from the plan and the row files, and any table in the forms that people and programs want.

pandas is imported where a table is made: half the time in which a command starts would be its.
"""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jobs.core import hidden
from jobs.core.errors import RunError
from jobs.core.files import write_bytes
from jobs.core.planfile import PlannedPoint, PlannedService, read_plan
from jobs.core.rundir import SweepDir
from jobs.results.row import blank, check_version, columns, read_row

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "json", "md", "html", "parquet")

PENDING = "not run yet"
"""Reason of a point that has no row file."""

Rows = Mapping[str, Mapping[str, Any]]
"""Rows by point."""


def read_table(sweep: SweepDir, lost: Rows = MappingProxyType({})) -> pd.DataFrame:
    """Return the table of a sweep: one row a point, in the order of the plan; nothing is dropped.

    `lost` stands for points that have no row file (jobs/sweep/lost.py).

    Raises:
        RunError: rows are of an older version of the tool.
    """
    import pandas as pd

    plan = read_plan(sweep)
    services = {service.service: service for service in plan.services}
    rows = [row_of_plan(sweep, point, services.get(point.service), lost)[0] for point in plan.points]
    return pd.DataFrame({name: column([row.get(name) for row in rows]) for name in columns(plan.swept)})


def column(values: list[Any]) -> pd.Series[Any]:
    """Return one column: whole numbers stay whole beside unknown ones, and different kinds become text."""
    import pandas as pd

    kinds = set(map(type, values)) - {type(None)}
    if kinds == {int}:
        return pd.Series(values, dtype="Int64" if None in values else "int64")
    if len(kinds) > 1 and kinds != {int, float}:
        texts = [json.dumps(value) if isinstance(value, bool) else str(value) for value in values]
        return pd.Series([None if value is None else words for value, words in zip(values, texts, strict=True)])
    return pd.Series(values, dtype=None if kinds else object)


def row_of_plan(
    sweep: SweepDir, point: PlannedPoint, service: PlannedService | None, lost: Rows = MappingProxyType({})
) -> tuple[dict[str, Any], RunError | None]:
    """Return a point's row with its swept values, and why its file cannot be read; None: it can, or there is none yet.

    One that is not run yet is made from the plan alone: rank 0 writes the table after every point, and a sweep may have
    a thousand configs. One of a newer version may lack columns.
    """
    found, values = written(sweep, point), swept(point)
    row = blank(point.point, point.service, service.engine if service else None, service.release if service else None)
    if isinstance(found, dict):
        return row | found | values, None
    if found is None and point.point in lost:
        return dict(lost[point.point]) | values, None
    return row | {"invalid_reason": PENDING if found is None else unreadable(found)} | values, found


def written(sweep: SweepDir, point: PlannedPoint) -> dict[str, Any] | RunError | None:
    """Return a point's row under the names of its plan, or why it cannot be read; None: there is none yet.

    Raises:
        RunError: it is of an older version of the tool.
    """
    path = sweep.point(point.point).row
    try:
        row = read_row(path)
    except RunError as error:
        return error if path.exists() else None
    check_version(row, sweep)
    row |= {"point": point.point, "service": point.service}
    return row


def unreadable(error: RunError) -> str:
    """Return the reason of a point whose row cannot be read."""
    return f"its row cannot be read: {error.reason}"


def swept(point: PlannedPoint) -> dict[str, Any]:
    """Return the cells of a point's swept values."""
    return {key: cell(value) for key, value in point.values.items()}


def cell(value: Any) -> Any:
    """Return a swept value as one cell: lists and mappings as JSON text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def write_table(sweep: SweepDir, lost: Rows = MappingProxyType({})) -> pd.DataFrame:
    """Write table.csv, table.parquet and table.md, where this user may write there, and return the table."""
    table = read_table(sweep, lost)
    for form in ("csv", "parquet", "md") if sweep.writable else ():
        write_bytes(sweep.table(form), render(table, form))
    return table


def markdown(table: pd.DataFrame) -> str:
    """Return the whole table as aligned markdown."""
    rows = [list(table.columns), *([text(value) for value in row] for row in table.itertuples(index=False))]
    cells = [[_ACTIVE.sub(r"\\\g<0>", text(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines) + "\n"


_ACTIVE = re.compile(r"[\\<`]|\[(?![\d ])|\](?=\s*[(\[:])")
"""What would begin HTML, code, a link or an image in markdown, end the text of one, or undo the stroke before these."""


def _plain_cell(value: Any) -> Any:
    """Return a cell of a CSV file: a text that a spreadsheet would take for a formula begins with a quote (OWASP)."""
    return _FORMULA.sub(r"\1'\2", hidden.visible(value)) if isinstance(value, str) else value


_FORMULA = re.compile(r"(^|[;\t\n])(\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""Where a spreadsheet would begin a formula: in a cell, a line, and what ends a cell for one of another country."""


def text(value: Any) -> str:
    """Return one cell for people: empty for unknown, at most five significant digits."""
    import pandas as pd

    if value is None or pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return hidden.visible(str(value)).replace("|", "/").replace("\n", " ")


def render(table: pd.DataFrame, form: str) -> bytes:
    """Return a table as the content of a file; json: a list with one object a row, html: a plain page.

    Raises:
        ValueError: `form` is none of FORMATS.
    """
    if form == "csv":
        return table.map(_plain_cell).rename(columns=_plain_cell).to_csv(index=False).encode()
    if form == "json":
        return (table.to_json(orient="records", force_ascii=False) + "\n").encode()
    if form == "md":
        return markdown(table).encode()
    if form == "html":
        return _page(table).encode()
    if form == "parquet":
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        return buffer.getvalue()
    raise ValueError(f"{form} is none of {', '.join(FORMATS)}")


def _page(table: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table.columns)
    body = "\n".join(
        f"<tr{'' if row.get('valid', True) else ' class=invalid'}>"
        + "".join(f"<td>{html.escape(text(row[name]))}</td>" for name in table.columns)
        + "</tr>"
        for row in table.to_dict(orient="records")
    )
    style = (
        ":root{color-scheme:light dark}body{font:14px sans-serif}table{border-collapse:collapse}"
        "td,th{padding:2px 8px;border-bottom:1px solid #8886;text-align:left;white-space:nowrap}.invalid{opacity:.55}"
    )
    return (
        f'<!doctype html>\n<meta charset="utf-8"><title>table</title><style>{style}</style>\n'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>\n"
    )
