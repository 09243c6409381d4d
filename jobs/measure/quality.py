"""Questions on texts as long as the service takes (`bench.quality=needle`): once a service, outside every window."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from jobs.core.config import Bench, Config
from jobs.measure import canary
from jobs.measure.needle import Question, haystack
from jobs.measure.records import Target
from jobs.measure.wire import Connections, request_json

SET = (
    ("recall", 0.0), ("recall", 0.25), ("recall", 0.5), ("recall", 0.75), ("recall", 1.0),
    ("choose", 0.25), ("choose", 0.75), ("larger", 0.5),
)  # fmt: skip
"""Kind of each question and the depth of its fact."""

ANSWER_TOKENS = 1024
"""Longest answer, tokens: reasoning models think first."""

_GAUGE_WORDS = 400
_MARGIN = 0.98
"""Texts differ a little in tokens a word; a prompt that is too long would be refused."""


@dataclass(frozen=True)
class Quality:
    """What came of the questions.

    Attributes:
        score: share of right answers, 0 to 1; None: the service answered none.
        lines: each question and its answer.
        note: what went wrong, or None.
    """

    score: float | None
    lines: tuple[Mapping[str, Any], ...]
    note: str | None


def fault(quality: Quality, bench: Bench) -> str | None:
    """Return why the rows of a service with these answers cannot be believed by `bench.min_quality`, or None.

    A fast row that answers nonsense is not a winner; one that answers nothing has not shown that it does better.
    """
    if not bench.min_quality:
        return None
    if quality.score is None:
        return quality.note or "the quality questions were not answered"
    if quality.score < bench.min_quality:
        least = f"bench.min_quality={bench.min_quality:g}"
        return f"{quality.score:.0%} of the quality questions were answered right, less than {least}"
    return None


def answer_tokens(config: Config) -> int:
    """Return the longest answer; of a short context a quarter is left for it."""
    return min(ANSWER_TOKENS, max(1, config.parallel.max_model_len // 4))


async def ask(config: Config, target: Target) -> Quality:
    """Ask all questions at once, each on a text that fills `parallel.max_model_len`.

    A short one is asked first: the engine's count of its tokens tells how many words fill the context.
    """
    length, output = config.parallel.max_model_len, answer_tokens(config)
    seed = config.bench.seed
    with closing(Connections.to(target)) as connections:

        async def one(question: Question) -> dict[str, Any]:
            return await _one(connections, config, target, question, output)

        words = min(_GAUGE_WORDS, length // 8)
        gauge = await one(haystack(seed, 0, words, 0.5))
        if gauge["error"] or not gauge["prompt_tokens"]:
            return Quality(None, (gauge,), f"the quality questions were not answered: {gauge['error']}")
        ratio = gauge["prompt_tokens"] / words
        most = int(_MARGIN * (length - output) / ratio)
        questions = [haystack(seed, number, most, depth, kind) for number, (kind, depth) in enumerate(SET, 1)]
        lines = await asyncio.gather(*map(one, questions))
    errors = [line["error"] for line in lines if line["error"]]
    if len(errors) == len(lines):
        return Quality(None, tuple(lines), f"the quality questions were not answered: {errors[0]}")
    score = sum(line["right"] for line in lines) / len(lines)
    return Quality(score, tuple(lines), f"{len(errors)} quality questions failed: {errors[0]}" if errors else None)


async def _one(
    connections: Connections, config: Config, target: Target, question: Question, output: int
) -> dict[str, Any]:
    asked = canary.body(target.model, output) | {"messages": [{"role": "user", "content": question.prompt}]}
    status, message = await request_json(connections, canary.CHAT, asked, config.limits.drain_s)
    answer = canary.read(status, message)
    return {
        "kind": question.kind,
        "depth": question.depth,
        "prompt_tokens": (message.get("usage") or {}).get("prompt_tokens"),
        "expected": question.answer,
        "answer": answer.text,
        "right": question.right(answer.text),
        "error": answer.error,
    }
