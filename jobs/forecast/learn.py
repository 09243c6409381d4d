"""What the rows of finished sweeps say of the constants, and how far a prediction may be off. Pure.

Three levels, each a prior for the next: published figures (`anchors.believed`), the rows of this site, and of those the
rows of one layout, which may lie a little beside the model as a whole (an offset of each figure, as a logarithm, with a
deviation of `LAYOUT`). All of it is one fit (`fit.fit`): constants first, then two offsets a layout. How far a row
scatters around that is learnt too: s² = (n0 s0² + sum of squares) / (n0 + n). A part of that is alike for rows that are
alike, so that a point is foretold from the rows beside it where the model does not hold (`misfit`).

An interval is t(level, n0 + n) x the root of: what is not known of constants and offsets at this point (slopes x
covariance), the scatter, and what a point has that no row had: another layout, release or model, a prompt or a
concurrency beyond all that were seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np

from jobs.core.student import student
from jobs.engines.prediction import Layout
from jobs.engines.steptime import Sizes, StepTime
from jobs.forecast.anchors import FIGURES, NAMES, anchors, believed, constants_of
from jobs.forecast.figures import Demand, figures
from jobs.forecast.fit import Floats, Posterior, fit, near, slopes
from jobs.forecast.misfit import SHARES, Misfit, likeness

LEVEL = 0.9
LAYOUT = 0.1
"""Of a layout around the model."""

SCATTER = {"ttft_s": 0.08, "tpot_s": 0.03, "output_per_s": 0.03}
"""Of a row around the model before there are rows, as a logarithm."""

AGAIN = 0.02
"""Of the same point measured again, at least: another start, whatever rows of one start say of each other."""

FOREIGN = 0.3
"""The same on a machine that is none of the anchors': nobody has held the model against it. With 0.03 only 83 % of what
real vLLM showed on a CPU lay within the stated 90 % intervals, with this 90 % (14 settings that nothing disturbed, half
of them seen)."""

ENOUGH = 24
"""Rows that tell where a fit begins; all of them would take seconds."""

FREE = 4.0
"""Rows that this first guess counts for."""

ANCHORED = 0.25
"""Of a site without rows around the anchors: what these show of each other when one is left out."""

OTHER = {"release": 0.15, "model": 0.3, "engine": math.inf}
"""Of rows that differ in this from all that were seen, around what these say."""

BEYOND = {"prompt": 0.25, "concurrency": 0.15}
"""For each doubling beyond the greatest that was seen, and below the least."""

DECLINES = math.log(2.5)
"""A prediction that may be off by more than this factor is none."""

SEVERAL = 3
"""Of constants of a machine that is none of the anchors': so wide, as a logarithm, is the first belief."""


@dataclass(frozen=True)
class Subject:
    """One point, as the model sees it.

    `scope`: engine, release, model and layout by name: what rows are of one kind. `anchored`: published figures tell of
    its machine.
    """

    scope: Mapping[str, str]
    sizes: Sizes
    layout: Layout
    load: Demand
    npus_per_node: int = 8
    anchored: bool = True

    def predicted(self, logs: Floats) -> Floats:
        """Return the logarithms of all figures for a vector that begins with the constants'."""
        step = StepTime(self.sizes, constants_of(logs), self.layout, npus_per_node=self.npus_per_node)
        made = figures(step, self.load)
        values = [getattr(made, name) for name in FIGURES]
        return np.log(np.maximum(values, 1e-9))


@dataclass(frozen=True)
class Observation:
    """One row: what it was, its figures by name (s, tokens a second), and what these scatter by, as a logarithm."""

    subject: Subject
    measured: Mapping[str, float]
    scatter: float = 0.0


@dataclass(frozen=True)
class Predicted:
    """One figure with its interval; `declined`: why it is worth nothing, and what would have to be measured."""

    value: float
    low: float
    high: float
    declined: str = ""


