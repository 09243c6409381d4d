"""How an error ends a program: one line for people, and an exit code."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from jobs.core.errors import UserError


def show(error: UserError) -> int:
    """Print one clear error. Returns its exit code; the traceback is in the sweep's log where there is one."""
    out = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    out.print(Text.assemble(("error:", "bold red"), f" {error}"))
    return error.exit_code
