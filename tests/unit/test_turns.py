"""Points of one service that are measured by turns: their order, and what a failure makes of their rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from core_help import config
from test_rows import DEAD, SIGTERM, found

from jobs.allocation.rows import End, RowLedger
from jobs.allocation.turns import Turns, groups
from jobs.allocation.walltime import TIME_IS_UP
from jobs.core.config import Config
from jobs.measure.objective import said_once
from jobs.measure.point import PointRun
from jobs.measure.records import Window
from jobs.results.row import is_finished

WINDOW = Window(0.0, 1.0, 0.0, 0.0, (), {}, 0.0, truncated=False)


def points(*overrides: tuple[str, ...]) -> dict[str, Config]:
    return {str(number): config("engine=simulator", *words) for number, words in enumerate(overrides)}


def test_loads_of_one_work_are_measured_by_turns() -> None:
    assert groups(points(*((f"bench.concurrency={load}",) for load in (1, 4, 16)))) == [("0", "1", "2")]
    mixed = points(
        ("bench.concurrency=1", "bench.input_tokens=64"),
        ("bench.concurrency=1", "bench.input_tokens=128"),
        ("bench.concurrency=4", "bench.input_tokens=64"),
        ("bench.concurrency=4", "bench.input_tokens=128"),
    )
    assert groups(mixed) == [("0", "2", "1", "3")], "kinds of work too"
    assert groups(mixed, "3210") == [("0", "1", "2", "3")], "where somebody asks for it, whatever they differ in"


def test_a_group_is_not_so_long_that_a_failure_costs_a_day() -> None:
    """Each work takes an hour or so: 3 windows of 8 minutes at two loads."""
    loads = [(f"bench.concurrency={load}", f"bench.input_tokens={length}", "bench.window_s=480")
             for length in (64, 128, 256) for load in (1, 4)]  # fmt: skip
    assert groups(points(*loads)) == [("0", "1"), ("2", "3"), ("4", "5")]
    once = points(("bench.repeats=1",), ("bench.input_tokens=64",), ("bench.repeats=1", "bench.input_tokens=32"), ())
    assert groups(once) == [("0",), ("1", "3"), ("2",)]


@pytest.mark.parametrize(
    "words",
    [
        ("bench.repeats=1",),
        ("bench.search=concurrency", "bench.slo.ttft_ms=9"),
        ("cluster.yield_to_others=true",),
        ("bench.client=vllm_bench",),
    ],
)
def test_what_is_measured_once_or_has_to_yield_goes_one_after_the_other(words: tuple[str, ...]) -> None:
    assert groups(points(("bench.concurrency=1", *words), ("bench.concurrency=4", *words))) == [("0",), ("1",)]


class Told:
    """Stands for the run of one point, and writes down what it is told."""

    turns = 3

    def __init__(self, name: str, said: list[str], act: Callable[[str], None]) -> None:
        self.name, self.said, self.act = name, said, act

    async def begin(self) -> None:
        await self._note("begin")

    async def turn(self, number: int) -> None:
        await self._note(str(number))

    async def end(self) -> None:
        await self._note("end")

    async def _note(self, what: str) -> None:
        self.said.append(f"{self.name} {what}")
        self.act(self.said[-1])


async def turned(stop_at: str = "", enough: Callable[[], bool] = lambda: False) -> tuple[list[str], Turns]:
    stop, said = asyncio.Event(), list[str]()
    runs = {name: Told(name, said, lambda now: stop.set() if now == stop_at else None) for name in "ABC"}

    async def between(point: str) -> None:
        said.append(f"{point} waits")

    turns = Turns(cast(dict[str, PointRun], runs), stop, between, enough)
    await turns.run()
    assert said.count("A waits") == sum(one in said for one in ("A 1", "A 2")), "it is told after all but the last"
    return [one for one in said if "waits" not in one], turns


async def test_every_round_goes_the_other_way() -> None:
    said, turns = await turned()
    assert "".join(one[0] for one in said) == "ABCABCCBAABCABC"
    assert [one.split()[1] for one in said[3:12]] == ["1"] * 3 + ["2"] * 3 + ["3"] * 3
    assert turns.cut is None


async def test_windows_that_tell_all_are_the_last_ones() -> None:
    told = iter([True])
    said, turns = await turned(enough=lambda: next(told))
    assert [one.split()[1] for one in said] == ["begin"] * 3 + ["1"] * 3 + ["end"] * 3
    assert turns.cut is None


async def test_a_stop_ends_it_at_the_point_that_is_being_measured() -> None:
    said, turns = await turned("B 2")
    assert said[-2:] == ["C 2", "B 2"]
    assert turns.cut == "B"


def ledger(
    failed: dict[str, int], cut: str | None, failure: str | None, **about: Any
) -> tuple[RowLedger, dict[str, Any]]:
    """Return a ledger of three points with so many windows each, after a failure, and its rows."""
    made = RowLedger("s", {name: config("engine=simulator") for name in "abc"})
    made.from_outside = about.get("from_outside", False)
    results = {name: found(truncated=name == cut, windows=(WINDOW,) * count) for name, count in failed.items()}
    rows = {point: made.measured(point, one, why) for point, one, why in made.of_turns(results, cut, failure)}
    return made, rows


def test_without_a_failure_every_point_has_its_row() -> None:
    _, rows = ledger({"a": 3, "b": 3, "c": 3}, None, None)
    assert all(row["valid"] and not row["truncated"] for row in rows.values())


def test_a_failure_is_that_of_the_point_that_it_cut_short() -> None:
    made, rows = ledger({"a": 2, "b": 2, "c": 1}, "b", DEAD)
    assert (rows["b"]["valid"], rows["b"]["invalid_reason"]) == (False, DEAD)
    for point, count in (("a", 2), ("c", 1)):
        assert rows[point]["valid"]
        assert f"{count} of 3 windows" in rows[point]["notes"]
        assert not is_finished(rows[point], retry_failed=False), "a resume measures it whole"
    made.finish(End(failure=DEAD, cause=DEAD, passing=True))
    assert made.to_retry == ("a", "b", "c")


def test_what_there_is_between_two_windows_is_a_row_that_is_run_again() -> None:
    made = RowLedger("s", {"a": config("engine=simulator")})
    row = made.measured("a", made.so_far("a", found(windows=(WINDOW,))), None)
    assert row["valid"]
    assert "1 of 3 windows" in row["notes"]
    assert not is_finished(row, retry_failed=False)


def test_a_point_that_was_not_begun_has_no_row_of_the_failure() -> None:
    made, rows = ledger({"a": 1, "b": 0, "c": 0}, "b", DEAD)
    assert rows.keys() == {"a", "b"}
    assert made.finish(End(failure=DEAD, cause=DEAD))[-1]["invalid_reason"].startswith("not run: ")


def test_a_whole_point_stays_whole() -> None:
    _, rows = ledger({"a": 3, "b": 3, "c": 2}, "c", DEAD)
    assert [rows[point]["valid"] for point in "abc"] == [True, True, False]
    assert not rows["a"]["truncated"]


@pytest.mark.parametrize("reason", [SIGTERM, TIME_IS_UP])
def test_what_is_ended_from_outside_is_to_be_run_again(reason: str) -> None:
    made, rows = ledger({"a": 2, "b": 1, "c": 0}, "b", reason, from_outside=True)
    assert [rows[point]["invalid_reason"] for point in "ab"] == [reason, reason]
    assert not any(is_finished(row, retry_failed=False) for row in rows.values())
    assert made.left == (("a", "b", "c") if reason == TIME_IS_UP else ("c",))


def test_what_windows_say_alike_is_said_once() -> None:
    notes = ["repeat 1: few", "repeat 2: few", "repeat 2: late", "the canary", "repeat 3: few", "the canary", "a: b"]
    assert said_once(notes) == ("repeats 1, 2, 3: few", "repeat 2: late", "the canary", "a: b")


def test_what_differs_in_figures_alone_is_said_once() -> None:
    late, share = "p99 was {} ms late (p99): off", "engine {}: 5 of {}"
    notes = [f"repeat {n + 1}: {late.format(ms)}" for n, ms in enumerate((10.9, 5.66))]
    assert said_once(notes) == ("repeats 1, 2: p99 was 10.9 / 5.66 ms late (p99): off",)
    of_two = [
        "repeat 1: " + share.format(0, 10),
        "repeat 1: " + share.format(1, 10),
        "repeat 2: " + share.format(1, 10),
    ]
    assert said_once(of_two) == ("repeats 1, 2: engine 0 / 1: 5 of 10", "repeat 1: engine 1: 5 of 10")
    assert said_once(["point 1 is old", "point 2 is old"]) == ("point 1 is old", "point 2 is old")
