"""Which row each point of a service gets: every decision of the ledger, without an engine and without a file."""

from __future__ import annotations

from typing import Any

import pytest
from core_help import change, config

from jobs.allocation.rows import End, Row, RowLedger
from jobs.allocation.walltime import TIME_IS_UP
from jobs.measure.point import Measured
from jobs.measure.records import Window
from jobs.results.row import NOT_RUN, is_finished

CONFIG = config("cluster=local", "engine=simulator")
POINTS = ("a", "b", "c")
DEAD = "rank 1 (headless): engine exited with code 1: RuntimeError: device lost"
CAUSE = "rank 1 (headless): an NPU is lost"
SIGTERM = "cancelled or preempted (SIGTERM)"


def ledger(*points: str) -> RowLedger:
    made = RowLedger("s", dict.fromkeys(points or POINTS, CONFIG))
    made.known |= {"load_s": 12.5, "nodes": 2, "attempt": 1}
    return made


def found(reason: str | None = None, *, truncated: bool = False, **about: Any) -> Measured:
    """What a point came to: good figures unless a reason is given."""
    figures = {"output_tok_per_s": 100.0, **about.pop("figures", {})}
    usual: dict[str, Any] = {"notes": (), "windows": (), "lines": (), "canary": None, "engine_tokens": {}}
    return Measured(figures=figures, reason=reason, truncated=truncated, **(usual | about))


def reasons(rows: list[Row]) -> dict[str, str | None]:
    return {row["point"]: row["invalid_reason"] for row in rows}


def names(rows: list[Row]) -> list[str]:
    return [row["point"] for row in rows]


# What is kept


def test_a_good_point_is_a_valid_row_with_its_figures_and_those_of_its_service() -> None:
    row = ledger().measured("a", found(), None)
    assert (row["point"], row["service"], row["valid"], row["invalid_reason"]) == ("a", "s", True, None)
    assert (row["output_tok_per_s"], row["load_s"], row["nodes"], row["attempt"]) == (100.0, 12.5, 2, 1)
    assert not row["truncated"]
    assert is_finished(row, retry_failed=True)


def test_a_point_that_is_not_valid_keeps_its_figures_and_its_reason() -> None:
    row = ledger().measured("a", found("3 of 64 requests failed"), None)
    assert (row["valid"], row["invalid_reason"], row["output_tok_per_s"]) == (False, "3 of 64 requests failed", 100.0)


def test_the_failure_of_the_service_is_the_reason_and_not_what_the_client_saw_of_it() -> None:
    row = ledger().measured("a", found("64 of 64 requests failed"), DEAD)
    assert (row["valid"], row["invalid_reason"]) == (False, DEAD)


def test_a_service_that_fails_after_a_good_point_makes_it_invalid() -> None:
    assert ledger().measured("a", found(), DEAD)["valid"] is False


@pytest.mark.parametrize(("cut", "outside", "told"), [(False, False, False), (True, False, True), (False, True, True)])
def test_what_was_cut_short_or_ended_from_outside_is_to_be_run_again(cut: bool, outside: bool, told: bool) -> None:
    made = ledger()
    made.from_outside = outside
    row = made.measured("a", found(truncated=cut), SIGTERM if outside else None)
    assert row["truncated"] is told
    assert is_finished(row, retry_failed=False) is not told


@pytest.mark.parametrize(("notes", "told"), [((), None), (("one",), "one"), (("one", "two"), "one; two")])
def test_notes_stand_in_one_cell(notes: tuple[str, ...], told: str | None) -> None:
    assert ledger().measured("a", found(notes=notes), None)["notes"] == told


@pytest.mark.parametrize(("tokens", "told"), [({}, None), ({"0": 5, "1": 7}, '{"0": 5, "1": 7}')])
def test_tokens_of_engines_stand_as_text(tokens: dict[str, int], told: str | None) -> None:
    assert ledger().measured("a", found(engine_tokens=tokens), None)["engine_tokens"] == told


def test_times_of_all_windows_are_summed_and_rounded() -> None:
    window = Window(0.0, 1.0, 1.26, 0.0, (), {}, 0.0, truncated=False)
    row = ledger().measured("a", found(windows=(window, window), measured_s=3.14159), None)
    assert (row["warmup_s"], row["measure_s"]) == (2.5, 3.1)


def test_what_becomes_known_later_stands_in_later_rows_only() -> None:
    made = ledger()
    first = made.measured("a", found(), None)
    made.known["kv_cache_tokens"] = 4096
    assert (first["kv_cache_tokens"], made.measured("b", found(), None)["kv_cache_tokens"]) == (None, 4096)


def test_a_figure_without_a_column_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"no such column: .*bogus"):
        ledger().measured("a", found(figures={"bogus": 1}), None)


