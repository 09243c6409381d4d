"""What an external client found, in the columns of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.measure.records import RequestRecord
from jobs.measure.statistics import COLUMNS, PERCENTILES, Figure, enough


@dataclass(frozen=True)
class Result:
    """One run of a client.

    Args:
        requested, completed, failed: requests that it was told to send, that it calls whole, that it calls failed.
        seconds: first request to last answer, s.
        output_tokens: tokens that it counted in all answers.
        output_lengths: tokens of each answer; empty: the client does not tell.
        errors: words of failed requests, some of them.
        figures: columns of the row, made by `figures`.
        requests: each single one, in the order in which they were sent; `start_s` may be but that order. Empty: the
            client does not tell.
        tells_waits: whether these say how long a request waited for a slot.
    """

    requested: int
    completed: int
    failed: int
    seconds: float
    output_tokens: int
    output_lengths: Sequence[int]
    errors: Sequence[str]
    figures: Mapping[str, Figure]
    requests: Sequence[RequestRecord] = ()
    tells_waits: bool = False


def single(
    start_s: float, ttft_s: float, itl_s: Sequence[float], tokens: int, *, whole: bool, wait_s: float = 0.0
) -> RequestRecord:
    """Return one request by what a client says of it.

    Args:
        start_s: when it was sent. wait_s: for a slot, before that.
        ttft_s: from then to the first token chunk. itl_s: gaps between the chunks.
        tokens: of the answer. whole: it was answered whole.
    """
    times = start_s + np.cumsum([ttft_s, *itl_s])
    return RequestRecord(
        0, start_s, float(times[0]) if whole else None, float(times[-1]), times, None, tokens,
        "ok" if whole else "failed", wait_s=wait_s,
    )  # fmt: skip


def figures(known: Mapping[str, Figure]) -> dict[str, Figure]:
    """Return all columns of the window client with what this client knows; the others are None.

    A percentile of too few requests is None, as for the window client (`enough`), and so is a TPOT of 0, which is
    that of answers in one piece.
    """
    unknown = known.keys() - set(COLUMNS)
    if unknown:
        raise KeyError(f"no such column: {sorted(unknown)}")
    row: dict[str, Figure] = dict.fromkeys(COLUMNS)
    row |= known
    for percentile in PERCENTILES:
        if not enough(int(known.get("completed") or 0), percentile):
            row |= {name: None for name in COLUMNS if name.endswith(f"_ms_p{percentile}")}
    return row | {
        name: None for name in COLUMNS if name.startswith("tpot_") and not name.endswith("std") and not row[name]
    }
