"""Which of all hits decides: the order of trust of classify.py. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from jobs.diagnose.hits import Hit, clearly_later, of_kind, surely_later
from jobs.diagnose.signatures import KINDS, position

_TOGETHER = timedelta(seconds=2)
"""Errors of one rank that are one failure: vLLM's times have whole seconds."""

_ADJACENT = 3
"""Lines below one without a time that may be of the same moment."""

_LOST = "peer-closed"
"""The signature of a connection to another rank that ended."""

_CLIENT = "core_client.py:"
"""In the frames of an API server that lost its engine."""

_UNKNOWN = (len(KINDS), False, 0)


def decide(hits: Sequence[Hit]) -> Hit | None:
    """Return the hit that says why the service failed; None: nothing did."""
    causes = of_kind(hits, "cause")
    loud = {hit.group for hit in causes if not hit.event.minor}
    causes = [hit for hit in causes if not (hit.event.minor and hit.group in loud)]
    timeouts, ends = _telling_waits(of_kind(hits, "timeout")), of_kind(hits, "end")
    if any(hit.kind in ("cause", "symptom", "unknown") and not hit.of_client for hit in hits):
        ends = [hit for hit in ends if not hit.of_client]  # what a client missed says nothing of the engine's failure
    effect = _effect(timeouts, ends)
    cause = _first(causes)
    if cause and not (effect and clearly_later(cause, effect)):
        return cause
    others = of_kind(hits, "symptom", "unknown")
    before = [hit for hit in others if not (effect and clearly_later(hit, effect))]
    unknown = _first(_serious([hit for hit in before if not _is_consequence(hit, timeouts, ends)]))
    return unknown or _left_first(hits, effect) or effect or _first(others) or _first(of_kind(hits, "follow_on"))


def _left_first(hits: Sequence[Hit], effect: Hit | None) -> Hit | None:
    """Return the failed call of another rank, though its line does not say why, where one waited for it or lost it."""
    if effect is None or effect.kind != "timeout":
        return None
    waited = {hit.group for hit in of_kind(hits, "timeout")}
    calls = [hit for hit in of_kind(hits, "follow_on") if hit.wraps and hit.event.exception and hit.group not in waited]
    lost = effect.signature is not None and effect.signature.id == _LOST
    return _first([hit for hit in calls if surely_later(effect, hit) or (lost and not clearly_later(hit, effect))])


def _telling_waits(waits: Sequence[Hit]) -> list[Hit]:
    """Leave out lost connections where another rank waited in vain for something else: that is why it left."""
    others = [hit for hit in waits if hit.signature and hit.signature.id != _LOST]
    return [
        hit
        for hit in waits
        if hit in others or not any(one.group != hit.group and not clearly_later(one, hit) for one in others)
    ]


def _serious(hits: Sequence[Hit]) -> list[Hit]:
    """Leave out what only its level makes an error, on each rank that has more."""
    groups = {hit.group for hit in hits if hit.serious}
    return [hit for hit in hits if hit.serious or hit.group not in groups]


def _first(hits: Sequence[Hit]) -> Hit | None:
    """Return the first failure: on each rank by trust among what came together, between the ranks by time."""
    groups: dict[str, list[Hit]] = {}
    for hit in hits:
        groups.setdefault(hit.group, []).append(hit)
    return min((_most_trusted(group) for group in groups.values()), key=lambda hit: hit.order, default=None)


def _most_trusted(hits: Sequence[Hit]) -> Hit:
    earliest = min(hits, key=lambda hit: hit.order)
    since = earliest.when.time or earliest.when.by  # before a log has a clock, its first stamp bounds a line
    limit = since + _TOGETHER if since else None
    together = [hit for hit in hits if limit is None or hit.when.time is None or hit.when.time <= limit]
    return min((*together, *_just_below(earliest, hits)), key=_trust)


def _just_below(hit: Hit, hits: Sequence[Hit]) -> list[Hit]:
    """Return what stands right below a line that tells no time, which may be of the time of the line after it."""
    until = hit.when.by
    if hit.when.own or until is None:
        return []
    below = [other for other in hits if other.log == hit.log and other.when.time]
    below = [other for other in below if 0 < other.event.number - hit.event.number <= _ADJACENT]
    return [other for other in below if other.when.time and other.when.time <= until + _TOGETHER]


def _trust(hit: Hit) -> tuple[tuple[int, bool, int], bool, bool, bool, bool, int, tuple[bool, datetime, str, int]]:
    """Order of trust among errors of one moment: the rank's own log before what rank 0 reports of it."""
    event = hit.event
    wraps = event.minor or hit.wraps or event.wordless
    place = _UNKNOWN
    if hit.signature:
        weak = hit.kind == "symptom" and (event.bare or hit.signature.id.startswith("errno-text"))
        place = KINDS.index(hit.signature.kind), weak, position(hit.signature.id)
    said = event.exception or event.code is not None
    return place, event.report, event.chained, wraps, not said, event.layer, hit.order


def _effect(timeouts: Sequence[Hit], ends: Sequence[Hit]) -> Hit | None:
    """Return the first sign that a rank waited in vain, or ended."""
    timeout, end = _first(timeouts), _first(ends)
    if timeout is None or end is None:
        return timeout or end
    below = end.log == timeout.log and end.event.number > timeout.event.number and not end.when.own
    if end.group != timeout.group and not below and not clearly_later(end, timeout):
        return end
    return min(timeout, end, key=lambda hit: hit.order)


def _is_consequence(hit: Hit, timeouts: Sequence[Hit], ends: Sequence[Hit]) -> bool:
    wrapped = any(hit.group == other.group and not clearly_later(other, hit) for other in timeouts)
    orphaned = any(hit.group != other.group and other.rank is not None and _not_before(hit, other) for other in ends)
    lost = _CLIENT in hit.event.frames and any(hit.group == other.group for other in ends)
    return wrapped or orphaned or lost or any(_outranked(hit, other) for other in (*ends, *timeouts))


def _outranked(hit: Hit, report: Hit) -> bool:
    """Whether we reported with a time that another rank failed first, and this line has none: teardown, most often."""
    return report.event.report and report.when.own and not hit.when.own and hit.group != report.group


def _not_before(hit: Hit, other: Hit) -> bool:
    one, two = hit.when, other.when
    if not (one.own and two.own and one.time and two.time):
        return False
    return one.time > two.time or (one.time == two.time and hit.log != other.log)
