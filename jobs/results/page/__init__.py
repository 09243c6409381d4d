"""The page of a report: one HTML file with its style, its program, its words and its data. It asks no network."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.core import chinese

FOLDER = Path(__file__).parent
SCRIPTS = ("plotly-basic.min.js", "words.js", "table.js", "plots.js", "search.js", "main.js")

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
"""Content-Security-Policy: the page asks no network, and runs its own programs alone (by their hashes)."""


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@functools.cache
def words() -> Mapping[str, Mapping[str, str]]:
    """Return every text of the page by its id and language (en, zh)."""
    found: dict[str, dict[str, str]] = json.loads((FOLDER / "words.json").read_text(encoding="utf-8"))
    return found


def worded(sentence: Mapping[str, Any], language: str | None = None) -> str:
    """Return a sentence (id and values) in words, as the page says it: numbers with three significant digits.

    `language`: en or zh; None: that of the reader's locale.
    """
    language = language or ("zh" if chinese.is_asked() else "en")
    text = words()[f"verdict.{sentence['id']}"][language]
    for name, value in sentence["values"].items():
        said = chinese.ALL.translated(value) if language == "zh" and isinstance(value, str) else _number(value)
        text = text.replace("{" + name + "}", said)
    return text


def _number(value: Any) -> str:
    if value is None:
        return "?"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def render(data: Mapping[str, Any]) -> str:
    """Return the page for the data of a report."""
    template = (FOLDER / "page.html").read_text(encoding="utf-8")
    scripts = [f"\n{(FOLDER / name).read_text(encoding='utf-8')}\n" for name in SCRIPTS]
    parts = {
        "TITLE": html.escape(str(data["name"])),
        "STYLE": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "DATA": _json(data),
        "WORDS": _json(words()),
        "POLICY": f"{POLICY}; script-src {' '.join(map(_hash, scripts))}",
        "SCRIPTS": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    # In one pass, so that nothing inside a part is taken for a place.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], template)


def _json(value: Any) -> str:
    """Return JSON that can stand inside a script element: no end tag can appear in it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
