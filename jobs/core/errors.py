"""The two errors that people see. Each names the key, the value, the reason and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error with everything a person needs to act on it.

    Args:
        key: full dotted config key, or the thing (file, program, node) that is at fault.
        value: what was found there.
        reason: why that cannot work.
        remedy: what to do instead.
    """

    exit_code = 1

    def __init__(self, key: str, value: object, reason: str, remedy: str) -> None:
        super().__init__(key, value, reason, remedy)
        self.key, self.value, self.reason, self.remedy = key, value, reason, remedy

    def __str__(self) -> str:
        return f"{self.key} = {self.value}: {self.reason.rstrip('.')}. {self.remedy}"


class ConfigError(UserError):
    """The question cannot be asked like this: found before anything is submitted. Exit code 2."""

    exit_code = 2


class RunError(UserError):
    """Something failed while submitting or running. Exit code 1."""

    exit_code = 1


def nearest(name: str, valid: Iterable[str], listed: Iterable[str] = ()) -> str:
    """Return a sentence that offers the nearest valid name, or lists the valid ones, or those of `listed`."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Valid: " + ", ".join(sorted(listed) or names)
