"""An error that no signature and no code knows: what its place, frames and kind say of its causes (places.yaml)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from pydantic import TypeAdapter

from jobs.core.fields import Section
from jobs.core.foreign import from_yaml
from jobs.diagnose.events import Event, forms
from jobs.diagnose.signatures import Regex, Signature, Words

_FILE = Path(__file__).parent / "places.yaml"
_STEPS = ("graph", "serve")
"""Phases of places at which an engine has its settings already."""

_ENGINE = ("load", "rendezvous", *_STEPS)
"""Phases of places that are an engine's own."""

_SETTINGS = "at-settings"

_ELSEWHERE = re.compile(forms()["elsewhere"])
_OTHERWISE = {"slurm": "queue", "download": "fetch"}
"""Of what signatures another thing is to be tried than what their phase says, by how their names begin."""
_MOST = 2
"""Features that are named."""


@dataclass(frozen=True)
class Hint(Section):
    """What something in a traceback says of its cause."""

    find: Regex
    says: Words
    words: Regex | None = None

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The compiled `find`."""
        return re.compile(self.find)

    def depth(self, event: Event) -> int:
        """Return how far inside the frames of an error name it; -1: they do not."""
        if self.words and re.search(self.words, event.text):
            return len(event.frames) + 1
        if not event.exception or _ELSEWHERE.search(event.text):
            return -1
        return max((found.end() for found in self.pattern.finditer(event.frames)), default=-1)


@dataclass(frozen=True)
class Places(Section):
    """places.yaml; its head says what each key means."""

    otherwise: dict[str, Words]
    waits: tuple[Words, ...]
    switch: Words
    fault: Words
    features: tuple[Hint, ...]
    kinds: tuple[Hint, ...]
    places: tuple[Signature, ...]


@cache
def _book() -> Places:
    return TypeAdapter(Places).validate_python(from_yaml(_FILE.read_text(encoding="utf-8")))


def places() -> tuple[Signature, ...]:
    """Return the places, the more telling ones first.

    Raises:
        ValueError: places.yaml is wrong.
    """
    return _book().places


def place_of(event: Event) -> Signature | None:
    """Return the place at which an error came up; None: none is known.

    Of the places that its traceback passed the innermost counts, before those that give way; where it has none, the
    words of the line tell.
    """
    fit = [one for one in places() if one.pattern.search(event.text) or one.pattern.search(event.raw)]
    inner = [one for one in fit if one.place and not (event.alien and (one.early or one.phase in _ENGINE))]
    passed = [
        (one, max((at.end() for at in one.place.finditer(event.frames)), default=-1)) for one in inner if one.place
    ]
    passed = [(one, depth) for one, depth in passed if depth >= 0]
    if any(one.phase in _STEPS and not one.gives_way for one, _ in passed):
        passed = [(one, depth) for one, depth in passed if not one.early]
    best = max(passed, key=lambda each: (not each[0].gives_way, each[1]), default=None)
    return best[0] if best else next((one for one in fit if one.place is None), None)


def of_settings(event: Event) -> bool:
    """Return whether an exception was raised in the code itself that reads and checks settings."""
    place = place_of(event) if event.exception and event.frames else None
    if place is None or place.id != _SETTINGS or place.place is None:
        return False
    return max(found.end() for found in place.place.finditer(event.frames)) == len(event.frames)


def fallback(event: Event) -> Signature | None:
    """Return what is known of an error that no signature knows; None: nothing."""
    place = place_of(event)
    if place is None or not event.frames:
        return place
    where = event.place or "the innermost frame"
    causes = tuple(one.replace("{frame}", where) for one in place.causes)
    if place.phase != "bench":
        kinds = [one.says for one in _book().kinds if one.pattern.search(event.text)]
        causes = (*(features(event) if place.place else ()), *kinds[:1], *causes)
    return replace(place, cause=f"{place.cause}, in {where}", causes=tuple(dict.fromkeys(causes)))


def waits(known: Signature) -> tuple[str, ...]:
    """Return why a rank may wait in vain, for a signature of that kind that has no causes of its own."""
    return _book().waits if known.kind == "timeout" else ()


def otherwise(known: Signature) -> Iterable[str]:
    """Yield how to go on where none of a signature's causes is the one."""
    by_frames = any(known.id == one.id for one in places() if one.place)  # their last cause says it
    own = next((at for start, at in _OTHERWISE.items() if known.id.startswith(start)), known.phase)
    phase = "bench" if known.request else own
    if known.causes and not by_frames and phase in _book().otherwise:
        yield _book().otherwise[phase]


def features(event: Event) -> Iterable[str]:
    """Yield how to do without the features that an error names, or in whose code it came up, the innermost first."""
    at = {one.says: one.depth(event) for one in _book().features}
    for says in sorted((says for says, depth in at.items() if depth >= 0), key=lambda says: -at[says])[:_MOST]:
        yield f"code of a feature: {says}"
