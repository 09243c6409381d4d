"""What people read, in Chinese where their locale asks for it (`chinese.json`): help, errors, findings, what commands
print, notes and reasons of rows.

It is looked up where it is shown. Keys, values, columns, files and what programs read stay as they are. A text is known
by its template, in which `{}` stands for what is filled in; what has no translation stays English.
"""

from __future__ import annotations

import functools
import json
import os
import re
import string
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_LONGEST = 2000
"""Letters of a text that is looked up: what others wrote may stand in it, and costs a second at twice as many."""

_BUDGET_S = 5.0
"""So long Chinese is looked for; what comes then stays English. Rows of somebody else may be made to take hours."""

_DEEPEST = 6
"""What is filled in may be a text with something filled in itself."""

_SENTENCES = re.compile(r"(; +|(?<=[.?!]) +)")
_LIST = re.compile(r"(, (?:and |or )?(?![^\[]*\])| and | or )")
_BETWEEN = {";": "；", ", a": " 和 ", ", o": " 或 ", ", ": "，", " a": " 和 ", " o": " 或 "}
_SEVERAL = re.compile(r"; |[.?!] [A-Z]")
_LETTER = re.compile("[A-Za-z]")
_JOINT = re.compile(r"(?<=[\u4e00-\u9fff，。；：（）]) (?=[\u4e00-\u9fff])")
_SOURCE = re.compile(r"(.+)( \[[^\[\]]+\])", re.DOTALL)
_ASIDE = re.compile(r"(.*?) ?\(((?:[^()]|\([^()]*\))+)\)", re.DOTALL)
_WORDS = re.compile(r"[a-z]{2,},? [a-z]{2,}")
_NAME = re.compile(r"[\w-]*[._=][\w.=-]+")
_BEGINS, _ENDS = {", ": "，", "; ": "；", ": ": "："}, {":": "：", ".": "。"}
_TRIED = 3
"""Templates that are tried of those that fit a text: the longest first."""

_CELLS = re.compile(r"( {2,})")


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

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # A place that the Chinese has not is an English plural: nothing else may be lost there. Of two places without
        # anything between them the second is what may follow.
        used = {name for _, name, _, _ in string.Formatter().parse(self.chinese)}
        places = [_place(after) for after in self.parts[1:-1]] + ["(.*?)"]
        places = [place if str(number) in used else "(s?)" for number, place in enumerate(places)]
        pairs = zip(map(re.escape, self.parts), [*places, ""], strict=True)
        return re.compile("".join(f"{part}{place}" for part, place in pairs), re.DOTALL)

    def match(self, text: str) -> re.Match[str] | None:
        """Return what is filled in where a text is of this template. Most are told by how they begin and end."""
        if not (text.startswith(self.parts[0]) and text.endswith(self.parts[-1])):
            return None
        return self._pattern.fullmatch(text)

    def is_one(self, match: re.Match[str]) -> bool:
        """Whether the text is one of this template, and not several texts of which the last or first is."""
        inner = match.groups() if self.parts[-1] else match.groups()[:-1]
        begins = not self.parts[0] and re.search("[:,] ", match[1])
        cut = any(one.count("(") != one.count(")") for one in match.groups())
        return not begins and not cut and not any(map(_SEVERAL.search, inner))


