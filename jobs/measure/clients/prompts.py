"""Texts of an exact length in tokens, for a client that takes texts: random token ids, as the service reads them back.

Random ids that are decoded to a text and encoded again are more tokens than they were (297 of 256 with the lab's
tokenizer), so the text is cut, by the served model's own tokenizer, until it is read as the length that was asked for.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path

from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import write_text
from jobs.core.waiting import aside
from jobs.measure.records import Target
from jobs.measure.tokenizer import Tokenizer
from jobs.measure.wire import Connections
from jobs.measure.workload import numbers

ROUNDS = 8
"""Cuts after which a text is taken as it is: the gate compares the mean length with what was asked."""

AT_ONCE = 32


async def write(config: Config, target: Target, path: Path, count: int) -> bool:
    """Write `count` prompts, one JSON object a line: `question`, `max_tokens` and an `answer` that nobody reads.

    Returns whether the service has a tokenizer to ask (vLLM's /tokenize and /detokenize); else nothing is written.
    """
    bench = config.bench
    low, high = config.model.shape.token_ids
    with closing(Connections.to(target)) as connections:
        tokenizer = Tokenizer(connections, target.model)
        try:
            special = len(await tokenizer.tokens("a", special=True)) - len(await tokenizer.tokens("a"))
            texts: list[str] = []
            for start in range(0, count, AT_ONCE):
                drawn = [
                    numbers(bench.seed, index, bench.input_tokens, low, high).tolist()
                    for index in range(start, min(count, start + AT_ONCE))
                ]
                texts += await asyncio.gather(*(_text(tokenizer, ids, max(1, len(ids) - special)) for ids in drawn))
        except RunError:
            return False
    lines = [{"question": text, "max_tokens": bench.output_tokens, "answer": "-"} for text in texts]
    await aside(write_text, path, "".join(json.dumps(line) + "\n" for line in lines))
    return True


async def _text(tokenizer: Tokenizer, ids: list[int], length: int) -> str:
    """Return a text that begins with these tokens and is read as `length` tokens, or nearly so after ROUNDS cuts."""
    text, read = "", tuple(ids[:length])
    for _ in range(ROUNDS):
        text = await tokenizer.text(read)
        found = await tokenizer.tokens(text)
        if len(found) == length or not found:
            break
        read = (found * (length // len(found) + 1))[:length]
    return text
