"""Regular expressions of the rule book: refused where a hostile line could make them run away, and their words."""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"\\(?P<escape>.)|\[\^?\]?(?:\\.|[^\]\\])*\]|(?P<open>\((?:\?(?:P<\w+>|[:=!]|<[=!]|i:))?)|(?P<close>\)(?P<again>[*+{])?)"
    r"|(?P<optional>[?]|\{0,\d+\})|(?P<endless>[*+]|\{\d*,\})|\{\d+(?:,\d+)?\}|[.^$]|(?P<bar>\|)|(?P<char>.)"
)
_SHORTEST = 3
"""Letters of a word that a line is searched for."""


def safe(regex: str) -> str:
    """Return a regex as it is.

    Raises:
        ValueError: it is none, or a search for it could take more than a bounded number of steps for each character of
            a line: every repeat needs an upper end, and no group may be repeated.
    """
    try:
        re.compile(regex)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    for token in _TOKEN.finditer(regex):
        if token["endless"] or token["again"]:
            raise ValueError(f"{token.group()} has no upper end or repeats a group: {regex[: token.end()]}")
    return regex


def words(regex: str) -> tuple[str, ...]:
    """Return words of which every match has one: the longest outside of groups of each alternative that stands there.

    Empty: some alternative has none.
    """
    found, run, depth = [""], "", 0
    for token in [*_TOKEN.finditer(regex), None]:
        if token and token["optional"]:
            run = run[:-1]
        escaped = token and token["escape"]
        char = token and (token["char"] or (escaped if escaped and not escaped.isalnum() else None))
        if char and not depth:
            run += char
            continue
        found[-1] = max(found[-1], run, key=len)
        run = ""
        if token and token["bar"] and not depth:
            found.append("")
        depth += bool(token and token["open"]) - bool(token and token["close"])
    return tuple(dict.fromkeys(found)) if all(len(word) >= _SHORTEST for word in found) else ()
