"""A table in the forms that people and programs ask for."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING

from jobs.results.table import markdown, text

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "json", "md", "html", "parquet")


def render(table: pd.DataFrame, form: str) -> bytes:
    """Return a table as the content of a file.

    Args:
        table: any table of rows.
        form: one of FORMATS. json: a list with one object a row; html: a plain page with the table alone.

    Raises:
        ValueError: another form.
    """
    if form == "csv":
        return table.to_csv(index=False).encode()
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