@dataclass(frozen=True)
class Beside:
    """Of one figure: how the rows that have it lie beside the model, and the slopes of that by what was fitted."""

    misfit: Misfit
    off: Floats
    slopes: Floats


@dataclass(frozen=True)
class Learnt:
    """What is believed after the rows.

    Attributes:
        posterior: constants, then the offsets of each layout in `layouts`: of the time to first token, of the rest.
        scatter: of a row, by figure.
        free: degrees of freedom of it.
        seen: the rows.
        beside: how these lie beside the model, by figure.
    """

    posterior: Posterior
    layouts: tuple[str, ...]
    scatter: Mapping[str, float]
    free: float
    seen: tuple[Observation, ...] = field(repr=False)
    beside: tuple[Beside, ...] = field(default=(), repr=False)

    def of_machine(self, subjects: Iterable[Subject]) -> Posterior:
        """Return what is believed of the constants behind these points: little where no anchor and no row tells."""
        if self.seen or any(one.anchored for one in subjects):
            return self.posterior
        return Posterior(self.posterior.mean, np.diag(np.full(len(self.posterior.mean), float(SEVERAL) ** 2)))

    def predict(self, subject: Subject) -> dict[str, Predicted]:
        """Return every figure of a point that it will show."""
        mean, slope, left = self.expected(subject)
        known = np.einsum("ij,jk,ik->i", slope, self.posterior.covariance, slope)
        strange = self._strange(subject)
        more = sum(one**2 for one in strange.values())
        wide = student((1 + LEVEL) / 2, self.free)
        found = {}
        for k, name in enumerate(FIGURES):
            if name == "tpot_s" and subject.load.output < 2:
                continue
            of_row = max(left[k] * self.scatter[name] ** 2, AGAIN**2)
            half = wide * math.sqrt(known[k] + of_row + more)
            value = math.exp(mean[k])
            declined = self._declined(strange) if half > DECLINES else ""
            low, high = (value * math.exp(-half), value * math.exp(half)) if math.isfinite(half) else (0.0, math.inf)
            found[name] = Predicted(value, low, high, declined)
        return found

    def expected(self, subject: Subject) -> tuple[Floats, Floats, Floats]:
        """Return the logarithms of a point's figures, their slopes, and the share of the scatter that rows leave."""
        place = self.place(subject)
        mean = _figures(subject, self.posterior.mean, place)
        slope = slopes(lambda logs: _figures(subject, logs, place), self.posterior.mean)
        left = np.ones(len(FIGURES))
        near = likeness([one.subject for one in self.seen], [subject])[:, 0] if self.beside else np.empty(0)
        for k, one in enumerate(self.beside):
            weights, left[k] = one.misfit.weights(near)
            mean[k] += weights @ one.off
            slope[k] += weights @ one.slopes
        return mean, slope, left

    def place(self, subject: Subject) -> int | None:
        """Return the place of a subject's layout among the offsets; None: no row was of it."""
        layout = subject.scope["layout"]
        return self.layouts.index(layout) if layout in self.layouts else None

    def _strange(self, subject: Subject) -> dict[str, float]:
        """Return what a point has that no row had, and how much that may matter, as a deviation of the logarithm."""
        if not self.seen:
            found = {"any point on this site": ANCHORED if subject.anchored else math.inf}
        else:
            found = {
                f"a point with {key} {subject.scope[key]}": deviation
                for key, deviation in OTHER.items()
                if all(one.subject.scope[key] != subject.scope[key] for one in self.seen)
            }
            if self.place(subject) is None:
                found[f"a point with layout {subject.scope['layout']}"] = LAYOUT
        loads = [one.subject.load for one in self.seen] or [Demand(1, 1, 1, 1, 1), *(one.load for one in anchors())]
        for name, deviation in BEYOND.items():
            values = [getattr(one, name) for one in loads]
            asked = max(getattr(subject.load, name), 1e-9)
            if beyond := max(0.0, math.log2(asked / max(values)), math.log2(min(values) / asked)):
                found[f"a point with {name} {asked:.10g}"] = deviation * beyond
        return found

    @staticmethod
    def _declined(strange: Mapping[str, float]) -> str:
        if not strange:
            return "the rows so far scatter too much; measure more of them"
        return f"measure {max(strange, key=lambda name: strange[name])} first"


