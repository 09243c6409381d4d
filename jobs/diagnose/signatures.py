"""The rule book: signatures.yaml and codes.yaml, validated when they are loaded.

A signature recognises one line of a log and says what it means; a code is one of a vendor's closed list, so that a line
that no signature knows is still named by it. Which of several lines wins is decided in classify.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter

from jobs.core.fields import Flag, Section
from jobs.core.foreign import from_yaml
from jobs.diagnose.patterns import safe, words

_FILE = Path(__file__).parent / "signatures.yaml"
_CODES = Path(__file__).parent / "codes.yaml"

Kind = Literal["cause", "symptom", "timeout", "end", "follow_on", "note", "stage"]
KINDS = get_args(Kind)
"""In the order of trust. Where several signatures match one line, the first kind, then the first in the file, wins."""

Phase = Literal["queue", "container", "start", "load", "rendezvous", "graph", "serve", "bench", "any"]

SLOT = re.compile(r"\{(\w+)(?:\|([^{}]*))?\}")

_CAPACITY = re.compile(
    r"(?P<total>\d{1,4}\.\d{1,3}) GiB total capacity; .{0,120}?(?P<free>\d{1,5}(?:\.\d{1,3})?) (?P<unit>[GM])iB free; "
    r"(?P<own>\d{1,4}\.\d{1,3}) GiB reserved"
)
_OTHERS = 0.25
"""Part of an NPU's memory that its own process does not use beside what PyTorch reserves (HCCL, graphs)."""

HELD = "{} of {} GiB of this NPU's memory are held by other processes"
"""What torch_npu's own figures of memory mean."""

_QUOTED = re.compile(r'"[^"]{2,80}"|:')
_SHORT = 6
_FITTING = 3
"""Causes that a list may have without being cut, and those that are left of a longer one because they fit."""

Words = Annotated[str, Field(min_length=1, strict=True)]
Regex = Annotated[Words, AfterValidator(safe)]


@dataclass(frozen=True)
class Signature(Section):
    """One recognisable line; the head of signatures.yaml says what each key means."""

    id: Words
    regex: Regex
    kind: Kind
    phase: Phase
    cause: Words
    remedy: Words
    source: Words
    example: Words
    causes: tuple[Words, ...] = ()
    retryable: Flag = False
    role: Literal["head", "headless"] | None = None
    ready: Flag | None = None
    within: Regex | None = None
    request: Flag = False
    passing: Flag = False
    any_level: Flag = False
    over: tuple[str, ...] = ()
    outside: Flag = False
    gives_way: Literal["", "known", "any"] = ""
    early: Flag = False
    late: Flag = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The compiled regex."""
        return re.compile(self.regex)

    @cached_property
    def place(self) -> re.Pattern[str] | None:
        """The compiled `within`."""
        return re.compile(self.within) if self.within else None

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Words of which every line that the regex can match has at least one."""
        return words(self.regex)

    @property
    def certainty(self) -> Literal["named", "narrowed", "not known"]:
        """How much its answer is worth."""
        if self.kind in ("end", "follow_on", "stage"):
            return "narrowed" if self.causes else "not known"
        return "narrowed" if self.causes or self.kind != "cause" else "named"


def fill(text: str, match: re.Match[str] | None) -> str:
    """Return a text with what a regex found in the place of its slots."""
    found = match.groupdict() if match else {}
    return SLOT.sub(lambda slot: found.get(slot[1]) or slot[2] or f"the {slot[1].replace('_', ' ')}", text)


@dataclass(frozen=True)
class Code(Section):
    """What one code means. `do` and `kind`: where they differ from those of its family."""

    says: Words
    do: str = ""
    kind: Kind | None = None
    causes: tuple[Words, ...] = ()


def _texts(codes: dict[object, object]) -> dict[str, object]:
    return {str(code): meaning for code, meaning in codes.items()}


@dataclass(frozen=True)
class Family(Section):
    """A closed list of codes; the head of codes.yaml says what each key means."""

    id: Words
    quick: Regex
    find: Regex
    kind: Kind
    do: Words
    source: Words
    codes: Annotated[dict[str, Code | Words], BeforeValidator(_texts)]
    phase: Phase = "any"
    errors: Flag = False
    any_case: Flag = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The compiled regex."""
        codes = "|".join(map(re.escape, sorted(self.codes, reverse=True)))
        return re.compile(self.find.replace("CODES", f"(?i:{codes})" if self.any_case else codes))

    @cached_property
    def _quick(self) -> re.Pattern[str]:
        return re.compile(self.quick)

    def found(self, line: str) -> Iterable[re.Match[str]]:
        """Return where a line has codes of the list."""
        return self.pattern.finditer(line) if self._quick.search(line) else ()

    def of(self, code: str) -> Code | None:
        """Return what a code means, with what the family says of all of them."""
        found = self.codes.get(code)
        if found is None and self.any_case:
            found = next((meaning for one, meaning in self.codes.items() if one.lower() == code.lower()), None)
        if found is None:
            return None
        found = Code(found) if isinstance(found, str) else found
        return Code(found.says, found.do or self.do, found.kind or self.kind, found.causes)


@cache
def signatures() -> tuple[Signature, ...]:
    """Return the rule book in the order of precedence.

    Raises:
        ValueError: signatures.yaml is wrong: a bad regex, an unknown key, an id used twice or not known, an example
            that its own regex does not match.
    """
    return load(_FILE.read_text(encoding="utf-8"))


@cache
def _by_word() -> dict[str, list[int]]:
    """Return the positions of the signatures that each word may belong to."""
    index: dict[str, list[int]] = {}
    for position, signature in enumerate(signatures()):
        for word in signature.words:
            index.setdefault(word, []).append(position)
    return index


def candidates(line: str) -> list[Signature]:
    """Return the signatures that may match a line, in the order of precedence: most lines have none of their words."""
    index, book = _by_word(), signatures()
    return [book[at] for at in sorted({at for word in index if word in line for at in index[word]})]


@cache
def position(name: str) -> int:
    """Return the place in the order of precedence of a signature, or of a code's (`FAMILY-CODE`, or `FAMILY`)."""
    book = [signature.id for signature in signatures()]
    if name in book:
        return book.index(name)
    return len(book) + next(at for at, family in enumerate(families()) if f"{name}-".startswith(f"{family.id}-"))


