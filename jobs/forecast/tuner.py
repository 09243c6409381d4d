"""Which setting to start next, and when to stop: a search that counts node-hours. Pure: a function of rows and budget.

**Surrogate.** The logarithms of all figures of all candidates are jointly normal: their mean is the forecast's, their
covariance what is not known of its constants (slopes x covariance x slopes), an offset of each layout, and what no
constant explains, which is alike for candidates that are alike (squared exponential in the keys). Rows condition
it, with noise of a start and of a window (Rasmussen, Williams 2006, "Gaussian Processes for Machine Learning", 2.2).

**Choice.** The candidate with the greatest expected gain over the best so far, times the probability that it keeps its
limits (constrained expected improvement: Gardner et al. 2014), for each node-hour: a service that must be loaded costs
its load. A service gets one window first; the others only if it may still be the best (`hopeless`). When no candidate
can be expected to gain `WORTH` of the best, the two that lead are started anew until `STARTS` starts each.

Nothing is drawn by chance: the same rows lead to the same decision, whenever they are read again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from jobs.forecast.anchors import FIGURES, NAMES
from jobs.forecast.fit import Floats, Posterior, slopes
from jobs.forecast.learn import LAYOUT, Subject

WORTH = 0.003
"""Expected gain, as a share of the best, below which another setting is not worth its start."""

HOPELESS = 0.02
"""Probability of being the best below which a service gets no further window."""

STARTS = 2
"""Starts of each of the two that lead before the answer is given."""

ALIKE = 0.08
"""Of what no constant explains, as a logarithm."""

NOISE = {"start": 0.015, "window": 0.015}
"""Of a start and of a window before any spread is known, as logarithms."""

FREE = 4.0
"""Degrees of freedom that this first guess counts for beside what the rows of the search show."""

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Candidate:
    """One setting of the space.

    Attributes:
        name: of the setting; `keys`: its place in the space, each key scaled to about 0 to 1.
        subject: as the model of time sees it.
        load_hours, window_hours: node-hours of a start, and of one window.
        refused: why it is never started: a rule, or memory; empty: it may be.
        service: what is started for it; candidates that differ only in their load share one. Empty: it has its own.
    """

    name: str
    keys: tuple[float, ...]
    subject: Subject
    load_hours: float
    window_hours: float
    refused: str = ""
    service: str = ""


@dataclass(frozen=True)
class Shown:
    """What one window, or several of one start, showed of a candidate.

    Attributes:
        start: which of its starts.
        figures: s, tokens/s; empty: it failed.
        windows: how many; `hours`: node-hours that they and the start really took; None: what was predicted.
        scatter: of its windows, as a logarithm; None: it does not tell.
        shared: another load was measured on this start before, with which it is counted.
        spoilt: without figures since the measurement cannot be believed, which tells nothing of the candidate.
        broke: its requests broke a limit, whatever its figures are.
    """

    candidate: int
    start: int
    figures: dict[str, float]
    windows: int = 1
    hours: float | None = None
    scatter: float | None = None
    shared: bool = False
    spoilt: bool = False
    broke: bool = False


@dataclass(frozen=True)
class Goal:
    """What is to be as high as possible (`output_per_s`), or as low (`ttft_s`, `tpot_s`), under limits of figures."""

    figure: str = "output_per_s"
    limits: tuple[tuple[str, float], ...] = ()

    @property
    def sign(self) -> float:
        """1 where more is better."""
        return 1.0 if self.figure == "output_per_s" else -1.0


@dataclass(frozen=True)
class Step:
    """What to do next: a window of a candidate in a new start of it, or in the one that runs; or to stop.

    Attributes:
        do: start, window, or stop.
        why: in words: what was expected of it, or why the search ends.
    """

    do: Literal["start", "window", "stop"]
    candidate: int
    why: str


@dataclass(frozen=True)
class Belief:
    """Means and covariance of the goal's logarithm (higher is better) and the probability of keeping the limits."""

    mean: Floats
    covariance: Floats
    keeps: Floats

    def apart(self, one: int, two: int) -> float:
        """Return the variance of the difference of two candidates."""
        found = self.covariance[one, one] + self.covariance[two, two] - 2 * self.covariance[one, two]
        return max(float(found), 0.0)

    def ranked(self, rows: Sequence[Shown]) -> list[int]:
        """Return the candidates that rows measured and that most likely keep their limits, the best first."""
        measured = {one.candidate for one in rows if one.figures and self.keeps[one.candidate] >= 0.5}
        return sorted(measured, key=lambda place: -self.mean[place])


