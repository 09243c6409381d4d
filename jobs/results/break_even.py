"""Up to which context length speculative decoding pays: where a token takes as long with it as without it.

What is compared is the time per output token: the prefill is the same on both sides. Between two lengths the logarithm
of the ratio is taken to be straight in that of the length: within 5 % of the crossing for acceptance that falls in any
usual way (exponential, linear, hyperbolic, logistic) and lengths that double. The interval comes from draws: the ratio
of each length by Student's t from its windows, and the course between two lengths straight in the length, its logarithm
or its inverse. How far starts of the engine lie apart is drawn for all lengths at once, since each start serves them
all: by the starts of this sweep, else by those of earlier ones.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.results import columns
from jobs.results.gather import Run
from jobs.results.intervals import Scatter, added

DRAWS, LEVEL = 4000, 0.95
_MANY = 1e6
"""Degrees of freedom of an error that is known from many requests."""

_KEYS = ("engine.args.speculative", "engine.args.spec-", "engine.args.spec_", "engine.args.num")
"""Beginnings of the keys that ask for speculation (jobs/engines/speculation.py)."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Gain:
    """What speculation does at one length.

    Attributes:
        length: of the prompts, tokens.
        log: logarithm of the time per token without it over that with it; above 0: it pays.
        error: its standard error. free: degrees of freedom of that.
    """

    length: float
    log: float
    error: float
    free: float = _MANY

    @property
    def percent(self) -> float:
        """How much faster the tokens come with speculation, %."""
        return math.expm1(self.log) * 100


@dataclass(frozen=True)
class BreakEven:
    """Where speculation stops paying, tokens: 0: below the shortest length measured, inf: above the longest.

    `low` and `high` are the ends of the interval at LEVEL.
    """

    length: float
    low: float
    high: float


def break_even(gains: Sequence[Gain], starts: Scatter | None = None) -> BreakEven | None:
    """Return the last length at which speculation turns from paying to not paying; None: fewer than two lengths.

    `starts`: scatter of all gains together from start to start; None: it is not known.
    """
    ordered = sorted(gains, key=lambda gain: gain.length)
    if len(ordered) < 2:
        return None
    lengths, logs = ([getattr(gain, name) for gain in ordered] for name in ("length", "log"))
    random = np.random.default_rng(0)
    found_logs = _drawn(ordered, random, starts)
    powers = random.integers(-2, 3, DRAWS)
    drawn = sorted(_crossing(lengths, list(one), int(power)) for one, power in zip(found_logs, powers, strict=True))
    tail = round(DRAWS * (1 - LEVEL) / 2)
    found = _crossing(lengths, logs, 0)
    return BreakEven(found, min(found, drawn[tail]), max(found, drawn[-1 - tail]))


def _drawn(ordered: Sequence[Gain], random: np.random.Generator, starts: Scatter | None) -> NDArray[np.float64]:
    """Return draws of the gains, as logarithms; shape (DRAWS, lengths)."""
    spread = np.stack([gain.error * random.standard_t(gain.free, DRAWS) for gain in ordered], axis=1)
    if starts:
        spread += starts.squared**0.5 * random.standard_t(min(starts.free, _MANY), (DRAWS, 1))
    return np.asarray(spread + np.array([gain.log for gain in ordered]))


def is_mixed(gains: Sequence[Gain], starts: Scatter | None = None) -> bool:
    """Return whether it surely pays at some length and not at a shorter one, so that no length is the last one.

    Of all pairs of lengths one may say so by chance (Bonferroni).
    """
    ordered = sorted(gains, key=lambda gain: gain.length)
    pairs = list(itertools.combinations(range(len(ordered)), 2))
    drawn = _drawn(ordered, np.random.default_rng(0), starts) if pairs else None
    surely = 1 - (1 - LEVEL) / max(1, len(pairs))
    return drawn is not None and any(
        float(((drawn[:, one] < 0) & (drawn[:, two] > 0)).mean()) > surely for one, two in pairs
    )


