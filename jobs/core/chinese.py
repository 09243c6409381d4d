"""What people read of help, errors and findings, in Chinese where their locale asks for it (`chinese.json`).

Keys, values, files and what programs read stay as they are. A text is known by its template, in which `{}` stands for
what is filled in; what has no translation stays English.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_LONGEST = 4000
"""Letters of a text that is looked up: what others wrote may stand in it, and costs a second at ten times as many."""

_DEEPEST = 3
"""What is filled in may be a text with something filled in itself."""

_SENTENCES = re.compile(r"(; +|(?<=[.?!:]) +)")


def is_asked(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the reader's locale is Chinese: the first of its three variables that is set says so (POSIX)."""
    names = (environment.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return next(filter(None, names), "").startswith("zh")


@dataclass(frozen=True)
class _Template:
    """A template with something to fill in: what stands before, between and after its places, and its Chinese."""

    parts: list[str]
    chinese: str

    @cached_property
    def letters(self) -> int:
        """How many letters a text of it has at least."""
        return sum(map(len, self.parts))

    def match(self, text: str) -> re.Match[str] | None:
        """Return what is filled in where a text is of this template. Most are told by how they begin and end."""
        if not (text.startswith(self.parts[0]) and text.endswith(self.parts[-1])):
            return None
        return re.fullmatch("(.*?)".join(map(re.escape, self.parts)), text, re.DOTALL)


class Catalogue:
    """A file of English templates with their Chinese; read when it is first asked."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """The Chinese of each template; its places are numbered from the left of the English."""
        found: dict[str, str] = json.loads(self._path.read_text(encoding="utf-8"))
        return found

    @cached_property
    def _templates(self) -> tuple[_Template, ...]:
        cut = ((words(text), chinese) for text, chinese in self.texts.items())
        found = (_Template(parts, chinese) for parts, chinese in cut if len(parts) > 1)
        return tuple(sorted(found, key=lambda one: one.letters))

    def _long_enough(self, letters: int) -> Iterable[_Template]:
        """Return the templates that a text of so many letters may be of."""
        return itertools.takewhile(lambda one: one.letters <= letters, self._templates)

    def translated(self, text: str, depth: int = _DEEPEST) -> str:
        """Return a text in Chinese: as a whole, or else each of its sentences that is known."""
        if chinese := self.texts.get(text.replace("{", "{{").replace("}", "}}")):
            return chinese.format()
        if len(text) > _LONGEST:
            return text
        fitting = ((one, found) for one in self._long_enough(len(text)) if (found := one.match(text)))
        if best := max(fitting, key=lambda pair: pair[0].letters, default=None):
            parts = best[1].groups()
            return best[0].chinese.format(*(self.translated(part, depth - 1) for part in parts) if depth else parts)
        sentences = _SENTENCES.split(text)
        if not depth or len(sentences) == 1:
            return text
        said = "".join("；" if one[:1] == ";" else self.translated(one, depth - 1) for one in sentences)
        return re.sub(r"(?<=[。；：，！？]) +", "", said)


def words(template: str) -> list[str]:
    """Return what stands before, between and after the places of a template."""
    parts = [""]
    for text, place, _, _ in string.Formatter().parse(template):
        parts[-1] += text
        if place is not None:
            parts.append("")
    return parts


OURS = Catalogue(Path(__file__).with_suffix(".json"))
"""Texts of errors, findings and help."""


DIAGNOSES = Catalogue(Path(__file__).with_name("chinese_diagnoses.json"))
"""Texts of jobs/diagnose: here, since the report says them too."""

_LONGEST_DIAGNOSIS = 20_000
LABELS = ("answer", "line", "means", "cause", "remedy", "source", "retry", "look at", "evidence", "note", "not valid")
_LABELLED = re.compile(rf"  ({'|'.join(LABELS)})( \d+)?: *(.*)")
_HEAD = re.compile(r"((?:rank \d+: )?)(.*?)((?: \([\w-]+\))?)")
_QUOTED = ("line", "source", "evidence", "not valid")


def diagnosis(text: str) -> str:
    """Return the text of a diagnosis (`Diagnosis.text`) in Chinese; quotes of logs stay, so does a long one."""
    return text if len(text) > _LONGEST_DIAGNOSIS else "\n".join(map(_of_diagnosis, text.split("\n")))


def _of_diagnosis(line: str) -> str:
    if found := _LABELLED.fullmatch(line):
        label, number, said = found[1], found[2] or "", found[3]
        return f"  {DIAGNOSES.texts.get(label, label)}{number}：{said if label in _QUOTED else _diagnosed(said)}"
    if line[:1].isspace() or not (found := _HEAD.fullmatch(line)):
        return line
    return f"{found[1]}{_diagnosed(found[2])}{found[3]}"


def _diagnosed(text: str) -> str:
    said = DIAGNOSES.translated(text)
    return OURS.translated(text) if said == text else said


def localized(text: str) -> str:
    """Return a text in the language of the reader's locale."""
    return OURS.translated(text) if is_asked() else text


def error(key: str, value: object, reason: str, remedy: str, between: str = " ") -> str:
    """Return the four parts of an error in the language of the reader's locale. `between`: before the remedy."""
    if not is_asked():
        return f"{key} = {value}: {reason.rstrip('.')}.{between}{remedy}"
    # The colon stays: what looks for secrets and for keys in a text knows it.
    why, what = OURS.translated(reason).rstrip(".。"), OURS.translated(remedy)
    return f"{key} = {value}: {why}。{between.removeprefix(' ')}{what}"