def test_each_row_has_the_price_of_its_own_config() -> None:
    priced = change(CONFIG, results__price_node_hour=36.0)
    made = RowLedger("s", {"a": CONFIG, "b": priced})
    made.known["nodes"] = 1
    rows = [made.measured(point, found(), None) for point in ("a", "b")]
    assert [row["price_per_m_output_tok"] for row in rows] == [None, pytest.approx(100.0)]


def test_a_point_that_is_measured_twice_has_its_last_row() -> None:
    made = ledger("a")
    made.measured("a", found("too slow"), None)
    made.measured("a", found(), None)
    assert reasons(made.finish(End())) == {"a": None}
    assert made.valid


# Services that do not begin, or are not measured


def test_a_service_that_is_not_started_has_a_row_for_every_point() -> None:
    made = ledger()
    rows = made.give_up("rank 1 is lost")
    assert reasons(rows) == dict.fromkeys(POINTS, f"{NOT_RUN}rank 1 is lost")
    assert not any(row["valid"] for row in rows)
    assert not any(is_finished(row, retry_failed=False) for row in rows), "a resume runs them"
    assert (made.valid, made.left, made.to_retry) == (False, (), ())


def test_a_service_that_is_not_begun_is_left_as_a_whole_and_is_not_invalid() -> None:
    made = ledger()
    assert (made.valid, made.left, made.to_retry) == (True, POINTS, ())


def test_a_service_for_hand_tests_has_rows_without_figures_and_has_done_its_work() -> None:
    made = ledger()
    rows = made.served(61.4)
    assert reasons(rows) == dict.fromkeys(POINTS, "served for hand tests for 61 s, not measured")
    assert not any(row["valid"] for row in rows)
    assert (made.valid, made.left) == (True, ())
    assert names(made.finish(End(teardown_s=2.0))) == list(POINTS)
    assert made.valid


# The end of a service


def test_the_end_adds_the_time_of_the_stop_to_every_row() -> None:
    made = ledger("a", "b")
    made.measured("a", found(), None)
    made.measured("b", found("too slow"), None)
    rows = made.finish(End(teardown_s=4.2))
    assert [(row["point"], row["valid"], row["teardown_s"]) for row in rows] == [("a", True, 4.2), ("b", False, 4.2)]


@pytest.mark.parametrize(
    ("begun", "outside", "failure", "reason", "again"),
    [
        (0, False, CAUSE, CAUSE, False),  # it would fail again: the result of all its points
        (1, False, CAUSE, NOT_RUN + CAUSE, True),  # the others may well succeed
        (0, True, SIGTERM, NOT_RUN + SIGTERM, True),  # says nothing of any point
        (1, True, SIGTERM, NOT_RUN + SIGTERM, True),
        (0, False, None, NOT_RUN + "its service ended before it", True),
        (2, False, None, NOT_RUN + "its service ended before it", True),
    ],
    ids=["failed at its start", "failed in a point", "told at its start", "told in a point", "ended", "ended late"],
)
def test_points_that_were_not_begun_say_why(
    begun: int, outside: bool, failure: str | None, reason: str, again: bool
) -> None:
    made = ledger()
    for point in POINTS[:begun]:
        made.measured(point, found(), None)
    made.from_outside = outside
    rows = made.finish(End(failure, teardown_s=1.0))
    assert names(rows) == list(POINTS), "in the order of measuring"
    assert reasons(rows[begun:]) == dict.fromkeys(POINTS[begun:], reason)
    assert all(row["valid"] for row in rows[:begun])
    assert all(row["teardown_s"] == 1.0 for row in rows)
    assert [is_finished(row, retry_failed=False) for row in rows[begun:]] == [not again] * (3 - begun)
    assert made.left == ()


@pytest.mark.parametrize(
    ("end", "outside"),
    [
        (End(TIME_IS_UP), True),  # Slurm's early signal
        (End(out_of_time=True), False),  # the next point would not end in time, or others wait
    ],
    ids=["the signal of the limit", "before the next point"],
)
@pytest.mark.parametrize("begun", [0, 1, 2])
def test_points_that_the_time_does_not_suffice_for_get_no_row(end: End, outside: bool, begun: int) -> None:
    made = ledger()
    for point in POINTS[:begun]:
        made.measured(point, found(), None)
    made.from_outside = outside
    assert names(made.finish(end)) == list(POINTS[:begun])
    assert made.left == POINTS[begun:]
    assert made.valid


def test_a_point_that_the_time_limit_cuts_short_is_left_with_the_others() -> None:
    made = ledger()
    made.measured("a", found(), None)
    made.from_outside = True
    made.measured("b", found(truncated=True), TIME_IS_UP)
    rows = made.finish(End(TIME_IS_UP))
    assert reasons(rows) == {"a": None, "b": TIME_IS_UP}
    assert made.left == ("b", "c")
    assert not made.valid


def test_a_failure_beside_the_end_of_the_time_is_a_failure() -> None:
    """The loop was left for the time, and then the engine failed: the other points get rows."""
    made = ledger()
    made.measured("a", found(), None)
    rows = made.finish(End(CAUSE, cause=DEAD, out_of_time=True))
    assert reasons(rows) == {"a": None, "b": NOT_RUN + CAUSE, "c": NOT_RUN + CAUSE}
    assert made.left == ()


