"""The gate on answers to long-context questions."""

from __future__ import annotations

import pytest

from jobs.core.config import Bench
from jobs.measure.quality import Quality, fault

ASKED = Bench(quality="needle")


@pytest.mark.parametrize(
    ("score", "least", "reason"),
    [
        (0.5, 0.5, None),
        (0.375, 0.5, "38% of the quality questions were answered right, less than bench.min_quality=0.5"),
        (0.875, 1.0, "88% of the quality questions were answered right, less than bench.min_quality=1"),
        (0.0, 0.0, None),
        (None, 0.5, "the quality questions were not answered: HTTP 400"),
        (None, 0.0, None),
    ],
)
def test_nonsense_is_no_valid_row(score: float | None, least: float, reason: str | None) -> None:
    note = "the quality questions were not answered: HTTP 400" if score is None else None
    assert fault(Quality(score, (), note), Bench(quality="needle", min_quality=least)) == reason


def test_half_of_them_is_asked_where_nobody_says() -> None:
    assert fault(Quality(0.25, (), None), ASKED) is not None
