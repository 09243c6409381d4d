"""`... | head`: the reader goes away, and the program ends without a word (tests/local has the processes)."""

from __future__ import annotations

import sys

import pytest

from jobs.cli import output


def test_a_broken_connection_is_not_taken_for_a_closed_output() -> None:
    def main() -> int:
        raise BrokenPipeError("of a socket")

    with pytest.raises(BrokenPipeError, match="of a socket"):
        output.until_closed(main)


def test_the_exit_code_is_handed_on() -> None:
    assert output.until_closed(lambda: 2) == 2
    with pytest.raises(SystemExit, match="3"):
        output.until_closed(lambda: sys.exit(3))
