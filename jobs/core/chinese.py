"""What people read of help, errors and findings, in Chinese where their locale asks for it (`chinese.json`).

Keys, values, files and what programs read stay as they are. A text is known by its template, in which `{}` stands for
what is filled in; what has no translation stays English.
"""

from __future__ import annotations

import functools
import json
import os
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_DEEPEST = 3
"""What is filled in may be a text with something filled in itself."""

_SENTENCES = re.compile(r"(; +|(?<=[.?!:]) +)")


def is_asked(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the reader's locale is Chinese: the first of its three variables that is set says so (POSIX)."""
    names = (environment.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return next(filter(None, names), "").startswith("zh")


def say(text: str) -> str:
    """Return a text in the language of the reader's locale."""
    return translated(text) if is_asked() else text


def error(key: str, value: object, reason: str, remedy: str, between: str = " ") -> str:
    """Return the four parts of an error in the language of the reader's locale. `between`: before the remedy."""
    if not is_asked():
        return f"{key} = {value}: {reason.rstrip('.')}.{between}{remedy}"
    # The colon stays: what looks for secrets and for keys in a text knows it.
    return f"{key} = {value}: {translated(reason).rstrip('.。')}。{between.removeprefix(' ')}{translated(remedy)}"


def translated(text: str, depth: int = _DEEPEST) -> str:
    """Return a text in Chinese: as a whole, or else each of its sentences that is known."""
    known = catalogue()
    if chinese := known.get(text.replace("{", "{{").replace("}", "}}")):
        return chinese.format()
    fitting = ((one, found) for one in _templates() if one.may_be(text) and (found := one.pattern.fullmatch(text)))
    if best := max(fitting, key=lambda pair: pair[0].letters, default=None):
        parts = best[1].groups()
        return best[0].chinese.format(*(translated(part, depth - 1) for part in parts) if depth else parts)
    sentences = _SENTENCES.split(text)
    if not depth or len(sentences) == 1:
        return text
    said = "".join("；" if one[:1] == ";" else translated(one, depth - 1) for one in sentences)
    return re.sub(r"(?<=[。；：，！？]) +", "", said)


@functools.cache
def catalogue() -> Mapping[str, str]:
    """Return the Chinese of each template."""
    found: dict[str, str] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class _Template:
    """A template with something to fill in. `head`, `tail`: how it begins and ends; `letters`: of all its words."""

    head: str
    tail: str
    letters: int
    pattern: re.Pattern[str]
    chinese: str

    def may_be(self, text: str) -> bool:
        return text.startswith(self.head) and text.endswith(self.tail)


@functools.cache
def _templates() -> tuple[_Template, ...]:
    return tuple(_template(text, chinese) for text, chinese in catalogue().items() if words(text)[1:])


def _template(text: str, chinese: str) -> _Template:
    parts = words(text)
    pattern = re.compile("(.*?)".join(map(re.escape, parts)), re.DOTALL)
    return _Template(parts[0], parts[-1], sum(map(len, parts)), pattern, chinese)


def words(template: str) -> list[str]:
    """Return what stands before, between and after the places of a template."""
    parts = [""]
    for text, place, _, _ in string.Formatter().parse(template):
        parts[-1] += text
        if place is not None:
            parts.append("")
    return parts
