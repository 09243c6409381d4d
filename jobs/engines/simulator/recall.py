"""The rehearsal engine's memory: it finds the facts of jobs/measure/needle.py in a prompt and answers the question."""

from __future__ import annotations

import re

_FACT = re.compile(r"The secret number of (\w+) is (\d+)\.")
_ONE = re.compile(r"What is the secret number of (\w+)\?")
_LARGER = re.compile(r"Which secret number is the larger one, that of (\w+) or that of (\w+)\?")


def recall(text: str) -> str | None:
    """Return the answer to the question at the end of a text; None: it asks for no fact that it holds."""
    facts: dict[str, str] = dict(_FACT.findall(text))
    one, larger = _ONE.search(text), _LARGER.search(text)
    if one:
        return facts.get(one[1])
    if larger and facts.keys() >= set(larger.groups()):
        return max((facts[name] for name in larger.groups()), key=int)
    return None