def _place(after: str) -> str:
    """Return the pattern of a place by what stands after it. A comma in brackets, as of an interval, ends no place."""
    if not after:
        return "((?:(?!: ).)*)"
    return r"((?>\[[^\[\]]*\]|.)*?)" if after[0] == "," else "(.*?)"


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
    def _templates(self) -> Mapping[str, Sequence[_Template]]:
        """The templates by their first letter; empty: they begin with a place."""
        found: dict[str, list[_Template]] = {}
        for text, chinese in self.texts.items():
            if len(parts := words(text)) > 1:
                found.setdefault(parts[0][:1], []).append(_Template(parts, chinese))
        return found

    @cached_property
    def _found(self) -> dict[tuple[str, int], str]:
        return {}

    def translated(self, text: str, depth: int = _DEEPEST) -> str:
        """Return a text in Chinese: as a whole, or else each of its sentences that is known, or of its parts."""
        if chinese := self.texts.get(text.replace("{", "{{").replace("}", "}}")):
            return chinese.format()
        if not depth or not text or len(text) > _LONGEST:
            return text
        if (text, depth) not in self._found:
            self._found[text, depth] = min(self._ways(text, depth - 1), key=_english, default=text)
        return self._found[text, depth]

    def _ways(self, text: str, depth: int) -> Iterator[str]:
        """Yield what a text may be in Chinese, the likeliest first; none after one without English."""
        fitting = self._fitting(text)
        fitting.sort(key=lambda pair: (not pair[0].is_one(pair[1]), -pair[0].letters, len(pair[0].parts)))
        whole = [pair for pair in fitting if pair[0].is_one(pair[1])]
        ways = [functools.partial(self._filled, *pair, depth) for pair in whole[:_TRIED]]
        ways += [functools.partial(self._apart, text, depth)]
        ways += [functools.partial(self._filled, *pair, depth) for pair in fitting[len(whole) :][:_TRIED]]
        for way in ways:
            if (said := way()) != text:
                yield said
                if not _english(said):
                    return

    def _fitting(self, text: str) -> list[tuple[_Template, re.Match[str]]]:
        known = (one for first in {text[:1], ""} for one in self._templates.get(first, ()))
        return [(one, found) for one in known if (found := one.match(text))]

    def is_known(self, text: str) -> bool:
        """Whether a text is in the catalogue as a whole."""
        return text in self.texts or bool(self._fitting(text))

    def _filled(self, template: _Template, match: re.Match[str], depth: int) -> str:
        parts = tuple(self.translated(part, depth) for part in match.groups())
        if parts == match.groups() and not any(map(_LETTER.search, template.parts)):
            return match[0]  # brackets alone say nothing
        return _JOINT.sub("", template.chinese.format(*parts))

    def _apart(self, text: str, depth: int) -> str:
        """Return what is said one after the other; a list, or what stands in brackets, only if no English is left."""
        if found := _SOURCE.fullmatch(text):
            return self.translated(found[1], depth) + found[2]
        if text[0] + text[-1] == "()" and (said := self.translated(text[1:-1], depth)) != text[1:-1]:
            return f"（{said}）"
        if len(one := _SENTENCES.split(text)) > 1:
            said = "".join("；" if part[:1] == ";" else self.translated(part, depth) for part in one)
            if said.replace("；", "; ") != text:
                return re.sub(r"(?<=[。；：，！？]) +", "", said)
        if text[:2] in _BEGINS and (said := self.translated(text[2:], depth)) != text[2:]:
            return _BEGINS[text[:2]] + said
        if text[-1] in _ENDS and (said := self.translated(text[:-1], depth)) != text[:-1]:
            return said + _ENDS[text[-1]]
        before, colon, after = text.partition(": ")
        if colon:
            parts = (self.translated(before, depth), self.translated(after, depth))
            if parts != (before, after):
                return "：".join(parts)
        if found := _ASIDE.fullmatch(text):
            before, aside = (self.translated(part, depth) for part in found.groups())
            if (before, aside) != found.groups() and not (_WORDS.search(before) or _WORDS.search(aside)):
                return f"{before}（{aside}）"
        if len(one := _LIST.split(text)) > 1:
            each = [self.translated(part, depth) for part in one[::2]]
            is_named = all(map(_NAME.fullmatch, each))
            if (is_named or each != one[::2]) and not any(map(_WORDS.search, each)):
                between = [next(sign for start, sign in _BETWEEN.items() if gap.startswith(start)) for gap in one[1::2]]
                return _JOINT.sub("", "".join(map("".join, zip(each, [*between, ""], strict=True))))
        return text


def _english(text: str) -> int:
    """Return how much English a text holds: words in a row that are no names."""
    return len(_WORDS.findall(text))


def words(template: str) -> list[str]:
    """Return what stands before, between and after the places of a template."""
    parts = [""]
    for text, place, _, _ in string.Formatter().parse(template):
        parts[-1] += text
        if place is not None:
            parts.append("")
    return parts


OURS = Catalogue(Path(__file__).with_suffix(".json"))
"""Texts of errors, findings, help, rows and what commands print."""