@pytest.mark.parametrize("other", [None, "too slow"])
def test_the_diagnosed_cause_replaces_the_first_words_and_no_other_reason(other: str | None) -> None:
    made = ledger()
    made.measured("a", found(other), None)
    made.measured("b", found("all requests failed"), DEAD)
    rows = made.finish(End(CAUSE, cause=DEAD))
    assert reasons(rows) == {"a": other, "b": CAUSE, "c": NOT_RUN + CAUSE}
    assert rows[0]["valid"] is (other is None)


def test_without_a_diagnosis_rows_keep_what_they_say() -> None:
    made = ledger("a", "b")
    made.measured("a", found(), None)
    made.from_outside = True
    made.measured("b", found(), SIGTERM)
    assert reasons(made.finish(End(SIGTERM))) == {"a": None, "b": SIGTERM}


def test_the_figures_of_a_row_outlive_the_end() -> None:
    made = ledger("a")
    before = made.measured("a", found(figures={"ttft_ms_p99": 7.0}), None)
    [after] = made.finish(End(CAUSE, cause=DEAD, teardown_s=1.5))
    assert after == before | {"teardown_s": 1.5}


# Once more


@pytest.mark.parametrize(
    ("passing", "failure", "again"), [(True, CAUSE, ("b", "c")), (False, CAUSE, ()), (True, None, ())]
)
def test_points_without_a_valid_row_are_retried_where_the_failure_may_pass(
    passing: bool, failure: str | None, again: tuple[str, ...]
) -> None:
    made = ledger()
    made.measured("a", found(), None)
    made.measured("b", found("all requests failed"), failure)
    made.finish(End(failure, passing=passing))
    assert made.to_retry == again


def test_a_service_that_failed_at_its_start_is_retried_as_a_whole() -> None:
    made = ledger()
    made.finish(End(CAUSE, cause=DEAD, passing=True))
    assert made.to_retry == POINTS


@pytest.mark.parametrize("ending", ["running", "given up", "ended well"])
def test_what_did_not_fail_is_not_retried(ending: str) -> None:
    made = ledger()
    if ending == "given up":
        made.give_up("rank 1 is lost")
    if ending == "ended well":
        made.finish(End())
    assert made.to_retry == ()


# After this rank could not go on


def test_rows_that_are_not_written_are_salvaged_and_the_others_left_alone() -> None:
    made = ledger()
    made.measured("a", found(), None)
    made.measured("b", found(), None)
    rows = made.salvage("disk full", {"a"})
    assert reasons(rows) == {"b": "disk full", "c": f"{NOT_RUN}disk full"}
    assert not any(row["valid"] for row in rows)
    assert rows[0]["output_tok_per_s"] == 100.0, "its figures stay"


def test_a_reason_that_a_row_has_stays_when_it_is_salvaged() -> None:
    made = ledger("a")
    made.measured("a", found("too slow"), None)
    assert reasons(made.salvage("disk full", ())) == {"a": "too slow"}


@pytest.mark.parametrize(("outside", "reason"), [(False, "disk full"), (True, f"{NOT_RUN}disk full")])
def test_a_service_that_never_began_is_salvaged_with_the_reason_alone(outside: bool, reason: str) -> None:
    made = ledger()
    made.from_outside = outside
    assert reasons(made.salvage("disk full", ())) == dict.fromkeys(POINTS, reason)


def test_the_end_that_could_not_be_written_is_what_is_salvaged() -> None:
    made = ledger()
    made.measured("a", found(), None)
    made.finish(End(CAUSE, cause=DEAD))
    assert reasons(made.salvage("disk full", {"a"})) == dict.fromkeys(("b", "c"), NOT_RUN + CAUSE)


@pytest.mark.parametrize("written", [(), ("a",), ("b", "c"), POINTS])
def test_salvaging_gives_each_missing_row_once_in_order(written: tuple[str, ...]) -> None:
    made = ledger()
    assert names(made.salvage("disk full", written)) == [point for point in POINTS if point not in written]
    assert not made.valid or written == POINTS


# What holds of every life


@pytest.mark.parametrize("failure", [None, CAUSE, TIME_IS_UP])
@pytest.mark.parametrize("out_of_time", [False, True])
@pytest.mark.parametrize("begun", [0, 1, 3])
def test_every_point_has_a_row_or_is_left_and_no_row_is_given_twice(
    failure: str | None, out_of_time: bool, begun: int
) -> None:
    made = ledger()
    for point in POINTS[:begun]:
        made.measured(point, found(), None)
    rows = made.finish(End(failure, out_of_time=out_of_time))
    assert sorted([*names(rows), *made.left]) == sorted(POINTS)
    assert [row["point"] for row in rows if row["valid"]] == list(POINTS[:begun])
