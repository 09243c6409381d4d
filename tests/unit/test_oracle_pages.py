"""Pages of counters that are old, missing or wrong, beside a service whose every send time is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from oracle import Engine, measure, page_of, steady
from test_oracle_gate import OPEN, SIXTEEN


def copied(seconds: float, more: float = 0.0) -> Callable[[Sequence[Engine]], str]:
    """Return a page that something keeps for so many seconds; `more` tokens a second are made for others."""
    kept: list[tuple[float, str]] = []
    began: list[float] = []

    def page(engines: Sequence[Engine]) -> str:
        now = asyncio.get_running_loop().time()
        began.append(now)
        if not kept or now - kept[-1][0] >= seconds:
            others = round(more * (now - began[0]))
            kept.append((now, page_of([replace(one, generated=one.generated + others) for one in engines])))
        return kept[-1][1]

    return page


@pytest.mark.parametrize("load", [SIXTEEN, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize("seconds", [2.0, 5.0, 10.0, 1e9])
def test_a_page_that_is_kept_for_a_while_is_judged_over_what_it_tells(load: tuple[str, ...], seconds: float) -> None:
    seen = measure(steady(0.5, 0.25), *load, page=copied(seconds))
    assert seen.reason is None and "counters is a copy that is up to" in seen.notes
    assert "steady" not in seen.notes and ("tells no counters" in seen.notes) is (seconds > 60)
    if load is SIXTEEN and seconds < 60:
        assert "for us" in (measure(steady(0.5, 0.25), *load, page=copied(seconds, more=4.0)).reason or "")


@pytest.mark.parametrize("every", [2, 3])
def test_pages_that_are_missing_now_and_then_are_replaced_by_those_beside(every: int) -> None:
    asked: list[int] = []

    def page(engines: Sequence[Engine]) -> str | None:
        asked.append(1)
        return page_of(engines) if len(asked) % every else None

    seen = measure(steady(0.5, 0.25), *SIXTEEN, page=page)
    assert seen.reason is None and "tells no counters" not in seen.notes
    assert seen.figures["prefix_hit_share"] == 0.0


def test_a_last_page_that_is_a_little_old_is_read_again() -> None:
    seen = measure(steady(0.5, 0.25), *SIXTEEN, page=copied(0.95))
    assert seen.reason is None and "copy" not in seen.notes
    assert seen.window.finished == sum(one.finished for one in seen.engines)


def test_prompts_that_were_cut_short_are_other_work_whatever_usage_says() -> None:
    def page(engines: Sequence[Engine], share: float) -> str:
        lines = [f'vllm:prompt_tokens_total{{engine="{e.number}"}} {e.prefix_queries * share}' for e in engines]
        return page_of(engines) + "\n".join(lines) + "\n"

    assert measure(steady(0.5, 0.25), *SIXTEEN, page=lambda engines: page(engines, 1.0)).reason is None
    half = measure(steady(0.5, 0.25), *SIXTEEN, page=lambda engines: page(engines, 0.5))
    assert "were they cut short?" in (half.reason or "")
