"""An error that no signature and no code knows: what the place where it came up says about its causes (places.yaml)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from jobs.core.foreign import from_yaml
from jobs.diagnose.events import Event
from jobs.diagnose.signatures import Signature

_FILE = Path(__file__).parent / "places.yaml"


@cache
def places() -> tuple[Signature, ...]:
    """Return the places, the more telling ones first.

    Raises:
        ValueError: places.yaml is wrong.
    """
    return TypeAdapter(tuple[Signature, ...]).validate_python(from_yaml(_FILE.read_text(encoding="utf-8")))


def fallback(event: Event) -> Signature | None:
    """Return what the place of an unknown error says; None: nothing.

    Of the places that its traceback passed the innermost counts, before those that give way; where it has none, the
    words of the line tell.
    """
    best: Signature | None = None
    depth = (False, -1)
    for place in places():
        if not (place.pattern.search(event.text) or place.pattern.search(event.raw)):
            continue
        if place.place is None:
            return best or place
        deepest = max((found.end() for found in place.place.finditer(event.frames)), default=-1)
        rank = (not place.gives_way, deepest)
        if deepest >= 0 and rank > depth:
            best, depth = place, rank
    return best