DIAGNOSES = Catalogue(Path(__file__).with_name("chinese_diagnoses.json"))
"""Texts of jobs/diagnose: here, since the report says them too."""

_LONGEST_DIAGNOSIS = 20_000
LABELS = ("answer", "line", "means", "cause", "remedy", "source", "retry", "look at", "evidence", "note", "not valid")
_LABELLED = re.compile(rf"  ({'|'.join(LABELS)})( \d+)?: *(.*)")
_HEAD = re.compile(r"((?:rank \d+: )?)(.*?)((?: \([\w-]+\))?)")
_QUOTED = ("line", "source", "evidence")
_SUMMARY = re.compile(r"((?:rank \d+: )?)(.*?) \(([\w-]+)((?:, narrowed)?)\): (.*)", re.DOTALL)


class _All(Catalogue):
    """Both, and the diagnosis in one line (`Diagnosis.summary`), which quotes a line of a log."""

    def __init__(self) -> None:
        pass

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """See `Catalogue`."""
        return {**OURS.texts, **DIAGNOSES.texts}

    def translated(self, text: str, depth: int = _DEEPEST) -> str:
        """Return a text in Chinese: see `Catalogue`."""
        if (found := _SUMMARY.fullmatch(text)) and DIAGNOSES.is_known(found[2]):
            who, cause, signature, narrowed, line = found.groups()
            mark = "，缩小范围" if narrowed else ""
            return f"{who}{DIAGNOSES.translated(cause)} ({signature}{mark})：{line}"
        return super().translated(text, depth)


ALL = _All()
"""What may stand in a row, or be printed."""


def diagnosis(text: str) -> str:
    """Return the text of a diagnosis (`Diagnosis.text`) in Chinese; quotes of logs stay, so does a long one."""
    return text if len(text) > _LONGEST_DIAGNOSIS else "\n".join(map(_of_diagnosis, text.split("\n")))


def _of_diagnosis(line: str) -> str:
    if found := _LABELLED.fullmatch(line):
        label, number, said = found[1], found[2] or "", found[3]
        of_points, _, reason = said.partition(": ") if label == "not valid" else ("", "", said)
        said = said if label in _QUOTED else (of_points and f"{of_points}：") + ALL.translated(reason)
        return f"  {DIAGNOSES.texts.get(label, label)}{number}：{said}"
    if line[:1].isspace() or not (found := _HEAD.fullmatch(line)):
        return line
    return f"{found[1]}{ALL.translated(found[2])}{found[3]}"


def localized(text: str) -> str:
    """Return a text in the language of the reader's locale."""
    return OURS.translated(text) if is_asked() else text


def printed(text: str) -> str:
    """Return what is printed for people in the language of their locale, line by line; columns stay where they are."""
    return "\n".join(in_time(text.split("\n"), _line)) if is_asked() else text


def in_time(texts: Iterable[str], translate: Callable[[str], str]) -> Iterator[str]:
    """Yield texts in Chinese while there is time, then as they are."""
    until = time.monotonic() + _BUDGET_S
    for text in texts:
        yield translate(text) if time.monotonic() < until else text


def _line(line: str) -> str:
    cells = _CELLS.split(line)
    for place in range(0, len(cells), 2):
        cell, cells[place] = cells[place], ALL.translated(cells[place])
        if place + 1 < len(cells):
            room = len(cells[place + 1]) + width(cell) - width(cells[place])
            cells[place + 1] = " " * max(1, room)
    return "".join(cells)


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese characters take two (Unicode annex 11)."""
    return sum(1 + (unicodedata.east_asian_width(one) in "WF") for one in text if not unicodedata.combining(one))


def error(key: str, value: object, reason: str, remedy: str, between: str = " ") -> str:
    """Return the four parts of an error in the language of the reader's locale. `between`: before the remedy."""
    if not is_asked():
        return f"{key} = {value}: {reason.rstrip('.')}.{between}{remedy}"
    # The colon stays: what looks for secrets and for keys in a text knows it.
    why, what = OURS.translated(reason).rstrip(".。"), OURS.translated(remedy)
    return f"{key} = {value}: {why}。{between.removeprefix(' ')}{what}"
