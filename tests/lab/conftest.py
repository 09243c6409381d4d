"""The session fixture `lab`: a real two-node Slurm that starts itself."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab import Lab, LabUnavailableError


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Yield the lab, up. A lab that was there before stays there; one that we made goes away again.

    Where the machine cannot hold it the test is skipped with the reason; under CI=true that is a failure.
    """
    lab = Lab()
    was_there = lab.layout.marker.exists()
    try:
        lab.up()
    except LabUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have the lab: {error}")
        pytest.skip(str(error))
    yield lab
    if not was_there:
        lab.down()
