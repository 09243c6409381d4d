"""How a program ends early: an error is one line for people; where the reader of the output has gone (`... | head`) it
ends silently, as every Unix tool does. Each has an exit code.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from io import UnsupportedOperation
from typing import Any, TextIO, cast

from jobs.core import chinese, hidden, masking
from jobs.core.errors import RunError, UserError
from jobs.core.log import take_any_text

CLOSED = 128 + signal.SIGPIPE
"""Exit code (141): what a shell says of a program that SIGPIPE ended."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: what was submitted goes on."""

UNEXPECTED = os.EX_SOFTWARE
"""Exit code (70) of a defect of this tool, or of something of its surroundings that nobody foresaw: sysexits.h."""

DEBUG = "SERVING_SWEEP_DEBUG"
"""Variable with which such an error shows its traceback."""


def tell(text: object, *, file: TextIO | None = None) -> None:
    """Print what people read, in the language of their locale; what programs read is for `print`."""
    print(chinese.printed(str(text)), file=file)


def show(error: UserError) -> int:
    """Print one clear error. Returns its exit code; the traceback is in the sweep's log where there is one."""
    from rich.console import Console  # most commands have nothing to say by it
    from rich.text import Text

    out = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    words = chinese.error(*error.args)
    out.print(Text.assemble(("error:", "bold red"), f" {hidden.visible(masking.text(words))}"))
    return error.exit_code


class Printer:
    """Standard output or error: what stands in a text is shown, and not sent to the terminal as an order to it."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream
        """By this name rich finds the stream itself, for its own colours and bars."""

    def write(self, words: str) -> int:
        """Write a text without secrets and with its control characters visible."""
        return self.rich_proxied_file.write(hidden.visible(masking.text(words)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def until_closed(main: Callable[[], int | None]) -> int | None:
    """Run a program; where the reader of its output goes away, end it silently. Returns its exit code, or CLOSED.

    SIGPIPE itself stays ignored: it would end us for a connection that another host closed, too.
    """
    take_any_text()
    streams = (one or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") for one in (sys.stdout, sys.stderr))  # `>&-`
    sys.stdout, sys.stderr = (cast(TextIO, Printer(one)) for one in streams)
    try:
        try:
            code = main()
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, and not when the interpreter ends: then it is too late to be silent
    except BrokenPipeError as error:
        if not nobody_reads():
            return unexpected(error)
        # What is still in the buffer goes nowhere (docs.python.org, signal, "Note on SIGPIPE").
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return unexpected(error)
    return code


def unexpected(error: Exception) -> int:
    """Say in one line what nobody foresaw, and where its traceback is; with DEBUG raise it. Returns its exit code."""
    if os.environ.get(DEBUG):
        raise error
    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return show(RunError("standard output", "(write)", str(error.strerror), "Let it go to another place."))
    words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    try:
        handle, name = tempfile.mkstemp(prefix="serving-sweep-error-", suffix=".log")  # mode 0600
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            command = " ".join(map(shlex.quote, sys.argv))
            file.write(masking.text(f"{command}\nPython {sys.version}\n\n{traceback.format_exc()}"))
        where = f"The traceback is in {name}: report it with that file (CONTRIBUTING.md)"
    except OSError:
        where = "The traceback could not be written"
    with contextlib.suppress(OSError):
        show(UserError("this tool", words, "nobody foresaw that", f"{where}. {DEBUG}=1 shows it here."))
    return UNEXPECTED


def nobody_reads() -> bool:
    """Return whether standard output is a pipe, or a terminal, whose other end is closed."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (UnsupportedOperation, ValueError):
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