class Space:
    """Candidates with what the forecast knows of them beforehand: worked out once."""

    def __init__(self, candidates: Sequence[Candidate], known: Posterior, goal: Goal) -> None:
        self.candidates, self.goal = tuple(candidates), goal
        at, spread = known.mean[: len(NAMES)], known.covariance[: len(NAMES), : len(NAMES)]
        mean = np.stack([one.subject.predicted(at) for one in candidates])
        slope = np.stack([slopes(one.subject.predicted, at) for one in candidates])
        keys = np.array([one.keys for one in candidates])
        distance = ((keys[:, None, :] - keys[None, :, :]) ** 2).sum(axis=2)
        layouts = np.array([one.subject.scope["layout"] for one in candidates])
        beside = LAYOUT**2 * (layouts[:, None] == layouts[None, :]) + ALIKE**2 * np.exp(-distance / 2 / 0.5**2)
        self._means = {name: mean[:, k] for k, name in enumerate(FIGURES)}
        self._covariances = {
            name: slope[:, k, :] @ spread @ slope[:, k, :].T + beside for k, name in enumerate(FIGURES)
        }

    def belief(self, rows: Sequence[Shown]) -> Belief:
        """Return what is believed of every candidate after rows."""
        mean, covariance = self._after(self.goal.figure, rows)
        keeps = np.ones(len(self.candidates))
        for name, limit in self.goal.limits:
            middle, spread = self._after(name, rows)
            deviation = np.sqrt(np.maximum(np.diag(spread), 1e-12))
            keeps *= [_NORMAL.cdf((math.log(limit) - m) / s) for m, s in zip(middle, deviation, strict=True)]
        failed = {row.candidate for row in rows if row.broke or not (row.figures or row.spoilt)}
        barred = [bool(one.refused) or place in failed for place, one in enumerate(self.candidates)]
        return Belief(self.goal.sign * mean, covariance, np.where(barred, 0.0, keeps))

    def figures(self, rows: Sequence[Shown]) -> dict[str, Floats]:
        """Return the middle of what is believed of every figure of every candidate (s, tokens/s)."""
        return {name: np.exp(self._after(name, rows)[0]) for name in FIGURES}

    def _after(self, name: str, rows: Sequence[Shown]) -> tuple[Floats, Floats]:
        """Condition the logarithms of one figure by rows: first all windows of a start together, then the starts."""
        mean, covariance = self._means[name], self._covariances[name]
        starts: dict[tuple[int, int], list[float]] = {}
        for row in rows:
            if name in row.figures:
                starts.setdefault((row.candidate, row.start), []).extend([math.log(row.figures[name])] * row.windows)
        if not starts:
            return mean, covariance
        places = np.array([candidate for candidate, _ in starts])
        seen = np.array([float(np.mean(values)) for values in starts.values()])
        windows = _window_noise(rows)
        of_start = _start_noise(starts, windows)
        noise = [of_start + windows[start] / len(values) for start, values in starts.items()]
        between = covariance[:, places]
        gain = np.linalg.solve(covariance[np.ix_(places, places)] + np.diag(noise), between.T).T
        return mean + gain @ (seen - mean[places]), covariance - gain @ between.T


