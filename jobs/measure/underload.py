"""Known questions among the load: is a service that is right when idle also right under concurrency?

Kernels that exchange experts between nodes have been wrong under concurrency alone (vLLM-Ascend 6a715232ec: 0 to 3 % of
gsm8k right on two A2 nodes), which no question before or after a window can see. So about one in `1 / check_share`
requests is followed, in its slot, by the canary's question. It counts in no latency; its tokens are ours.
"""

from __future__ import annotations

import asyncio

import numpy as np

from jobs.core.config import Bench
from jobs.measure import canary
from jobs.measure.records import Answer, Checked, RequestRecord, Status, Target
from jobs.measure.wire import Connections, clock

SETTLE_S = 0.02
"""A question waits so long, for where rounds are in step the others' next requests are sent in this moment too."""

USUAL_ROUND = 8
"""Requests of a round where nothing bounds them."""


def wanted(bench: Bench) -> bool:
    """Tell whether questions stand among this load; one request at a time is no other load than the canary's own."""
    return bench.check_share > 0 and (bench.concurrency != 1 or bench.request_rate is not None)


class Questions:
    """Asks the canary's question at its turns, and holds the answers against that of the idle service."""

    def __init__(self, connections: Connections, target: Target, bench: Bench, idle: Answer) -> None:
        self._connections, self._target, self.idle = connections, target, idle
        self._tokens = canary.TOKENS[bench.canary]
        self._every = max(1, round(1 / bench.check_share))
        self._first = min(bench.concurrency or USUAL_ROUND, self._every - 1)  # once every slot has work
        self._answers: list[Answer] = []

    @property
    def checked(self) -> Checked:
        """What came back so far, also of those that were refused."""
        return Checked(self.idle, tuple(self._answers))

    def due(self, index: int) -> bool:
        """Tell whether the question follows request number `index`."""
        return index % self._every == self._first

    async def ask(self) -> Answer:
        """Ask once, in the midst of the others."""
        await asyncio.sleep(SETTLE_S)
        answer = await canary.ask(self._connections, self._target, self._tokens, chat=self.idle.chat)
        self._answers.append(answer)
        return answer


def record(index: int, start_s: float, answer: Answer | None) -> RequestRecord:
    """Return the record of the question after request `index`, now that it has ended; no answer: it was cut off."""
    end = clock()
    status: Status = "truncated" if answer is None else "failed" if answer.error else "ok"
    whole = answer if answer and not answer.error else Answer("", None, None)
    return RequestRecord(
        -1 - index,
        start_s,
        end if whole.tokens else None,
        end,
        np.full(1 if whole.tokens else 0, end),
        whole.prompt_tokens,
        whole.tokens,
        status,
        answer.error if answer else None,
        check=True,
    )
