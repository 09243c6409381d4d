"""One word a concept (docs/architecture.md): the old words do not come back as names in the code."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from core_help import ROOT

OLD = {
    "Box": "ContainerProcess",
    "Ending": "Signals",
    "Guest": "JoinedCommand",
    "Here": "RankContext",
    "Hub": "ControlServer",
    "Link": "ControlClient",
    "Outlook": "Forecast",
    "Room": "ClientSite",
    "Spot": "StationContext",
    "card": "interface, or npu",
    "cards": "interfaces, or npus",
    "looker": "forecaster",
    "outlook": "forecast",
    "salt": "seed_offset",
    "say": "log",
    "verb": "command",
    "verbs": "commands",
}
"""Old names, and what they are called now."""

PHRASES = ("client that others made", "network card", "data-parallel card")


def code() -> Iterator[Path]:
    for room in ("jobs", "containers", "hydra_plugins"):
        yield from sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("word", OLD)
def test_an_old_word_is_no_name_any_more(word: str) -> None:
    found = [f"{path.relative_to(ROOT)}:{line} says {word}, not {OLD[word]}" for path, line in uses(word)]
    assert not found


def uses(word: str) -> Iterator[tuple[Path, int]]:
    for path in code():
        text = path.read_text(encoding="utf-8")
        if word not in text:
            continue
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and token.string == word:
                yield path, token.start[0]


def test_old_phrases_are_not_written_either() -> None:
    found = [f"{path.relative_to(ROOT)}: {one}" for path in code() for one in PHRASES if one in path.read_text("utf-8")]
    assert not found


def test_every_old_word_stands_in_the_table_of_words() -> None:
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").lower()
    assert [
        word for word in ("card", "verb", "salt", "outlook", "say", "box", "room", "guest") if word not in table
    ] == []