def _window_noise(rows: Sequence[Shown]) -> dict[tuple[int, int], float]:
    """Return the variance of a window of each start: its own scatter, beside that of the middle one of all starts.

    One service that something disturbs scatters ten times as far as the others, and says nothing of them.
    """
    told = [one.scatter**2 for one in rows if one.scatter is not None]
    usual = max([NOISE["window"] ** 2, *([float(np.median(told))] if told else [])])
    squares: dict[tuple[int, int], float] = {}
    free: dict[tuple[int, int], float] = {}
    for one in rows:
        start, own = (one.candidate, one.start), one.windows - 1 if one.scatter is not None else 0
        squares[start] = squares.get(start, FREE * usual) + own * (one.scatter or 0.0) ** 2
        free[start] = free.get(start, FREE) + own
    return {start: squares[start] / free[start] for start in squares}


def _start_noise(starts: Mapping[tuple[int, int], Sequence[float]], windows: Mapping[tuple[int, int], float]) -> float:
    """Return the variance of a start: the first guess, and what settings that were started more than once show."""
    squares, free = FREE * NOISE["start"] ** 2, FREE
    for candidate in {candidate for candidate, _ in starts}:
        own = {start: values for start, values in starts.items() if start[0] == candidate}
        if len(own) > 1:
            means = [np.mean(values) for values in own.values()]
            of_windows = np.mean([windows[start] / len(values) for start, values in own.items()])
            squares += (len(own) - 1) * max(float(np.var(means, ddof=1)) - float(of_windows), 0.0)
            free += len(own) - 1
    return squares / free


def next_step(
    space: Space,
    rows: Sequence[Shown],
    budget_hours: float,
    windows: int = 3,
    *,
    running: bool = True,
    up: str | None = None,
) -> Step:
    """Return what to do next.

    Args:
        rows: of all windows so far, in the order of time: the last one tells which service runs.
        budget_hours: node-hours in all; what rows have cost is taken off.
        windows: of one start.
        running: the last service is still up, and could be measured again.
        up: the service that is up, so that another load of it costs its windows alone.
    """
    left, dearer = budget_hours - spent(space, rows), _dearer(space, rows)
    believed = space.belief(rows)
    last = rows[-1] if running and rows and rows[-1].figures else None
    if last:
        counted = sum(one.windows for one in rows if (one.candidate, one.start) == (last.candidate, last.start))
        costs = dearer * space.candidates[last.candidate].window_hours
        if counted < windows and costs <= left and not hopeless(space, rows, last.candidate):
            return Step("window", last.candidate, f"{counted} of {windows} windows of this start")
    starts = [len({one.start for one in rows if one.candidate == place}) for place in range(len(space.candidates))]
    may = np.array([not one.refused and n < STARTS for one, n in zip(space.candidates, starts, strict=True)])
    # What is up was started once: only the load that nobody measured on it yet is to be had there.
    here = [up is not None and one.service == up and n == 0 for one, n in zip(space.candidates, starts, strict=True)]
    loads = [0.0 if is_up else one.load_hours for one, is_up in zip(space.candidates, here, strict=True)]
    cost = dearer * (np.array(loads) + windows * np.array([one.window_hours for one in space.candidates]))
    wanted = np.where(may, gains(believed, rows), 0.0)
    found = np.where(cost <= left, wanted, 0.0)
    best = int(np.argmax(found / cost))
    if found[best] > WORTH:
        gain = f"expected to gain {found[best]:.1%}" if believed.ranked(rows) else "the most promising so far"
        return Step("start", best, f"{gain} for {cost[best]:.2f} node-hours")
    for place in believed.ranked(rows)[:2]:
        if starts[place] < STARTS and cost[place] <= left:
            return Step("start", place, f"it leads: start {starts[place] + 1} of {STARTS}")
    if found.max() <= 0 and not rows:
        affordable = bool((may & (cost <= left)).any())
        why = "none is expected to keep its limits" if affordable else "each is refused, or costs more than the budget"
        return Step("stop", -1, f"nothing can be started: {why}")
    if wanted.max() > WORTH:
        return Step("stop", -1, f"{max(left, 0.0):.2f} node-hours are left, which no start that is worth it fits")
    return Step("stop", -1, f"no other setting is expected to gain {WORTH:.1%}")


def spent(space: Space, rows: Sequence[Shown]) -> float:
    """Return the node-hours that rows have cost: those that were measured, else those that were predicted."""
    return sum(one.hours for one in rows if one.hours is not None) + _predicted(
        space, [one for one in rows if one.hours is None]
    )


