"""What rows teach: intervals that hold, what is declined, and the term that explains a row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.forecast_learns import Cell, grid, hidden, measured, played
from jobs.engines.steptime import Constants, StepTime, Work
from jobs.forecast.anchors import anchors, believed, constants_of
from jobs.forecast.figures import Demand, figures
from jobs.forecast.learn import Learnt, Observation, explanation, learn, outside

SIZES = anchors()[0].sizes
SMALL = [one for one in grid() if one.length <= 8192 and one.load <= 8]


def rows(cells, constants, seed=0) -> list[Observation]:
    return list(measured(cells, constants, SIZES, seed))


def slower(constants: Constants, **factors: float) -> Constants:
    return replace(constants, **{name: getattr(constants, name) * factor for name, factor in factors.items()})


def unexpected(learnt: Learnt, seen: list[Observation]) -> tuple[int, ...]:
    return tuple(place for place, one in enumerate(seen) if outside(learnt.predict(one.subject), one.measured))


@pytest.fixture(scope="module")
def learnt():
    return learn(rows(SMALL[::2], hidden(3)))


@pytest.mark.parametrize("cell", [Cell("dp2_tp8", 2048, 8), Cell("dp4_tp4", 8192, 8), Cell("dp1_tp16", 8192, 4)])
def test_the_order_of_steps_is_that_of_the_rehearsal_engine(cell) -> None:
    subject = cell.subject(SIZES)
    step = StepTime(SIZES, hidden(1), subject.layout)
    load = replace(subject.load, output=32)
    shown, made = played(step, load), figures(step, load)
    assert made.tpot_s == pytest.approx(shown["tpot_s"], rel=0.05)
    assert made.output_per_s == pytest.approx(shown["output_per_s"], rel=0.02)
    assert made.ttft_s == pytest.approx(shown["ttft_s"], rel=0.15)


def test_half_of_a_grid_tells_the_other_half(learnt) -> None:
    inside, widths = [], []
    for row in rows(SMALL[1::2], hidden(3)):
        for name, said in learnt.predict(row.subject).items():
            inside.append(said.low <= row.measured[name] <= said.high)
            widths.append((said.high - said.low) / said.value)
    assert sum(inside) / len(inside) >= 0.8, "18 figures are few; benchmarks/forecast_learns.py asks this of many"
    assert sorted(widths)[len(widths) // 2] <= 0.3


def test_what_was_not_seen_has_a_wider_interval_and_past_a_limit_is_declined(learnt) -> None:
    subject = Cell("dp2_tp8", 8192, 8).subject(SIZES)

    def width(one) -> float:
        said = learnt.predict(one)["ttft_s"]
        return said.high / said.low

    long = replace(subject, load=replace(subject.load, prompt=16384))
    other = replace(subject, scope={**subject.scope, "release": "other"})
    assert width(subject) < width(other) < width(replace(other, load=long.load))
    far = learnt.predict(replace(other, load=replace(subject.load, prompt=131072)))["ttft_s"]
    assert far.declined == "measure a point with prompt 131072 first"
    strange = learnt.predict(replace(subject, scope={**subject.scope, "engine": "other"}))["ttft_s"]
    assert strange.declined == "measure a point with engine other first"
    nobody = learn([]).predict(replace(subject, anchored=False))["ttft_s"]
    assert nobody.declined == "measure any point on this site first"
    assert not learn([]).predict(subject)["ttft_s"].declined, "the anchors tell of this machine"
    far = learn([]).predict(replace(subject, load=replace(subject.load, prompt=2**24)))["ttft_s"]
    assert far.declined == "measure a point with prompt 16777216 first", "and of no prompt like that"


@pytest.mark.parametrize(
    ("term", "change"),
    [("communication", {"link_gb_s": 0.15}), ("compute", {"tflops": 0.4}), ("host", {"launch_ms": 3.0})],
)
def test_what_became_slow_is_named(learnt, term, change) -> None:
    cells = [Cell(name, 8192, 4) for name in ("dp1_tp16", "dp2_tp8", "dp4_tp4")]
    assert unexpected(learnt, rows(cells, hidden(3), seed=5)) == ()
    slow = rows(cells, slower(hidden(3), **change), seed=5)
    assert unexpected(learnt, slow)
    assert explanation(learnt, slow) == (term,)


def test_an_open_loop_runs_as_many_as_its_rate_keeps_up_and_says_where_it_does_not() -> None:
    step = StepTime(SIZES, constants_of(believed().mean), anchors()[0].layout)
    load = Demand(128, 2048, 128, 8192, 64, rate=0.5)
    light, heavy = figures(step, load), figures(step, replace(load, rate=100.0))
    assert (light.output_per_s, light.overloaded) == (64.0, False)
    assert light.running < 20 and heavy.overloaded and heavy.tpot_s > light.tpot_s


def test_a_step_between_nodes_pays_the_link() -> None:
    wide, narrow = ({one.reading: one for one in anchors()}[f"layout {name}"] for name in ("dp1_tp16", "dp2_tp8"))
    constants = constants_of(believed().mean)
    work = Work(4096, 0, 4096**2 / 2, 4096)
    parts = [StepTime(one.sizes, constants, one.layout).parts(work).communication for one in (wide, narrow)]
    assert parts[0] > parts[1]
