"""One point on a running service: canary, windows (repeats or a search), canary; and the row's figures out of them."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.core.config import Bench, Config
from jobs.core.errors import RunError
from jobs.core.files import write_json, write_text
from jobs.core.rundir import PointDir
from jobs.core.waiting import first_of
from jobs.measure import canary, client, objective, quality, search, statistics, telemetry, validity
from jobs.measure.clients import judge
from jobs.measure.clients import run as external
from jobs.measure.clients.run import ExternalRun
from jobs.measure.metrics import complete
from jobs.measure.quality import Quality
from jobs.measure.records import Target, Window
from jobs.measure.telemetry import Reading
from jobs.measure.wire import Connections

Outcome = tuple[Window, dict[str, Any], str | None]
"""A window, its figures, and why they cannot be believed."""


class Probes(Protocol):
    """What our own watch sends to the service meanwhile."""

    def tokens_between(self, opened_s: float, closed_s: float) -> Mapping[str, int]:
        """Return the tokens of its probes by data-parallel rank in a span of the monotonic clock."""


@dataclass
class OfService:
    """What the points of one service share.

    Attributes:
        seed_offsets: numbers for its windows, none twice.
        quality: answers to the questions on long texts; None: not asked yet.
    """

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
        config: of the point.
        target: the service.
        service: what its points share.
        probes: what our own watch sends; None: there is none.
        stop: once set, the point ends within about a second.
        on_phase: told "canary", "quality", "warm", "measuring" and "drain" as they begin.
        client: the external client's run; None: this tool's own client measures.
    """

    config: Config
    target: Target
    service: OfService
    probes: Probes | None
    stop: asyncio.Event
    on_phase: Callable[[str], None]
    client: ExternalRun | None = None

    def __post_init__(self) -> None:
        self._windows: list[Window] = []
        self._in_row: list[Window] = []
        self._lines: list[dict[str, Any]] = []
        self._figures: list[dict[str, Any]] = []
        self._notes: list[str] = []
        self._reasons: list[str] = []
        self._answers: dict[str, canary.Answer] = {}
        self._readings: list[tuple[Reading, ...]] = []
        self._tokens: Mapping[str, int] = {}
        self._truncated = True
        self._measured_s = 0.0

    async def run(self) -> None:
        """Measure; what came of it so far is in `result`, whenever this ends."""
        await self._ask_canary("before")
        await self._ask_questions()
        try:
            if self.client is not None:
                await self._run_client(self.client)
            else:
                await (self._search() if self.config.bench.search else self._repeat())
        except RunError as error:  # the data set cannot be used: the next point may do without it
            self._reasons.append(str(error))
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
            self._figures.append(dict(statistics.summarize(_never(), bench)))
            self._reasons.append("the window was cut short")
        asked = self.service.quality if bench.quality == "needle" else None
        if asked and asked.note:
            self._notes.append(asked.note)
        if asked and (fault := quality.fault(asked, bench)):
            self._reasons.append(fault)
        in_row = tuple(n for n, one in enumerate(self._windows, 1) if any(one is other for other in self._in_row))
        return Measured(
            figures=objective.combine(self._figures) | {"needle_score": asked.score if asked else None},
            reason=self._reasons[0] if self._reasons else None,
            notes=tuple(dict.fromkeys(self._notes)),
            windows=tuple(self._windows),
            lines=tuple({**line, "in_row": number in in_row} for number, line in enumerate(self._lines, 1)),
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
        with closing(Connections(self.target.base_url, self.target.headers)) as connections:
            asked = await first_of(canary.ask(connections, self.target, bench.canary_tokens), self.stop)
        if asked is not None:
            self._answers[when] = asked.result()

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
            seed_offset=self._seed_offset(), stop=self.stop, on_phase=self.on_phase,
        )  # fmt: skip
        power.cancel()
        window = self._without_probes(measured)
        figures: dict[str, Any] = dict(statistics.summarize(window, bench)) | statistics.of_series(window)
        figures["head_npu_power_w"] = telemetry.mean_power(readings, window)
        figures["saturated"] = objective.queue_grows(window, bench) is not None
        figures["slo_kept"] = objective.kept(window, bench)
        asked = sum(self._probed(window.begun_s, window.ended_s).values())
        reason = validity.invalid_reason(config, window, figures, asked)
        self._windows.append(window)
        self._measured_s += window.seconds + window.drain_s
        self._readings.append(tuple(readings))
        load = {"concurrency": bench.concurrency, "request_rate": bench.request_rate}
        self._lines.append({**about, **load, "valid": reason is None, "invalid_reason": reason} | figures)
        return window, figures, reason

    def _seed_offset(self) -> int:
        """Return the seed offset of the next window: 0 where nothing is cached, for the same bytes."""
        number = next(self.service.seed_offsets)
        return 0 if self.config.parallel.enable_prefix_caching is False else number

    def _probed(self, begin_s: float, end_s: float) -> Mapping[str, int]:
        return self.probes.tokens_between(begin_s, end_s) if self.probes else {}

    def _without_probes(self, window: Window) -> Window:
        """Take the tokens of our own probes out, and give the one rank that shows no counter what is left for it."""
        probed = self._probed(window.opened_s, window.closed_s)
        served = {rank: max(0, count - probed.get(rank, 0)) for rank, count in window.engine_tokens.items()}
        arrived = round(statistics.arrived_tokens(window))
        return replace(window, engine_tokens=complete(served, arrived, self.config.parallel.data_parallel_size))

    def _take(self, bench: Bench, window: Window, figures: dict[str, Any], reason: str | None, whose: str = "") -> None:
        """Let a window, measured by this load, stand in the row."""
        self._in_row.append(window)
        self._tokens = window.engine_tokens
        self._truncated = window.truncated or (self._truncated and bool(self._figures))
        self._figures.append(figures)
        if reason:
            self._reasons.append(whose + reason)
        self._notes += [whose + note for note in validity.notes(replace(self.config, bench=bench), window, figures)]

    async def _repeat(self) -> None:
        bench = self.config.bench
        for number in range(1, bench.repeats + 1):
            if self.stop.is_set():
                return
            window, figures, reason = await self._window(bench, kind="repeat", number=number)
            self._take(bench, window, figures, reason, f"repeat {number}: " if bench.repeats > 1 else "")

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
        figures = dict(statistics.summarize(_never(), config.bench))
        reason = run.reason
        if run.result:
            figures = judge.figures(config, run.result, window, seen.cpu_share)
            asked = sum(self._probed(window.begun_s, window.ended_s).values())
            reason = reason or judge.reason(config, run.result, window, asked, figures)
            self._notes += judge.notes(config, run.result, window, figures)
        figures["head_npu_power_w"] = telemetry.mean_power(seen.readings, window)
        self._figures.append(figures)
        counted = run.result.output_tokens if run.result else 0
        self._tokens = complete(run.engine_tokens, counted, config.parallel.data_parallel_size)
        self._truncated = run.truncated
        if reason:
            self._reasons.append(reason)

    async def _search(self) -> None:
        """Look for the highest load that keeps the objective; the row is that of its last window at that load."""
        bench = self.config.bench
        looking = search.begin(bench)
        at: dict[float, Outcome] = {}
        limited: dict[float, str] = {}
        while not self.stop.is_set() and (load := looking.next()) is not None:
            probe = search.with_load(bench, load)
            at[load] = window, figures, reason = await self._probe(probe, load)
            if window.truncated and self.stop.is_set():
                break
            broken = objective.queue_grows(window, probe) or (None if reason else statistics.broken(window, bench.slo))
            self._lines[-1]["objective_broken"] = broken
            if reason and not broken:
                limited[load] = reason
            lower = [at[one][1] for one in at if one < load]
            saturated = search.saturated(probe, figures, lower)
            looking.tell(load, keeps=not reason and not broken, saturated=saturated)
        if at:
            shown = min(at) if looking.kept is None else looking.kept
            window, figures, reason = at[shown]
            self._notes += search.notes(looking, min(at), limited, valid=reason is None)
            self._take(search.with_load(bench, shown), window, figures | search.columns(looking), reason)

    async def _probe(self, probe: Bench, load: float) -> Outcome:
        """Measure one load of a search.

        A probe that is invalid for another reason than overload is measured once more; where that is invalid too,
        the load counts as one that is too high, and the row says so.
        """
        outcome = window, _, reason = await self._window(probe, kind="probe", load=load)
        if not reason or objective.queue_grows(window, probe) or self.stop.is_set():
            return outcome
        # Its latencies say nothing of the objective: one disturbance is not to halve what is found.
        self._lines[-1]["objective_broken"] = None
        return await self._window(probe, kind="probe again", load=load)


def _never() -> Window:
    return Window(0.0, 0.0, 0.0, 0.0, (), {}, 0.0, truncated=True)


def save(folder: PointDir, measured: Measured) -> None:
    """Write requests, series, windows and the canary of one point.

    Raises:
        RunError: the directory cannot be written (full disk, no right).
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        pq.write_table(statistics.requests_table(measured.windows, measured.in_row), folder.requests)
        pq.write_table(statistics.series_table(measured.windows), folder.series)
        if any(measured.readings):
            pq.write_table(telemetry.npu_table(measured.windows, measured.readings), folder.power)
    except (OSError, pa.ArrowException) as error:
        raise RunError(str(folder.path), "(write)", str(error), "Free space, or choose another root.") from None
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in measured.lines]
    write_text(folder.windows, "".join(lines))
    if measured.canary is not None:
        write_json(folder.canary, measured.canary)
    if measured.quality is not None:
        write_json(folder.quality, {"score": measured.quality.score, "questions": list(measured.quality.lines)})
