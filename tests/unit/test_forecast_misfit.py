"""Where the model does not hold, the rows beside a point tell of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.forecast_learns import Cell, held, hidden, measured
from jobs.forecast.anchors import anchors
from jobs.forecast.learn import Learnt, Observation, learn
from jobs.forecast.misfit import SHARES, Misfit, likeness

SIZES = anchors()[0].sizes


def subject(layout="dp2_tp8", length=2048, load=4):
    return Cell(layout, length, load).subject(SIZES)


def another_law(rows: list[Observation]) -> list[Observation]:
    """A machine of nobody's: from eight at once and from 8K on it does less than any constants say."""

    def law(one: Observation) -> float:
        load = one.subject.load
        return 1 + 0.3 * math.sin(math.log2(load.concurrency)) + 0.25 * math.cos(math.log2(load.prompt))

    return [
        replace(
            one,
            subject=replace(one.subject, anchored=False),
            measured={
                name: value * law(one) ** (-1 if name == "output_per_s" else 1) for name, value in one.measured.items()
            },
        )
        for one in rows
    ]


def off(learnt: Learnt, rows: list[Observation]) -> float:
    """How far predictions are off in the middle, as a logarithm."""
    said = [(learnt.predict(one.subject), one.measured) for one in rows]
    return float(
        np.median([abs(math.log(one[name].value / value)) for one, row in said for name, value in row.items()])
    )


def test_alike_are_the_same_point_then_its_neighbours_then_other_layouts() -> None:
    here = subject()
    others = [here, subject(load=8), subject(load=32), subject(length=16384), subject("dp4_tp4")]
    found = likeness([here], others)[0]
    assert found[0] == 1 and found[1] > 0.75 > found[2] and found[3] < found[1] and found[4] == pytest.approx(0.5)


@pytest.mark.parametrize("share", SHARES)
def test_a_row_says_of_its_own_point_what_is_not_its_own_noise(share) -> None:
    alike = likeness([subject()], [subject()])
    weights, left = Misfit.of(alike, np.array([0]), share).weights(alike[:, 0])
    assert weights == pytest.approx([share])
    assert left == pytest.approx(1 - share**2)


def test_white_values_are_independent() -> None:
    points = [subject(load=load) for load in (1, 2, 4, 8)]
    alike = likeness(points, points)
    made = Misfit.of(alike, np.array([0, 1, 3]), 0.8)
    of_them = 0.8 * alike[np.ix_([0, 1, 3], [0, 1, 3])] + 0.2 * np.eye(3)
    assert made.white(made.white(of_them).T) == pytest.approx(np.eye(3))


def test_a_machine_of_another_law_is_told_by_the_rows_beside() -> None:
    cells = [Cell("dp2_tp8", length, load) for length in (2048, 4096, 8192, 16384) for load in (1, 2, 4, 8, 16)]
    rows = another_law(list(measured(cells, hidden(3), SIZES, 0)))
    learnt, asked = learn(rows[::2]), rows[1::2]
    assert all(one.misfit.share > 0 for one in learnt.beside), "what is left over is alike for neighbours"
    assert held(learnt, asked).inside >= 0.85 * held(learnt, asked).of
    assert off(learnt, asked) < 0.7 * off(replace(learnt, beside=()), asked)


def test_a_machine_a_thousand_times_slower_than_the_anchors_is_found() -> None:
    cells = [Cell("dp2_tp8", length, load) for length in (2048, 4096, 8192, 16384) for load in (1, 2, 4, 8)]
    constants = replace(hidden(3), tflops=hidden(3).tflops / 1000, attention_tflops=hidden(3).attention_tflops / 300)
    rows = [replace(one, subject=replace(one.subject, anchored=False)) for one in measured(cells, constants, SIZES, 0)]
    assert off(learn(rows[::2]), rows[1::2]) < 0.05