def learn(rows: Iterable[Observation]) -> Learnt:
    """Return what is believed after rows; without any it is what the anchors say."""
    seen = tuple(rows)
    layouts = tuple(dict.fromkeys(one.subject.scope["layout"] for one in seen))
    foreign = bool(seen) and not any(one.subject.anchored for one in seen)
    first = dict.fromkeys(SCATTER, FOREIGN) if foreign else SCATTER
    scatter, free = dict(first), FREE
    mean, deviation = _prior(foreign=foreign)
    start = np.concatenate([mean, np.zeros(2 * len(layouts))])
    spread = np.concatenate([deviation, np.full(2 * len(layouts), LAYOUT)])
    found = Posterior(start, np.diag(spread**2))
    if not seen:
        return Learnt(found, layouts, scatter, free, seen)
    rows_off, alike = _off(seen, layouts), likeness(*[[one.subject for one in seen]] * 2)
    told = [np.flatnonzero([name in one.measured for one in seen]) for name in FIGURES]
    choices = [[Misfit.of(alike, which, share) for which in told] for share in SHARES]
    misfits, begin = choices[0], start
    if foreign:
        few = _off(seen[:: math.ceil(len(seen) / ENOUGH)], layouts)
        begin = near(lambda logs: np.nan_to_num(few(logs)) / FOREIGN, start, spread, len(NAMES))
    for _ in range(3):
        found = fit(partial(_residuals, rows_off, misfits, scatter), start, spread, begin)
        begin = found.mean
        off = [column[which] for column, which in zip(rows_off(found.mean).T, told, strict=True)]
        misfits = max(choices, key=partial(_likely, off, list(first.values())))
        for name, values, misfit in zip(FIGURES, off, misfits, strict=True):
            if values.size:
                squares = FREE * first[name] ** 2 + float(np.sum(np.square(misfit.white(values))))
                scatter[name] = math.sqrt(squares / (FREE + max(1.0, values.size - len(NAMES) / 3)))
    free = FREE + max(0.0, len(seen) - len(NAMES) / 3)
    slope = slopes(rows_off, found.mean)
    beside = tuple(Beside(misfits[k], off[k], slope[which, :, k]) for k, which in enumerate(told))
    return Learnt(found, layouts, scatter, free, seen, beside)


def _likely(off: Sequence[Floats], first: Sequence[float], misfits: Sequence[Misfit]) -> float:
    """Return how likely it is that rows lie beside the model as they do, all figures together (a logarithm)."""
    return math.fsum(one.likely(o, f, FREE) for one, o, f in zip(misfits, off, first, strict=True))


def _prior(*, foreign: bool) -> tuple[Floats, Floats]:
    """Return what is believed of the constants before the rows: what the anchors say of their machine, else little."""
    posterior = believed()
    deviation = np.sqrt(np.diag(posterior.covariance))
    if foreign:
        return posterior.mean, np.full(len(NAMES), float(SEVERAL))
    return posterior.mean, deviation


def _figures(subject: Subject, logs: Floats, place: int | None) -> Floats:
    made = subject.predicted(logs)
    if place is None:
        return made
    first, rest = logs[len(NAMES) + 2 * place : len(NAMES) + 2 * place + 2]
    return np.asarray(made + np.array([first, rest, -rest]), dtype=np.float64)