def _predicted(space: Space, rows: Sequence[Shown]) -> float:
    loads = {(one.candidate, one.start) for one in rows if not one.shared}
    return sum(space.candidates[place].load_hours for place, _ in loads) + sum(
        one.windows * space.candidates[one.candidate].window_hours for one in rows
    )


def _dearer(space: Space, rows: Sequence[Shown]) -> float:
    """Return what starts have cost so far, as a multiple of what was predicted of them."""
    known = [one for one in rows if one.hours and one.figures]
    return sum(one.hours or 0.0 for one in known) / _predicted(space, known) if known else 1.0


@dataclass(frozen=True)
class Answer:
    """The best setting: its name, its figure, and whether the second can be told from it.

    Attributes:
        value: of the goal's figure; `low`, `high`: its 90 % interval, the worse end by as many as cannot be told apart.
        tied: name of a second that cannot be told from it; the cheaper start is named first then.
    """

    name: str
    value: float
    low: float
    high: float
    tied: str = ""


def answer(space: Space, rows: Sequence[Shown]) -> Answer | None:
    """Return the best setting that was measured and keeps its limits; None: there is none."""
    believed, tied = space.belief(rows), ""
    ranked = believed.ranked(rows)
    first = ranked[:2]
    if not first:
        return None
    if len(first) == 2:
        one, two = first
        if _near(believed, one, two):
            first = sorted(first, key=lambda place: space.candidates[place].load_hours)
            tied = space.candidates[first[1]].name
    best = first[0]
    deviation = math.sqrt(max(believed.covariance[best, best], 0.0))
    # Of several that may be the best the one is named that chance has helped most.
    rivals = [one for one in ranked if _near(believed, ranked[0], one)]
    low = believed.mean[best] - _NORMAL.inv_cdf(1 - 0.05 / max(1, len(rivals))) * deviation
    ends = sorted(math.exp(space.goal.sign * end) for end in (low, believed.mean[best] + 1.645 * deviation))
    value = math.exp(space.goal.sign * believed.mean[best])
    return Answer(space.candidates[best].name, value, ends[0], ends[1], tied)


def _near(believed: Belief, one: int, two: int) -> bool:
    """Return whether a candidate cannot be told from a better one."""
    return bool(believed.mean[one] - believed.mean[two] <= 1.645 * math.sqrt(believed.apart(one, two)))


def gains(believed: Belief, rows: Sequence[Shown]) -> Floats:
    """Return the expected gain of each candidate over the best, as a share of it (of logarithms), with its limits kept.

    Before anything is measured it is the figure itself that is gained, so that the most promising goes first.
    """
    best = next(iter(believed.ranked(rows)), None)
    if best is None:
        upper = believed.mean + np.sqrt(np.maximum(np.diag(believed.covariance), 0.0))
        return np.asarray(believed.keeps * np.exp(upper - upper.max()), dtype=np.float64)
    found = np.zeros(len(believed.mean))
    for place, mean in enumerate(believed.mean):
        if place == best:
            continue
        deviation = math.sqrt(max(believed.apart(place, best), 1e-12))
        z = (mean - believed.mean[best]) / deviation
        found[place] = believed.keeps[place] * deviation * (z * _NORMAL.cdf(z) + _NORMAL.pdf(z))
    return found


def hopeless(space: Space, rows: Sequence[Shown], place: int) -> bool:
    """Return whether a further window of a candidate can hardly change the answer: the best it is with a probability
    below `HOPELESS`, which is the error of stopping here.
    """
    believed = space.belief(rows)
    best = next(iter(believed.ranked([one for one in rows if one.candidate != place])), None)
    if believed.keeps[place] < HOPELESS:
        return True
    if best is None or best == place:
        return False
    deviation = math.sqrt(max(believed.apart(place, best), 1e-12))
    chance = 1 - _NORMAL.cdf((believed.mean[best] - believed.mean[place]) / deviation)
    return bool(chance * believed.keeps[place] < HOPELESS)
