"""What a measuring window leaves behind: plain frozen data between the client and the statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Status = Literal["ok", "failed", "truncated"]
"""ok: a whole answer. failed: the service's fault. truncated: cut off by our own drain limit or stop."""

Times = NDArray[np.float64]


def _no_times() -> Times:
    return np.empty(0)


@dataclass(frozen=True)
class Target:
    """The service that is measured.

    Args:
        base_url: scheme, host and port, without a path; `further`: the same of its replicas on other nodes.
        model: the value of "model" in each request.
        api_key: sent as a bearer token; None: none is sent.
        engines: data-parallel engines of each of them.
    """

    base_url: str
    model: str
    api_key: str | None = None
    further: tuple[str, ...] = ()
    engines: int = 1

    def place(self, engine: int) -> tuple[int, int]:
        """Return the number of the address that has an engine, and the engine's number there."""
        return divmod(engine, self.engines) if self.further else (0, engine)

    @property
    def authorization(self) -> dict[str, str]:
        """The header that carries the key; empty where there is none."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request with a JSON body."""
        return {"Content-Type": "application/json"} | self.authorization


@dataclass(frozen=True)
class Answer:
    """What came back on a known question: the words, their number and the prompt's by the engine's count, or an error.

    `chat`: it was asked by chat, else for a completion.
    """

    text: str
    tokens: int | None
    error: str | None
    prompt_tokens: int | None = None
    chat: bool = True


@dataclass(frozen=True)
class Checked:
    """The answers to one known question: of an idle service, and of those that stood among the load."""

    idle: Answer
    answers: tuple[Answer, ...]


@dataclass(frozen=True, eq=False)
class RequestRecord:
    """One request. All moments are seconds of one monotonic clock.

    Args:
        index: number of the prompt (see `workload.Workload`).
        start_s: moment at which the request was handed to the network; of one that never was, that of the cut.
        first_token_s: arrival of the first token chunk; None: there was none.
        end_s: end of the answer, or the moment at which it failed or was cut off.
        chunk_times: arrival of every token chunk, shape (chunks,). A chunk may carry several tokens, and
            chunks that came in one network read share one moment.
        prompt_tokens: prompt length by the engine's count; None: it sent none.
        output_tokens: output length by the engine's count; None: it sent none.
        status: see `Status`.
        error: why a request failed, in the service's words where it had any; None otherwise.
        in_window: it came (`came_s`) in [opened, closed): its latencies count.
        wait_s: open loop: how long before start_s it was to come. With a cap it waited for a free slot.
        asked_input: prompt length that was asked for, tokens; None: it cannot be told in tokens (a text).
        asked_output: output length that was asked for, tokens; None: any.
        check: a known question, not of the load: its tokens count as ours, its latencies nowhere.
    """

    index: int
    start_s: float
    first_token_s: float | None
    end_s: float
    chunk_times: Times = field(default_factory=_no_times)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    status: Status = "ok"
    error: str | None = None
    in_window: bool = True
    wait_s: float = 0.0
    asked_input: int | None = None
    asked_output: int | None = None
    check: bool = False

    @property
    def came_s(self) -> float:
        """The intended arrival: from it latencies count. In a closed loop the start."""
        return self.start_s - self.wait_s


@dataclass(frozen=True)
class Sample:
    """One engine at one moment (seconds of the records' clock). None: the service does not tell."""

    time_s: float
    engine: str
    running: float | None
    waiting: float | None
    kv_use: float | None
    preemptions: float | None
    generated_tokens: float | None


@dataclass(frozen=True)
class Drafts:
    """What speculative decoding did in a span, all engines together.

    Attributes:
        tokens: drafted. accepted: of these.
        drafts: steps of single sequences that had a draft; None: an engine before V1, which tells `emitted` instead.
        by_position: accepted tokens by their place in the draft.
        emitted: tokens that these steps gave.
    """

    tokens: int
    accepted: int
    drafts: int | None = None
    by_position: tuple[int, ...] = ()
    emitted: int | None = None


