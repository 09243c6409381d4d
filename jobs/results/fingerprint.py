"""What a figure depends on beside its config: versions and contents that may change under the same names. Pure.

A row keeps them. A row of another engine version, driver, image or model is stale: it answers an old question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Fingerprint:
    """What one host sees of it. None: it cannot be seen from there.

    `host_state` is a digest of how the nodes are tuned (jobs/allocation/preflight/tuning.py); no other host sees it.
    """

    engine_version: str | None = None
    driver_version: str | None = None
    image_digest: str | None = None
    model_digest: str | None = None
    host_state: str | None = None

    def or_else(self, other: Fingerprint) -> Fingerprint:
        """Return this one, completed by another where nothing is known."""
        theirs = asdict(other)
        return Fingerprint(**{name: value or theirs[name] for name, value in asdict(self).items()})

    def trusted(self, then: Fingerprint, row: Mapping[str, Any]) -> Fingerprint:
        """Return what of this view counts against a row.

        A login host may have other versions than the nodes: its view counts where, at the launch of the row's sweep
        (`then`), it was the nodes' view too.
        """
        before = asdict(then)
        return Fingerprint(
            **{name: value for name, value in asdict(self).items() if value and before[name] == row.get(name)}
        )

    def changes(self, row: Mapping[str, Any]) -> list[str]:
        """Return what differs from the time of a row, for people; what only one side knows is no difference."""
        return [
            f"{name} {row[name]} -> {value}"
            for name, value in asdict(self).items()
            if value and row.get(name) and row[name] != value
        ]


NAMES = tuple(asdict(Fingerprint()))
"""The columns of the row."""


def of_mapping(values: Mapping[str, Any]) -> Fingerprint:
    """Return the fingerprint that a record or a row holds; older ones lack it."""
    return Fingerprint(**{name: values.get(name) for name in NAMES})
