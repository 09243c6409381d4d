"""How a program ends early: an error is one line for people; both have an exit code."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from jobs.core.errors import UserError

INTERRUPTED = 130
"""Exit code after Ctrl-C: what was submitted goes on."""


def show(error: UserError) -> int:
    """Print one clear error. Returns its exit code; the traceback is in the sweep's log where there is one."""
    out = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    out.print(Text.assemble(("error:", "bold red"), f" {error}"))
    return error.exit_code
