"""Texts that differ in figures alone are one text: what five points, or three windows, say alike is read once."""

from __future__ import annotations

import re
from collections.abc import Sequence

FIGURE = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?!\w)")
FEW = 3
"""So many different figures stand side by side; of more the least and the most are told."""


def kind(text: str) -> str:
    """Return a text without its figures: texts of one kind differ in these alone."""
    return FIGURE.sub("\0", text)


def as_one(texts: Sequence[str]) -> str:
    """Return texts of one kind as one, with the figures in which they differ: `p99 of 90 / 125 requests`."""
    figures = iter([_together(list(dict.fromkeys(said))) for said in zip(*map(FIGURE.findall, texts), strict=True)])
    return FIGURE.sub(lambda _: next(figures), texts[0])


def _together(said: Sequence[str]) -> str:
    if len(said) <= FEW or any(one.count(".") > 1 for one in said):  # versions have no size
        return " / ".join(said)
    by_size = sorted(said, key=lambda one: float(one.replace(",", "")))
    return f"{by_size[0]}-{by_size[-1]}"