def _crossing(lengths: Sequence[float], logs: Sequence[float], power: int) -> float:
    """Return where the gain falls through 0 for the last time; straight in length ** power (0: its logarithm)."""
    paying = [place for place, log in enumerate(logs) if log > 0]
    if not paying:
        return 0.0
    place = paying[-1]
    if place == len(logs) - 1:
        return math.inf
    share = logs[place] / (logs[place] - logs[place + 1])
    one, two = lengths[place], lengths[place + 1]
    if not power:
        return float(one * (two / one) ** share)
    return float((one**power + (two**power - one**power) * share) ** (1 / power))


@dataclass(frozen=True)
class Line:
    """One setting of speculation against none, over the context lengths.

    Attributes:
        setting: what else is swept, in words. drafted: tokens for a step.
        declined: why nothing can be said; None: `found` says it.
        rows: of each length: acceptance, and the gain.
        windows: of each side at each length, at least.
        one_start: what is said holds for one start of each side alone.
    """

    setting: str
    drafted: int
    declined: str | None
    found: BreakEven | None
    rows: tuple[Mapping[str, Any], ...]
    windows: int
    one_start: bool = False


Known = Callable[[Row, str], Scatter | None]


def lines(run: Run, known: Known = lambda *_: None) -> list[Line]:
    """Return what a sweep that measured with and without speculation says of it.

    `known`: scatter of a row's column between single starts of its layout, from earlier sweeps (spread.py).
    """
    usable = [row for row in run.rows if row["valid"] and not row.get("saturated") and row.get("tpot_ms_mean")]
    strange = [key for key in run.swept if key not in ("bench.input_tokens", "parallel.max_model_len")]
    others = tuple(key for key in strange if not key.startswith((*_KEYS, *columns.RESTARTS)))
    kinds: dict[str, list[Row]] = {}
    for row in usable:
        kinds.setdefault(columns.setting_text(others, row), []).append(row)
    return [line for kind, rows in kinds.items() for line in _lines(run, kind, rows, known)]


def _lines(run: Run, kind: str, rows: Sequence[Row], known: Known) -> Iterator[Line]:
    off = [row for row in rows if row.get("spec_tokens") == 0]
    drafting: dict[int, list[Row]] = {}
    for row in rows:
        if row.get("spec_tokens"):
            drafting.setdefault(int(row["spec_tokens"]), []).append(row)
    for drafted, on in sorted(drafting.items()) if off else ():
        if any(row.get("spec_text") is False for row in on):
            yield Line(kind, drafted, "not_text", None, (), 0)
            continue
        sides = [_by_length(run, side) for side in (off, on)]
        both = sorted(sides[0].keys() & sides[1].keys())
        gains = [_gain(length, *(side[length][0] for side in sides)) for length in both]
        shown = tuple(_shown(gain, sides[1][gain.length][1]) for gain in gains)
        windows = min((len(side[length][0]) for side in sides for length in both), default=0)
        starts = _starts(off, on) or _of_others(known, (off[0], on[0]))
        mixed = is_mixed(gains, starts=starts)
        found = None if mixed else break_even(gains, starts=starts)
        declined = "mixed" if mixed else None if found else "one_length"
        yield Line(kind, drafted, declined, found, shown, windows, starts is None)


def _starts(*sides: Sequence[Row]) -> Scatter | None:
    """Return how far the gains of all lengths move together from start to start; None: each side was started once."""
    squares, free, parts = 0.0, 0, 0.0
    for rows in sides:
        lengths: dict[int, list[Row]] = {}
        for row in rows:
            lengths.setdefault(round(row.get("input_tokens_mean") or 0), []).append(row)
        effects: dict[str, list[float]] = {}
        for members in lengths.values():
            logs = [math.log(row["tpot_ms_mean"]) for row in members]
            for row, log in zip(members, logs, strict=True):
                effects.setdefault(row["service"], []).append(log - fmean(logs))
        # Where each length has a service of its own so many means were taken out of the effects, else one.
        groups = len(lengths) if all(len(one) == 1 for one in effects.values()) else 1
        squares += sum(fmean(one) ** 2 for one in effects.values())
        free += len(effects) - groups
        parts += groups / len(effects)
    return Scatter(squares / free * parts, free) if free > 0 else None


