"""What two ranks leave together: the failure of one, in the middle of quiet lines, and what follows from it on both.

Each case of an engine in the corpus is put into the log of rank 1; rank 0 only loses or waits for it. The answer must
be that of the case alone. Few may differ: lines without a form, which a log that goes on after them gets over.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.core.foreign import from_yaml
from jobs.diagnose.classify import classify
from jobs.diagnose.diagnosis import Diagnosis, RankLog
from jobs.diagnose.signatures import signatures
from jobs.diagnose.times import timeline

CORPUS = Path(__file__).parent.parent / "corpus"
KINDS = {signature.id: signature.kind for signature in signatures()}
_ELSEWHERE = ("bench", "queue", "container")
_OF_ONE = ("at-request", "errno-text")
"""Of one request, or the words of an errno alone: no failure of an engine."""

_ONE_IN = 40


def vllm(process: str, level: str, when: datetime, text: str) -> str:
    stamp = when.strftime("%m-%d %H:%M:%S")
    return "".join(f"({process} pid=7) {level} {stamp} [core.py:1] {line}\n" for line in text.splitlines())


def starts(rank: int, begin: datetime, serves: bool) -> str:
    """Return the quiet lines of a rank's start, and of its load where it serves."""
    engine, worker = f"EngineCore_DP{2 * rank}", f"Worker_DP{2 * rank}_TP0_EP{8 * rank}"
    text = "sys:1: DeprecationWarning: builtin type odd has no __module__ attribute\n"
    text += vllm(engine, "INFO", begin, "Waiting for init message from front-end.")
    text += vllm(worker, "INFO", begin + timedelta(seconds=60), "Starting to load model /m...")
    text += "\rLoading safetensors checkpoint shards:  12% Completed | 20/163 [01:02<07:20, 3.08s/it]\n"
    if serves:
        text += vllm(worker, "INFO", begin + timedelta(seconds=300), "Loading weights took 238.11 seconds")
        text += vllm(engine, "INFO", begin + timedelta(seconds=310), "GPU KV cache size: 163,840 tokens")
    return text


def ready(when: datetime) -> str:
    route = vllm("APIServer", "INFO", when, "Route: /health, Methods: GET")
    answer = '(APIServer pid=7) INFO:     192.0.2.7:50114 - "POST /v1/completions HTTP/1.1" 200 OK\n'
    return f"{route}(APIServer pid=7) INFO:     Application startup complete.\n{answer}"


def follows(rank: int, when: datetime, serves: bool) -> str:
    """Return what an engine says of a worker that failed."""
    if serves:
        words = "RuntimeError: Worker failed with error 'HCCL function error: HcclAllReduce, error code is 6'"
        return vllm(f"EngineCore_DP{2 * rank}", "ERROR", when, f"EngineCore encountered a fatal error.\n{words}")
    words = "Exception: WorkerProc initialization failed due to an exception in a background process."
    return vllm(f"EngineCore_DP{2 * rank}", "ERROR", when, f"EngineCore failed to start.\n{words}")


def lost(when: datetime) -> str:
    stamp = when.strftime("W%m%d %H:%M:%S.265908298")
    return (
        f"[rank0]:[{stamp} TCPStore.cpp:125] [c10d] recvValue failed on SocketImpl(fd=9): Failed to recv, got 0 bytes. "
        "Connection was likely closed. Did the remote server shutdown or crash?\n"
        "Exception raised from recvBytes at /x/Utils.hpp:682 (most recent call first):\nframe #0: odd + 0xd4\n"
    )


def waited(when: datetime) -> str:
    stamp = when.strftime("%Y-%m-%d-%H:%M:%S.123.456")
    return f"[PID: 11] {stamp} Communication_Error_Get_Socket(EI0006): Getting socket times out.\n"


def span(log: str) -> tuple[datetime, datetime]:
    """Return the times of the first and the last line of a case that tells one."""
    told = [when.time for when in timeline([(log.splitlines(), None)])[0] if when.own and when.time]
    return (min(told), max(told)) if told else (datetime(2026, 6, 17, 12), datetime(2026, 6, 17, 12))


def fit(case: dict[str, Any], alone: Diagnosis, serves: bool) -> bool:
    """Whether a case is the failure of an engine that may stand among others."""
    kind = KINDS.get(alone.signature or "", "code")
    telling = kind in ("cause", "symptom", "code") and alone.signature and alone.phase not in _ELSEWHERE
    telling = telling and not str(alone.signature).startswith(_OF_ONE)
    later = alone.phase in ("serve", "any") and not (KINDS.get(case["is"]) and alone.phase == "load")
    return bool(telling) and "startup complete" not in case["log"] and (later or not serves)


def cases(serves: bool) -> Iterator[tuple[str, dict[str, Any], Diagnosis]]:
    for name in ("cann", "hccl", "vllm"):
        for at, case in enumerate(from_yaml((CORPUS / f"{name}.yaml").read_text(encoding="utf-8"))):
            if "log" in case and case["is"] not in ("none", "unknown"):
                alone = classify([RankLog.of(1, "rank1.log", case["log"])])
                if fit(case, alone, serves):
                    yield f"{name}-{at}-{case['is']}", case, alone


@pytest.mark.parametrize(
    ("serves", "late", "tells"),
    [(False, 6, lost), (False, -2, lost), (True, 6, lost), (False, 120, waited)],
    ids=["at the start", "clocks apart", "while it serves", "a wait"],
)
def test_one_rank_says_why_and_the_other_only_loses_it(serves: bool, late: int, tells: Any) -> None:
    differ, number = [], 0
    for name, case, alone in cases(serves):
        first, last = span(case["log"])
        begin = first - timedelta(seconds=900 if serves else 330)
        other = last + timedelta(seconds=late)
        head = starts(0, begin, True) + (ready(begin + timedelta(seconds=400)) if serves else "")
        head += tells(other) + follows(0, other + timedelta(seconds=2), serves)
        ill = f"{starts(1, begin, serves)}{case['log'].rstrip()}\n" + follows(1, last + timedelta(seconds=1), serves)
        found = classify([RankLog.of(0, "rank0.log", head), RankLog.of(1, "rank1.log", ill)])
        number += 1
        if found.signature != alone.signature:
            differ.append(f"{name}: {found.signature}, rank {found.rank}")
    assert number > 50
    assert len(differ) <= number // _ONE_IN, differ
