"""Standard output whose reader has gone (`... | head`): a command line then ends silently, as every Unix tool does."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from io import UnsupportedOperation

CLOSED = 128 + signal.SIGPIPE
"""Exit code (141): what a shell says of a program that SIGPIPE ended."""


def until_closed(main: Callable[[], int | None]) -> int | None:
    """Run a program; where the reader of its output goes away, end it silently. Returns its exit code, or CLOSED.

    SIGPIPE itself stays ignored: it would end us for a connection that another host closed, too.
    """
    try:
        try:
            code = main()
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, and not when the interpreter ends: then it is too late to be silent
    except BrokenPipeError:
        if not nobody_reads():
            raise
        # What is still in the buffer goes nowhere (docs.python.org, signal, "Note on SIGPIPE").
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return CLOSED
    return code


def nobody_reads() -> bool:
    """Return whether standard output is a pipe, or a terminal, whose other end is closed."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (UnsupportedOperation, ValueError):
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
