"""Published figures, the constants that follow from them, and how far the model is from each: its stated error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jobs.core.foreign import from_yaml
from jobs.engines.prediction import Layout
from jobs.engines.steptime import Constants, Sizes, StepTime
from jobs.forecast.figures import Demand, figures
from jobs.forecast.fit import Floats, Posterior, fit

NAMES = tuple(field.name for field in fields(Constants))
"""The constants in their order in a vector of parameters."""

DEVIATION = 0.1
"""Of a published figure around a model of this kind, as a logarithm."""

FIGURES = ("ttft_s", "tpot_s", "output_per_s")


@dataclass(frozen=True)
class Anchor:
    """One published measurement in one reading.

    Attributes:
        known: the source says all that the model needs: it is fitted to.
        reading: what was filled in where it does not.
        full: share of the slots that a fixed number of requests kept busy.
        measured: by name of the figure: geometric mean of what was published.
    """

    id: str
    source: str
    known: bool
    reading: str
    sizes: Sizes
    layout: Layout
    load: Demand
    full: float
    measured: dict[str, float]

    def predicted(self, constants: Constants) -> dict[str, float]:
        """Return the figures that were measured, as the model has them."""
        made = figures(StepTime(self.sizes, constants, self.layout), self.load)
        found = {"ttft_s": made.ttft_s, "tpot_s": made.tpot_s, "output_per_s": made.output_per_s * self.full}
        return {name: found[name] for name in self.measured}


def constants_of(logs: Floats) -> Constants:
    """Return the constants whose logarithms begin a vector."""
    return Constants(*(float(value) for value in np.exp(logs[: len(NAMES)])))


@cache
def _file() -> dict[str, Any]:
    loaded: dict[str, Any] = from_yaml((Path(__file__).parent / "anchors.yaml").read_text(encoding="utf-8"))
    return loaded


def anchors() -> tuple[Anchor, ...]:
    """Return every anchor, one for each of its readings."""
    return tuple(one for row in _file()["rows"] for one in _readings(row))


def _readings(row: dict[str, Any]) -> Iterator[Anchor]:
    for reading in row.get("readings", [{}]):
        load = {**row["load"], **{key: value for key, value in reading.items() if key != "layout"}}
        rounds = row["requests"] / load["concurrency"] if "requests" in row else 1.0
        yield Anchor(
            id=row["id"],
            source=row["source"],
            known="readings" not in row,
            reading=", ".join(f"{key} {value}" for key, value in reading.items()),
            sizes=Sizes(**_file()["models"][row["model"]]),
            layout=Layout(**_file()["layouts"][reading.get("layout", row.get("layout"))]),
            load=Demand(**load),
            full=rounds / math.ceil(rounds),
            measured={key: math.exp(np.mean(np.log(values))) for key, values in row["measured"].items()},
        )


def prior() -> tuple[Floats, Floats]:
    """Return means and standard deviations of the constants' logarithms before any measurement."""
    values = [_file()["prior"][name] for name in NAMES]
    return np.log([value for value, _ in values]), np.array([deviation for _, deviation in values])


def fitted(rows: Sequence[Anchor]) -> Posterior:
    """Return what rows of a known layout say of the constants."""

    def residuals(logs: Floats) -> Floats:
        constants = constants_of(logs)
        return np.array([
            math.log(value / row.measured[name]) / DEVIATION
            for row in rows
            for name, value in row.predicted(constants).items()
        ])  # fmt: skip

    return fit(residuals, *prior())


@cache
def believed() -> Posterior:
    """Return what all anchors of a known layout say of the constants."""
    return fitted([one for one in anchors() if one.known])


@dataclass(frozen=True)
class Error:
    """One figure of one anchor: predicted by all, and by the others alone (None: it is fitted to nowhere)."""

    anchor: Anchor
    figure: str
    measured: float
    predicted: float
    left_out: float | None

    @property
    def relative(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return self.predicted / self.measured - 1


def errors() -> tuple[Error, ...]:
    """Return predicted, measured and error of every anchor and figure: what README and report print."""
    rows = anchors()
    known = [one for one in rows if one.known]
    constants = constants_of(believed().mean)
    found = []
    for row in rows:
        others = constants_of(fitted([one for one in known if one is not row]).mean) if row.known else None
        left = row.predicted(others) if others else {}
        for name, value in row.predicted(constants).items():
            found.append(Error(row, name, row.measured[name], value, left.get(name)))
    return tuple(found)
