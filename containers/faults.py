"""What the words of a runtime's program mean: patterns with reason and remedy, in a YAML file beside each runtime."""

from __future__ import annotations

import platform
import re
import socket
from collections.abc import Sequence

from jobs.core import process
from jobs.core.errors import RunError

Faults = Sequence[tuple[str, str, str]]
"""Pattern, reason, remedy. The first pattern that is found in the output counts."""

GONE = "the registry has no such image or tag"
"""The reason where a registry has nothing under a name; by its digest it may have it still."""

_SAYS_WHY = re.compile(
    r"\[ERROR\]|FATAL ERROR|^(curl|mkdir|tar|mksquashfs|parallel|gzip|zstd|docker): ?|^enroot-|^Checksum"
    r"|[Ee]rror response|^Error"
)
_LONGEST = 300


def for_this_processor(said: str) -> str:
    """Return what to do where a container's last words are that its image is for another processor; else nothing."""
    return f"Take the image for {platform.machine()}." if "exec format error" in said else ""


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
    if not name:
        said = _without_names(output, argv, str(value))
        for pattern, reason, remedy in faults:
            if re.search(pattern, said, re.MULTILINE):
                remedy = remedy.replace("PROGRAM", argv[0])
                return RunError(key, value, f"{how}: {reason} ({words})", remedy)
    return RunError(key, value, f"{how}: {words}", f"Try it by hand on that node: {argv[0]}.")


def _without_names(output: str, argv: Sequence[str], value: str) -> str:
    """Return an output without the paths and the image's names in it, which may be called like an error."""
    paths = {part for word in argv[2:] for part in word.split(":") if part.startswith("/") and "/dev/" not in part}
    named = {value, *(word for word in argv[2:] if re.search(r"[/#]\S*[:@]", word) and not word.startswith("/"))}
    whole = {part for word in named for part in re.split(r"[#@]|:(?=\w+$)", word.rpartition("://")[2])}
    # A host, and a repository as a whole: a part of its path may be a word of the program's, as `image` is.
    names = {name for part in whole for name in (part, *part.split("/", 1)) if re.search(r"[./]", name)}
    for word in sorted(paths | (names if re.search(r"[/#:]", value) else set()), key=len, reverse=True):
        output = re.sub(rf"(?<![\w.-]){re.escape(word)}(?![\w.-])", "", output)
    return output
