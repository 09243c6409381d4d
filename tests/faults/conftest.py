"""The lanes in which this directory's tests share the lab."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cases import Case
from lab import Lab
from lanes import Lanes


@pytest.fixture(scope="session")
def lanes(lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lanes]:
    """Begin with what was chosen; each test then waits for its own.

    A case is a test's parameter; other work is named by the mark `beside`.
    """
    chosen = [item for item in request.session.items if isinstance(item, pytest.Function)]
    parameters = [item.callspec.params for item in chosen if hasattr(item, "callspec")]
    cases = [words["case"] for words in parameters if isinstance(words.get("case"), Case)]
    made = Lanes(lab, cases, lambda name: tmp_path_factory.mktemp(name, numbered=False) / "runs")
    for item in chosen:
        if tag := item.get_closest_marker("beside"):
            made.beside(item.name, tag.kwargs["work"])
    yield made
    made.close()