def load(text: str) -> tuple[Signature, ...]:
    """Return the signatures of a rule book (YAML text), validated and in the order of precedence.

    Raises:
        ValueError: see `signatures`.
    """
    found = TypeAdapter(tuple[Signature, ...]).validate_python(from_yaml(text))
    ids = Counter(item.id for item in found)
    twice = [name for name, count in ids.items() if count > 1]
    unknown = [name for item in found for name in item.over if name not in ids]
    if twice or unknown:
        raise ValueError(f"ids used twice: {twice}; unknown ids in `over`: {unknown}")
    for item in found:
        if not item.pattern.search(item.example):
            raise ValueError(f"{item.id}: its regex does not match its example")
        if not item.words:
            raise ValueError(f"{item.id}: its regex has an alternative without a word of three letters")
    return tuple(sorted(found, key=lambda item: KINDS.index(item.kind)))


@cache
def families() -> tuple[Family, ...]:
    """Return the closed lists of codes, those whose lines say most first.

    Raises:
        ValueError: codes.yaml is wrong.
    """
    return TypeAdapter(tuple[Family, ...]).validate_python(from_yaml(_CODES.read_text(encoding="utf-8")))


@cache
def of_code(family: str, code: str) -> Signature | None:
    """Return the signature that a code of a family amounts to; None: it is not in its list, or says nothing itself."""
    known = next(item for item in families() if item.id == family)
    found = known.of(code)
    if found is None or found.kind in (None, "follow_on"):
        return None
    cause = f"{found.says} ({code})"
    name = family if " " in code else f"{family}-{code}"
    return Signature(name, re.escape(code), found.kind, known.phase, cause, found.do, known.source, code, found.causes)


def fitting(causes: Sequence[str], *lines: str, frames: str = "") -> Iterable[str]:
    """Return causes, first those that quote words of a line before their colon: what stands further on says more.

    Words in capitals (names, abbreviations) must stand so. Quoted files and functions ("models/", ":load") may stand
    in the frames of its traceback. Of a long list these alone are left, three at the most, with what needs no words.
    """
    plain = "\n".join(lines)
    said = plain.lower()

    def last(word: str) -> int:
        passed = word.endswith("/") or (word.startswith(":") and len(word) > 1)
        return 0 if passed and word in frames else plain.rfind(word) if word.isupper() else said.rfind(word.lower())

    at = {cause: max((last(word) for word in _quoted(cause)), default=0) for cause in causes}
    fit = sorted((cause for cause in causes if _quoted(cause) and at[cause] >= 0), key=lambda cause: -at[cause])
    if len(causes) <= _SHORT:
        return dict.fromkeys((*fit, *causes))
    others = [cause for cause in causes if not _quoted(cause)]
    return (*fit[:_FITTING], *others[: 1 if fit else None])


def vague(causes: Sequence[str], *lines: str) -> bool:
    """Return whether of a long list of causes that quote words none stands in a line, so that it narrows nothing."""
    return sum(bool(_quoted(cause)) for cause in causes) > _SHORT and dubious(causes, *lines)


def dubious(causes: Sequence[str], *lines: str) -> bool:
    """Return whether causes quote words, and none of them stands in a line."""
    said = "\n".join(lines).lower()
    words = [word for cause in causes for word in _quoted(cause)]
    return bool(words) and not any(word.lower() in said for word in words)


@cache
def _quoted(cause: str) -> tuple[str, ...]:
    return tuple(token[1:-1] for token in takewhile(lambda token: token != ":", _QUOTED.findall(cause)))


def meanings(line: str, known: bool = False) -> tuple[str, ...]:
    """Return what the codes in a line mean: `507899: ...`; of a line that is known, not those of plain words."""
    lists = [family for family in families() if not (known and family.errors)]
    found = ((match["code"], family) for family in lists for match in family.found(line))
    told = ((code, one.says) for code, family in found if (one := family.of(code)))
    return (*_held(line), *dict.fromkeys(f"{code}: {says}" for code, says in told))


def _held(line: str) -> Iterable[str]:
    """Yield how much of an NPU's memory is neither free nor of the process that found none: torch_npu's own figures."""
    if found := _CAPACITY.search(line):
        total, free, own = (float(found[name]) for name in ("total", "free", "own"))
        free /= 1024 if found["unit"] == "M" else 1
        if (others := total - free - own) > total * _OTHERS:
            yield HELD.format(round(others), round(total))
