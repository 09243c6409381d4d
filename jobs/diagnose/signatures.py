"""The rule book: signatures.yaml, validated when it is loaded.

A signature recognises one line of a log and says what it means. Which of several wins is decided in classify.py.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, TypeAdapter

from jobs.core.fields import Flag, Section
from jobs.core.files import from_yaml
from jobs.diagnose.sift import may_matter

_FILE = Path(__file__).parent / "signatures.yaml"

Kind = Literal["cause", "timeout", "end", "follow_on", "note"]
KINDS = get_args(Kind)
"""In the order of trust. Where several signatures match one line, the first kind, then the first in the file, wins."""

Phase = Literal["queue", "container", "start", "load", "rendezvous", "graph", "serve", "bench", "any"]


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


_Words = Annotated[str, Field(min_length=1, strict=True)]
_Regex = Annotated[_Words, AfterValidator(_regex)]


@dataclass(frozen=True)
class Signature(Section):
    """One recognisable line.

    Attributes:
        id: short name, stands in rows and reports.
        regex: searched in one line; a group `rank` names the failing rank where the line does, a group
            `data_parallel_rank` the failing engine. An exception without
            a message is read as `Name [file.py:line in function]`, from the traceback before it.
        kind: cause      says itself what went wrong
              timeout    this rank waited for another: the reason is probably there
              end        how a process ended; why is said elsewhere
              follow_on  only repeats that something failed
              note       no failure, but worth knowing
        phase: part of a service's life in which it happens.
        cause: what it means.
        remedy: what to do.
        retryable: whether the same allocation may simply try again, once.
        source: where the words and the meaning were found.
        example: a line that it must match.
        role: head (rank 0) or headless (the others), where only one of them can say it.
        ready: True: only after the service was ready; False: only before.
        passing: no failure where the service got ready later.
        any_level: matches lines of level DEBUG, INFO and WARNING too.
        over: ids of signatures that this one explains: they are dropped wherever this one is found.
    """

    id: _Words
    regex: _Regex
    kind: Kind
    phase: Phase
    cause: _Words
    remedy: _Words
    source: _Words
    example: _Words
    retryable: Flag = False
    role: Literal["head", "headless"] | None = None
    ready: Flag | None = None
    passing: Flag = False
    any_level: Flag = False
    over: tuple[str, ...] = ()

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The compiled regex."""
        return re.compile(self.regex)


@cache
def signatures() -> tuple[Signature, ...]:
    """Return the rule book in the order of precedence.

    Raises:
        ValueError: signatures.yaml is wrong: a bad regex, an unknown key, an id used twice or not known, an example
            that its own regex does not match.
    """
    return load(_FILE.read_text(encoding="utf-8"))


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
        if not may_matter(item.example):
            raise ValueError(f"{item.id}: its example has no marker of sift.py, so it would never be read")
    return tuple(sorted(found, key=lambda item: KINDS.index(item.kind)))
