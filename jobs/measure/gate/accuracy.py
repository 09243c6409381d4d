"""Known questions among the load: what a service that was right when idle said under concurrency."""

from __future__ import annotations

from typing import Any

from jobs.core.config import Bench
from jobs.measure import canary
from jobs.measure.gate.case import Case, Finding, Found
from jobs.measure.records import Answer, Checked, Window

WRONG_SHARE = 0.1
"""Of the answers: beyond it a service is wrong under load (one that can be asked)."""

SAME_BEGIN = 4
"""Characters: an answer that begins so far as the idle one did is one that parted ways with it, as batches round
otherwise. Two right explanations may have 10 % in common and no more; one of another thing begins otherwise."""

UNLIKE = "unlike the idle answer"

OTHER_SHARE, BEGINNING = 0.5, 0.25
"""Random weights have next to equal words, and a batch rounds otherwise than a single request: their answers part ways
sooner or later. So it is half of the answers that may not differ, and in the first quarter of the idle one."""


def figures(window: Window, bench: Bench) -> dict[str, Any]:
    """Return the columns: known questions that were answered among the load, and the share that was answered wrong.

    Where the model cannot be asked (`bench.canary=answer`) that is of all answers that are not equal word by word.
    """
    if window.checked is None:
        return {"checks": None, "checks_wrong_share": None}
    said = _whole(window.checked)
    wrong = [_wrong(window.checked.idle, one, bench) for one in said]
    return {"checks": len(said), "checks_wrong_share": sum(map(bool, wrong)) / len(said) if said else None}


def under_load(case: Case) -> Found:
    """A service that is right when idle and wrong under concurrency."""
    checked, bench = case.window.checked, case.config.bench
    if checked is None:
        return
    if refused := [one for one in checked.answers if one.error]:
        yield Finding(f"{len(refused)} known questions among the load had no answer: {refused[0].error}")
    said = _whole(checked)
    if not said:
        yield Finding("no known question was answered among the load: accuracy under load is not checked")
        return
    reasons = [reason for one in said if (reason := _wrong(checked.idle, one, bench))]
    if not reasons:
        return
    if bench.canary == "sane":
        words = f"{len(reasons)} of {len(said)} known questions were answered wrong under load, right when idle"
        # One sane answer in other words is chance; nonsense is not.
        chance = 1 if all(reason.startswith(UNLIKE) for reason in reasons) else 0
        yield Finding(f"{words}: {reasons[0]}", len(reasons) > max(chance, WRONG_SHARE * len(said)))
        return
    words = f"{len(reasons)} of {len(said)} repeatable answers under load differ from the idle one"
    begin = checked.idle.text[: max(1, round(BEGINNING * len(checked.idle.text)))]
    others = sum(not one.text.startswith(begin) for one in said)
    yield Finding(words + (f", {others} from their beginning" if others else ""), others > OTHER_SHARE * len(said))


def _whole(checked: Checked) -> list[Answer]:
    return [one for one in checked.answers if not one.error]


def _wrong(idle: Answer, answer: Answer, bench: Bench) -> str | None:
    """Return what is wrong with an answer under load, or None."""
    if bench.canary != "sane":
        return None if answer.text == idle.text else "another answer"
    if fault := canary.fault(answer, bench):
        return fault
    alike = canary.alike(idle, answer)
    parted = answer.text[:SAME_BEGIN] == idle.text[:SAME_BEGIN]
    return f"{UNLIKE} ({alike:.0%} alike)" if alike < canary.ALIKE and not parted else None
