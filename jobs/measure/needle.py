"""Questions on long texts, made from a seed: a fact is put into a text of random words and asked for at its end.

A fast row that answers nonsense is not a winner: long contexts break quietly (wrong rotary scaling, quantised caches,
chunked prefill), and speed does not show it. The form follows the "needle in a haystack" test (G. Kamradt, 2023)
with facts that no model can know.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from jobs.measure.bodies import VOCABULARY

_NEEDLES = 3  # a branch of the seed of its own
_SENTENCE = 12
"""Words of one sentence of the text."""

_NAMES = ("Alder", "Briar", "Cedar", "Dahlia", "Elder", "Fern", "Gorse", "Hazel", "Iris", "Juniper", "Larch", "Maple")
_INTRO = "Read the text below and remember the secret numbers in it.\n\n"


@dataclass(frozen=True)
class Question:
    """A prompt and the number that a right answer holds.

    Attributes:
        kind: recall (one fact), choose (one of several facts) or larger (compare two facts).
        depth: place of the fact that is asked for, 0 to 1.
    """

    kind: str
    depth: float
    prompt: str
    answer: str

    def right(self, text: str) -> bool:
        """Tell whether an answer holds the number; what stands after it does not count against it."""
        found = re.findall(r"\d+", text.rpartition("</think>")[2].replace(",", ""))
        return self.answer in found


def haystack(seed: int, index: int, words: int, depth: float, kind: str = "recall") -> Question:
    """Return a question on a text of about `words` words: a pure function of `seed` and `index`.

    Args:
        words: length of the whole prompt; it is never shorter than its facts and its question.
        depth: where the fact that is asked for stands, 0 (begin) to 1 (end); the others stand elsewhere.
        kind: recall, choose or larger.
    """
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_NEEDLES, index)))
    facts = {"recall": 1, "choose": 4, "larger": 2}[kind]
    names = [str(name) for name in random.choice(_NAMES, size=facts, replace=False)]
    secrets = [int(n) for n in random.choice(np.arange(100_000, 1_000_000), size=facts, replace=False)]
    if kind == "larger":
        question = f"Which secret number is the larger one, that of {names[0]} or that of {names[1]}?"
        answer = max(secrets)
    else:
        question, answer = f"What is the secret number of {names[0]}?", secrets[0]
    ending = f"\n\nQuestion: {question} Answer with the number alone.\nAnswer:"
    told = [f"The secret number of {name} is {secret}." for name, secret in zip(names, secrets, strict=True)]
    fixed = len((_INTRO + ending + " ".join(told)).split())
    sentences = _sentences(random, max(0, words - fixed))
    places = [depth, *random.uniform(0.0, 1.0, size=facts - 1)]
    for place, fact in sorted(zip(places, told, strict=True), reverse=True):
        sentences.insert(round(place * len(sentences)), fact)
    return Question(kind, depth, _INTRO + " ".join(sentences) + ending, str(answer))


def _sentences(random: np.random.Generator, words: int) -> list[str]:
    drawn = [VOCABULARY[i] for i in random.integers(0, len(VOCABULARY), size=words)]
    return [" ".join(drawn[start : start + _SENTENCE]).capitalize() + "." for start in range(0, len(drawn), _SENTENCE)]
