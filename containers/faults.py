"""What the words of a runtime's program mean: patterns with reason and remedy, in a YAML file beside each runtime."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence

from jobs.core import process
from jobs.core.errors import RunError

Faults = Sequence[tuple[str, str, str]]
"""Pattern, reason, remedy. The first pattern that is found in the output counts."""

_SAYS_WHY = re.compile(
    r"\[ERROR\]|FATAL ERROR|^curl:|^mkdir:|^enroot-|^tar:|[Ee]rror response|^Error|^docker: |^mksquashfs|^parallel:"
)
_LONGEST = 300


def failure(argv: Sequence[str], code: int, output: str, key: str, value: object, faults: Faults) -> RunError:
    """Return the error for a program of a runtime that failed: on which node, which, how, why, and what to do.

    Args:
        argv: its command line, of which the first two words are shown.
        code: its exit code; output: its last words.
        key, value: the config key that it was run for.
        faults: what is known of its words.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if _SAYS_WHY.search(line)]
    words = (telling or lines or ["it said nothing"])[-1][:_LONGEST]
    name = process.signal_name(code)
    ended = f"was killed by {name}" if name else f"ended with code {code}"
    how = f"`{' '.join(argv[:2])}` on {socket.gethostname()} {ended}"
    if code <= 128:
        for pattern, reason, remedy in faults:
            if re.search(pattern, output, re.MULTILINE):
                remedy = remedy.replace("PROGRAM", argv[0])
                return RunError(key, value, f"{how}: {reason} ({words})", remedy)
    return RunError(key, value, f"{how}: {words}", f"Try it by hand on that node: {argv[0]}.")
