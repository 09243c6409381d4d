"""The processor share of somebody else's client: its busiest thread while the service worked."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobs.measure.clients import busy
from jobs.measure.clients.busy import Usage, share

LOADS, LOOP, IDLE = (7, 7), (8, 8), (8, 9)


def test_the_busiest_thread_counts_and_only_in_the_window() -> None:
    """Loading takes a whole processor before the first request; the event loop half of one after it."""
    usages = [
        Usage(float(i), {LOADS: min(i, 3) * 1.0, LOOP: max(0.0, i - 3) * 0.5, IDLE: 0.25 + 0.01 * i}) for i in range(12)
    ]
    assert share(usages, 4.0, 9.0) == pytest.approx(0.5)
    assert share(usages, 0.0, 3.0) == pytest.approx(1.0)


def test_too_short_a_span_tells_nothing() -> None:
    usages = [Usage(float(i), {LOOP: i * 0.9}) for i in range(5)]
    assert share(usages, 1.0, 2.5) is None
    assert share([], 0.0, 10.0) is None
    assert share(usages, 1.0, 3.0) == pytest.approx(0.9)


def test_a_clients_processes_are_the_new_children() -> None:
    """The engine of this rank is a child as well, and was there before."""
    words = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]

    def started() -> subprocess.Popen[bytes]:
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        return child

    engine = started()
    known = busy.children()
    client = started()
    try:
        found = {pid for pid, _ in busy.sample(known).seconds}
        assert client.pid in found and engine.pid not in found
    finally:
        for child in (engine, client):
            child.communicate()
    assert client.pid not in {pid for pid, _ in busy.sample(known).seconds}