@dataclass(frozen=True)
class Prefills:
    """What one engine read in a span, of the requests that came to their end in it.

    Attributes:
        seconds: from when each was taken up to its first token, all together.
        requests: so many. tokens: of their prompts.
    """

    seconds: float
    requests: float
    tokens: float


@dataclass(frozen=True)
class Growth:
    """What the engines' counters say of a span. None: they do not tell.

    Attributes:
        tokens: generated, by engine number; empty: not told.
        first_s, last_s: between which moments the service may have counted at either end: a busy one hears late that
            it is asked, and a copy of its page is older; None: not known.
        aged_s: how old a copy of the page was at most; 0: none was a copy.
        drafts: of speculative decoding; None too where it is off.
        prefills: by engine number; those that do not tell are missing.
    """

    tokens: Mapping[str, int]
    preemptions: int | None = None
    prefix_queries: int | None = None
    prefix_hits: int | None = None
    first_s: tuple[float, float] | None = None
    last_s: tuple[float, float] | None = None
    drafts: Drafts | None = None
    aged_s: float = 0.0
    prefills: Mapping[str, Prefills] = field(default_factory=dict)

    @property
    def prefix_hit_share(self) -> float | None:
        """Part of the prompts' tokens that the prefix caches found; None: it is not told."""
        return (self.prefix_hits or 0) / self.prefix_queries if self.prefix_queries else None


@dataclass(frozen=True, eq=False)
class Window:
    """One measuring window and every request that ran before, in and after it.

    Args:
        opened_s: opening on the clock of the records.
        closed_s: closing; the window is [opened_s, closed_s). Equal to opened_s where it never opened.
        warmup_s: seconds of load before the opening.
        drain_s: seconds from the closing to the end of the window's last request.
        records: all requests in the order of their ends; `in_window` tells those that count.
        engine_tokens: tokens that each data-parallel engine generated between opening and closing, by
            engine number, from the service's own counters; empty: it publishes none.
        cpu_s: processor seconds of this process between opening and closing.
        truncated: the window or its drain was ended early from outside, or it never opened.
        growth: what else the engines' counters say of the time between opening and closing.
        begun_s, ended_s: from before the first request to after the last one, on the clock of the records.
        finished, generated: requests that came to their end on the engines in that time, and tokens that these made;
            None: the service does not tell.
        aborted, prompted: requests that were broken off in that time, and tokens of prompts that were read; as above.
        series: what the service said of itself, once a second.
        late_s: the limit at which a fixed number of requests was cut off, s; None: it was not.
        checked: known questions among the load; None: there were none.
        lags: how late the client's own beats were from the opening to the end of the drain, s, shape (beats,).
    """

    opened_s: float
    closed_s: float
    warmup_s: float
    drain_s: float
    records: tuple[RequestRecord, ...]
    engine_tokens: Mapping[str, int]
    cpu_s: float
    truncated: bool
    growth: Growth = field(default_factory=lambda: Growth({}))
    begun_s: float = 0.0
    ended_s: float = 0.0
    finished: int | None = None
    generated: int | None = None
    aborted: int | None = None
    prompted: int | None = None
    series: tuple[Sample, ...] = ()
    late_s: float | None = None
    checked: Checked | None = None
    lags: Times = field(default_factory=_no_times)

    @property
    def seconds(self) -> float:
        """Length of the window, s."""
        return self.closed_s - self.opened_s

    def holds(self, moment: float | None) -> bool:
        """Tell whether a moment lies in the window."""
        return moment is not None and self.opened_s <= moment < self.closed_s


NEVER = Window(0.0, 0.0, 0.0, 0.0, (), {}, 0.0, truncated=True)
"""One that never opened."""


def by_moment(values: Iterable[tuple[float, float | None]]) -> dict[float, float]:
    """Return the sums of values by their moment: of all engines, or NPUs, together. What is not told is left out."""
    sums: dict[float, float] = {}
    for moment, value in values:
        if value is not None:
            sums[moment] = sums.get(moment, 0.0) + value
    return sums