def _of_others(known: Known, rows: Sequence[Row]) -> Scatter | None:
    """Return the same by the starts of earlier sweeps, one here on each side."""
    found = [one for row in rows if (one := known(row, "tpot_ms_mean"))]
    return added(found) if len(found) == len(rows) else None


Times = list[tuple[float, float]]
"""Time per output token of each window, ms, and its error from the requests inside of it."""


def _by_length(run: Run, rows: Sequence[Row]) -> dict[float, tuple[Times, list[Row]]]:
    """Return times and rows by the length of the prompts; those of several starts stand together."""
    found: dict[float, tuple[Times, list[Row]]] = {}
    for row in rows:
        times, members = found.setdefault(float(round(row.get("input_tokens_mean") or 0)), ([], []))
        windows = [line for _, line in columns.lines_in_row(run, row)]
        for one in [*(line for line in windows if line.get("tpot_ms_mean"))] or [dict(row)]:
            times.append((one["tpot_ms_mean"], (one.get("tpot_ms_std") or 0.0) / (one.get("completed") or 1) ** 0.5))
        members.append(row)
    return found


def _gain(length: float, off: Times, on: Times) -> Gain:
    """Return the gain with Welch's error of the windows' logarithms; of one window a side with that of its requests."""
    (slow, one), (quick, two) = (_mean(side) for side in (off, on))
    both = added([one, two])
    return Gain(length, slow - quick, both.squared**0.5, min(both.free, _MANY))


def _mean(times: Times) -> tuple[float, Scatter]:
    logs = [math.log(time) for time, _ in times]
    if len(logs) > 1:
        return fmean(logs), Scatter(variance(logs) / len(logs), len(logs) - 1)
    time, error = times[0]
    return logs[0], Scatter((error / time) ** 2, _MANY)


def _shown(gain: Gain, rows: Sequence[Row]) -> dict[str, Any]:
    shares = [row["spec_acceptance"] for row in rows if row.get("spec_acceptance") is not None]
    places = [json.loads(row["spec_by_position"]) for row in rows if row.get("spec_by_position")]
    steps = [row["spec_tokens_per_step"] for row in rows if row.get("spec_tokens_per_step") is not None]
    return {
        "length": gain.length,
        "acceptance": fmean(shares) if shares else None,
        "by_position": [fmean(place) for place in zip(*places, strict=False)],
        "tokens_per_step": fmean(steps) if steps else None,
        "percent": gain.percent,
        "error": gain.error * 100,
    }


def sentence(line: Line) -> tuple[str, dict[str, Any]]:
    """Return what a report says of it: an id of jobs/results/page/words.json with its values."""
    lengths = [one["length"] for one in line.rows]
    values: dict[str, Any] = {"work": f"{line.setting}: " if line.setting else "", "drafted": line.drafted}
    if line.declined == "mixed":
        values |= {"gains": ", ".join(f"{one['length']:.0f}: {one['percent']:+.1f} %" for one in line.rows)}
    if line.found is None:
        return f"break_even_{line.declined}", values
    values |= {"least": lengths[0], "most": lengths[-1], "windows": line.windows}
    found = line.found
    if found.low == math.inf or found.high == 0:
        return "pays_everywhere" if found.high else "pays_nowhere", values
    ends = {"length": found.length, "low": found.low, "high": found.high}
    return "break_even", values | {name: _words(end, lengths) for name, end in ends.items()}


def _words(length: float, lengths: Sequence[float]) -> str:
    """Return a length in words that hold in every language: beyond what was measured there is only an end."""
    if length == math.inf:
        return f"> {lengths[-1]:.0f}"
    return f"{length:.0f}" if length else f"< {lengths[0]:.0f}"
