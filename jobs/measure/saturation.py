"""Whether requests come faster than they are answered. Pure.

Such a window says what the service can do at most (its rates), but its latencies are those of a queue that grows:
they depend on how long was measured. So its row is kept and flagged (`saturated`); it wins nothing and keeps no
objective.
"""

from __future__ import annotations

from jobs.core.config import Bench
from jobs.measure.records import RequestRecord, Window

SHARE = 0.1
"""Part of the arrivals that may be missing among the answers: long answers of a steady load overlap its ends."""

DEVIATIONS = 3.0
"""Standard deviations of a Poisson count below which fewer answers than arrivals are chance."""


def queue_grows(window: Window, bench: Bench) -> str | None:
    """Return words where an open loop's requests come faster than they are answered, or None.

    A window of time is judged whole. A fixed number of requests has its ramp in the window, and all of them are
    answered in the end: there the second half of the time in which they come is judged.
    """
    if bench.request_rate is None or window.seconds <= 0:
        return None
    if bench.num_requests:
        ours = [record for record in window.records if record.in_window]
        came = sorted(_arrival(record) for record in ours)
        begin, end = (came[0] + came[-1]) / 2 if came else 0.0, came[-1] if came else 0.0
        expected = float(sum(begin <= moment < end for moment in came))
        answered = _answered(window, begin, end)
    else:
        # With a cap those that wait for a slot leave no record before they are sent: then the rate is the measure.
        arrivals = sum(r.in_window for r in window.records) if bench.concurrency is None else None
        expected = bench.request_rate * window.seconds if arrivals is None else float(arrivals)
        answered = _answered(window, window.opened_s, window.closed_s)
    return words(expected, answered)


def words(expected: float, answered: float) -> str | None:
    """Return words where fewer were answered than came, by a tenth and by three deviations; None: it is chance."""
    missing = expected - answered
    if missing > SHARE * expected and missing > DEVIATIONS * expected**0.5:
        return (
            f"the queue grows: while {expected:.0f} requests came {answered:.0f} were answered,"
            " so latencies depend on the length of the measurement"
        )
    return None


def _arrival(record: RequestRecord) -> float:
    return record.start_s - record.queue_s


def _answered(window: Window, begin: float, end: float) -> int:
    return sum(record.status == "ok" and begin <= record.end_s < end for record in window.records)
