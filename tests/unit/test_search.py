"""The search for the highest load: it finds the edge, confirms it, and ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.core.config import Bench, usual_windows
from jobs.core.load import Slo
from jobs.measure.bound import WINDOWS
from jobs.measure.search import Search, begin, columns, most_probes, saturated, with_load


def found(search: Search, edge: float, flaky: set[float] = frozenset()) -> list[float]:  # type: ignore[assignment]
    """Run a search on a service that keeps the objective up to `edge`; a flaky load fails at its second window."""
    tried: list[float] = []
    while (load := search.next()) is not None:
        tried.append(load)
        assert len(tried) < 200
        search.tell(load, keeps=load <= edge and not (load in flaky and tried.count(load) == 2))
    return tried


@given(first=st.integers(1, 64), edge=st.integers(1, 900), precision=st.sampled_from([0.01, 0.05, 0.2]))
def test_concurrency_is_found_to_the_asked_precision_and_confirmed(first: int, edge: int, precision: float) -> None:
    search = Search(first, 1024, precision, whole=True)
    tried = found(search, edge)
    assert search.kept is not None and search.kept <= edge
    assert search.confirmed and tried.count(search.kept) == 2
    assert tried[-1] == (search.kept if search.surely is None else search.surely), "both sides of the edge"
    assert edge - search.kept <= max(0, precision * search.kept)
    assert all(load == round(load) >= 1 for load in tried)
    assert len(tried) <= most_probes(first, 1024, precision) + 10


@given(first=st.floats(0.1, 50), edge=st.floats(0.2, 400), most=st.floats(60, 500))
def test_a_rate_is_found_too(first: float, edge: float, most: float) -> None:
    search = Search(first, most, 0.05, whole=False)
    found(search, edge)
    assert search.kept is not None and search.kept <= edge
    assert search.kept >= min(edge, most) / 1.06


def test_the_search_ends_at_its_limit() -> None:
    search = Search(4, 32, 0.05, whole=True)
    assert found(search, 1e9) == [4, 8, 16, 32, 32]
    assert (search.kept, search.confirmed) == (32, True)


def test_no_load_at_all_keeps_the_objective() -> None:
    search = Search(4, 32, 0.05, whole=True)
    assert found(search, 0) == [4, 2, 1, 1]
    assert search.kept is None and not search.confirmed


def test_a_growing_queue_ends_the_doubling() -> None:
    search = Search(4, 1024, 0.05, whole=True)
    search.tell(4, keeps=True)
    search.tell(8, keeps=True, saturated=True)
    assert search.next() == 8
    search.tell(8, keeps=True, saturated=True)
    assert search.next() is None and search.confirmed


def test_a_load_that_fails_its_confirmation_sends_the_search_below_it() -> None:
    search = Search(8, 1024, 0.05, whole=True)
    tried = found(search, 20, flaky={20})
    assert tried.count(20) == 2
    assert search.kept is not None and 16 <= search.kept < 20 and search.confirmed


@pytest.mark.parametrize("load", [4, 8, 16, 20])
def test_one_disturbed_window_is_not_the_edge(load: int) -> None:
    """The service keeps the objective up to 50; at one load a pause broke it, once."""
    search = Search(4, 64, 0.05, whole=True)
    seen: list[float] = []
    while (at := search.next()) is not None:
        seen.append(at)
        search.tell(at, keeps=at <= 50 and not (at == load and seen.count(at) == 1))
    assert search.kept == 50 and search.confirmed and search.surely in (51, 52)
    assert len(seen) < 25


def test_where_a_higher_load_has_too_few_requests_the_one_below_is_found() -> None:
    """Throughput falls with the load: 8 has too few answers to tell, and is not tried for ever."""
    search = Search(4, 64, 0.05, whole=True)
    while (load := search.next()) is not None:
        search.tell(load, keeps=True if load < 7 else None, few=load >= 7)
    assert (search.kept, search.confirmed, search.surely) == (6, True, None)
    assert len(search.tried) < 8


def test_probes_change_the_load_alone() -> None:
    slo = Slo(ttft_ms=1.0)
    bench = Bench(concurrency=4, search="concurrency", slo=slo)
    assert with_load(bench, 12.0).concurrency == 12
    assert begin(bench) == Search(4, 1024, 0.05, whole=True)
    open_loop = Bench(request_rate=2.5, search="request_rate", search_most=9.5, slo=slo)
    assert with_load(open_loop, 3.5).request_rate == 3.5
    assert begin(open_loop) == Search(2.5, 9.5, 0.05, whole=False, least=299 / WINDOWS / 120)


def test_where_too_few_requests_tell_a_higher_load_is_tried() -> None:
    search = Search(4, 64, 0.05, whole=True)
    while (load := search.next()) is not None:
        search.tell(load, keeps=None if load < 16 else load < 30, few=load < 16)
    assert [load for load, _ in search.tried][:4] == [4, 8, 16, 32]
    assert (search.kept, search.confirmed) == (29, True)
    alone = Search(4, 8, 0.05, whole=True)
    while (load := alone.next()) is not None:
        alone.tell(load, keeps=None, few=True)
    assert columns(alone) == {"found_concurrency": None, "probes": 2}


def test_a_rate_at_which_no_windows_tell_is_not_tried_and_what_is_not_known_is_not_0() -> None:
    search = Search(2.0, 9.0, 0.05, whole=False, least=0.5)
    while (load := search.next()) is not None:
        search.tell(load, keeps=None)
    assert [load for load, _ in search.tried] == [2.0, 1.0, 0.5]
    assert columns(search) == {"found_request_rate": None, "probes": 3}
    search.tell(0.5, keeps=False)
    assert columns(search)["found_request_rate"] == 0


@pytest.mark.parametrize(
    ("bench", "windows"),
    [(Bench(), 3), (Bench(repeats=1), 1), (Bench(client="ais_bench"), 1), (Bench(search="concurrency"), 9)],
)
def test_the_plan_is_told_how_many_windows_to_expect(bench: Bench, windows: int) -> None:
    assert usual_windows(bench) == windows


def test_a_closed_loop_is_saturated_when_more_requests_only_wait() -> None:
    bench = Bench(concurrency=20)
    before = [{"output_tok_per_s": 100.0}, {"output_tok_per_s": 60.0}]
    assert saturated(bench, {"waiting_mean": 5.0, "output_tok_per_s": 104.0}, before)
    assert not saturated(bench, {"waiting_mean": 5.0, "output_tok_per_s": 110.0}, before)
    assert not saturated(bench, {"waiting_mean": 1.0, "output_tok_per_s": 104.0}, before)
    assert not saturated(bench, {"waiting_mean": None, "output_tok_per_s": 100.0}, [])
    assert not saturated(Bench(request_rate=1.0), {"waiting_mean": 5.0, "output_tok_per_s": 1.0}, before)
