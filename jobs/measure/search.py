"""The highest load that keeps an objective: doubling up to the first failure, bisection, confirmation. Pure.

The objective is taken to be monotonic: a load that keeps it leaves the lower ones keeping it too. Noise breaks that
now and then, so the load that is found is measured once more, with arrivals of their own; where it is not known to keep
it then, the search goes on below it. So is the one that broke it just above, where it was measured once: a pause of the
machine in one window would else pass for the edge. Where it does not break it again, the search goes on above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.core.config import Bench
from jobs.measure import bound

_HALVINGS = 10
"""A first rate that does not keep the objective is halved so often at most."""


@dataclass
class Search:
    """Proposes loads and takes what came of them.

    Args:
        first: load to begin with.
        most: no load above it is tried.
        precision: the limits are close enough at this share of the lower one.
        whole: loads are whole numbers (concurrency), at least 1.
        least: no load below it is tried.

    Attributes:
        kept, broken: the highest load that is known to keep the objective, the lowest of which that is not known; None:
            none so far.
        broke: loads that are known to break it.
        few: the highest load at which there were too few requests to tell, and no miss: a higher one has more of them.
        confirmed: the load `kept` was measured twice and kept it twice.
    """

    first: float
    most: float
    precision: float
    whole: bool
    least: float = 0.0
    kept: float | None = None
    broken: float | None = None
    few: float | None = None
    confirmed: bool = False
    tried: list[tuple[float, bool]] = field(default_factory=list)
    broke: set[float] = field(default_factory=set)

    @property
    def surely(self) -> float | None:
        """The lowest load that is known to break the objective."""
        return min(self.broke, default=None)

    def next(self) -> float | None:
        """Return the load to measure next; None: the search is over."""
        if len(self.tried) >= most_probes(self.first, self.most, self.precision):
            return None
        load = None if self.confirmed else self._towards()
        once = [past for past, _ in self.tried].count(self.broken or 0.0) == 1
        return self.broken if load is None and once and self.broken == self.surely else load

    def _towards(self) -> float | None:
        """Return the load that brings the search nearer to the edge, or confirms it; None: it is found."""
        low = self.few if self.kept is None else self.kept
        if low is None:
            return self._below()
        if self.broken is None:
            return self.kept if low >= self.most else min(self.most, self._rounded(2 * low))
        between = self._rounded((low + self.broken) / 2)
        close = self.broken - low <= self.precision * low
        if close or not low < between < self.broken:
            return self.kept
        return between

    def tell(self, load: float, *, keeps: bool | None, saturated: bool = False, few: bool = False) -> None:
        """Take the outcome of one load; None, that it is not known, counts as too high.

        Args:
            load: that was measured.
            keeps: the objective.
            saturated: the queue grows, so no higher load is worth a try.
            few: it is not known for want of requests alone, so a higher load may tell.
        """
        if keeps is False:
            self.broke.add(load)
        elif load in self.broke:
            self.broke.discard(load)
            self.broken = min((past for past, kept in self.tried if not kept and past > load), default=None)
        if few and keeps is None and self.kept is None:
            self.few = max(load, self.few or load)
        elif keeps and load == self.kept:
            self.confirmed = True
        elif keeps:
            self.kept, self.confirmed = load, False
            if saturated and self.broken is None:
                self.broken = self._rounded(load * (1 + self.precision)) + (1 if self.whole else 0)
        else:
            self.broken = load if self.broken is None else min(load, self.broken)
            if self.kept is not None and load <= self.kept:
                below = [past for past, kept in self.tried if kept and past < load]
                self.kept = max(below, default=None)
        self.tried.append((load, keeps is True))

    def _below(self) -> float | None:
        if self.broken is None:
            return self._rounded(min(self.first, self.most))
        lower = self._rounded(self.broken / 2, down=True)
        if lower >= self.broken or (not self.whole and lower < max(self.least, self.first / 2**_HALVINGS)):
            return None
        return lower

    def _rounded(self, load: float, *, down: bool = False) -> float:
        if not self.whole:
            return load
        return max(1, math.floor(load) if down else math.floor(load + 0.5))


def most_probes(first: float, most: float, precision: float) -> int:
    """Return an upper limit of the loads that a search measures."""
    doublings = max(1, math.ceil(math.log2(max(2.0, most / first))))
    return doublings + _HALVINGS + math.ceil(math.log2(1 / precision)) + 4


def begin(bench: Bench) -> Search:
    """Return the search that `bench` asks for."""
    whole = bench.search == "concurrency"
    first = bench.concurrency if whole else bench.request_rate
    most = math.floor(bench.search_most) if whole else bench.search_most
    return Search(float(first or 1.0), float(most), bench.search_precision, whole, 0.0 if whole else least_rate(bench))


def least_rate(bench: Bench) -> float:
    """Return the rate below which all windows of a load hold too few requests to tell that the objective is kept."""
    return bound.needed(0) / bound.WINDOWS / bench.window_s


def with_load(bench: Bench, load: float) -> Bench:
    """Return the bench of one probe."""
    if bench.search == "concurrency":
        return replace(bench, concurrency=round(load), request_rate=None)
    return replace(bench, request_rate=load)


def columns(looking: Search) -> dict[str, Any]:
    """Return the columns of a row that only a search has: what was found, and how many loads it took.

    0: the lowest load that was tried breaks the objective; None: no load is known to keep it, nor that one to break it.
    """
    found = looking.kept
    if found is None and looking.tried and looking.surely == min(load for load, _ in looking.tried):
        found = 0.0
    whole = looking.whole and found is not None
    load = {"found_concurrency" if looking.whole else "found_request_rate": round(found or 0) if whole else found}
    return load | {"probes": len(looking.tried)}


def notes(looking: Search, lowest: float, limited: Mapping[float, str], *, valid: bool) -> list[str]:
    """Return what a reader of the row should know of the search.

    Args:
        looking: the search, at its end.
        lowest: the lowest load that was measured.
        limited: reason by load that was invalid, but kept the objective as far as one could tell.
        valid: the row is valid.
    """
    found, said = looking.kept, []
    if found is None and valid:
        said.append(f"no load down to {lowest:g} is known to keep bench.slo")
    elif not looking.confirmed:
        said.append("the load that was found is not confirmed by windows of their own")
    elif found is not None and found >= looking.most:
        said.append("the search ended at bench.search_most")
    if found is not None and looking.surely is not None:
        said.append(f"bench.slo is kept at {found:g} and broken at {looking.surely:g}: the edge lies between")
    if found is not None and looking.broken is not None and looking.broken in limited:
        said.append(f"limited by: {limited[looking.broken]} (at {looking.broken:g}), not by the objective")
    return said


def saturated(bench: Bench, figures: Mapping[str, Any], lower: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether more requests in flight only wait: some do now, and a lower load of `lower` gave as many tokens.

    That is of a closed loop; an open one saturates when its queue grows, which breaks the objective.
    """
    waits = (figures["waiting_mean"] or 0.0) > _WAITING_SHARE * (bench.concurrency or 0)
    best = max((one["output_tok_per_s"] or 0.0 for one in lower), default=0.0)
    return bench.request_rate is None and waits and best * _GAIN >= (figures["output_tok_per_s"] or 0.0)


_WAITING_SHARE, _GAIN = 0.1, 1.05
"""Of the requests in flight; and the gain in tokens per second below which a higher load gives nothing."""
