"""What pairs of measurements have said so far: A or B, a function of the rows of a sweep and of the question asked.

A pair is a start of A and one of B, or, where both are loads of one service, a window of each. The question lies in the
sweep's directory, so that its head ends it as soon as the answer is there, whoever follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.core.files import read_lines
from jobs.core.foreign import SMALL, load_form
from jobs.core.records import Number
from jobs.core.rundir import SweepDir
from jobs.core.tasks import Identity
from jobs.results.columns import counts, low_is_best
from jobs.results.row import NOT_RUN, row_of
from jobs.results.sequential import ALPHA, BETA, Decision, Logs, decide

NOT_TEXT = "they draft unlike on prompts that are no text, where speculation tells nothing (bench.workload=text)"

_DECIDED = "decided by {} pairs"

FAILED = {False: 2, True: 4}
"""Pairs in a row without figures after which no more are measured: of starts, and of windows, which cost little."""

Row = Mapping[str, Any]

Pair = Logs | str
"""What a pair showed, or why it has no figures."""


@dataclass(frozen=True)
class Question:
    """What a sweep is to decide.

    Attributes:
        goal: column by which A and B compare; `difference`: that is to be found, as a share.
        pairs: points of A and of B; in one pair of points each window is a pair of its own where `windows` is set.
        windows: 0, or how many windows each of the two points has.
        most: pairs of this sweep that may be measured.
        earlier: what the pairs of the sweeps before it said.
        alpha, beta: errors that are borne (jobs/results/sequential.py).
    """

    goal: str
    difference: Number
    pairs: tuple[tuple[Identity, Identity], ...]
    windows: int
    most: int
    earlier: tuple[tuple[Number, Number], ...] = ()
    alpha: Number = ALPHA
    beta: Number = BETA

    def decide(self, logs: Sequence[Logs]) -> Decision:
        """Return what pairs say to it."""
        return decide(logs, self.difference, by_turns=self.windows > 0, alpha=self.alpha, beta=self.beta)


@dataclass(frozen=True)
class Standing:
    """What pairs say, up to the one that decided.

    Attributes:
        logs: of the pairs that count, in the order of time.
        over: why no further pair of this sweep is needed; empty: one is.
        broken: why pairs have no figures, where that ended it. gone: why others have none, before the one that decided.
    """

    decision: Decision
    logs: tuple[Logs, ...]
    over: str = ""
    broken: str = ""
    gone: tuple[str, ...] = ()


def read_question(sweep: SweepDir) -> Question | None:
    """Return what a sweep is to decide; None: it is a sweep like others. Raises RunError: the file is torn."""
    return load_form(sweep.question, Question, SMALL) if sweep.question.exists() else None


def changed(goal: str, better: float) -> float:
    """Return how much a figure changes from A to B where B is better by a share: a latency falls."""
    return 1 / (1 + better) - 1 if low_is_best(goal) else better


def pair_of(goal: str, one: Row, two: Row) -> Pair:
    """Return what a row, or a window, of A and one of B say."""
    for side, row in (("A", one), ("B", two)):
        if not row["valid"]:
            return f"{side}: {row['invalid_reason']}"
        if row.get("saturated"):
            return f"{side}: it is saturated: its latencies are those of a queue that grows"
        if row.get("slo_kept") is False:
            return f"{side}: it breaks bench.slo"
        if not counts(goal, row.get(goal)) or row[goal] <= 0:
            return f"{side}: it has no {goal}"
    if not drafts_alike(one, two):
        return NOT_TEXT
    sign = -1 if low_is_best(goal) else 1
    return sign * math.log(one[goal]), sign * math.log(two[goal])


def drafts_alike(one: Row, two: Row) -> bool:
    """Return whether what two rows show of speculation may be compared: on prompts that are no text it tells nothing.

    Where both draft as many tokens both are as wrong.
    """
    no_text = any(row.get("spec_text") is False for row in (one, two))
    return not no_text or one.get("spec_tokens") == two.get("spec_tokens")


def of_windows(goal: str, one: Iterable[Row], two: Iterable[Row]) -> list[Pair]:
    """Return the pairs that the windows of two points are, which were measured by turns."""
    return [pair_of(goal, *both) for both in zip(one, two, strict=False)]


def of_sweep(sweep: SweepDir, question: Question) -> list[Pair]:
    """Return the pairs of a sweep in their order, up to the first one that is not measured yet."""
    if question.windows:
        [(one, two)] = question.pairs
        lines = [[line for line in read_lines(sweep.point(point).windows) if _is_line(line)] for point in (one, two)]
        if all(lines):
            return of_windows(question.goal, *lines)
    found: list[Pair] = []
    for points in question.pairs:
        rows = [row for point in points if (row := _row(sweep, point))]
        if len(rows) < len(points):
            break
        found.append(pair_of(question.goal, *rows))
    return found


def _is_line(line: Any) -> bool:
    return isinstance(line, dict) and type(line.get("valid")) is bool


def _row(sweep: SweepDir, point: str) -> Row | None:
    """Return a row that tells something of its setting; None: it is still to be measured."""
    if (row := row_of(sweep, point)) is None:
        return None
    return None if row["truncated"] or str(row["invalid_reason"]).startswith(NOT_RUN) else row


def standing(question: Question, pairs: Sequence[Pair]) -> Standing:
    """Return what the earlier pairs and these say; at the first one that decides the others are left out."""
    logs, failed, most = list(question.earlier), 0, FAILED[question.windows > 0]
    gone: list[str] = []
    for count in range(2, len(logs) + 1):
        if (found := question.decide(logs[:count])).answer != "open":
            return Standing(found, tuple(logs[:count]), _DECIDED.format(count))
    for pair in pairs[: question.most]:
        if isinstance(pair, str):
            failed += 1
            gone.append(pair)
            if failed == most:
                why = f"{most} pairs in a row have no figures: {pair}"
                return Standing(question.decide(logs), tuple(logs), why, pair, tuple(gone))
            continue
        failed = 0
        logs.append(pair)
        if (found := question.decide(logs)).answer != "open":
            return Standing(found, tuple(logs), _DECIDED.format(len(logs)), gone=tuple(gone))
    over = "all pairs are measured" if len(pairs) >= question.most else ""
    return Standing(question.decide(logs), tuple(logs), over, gone=tuple(gone))
