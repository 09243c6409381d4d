"""The sift of long logs loses nothing: thousands of lines that signatures can match, too many for the unit tests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import from_regex

from jobs.diagnose.signatures import Signature, signatures


@pytest.mark.parametrize("signature", signatures(), ids=lambda signature: signature.id)
def test_every_line_that_a_signature_can_match_passes_the_sift(signature: Signature) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(from_regex(signature.pattern))
    def check(line: str) -> None:
        assert any(word in line for word in signature.words)

    check()
