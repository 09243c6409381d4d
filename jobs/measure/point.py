"""One point on a running service: canary, windows (repeats or a search), canary; and the row's figures out of them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from jobs.core.config import Bench, Config
from jobs.core.errors import RunError
from jobs.core.waiting import first_of
from jobs.engines.speculation import speculation_of
from jobs.measure import (
    bound,
    canary,
    client,
    dataset,
    objective,
    quality,
    queueing,
    search,
    speculation,
    statistics,
    telemetry,
    validity,
)
from jobs.measure.clients import judge
from jobs.measure.clients import run as external
from jobs.measure.clients.run import ExternalRun
from jobs.measure.gate import accuracy
from jobs.measure.gate.case import Case
from jobs.measure.metrics import complete
from jobs.measure.quality import Quality
from jobs.measure.records import NEVER, Answer, Target, Window
from jobs.measure.telemetry import Reading
from jobs.measure.wire import Connections, clock

Enough = Callable[[Mapping[str, Any], int], bool]
"""Whether a point needs no further window, by its figures so far and the number of its windows."""


@dataclass(frozen=True)
class Outcome:
    """One window with its figures, why they cannot be believed (`reason`), and what a reader should know as well.

    `grows`: words where the queue grew in it; None: it did not, or that is not known.
    """

    window: Window
    figures: dict[str, Any]
    reason: str | None
    notes: tuple[str, ...]
    grows: str | None


class Probes(Protocol):
    """What our own watch sends to the service meanwhile."""

    def tokens_between(self, opened_s: float, closed_s: float) -> Mapping[str, int]:
        """Return the tokens of its probes by data-parallel rank in a span of the monotonic clock."""


@dataclass
class OfService:
    """What the points of one service share: numbers for its windows, none twice; answers to questions on long texts."""

    seed_offsets: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    quality: Quality | None = None


@dataclass(frozen=True)
class Measured:
    """What a point came to.

    Attributes:
        figures: columns of the row; of one window that never opened where there was none.
        reason: why the row is invalid, or None.
        notes: what a reader should know as well.
        windows: all of them, in order of time.
        lines: one record a window, for people and for `compare`; `in_row` as below.
        canary: what was asked and answered; None: it is off.
        engine_tokens: tokens by data-parallel rank, of the last window.
        truncated: a window was ended early, or never opened.
        quality: questions on long texts; None: they are off.
        readings: of the head's NPUs, by window.
        measured_s: windows and their drains, s; of an external client its whole run.
        in_row: numbers (from 1) of the windows whose figures are the row's: of a search one alone.
    """

    figures: Mapping[str, Any]
    reason: str | None
    notes: tuple[str, ...]
    windows: tuple[Window, ...]
    lines: tuple[Mapping[str, Any], ...]
    canary: Mapping[str, Any] | None
    engine_tokens: Mapping[str, int]
    truncated: bool
    quality: Quality | None = None
    readings: tuple[tuple[Reading, ...], ...] = ()
    measured_s: float = 0.0
    in_row: tuple[int, ...] = ()


@dataclass
class PointRun:
    """Measures one point.

    Args:
        probes: what our own watch sends; None: there is none.
        stop: once set, the point ends within about a second.
        on_phase: told "canary", "quality", "warm", "measuring" and "drain" as they begin.
        client: the external client's run; None: this tool's own client measures.
        enough: asked after each window but the last, with the figures so far and the number of windows, whether this
            point needs no further one.
    """

    config: Config
    target: Target
    service: OfService
    probes: Probes | None
    stop: asyncio.Event
    on_phase: Callable[[str], None]
    client: ExternalRun | None = None
    enough: Enough = lambda figures, windows: False

    def __post_init__(self) -> None:
        self._windows: list[Window] = []
        self._in_row: list[Window] = []
        self.lines: list[dict[str, Any]] = []  # of its windows so far, as in `Measured`
        self._figures: list[dict[str, Any]] = []
        self._notes: list[str] = []
        self._reasons: list[str] = []
        self._answers: dict[str, Answer] = {}
        self._readings: list[tuple[Reading, ...]] = []
        self._tokens: Mapping[str, int] = {}
        self._truncated = True
        self._measured_s = 0.0

    async def run(self) -> None:
        """Measure; what came of it so far is in `result`, whenever this ends."""
        await self.begin()
        for number in range(1, self.turns + 1):
            await self.turn(number)
            whole = number == self.turns or self._reasons or not self._figures
            if not whole and self.enough(objective.combine(self._figures), number):
                self._notes.append(f"{number} of {self.turns} windows: it can hardly be the best of the search")
                break
        await self.end()

    @property
    def turns(self) -> int:
        """How often `turn` is to be called: once for each repeat; a search and an external client have one."""
        bench = self.config.bench
        return 1 if bench.search or bench.is_external else bench.repeats

    @property
    def has_figures(self) -> bool:
        """Whether a window has left any."""
        return bool(self._figures)

    async def begin(self) -> None:
        """Do what comes before the first window."""
        await self._ask_canary("before")
        await self._ask_questions()

    async def turn(self, number: int) -> None:
        """Measure the window of this number, or all that a search or an external client takes."""
        if self.stop.is_set():
            return
        try:
            if self.client is not None:
                await self._run_client(self.client)
            else:
                await (self._search() if self.config.bench.search else self._repeat(number))
        except RunError as error:  # the data set cannot be used: the next point may do without it
            self._reasons.append(str(error))

    async def end(self) -> None:
        """Do what comes after the last window."""
        await self._ask_canary("after")

    def result(self) -> Measured:
        """Return what the point came to."""
        bench = self.config.bench
        record = None
        if bench.canary != "off" and self._answers:
            record = canary.record(self.target, bench, self._answers)
            if len(self._answers) == 2 and (note := canary.differ(*self._answers.values())):
                self._notes.append(note)
            faults = {when: canary.fault(answer, bench) for when, answer in self._answers.items()}
            said = [f"canary {when} the window: {fault}" for when, fault in faults.items() if fault]
            self._reasons = said + self._reasons
        if not self._figures:
            self._figures.append(dict(statistics.summarize(NEVER, bench)))
            self._reasons.append("the window was cut short")
        combined = objective.combine(self._figures)
        self._notes += objective.notes(combined, None if bench.is_open else bench.concurrency)
        asked = self.service.quality if bench.quality == "needle" else None
        if asked and asked.note:
            self._notes.append(asked.note)
        if asked and (fault := quality.fault(asked, bench)):
            self._reasons.append(fault)
        in_row = tuple(n for n, one in enumerate(self._windows, 1) if any(one is other for other in self._in_row))
        return Measured(
            figures=combined | {"needle_score": asked and asked.score, "dataset_digest": dataset.digest(bench)},
            reason=self._reasons[0] if self._reasons else None,
            notes=objective.said_once(self._notes),
            windows=tuple(self._windows),
            lines=tuple({**line, "in_row": number in in_row} for number, line in enumerate(self.lines, 1)),
            canary=record,
            engine_tokens=self._tokens,
            truncated=self._truncated,
            quality=asked,
            readings=tuple(self._readings),
            measured_s=self._measured_s,
            in_row=in_row,
        )

    async def _ask_canary(self, when: str) -> None:
        bench = self.config.bench
        if bench.canary == "off" or self.stop.is_set():
            return
        self.on_phase("canary")
        with closing(Connections.to(self.target)) as connections:
            asked = await first_of(canary.ask(connections, self.target, canary.TOKENS[bench.canary]), self.stop)
        if asked is not None:
            self._answers[when] = asked.result()

    def _idle_answer(self) -> Answer | None:
        """Return the answer that those under load are held against; None: the canary is off, or was no good."""
        answer = self._answers.get("before")
        return answer if answer and not canary.fault(answer, self.config.bench) else None

    async def _ask_questions(self) -> None:
        """Ask the questions on long texts before the first window of a service that wants them."""
        wanted = self.config.bench.quality == "needle" and self.service.quality is None
        if wanted and not self.stop.is_set():
            self.on_phase("quality")
            asked = await first_of(quality.ask(self.config, self.target), self.stop)
            self.service.quality = asked.result() if asked else None

    async def _window(self, bench: Bench, **about: Any) -> Outcome:
        """Measure one window and write its line."""
        config = replace(self.config, bench=bench)
        readings: list[Reading] = []
        power = asyncio.create_task(telemetry.watch_npus(readings))
        measured = await client.measure(
            bench, config.limits, config.model, self.target,
            number=len(self._windows) + 1, seed_offset=self._seed_offset(), idle=self._idle_answer(),
            stop=self.stop, on_phase=self.on_phase,
        )  # fmt: skip
        power.cancel()
        window = self._without_probes(measured)
        figures: dict[str, Any] = dict(statistics.summarize(window, bench)) | statistics.of_series(window)
        drafts = window.growth.drafts
        text = speculation.is_seen(config, drafts) and dataset.is_text(bench)  # that of a trace is read from its file
        figures |= speculation.figures(config, drafts, text=text)
        figures["head_npu_power_w"] = telemetry.mean_power(readings, window)
        trend = queueing.trend(window, bench)
        figures["saturated"] = trend.saturated
        figures |= objective.told(window, bench.slo, saturated=trend.saturated)
        figures |= accuracy.figures(window, bench)
        asked = sum(self._probed(window.begun_s, window.ended_s).values())
        reason, notes = validity.judge(Case(config, window, figures, trend, asked))
        self._windows.append(window)
        self._measured_s += window.seconds + window.drain_s
        self._readings.append(tuple(readings))
        load = {"concurrency": bench.concurrency, "request_rate": bench.request_rate}
        opened_s = time.time() - (clock() - window.opened_s)  # of the day, for windows of other points beside it
        self.lines.append(
            {**about, **load, "opened_s": opened_s, "valid": reason is None, "invalid_reason": reason} | figures
        )
        return Outcome(window, figures, reason, notes, trend.grows)

    def _seed_offset(self) -> int:
        """Return the seed offset of the next window: 0 where nothing is cached, for the same bytes.

        Speculation by suffixes keeps the answers to all earlier prompts.
        """
        number, config = next(self.service.seed_offsets), self.config
        return 0 if config.parallel.enable_prefix_caching is False and speculation_of(config) is None else number

    def _probed(self, begin_s: float, end_s: float) -> Mapping[str, int]:
        return self.probes.tokens_between(begin_s, end_s) if self.probes else {}

    def _without_probes(self, window: Window) -> Window:
        """Take the tokens of our own probes out, and give the one rank that shows no counter what is left for it."""
        probed = self._probed(window.opened_s, window.closed_s)
        served = {rank: max(0, count - probed.get(rank, 0)) for rank, count in window.engine_tokens.items()}
        arrived = round(statistics.arrived_tokens(window))
        return replace(window, engine_tokens=complete(served, arrived, self.config.parallel.engines))

    def _take(self, outcome: Outcome, whose: str = "") -> None:
        """Let a window stand in the row."""
        window = outcome.window
        self._in_row.append(window)
        self._tokens = window.engine_tokens
        self._truncated = window.truncated or (self._truncated and bool(self._figures))
        self._figures.append(outcome.figures)
        if outcome.reason:
            self._reasons.append(whose + outcome.reason)
        self._notes += [whose + note for note in outcome.notes]

    async def _repeat(self, number: int) -> None:
        bench = self.config.bench
        outcome = await self._window(bench, kind="repeat", number=number)
        self._take(outcome, f"{objective.REPEAT}{number}: " if bench.repeats > 1 else "")

    async def _run_client(self, client: ExternalRun) -> None:
        """Let an external client stand in the row; what is around it is ours all the same."""
        if self.stop.is_set():
            return
        config = self.config
        seen = await external.measure(
            client, self.target, seed_offset=self._seed_offset(), stop=self.stop, on_phase=self.on_phase
        )
        run, window = seen.run, seen.window
        self._windows.append(window)
        self._in_row.append(window)
        self._measured_s += run.seconds
        self._readings.append(seen.readings)
        figures = dict(statistics.summarize(NEVER, config.bench))
        reason = run.reason
        if run.result:
            figures = judge.figures(config, run.result, window, seen.cpu_share)
            asked = sum(self._probed(window.begun_s, window.ended_s).values())
            reason = reason or judge.reason(config, run.result, window, asked, figures)
            self._notes += judge.notes(config, run.result, window, figures)
        figures["head_npu_power_w"] = telemetry.mean_power(seen.readings, window)
        self._figures.append(figures)
        counted = run.result.output_tokens if run.result else 0
        self._tokens = complete(run.engine_tokens, counted, config.parallel.engines)
        self._truncated = run.truncated
        if reason:
            self._reasons.append(reason)

    async def _search(self) -> None:
        """Look for the highest load that is known to keep the objective; the row is that of its last windows there."""
        looking = search.begin(self.config.bench)
        at: dict[float, list[Outcome]] = {}
        limited: dict[float, str] = {}
        while not self.stop.is_set() and (load := looking.next()) is not None:
            probe = search.with_load(self.config.bench, load)
            at[load], keeps = await self._at(probe, load)
            last = at[load][-1]
            if last.window.truncated and self.stop.is_set():
                break
            if last.reason and keeps is None:
                limited[load] = last.reason
            lower = [at[one][-1].figures for one in at if one < load]
            few = keeps is None and not last.reason and all(one.figures["slo_misses"] == 0 for one in at[load])
            looking.tell(load, keeps=keeps, saturated=search.saturated(probe, last.figures, lower), few=few)
        if at:
            shown = min(at) if looking.kept is None else looking.kept
            self._notes += search.notes(looking, min(at), limited, valid=at[shown][-1].reason is None)
            for outcome in at[shown]:
                self._take(replace(outcome, figures=outcome.figures | search.columns(looking)))

    async def _at(self, probe: Bench, load: float) -> tuple[list[Outcome], bool | None]:
        """Measure one load of a search until it is known whether it keeps the objective (True, False); None: it is not.

        Each window has arrivals of its own. It is given up where the windows that are left could not tell either.
        """
        outcomes: list[Outcome] = []
        misses = total = 0
        unevenly: list[float | None] = []
        for left in reversed(range(bound.WINDOWS)):
            outcome = await self._probe(probe, load)
            self.lines[-1]["objective_broken"] = outcome.grows
            missed, counted = outcome.figures["slo_misses"], outcome.figures["slo_requests"]
            if outcome.grows or outcome.reason or counted is None or self.stop.is_set():
                return [outcome], False if outcome.grows else None
            outcomes.append(outcome)
            misses, total = misses + missed, total + counted
            unevenly.append(outcome.figures["slo_together"])
            together = bound.pooled(unevenly)
            told = bound.decided(misses, total, together)
            if told is False:
                self.lines[-1]["objective_broken"] = f"{misses} of {total} requests missed bench.slo"
            if told is not None or not bound.may_tell(misses, total, left * missed, left * max(counted, 1), together):
                return outcomes, told
        return outcomes, None

    async def _probe(self, probe: Bench, load: float) -> Outcome:
        """Measure one load of a search.

        A probe that is invalid for another reason than overload is measured once more; where that is invalid too,
        the load counts as one that is too high, and the row says so.
        """
        outcome = await self._window(probe, kind="probe", load=load)
        if not outcome.reason or outcome.grows or self.stop.is_set():
            return outcome
        # Its latencies say nothing of the objective: one disturbance is not to halve what is found.
        self.lines[-1]["objective_broken"] = None
        return await self._window(probe, kind="probe again", load=load)