def _off(seen: Sequence[Observation], layouts: Sequence[str]) -> Callable[[Floats], Floats]:
    """Return what tells how far measured figures lie above the model's, as logarithms; [row, figure], NaN: no figure.

    A fit asks for the same constants with other offsets of layouts, and rows of one point are alike to the model: each
    is worked out once.
    """
    points = {(s.sizes, s.layout, s.load, s.npus_per_node): s for s in (one.subject for one in seen)}
    numbers = {point: number for number, point in enumerate(points)}
    rows = [numbers[s.sizes, s.layout, s.load, s.npus_per_node] for s in (one.subject for one in seen)]
    places = [layouts.index(one.subject.scope["layout"]) for one in seen]
    measured = np.log([[one.measured.get(name, math.nan) for name in FIGURES] for one in seen])

    @lru_cache(maxsize=64)
    def made(constants: bytes) -> Floats:
        logs = np.frombuffer(constants)
        return np.array([one.predicted(logs) for one in points.values()])

    def off(logs: Floats) -> Floats:
        beside = logs[len(NAMES) :].reshape(-1, 2)[places]
        whole = made(logs[: len(NAMES)].tobytes())[rows] + np.column_stack([beside, -beside[:, 1]])
        return np.asarray(measured - whole, dtype=np.float64)

    return off


def _residuals(
    off: Callable[[Floats], Floats], misfits: Sequence[Misfit], scatter: Mapping[str, float], logs: Floats
) -> Floats:
    """Return what all rows are off by, each in units of its deviation and independent of the others."""
    found = off(logs)
    return np.concatenate([
        one.white(found[one.rows, k]) / scatter[name]
        for k, (name, one) in enumerate(zip(FIGURES, misfits, strict=True))
    ])  # fmt: skip


TERMS = {
    "host": ("host_ms", "launch_ms", "prompt_ms", "sequence_us"),
    "compute": ("tflops", "attention_tflops"),
    "memory": ("gb_s",),
    "communication": ("inside_gb_s", "link_gb_s", "link_us"),
}
"""What can be wrong with a machine, and the constants that it changes."""

CLOSE = 6.0
"""Difference of squares, in units of the scatter's: of likelihoods, a factor of 20."""


def outside(said: Mapping[str, Predicted], measured: Mapping[str, float]) -> tuple[str, ...]:
    """Return the figures that lie outside of what was predicted for them."""
    told = [name for name, one in said.items() if name in measured and not one.declined]
    return tuple(name for name in told if not said[name].low <= measured[name] <= said[name].high)


def explanation(learnt: Learnt, rows: Sequence[Observation]) -> tuple[str, ...]:
    """Return the terms, a change of which alone explains why rows are not as predicted: keys of `TERMS`, best first.

    Each term's constants are refitted with all others held; named is the one that leaves the least squares, and those
    that leave hardly more (`CLOSE`): rows of one layout do not tell a slow link from slow arithmetic where both take
    their time for each prompt token.
    """

    base = learnt.posterior.mean
    above = [learnt.expected(one.subject)[0] - _figures(one.subject, base, learnt.place(one.subject)) for one in rows]

    def left(term: str) -> float:
        free = np.array([NAMES.index(name) for name in TERMS[term]])

        def residuals(change: Floats) -> Floats:
            logs = base.copy()
            logs[free] += change
            off = []
            for one, more in zip(rows, above, strict=True):
                made = _figures(one.subject, logs, learnt.place(one.subject)) + more
                off += [
                    (math.log(one.measured[name]) - made[k]) / learnt.scatter[name]
                    for k, name in enumerate(FIGURES)
                    if name in one.measured
                ]
            return np.array(off)

        found = fit(residuals, np.zeros(len(free)), np.full(len(free), 1.0))
        return float(np.sum(residuals(found.mean) ** 2) + np.sum(found.mean**2))

    squares = {term: left(term) for term in TERMS}
    least = min(squares.values())
    return tuple(term for term in sorted(squares, key=lambda one: squares[one]) if squares[term] - least < CLOSE)
