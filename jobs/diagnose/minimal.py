"""A log -> the smallest case of it that gives the same answer, with nothing in it that tells whose it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from jobs.core import masking
from jobs.diagnose.classify import classify
from jobs.diagnose.diagnosis import Diagnosis, RankLog
from jobs.diagnose.events import forms
from jobs.diagnose.sift import Line

_NEAR = (0, 1, 8)
"""Lines before and after a line of evidence that are kept, as many as it takes."""


@cache
def _rules() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(rule["find"]), rule["put"]) for rule in forms()["redact"])


def redact(text: str) -> str:
    """Return a text without addresses, hosts, users, directories and keys; what is the same stays the same."""
    for pattern, put in _rules():
        names: dict[str, int] = {}

        def told(match: re.Match[str], put: str = put, names: dict[str, int] = names) -> str:
            begin, end = (at - match.start() for at in match.span("x"))
            name = put.format(n=names.setdefault(match["x"], len(names) + 1))
            return match.group()[:begin] + name + match.group()[end:]

        text = pattern.sub(told, text)
    return text


def as_case(logs: Sequence[RankLog], sizes: Sequence[int] = ()) -> dict[str, Any]:
    """Return the least of the logs of one failure that gives the same answer, redacted, as a case of tests/corpus."""
    whole = classify(logs, sizes)
    for near in _NEAR:
        parts = [replace(log, lines=tuple(_around(log, whole, near))) for log in logs]
        if _answer(classify(parts, sizes)) == _answer(whole):
            break
    whole_text = "\0".join("\n".join(line for _, line in log.lines) for log in parts)
    texts = redact(masking.text(whole_text)).split("\0")  # here: the quotes of YAML would hide what is a name
    kept = {log.rank: text for log, text in zip(parts, texts, strict=True) if text}
    about = {"log": next(iter(kept.values()), "")} if len(kept) < 2 else {"ranks": kept}
    return {"is": (whole.signature or "unknown") if whole.found else "none", "certainty": whole.certainty} | about


def _around(log: RankLog, found: Diagnosis, near: int) -> Iterable[Line]:
    wanted = {one.number for one in (found.first, *found.evidence) if one and one.log == log.name}
    at = [index for index, (number, _) in enumerate(log.lines) if number in wanted]
    kept = sorted({index for middle in at for index in range(max(0, middle - near), middle + near + 1)})
    return (log.lines[index] for index in kept if index < len(log.lines))


def _answer(found: Diagnosis) -> tuple[object, ...]:
    return found.found, found.signature, found.rank, found.first.line if found.first else None
