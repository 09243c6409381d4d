"""What a text hides from whoever reads it on a terminal: control characters, escape sequences, marks of direction."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)


def is_visible(words: str) -> bool:
    """Return whether a text has nothing that is to be shown (see `visible`)."""
    return words.replace("\n", "").isprintable() or _HIDDEN.search(words) is None  # the first is ten times as fast


def visible(words: str) -> str:
    """Return a text with its control characters, marks of direction and the like shown: \\x1b, \\u202e. Lines stay."""
    return words if is_visible(words) else _HIDDEN.sub(_shown, words)


def _shown(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x7F else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def all_visible(value: Any) -> Any:
    """Return plain data in which every text is visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(key) if isinstance(key, str) else key: all_visible(child) for key, child in value.items()}
    return [all_visible(child) for child in value] if isinstance(value, list | tuple) else value
