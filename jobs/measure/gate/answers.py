"""Answers: all there, as long as they were asked for, and made by an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jobs.core.config import Bench
from jobs.measure.gate.case import Case, Finding, Found, first_error
from jobs.measure.records import RequestRecord
from jobs.measure.statistics import in_one_piece, mean

LENGTH_TOLERANCE = 0.01
"""Mean length of prompts and of answers against what was asked."""

APART = 0.05
"""The same of single ones, where their mean is right."""

LEAST_S_A_TOKEN = 2e-4
"""A floor under the time of an answer, s for each of its tokens: 5,000 tokens/s for one user. The fastest services that
are published give 2,500 to 3,000 (wafer-scale, Llama 4 Maverick, 2025-05); this project's 37e9 weights a token need
1.4 ms at the memory bandwidth of 16 NPUs. What is faster comes from a cache of answers, or from nothing."""

TOKENS_AT_ONCE = 4.0
"""Beyond so many, TPOT and ITL are about pieces of an answer. Speculative decoding gives two or three tokens a step."""


def unanswered(case: Case) -> Found:
    """Requests without a whole answer, those that were under way at the opening among them."""
    window, bench = case.window, case.config.bench
    completed, failed, cut = (case.figures[name] for name in ("completed", "failed", "truncated_requests"))
    if not completed:
        error = next((f": {record.error}" for record in window.records if record.error), "")
        if window.closed_s <= window.opened_s:
            yield Finding(f"the window never opened: no answer within bench.warmup_s and limits.warmup_s{error}", True)
        else:
            yield Finding(f"no request of the window was completed{error}", True)
        return
    # The load of a window is made of those under way at its opening, and of those that hold it to the last answer.
    beside = [r for r in window.records if not (r.in_window or r.check) and r.end_s >= window.opened_s]
    died = [r for r in beside if r.status == "failed"]
    bad = failed + len(died)
    if failed:
        invalid = completed < bench.min_success * (completed + failed)
        yield Finding(f"{failed} requests failed: {first_error(case.counted)}", invalid)
    if died:
        invalid = completed < bench.min_success * (completed + bad)
        words = f"{len(died)} requests that started before or after the window died beside it: {first_error(died)}"
        yield Finding(words, invalid)
    if not case.figures["output_tok_per_s"]:
        yield Finding("no token arrived in the window", True)
    if window.truncated:
        yield Finding("the window was cut short", True)
    if window.late_s is not None:
        yield Finding(f"the requests of the window took longer than {window.late_s:g} s (limits.window_s)", True)
    if cut:
        yield Finding(f"{cut} requests had no whole answer within limits.drain_s after the window", True)


def lengths(case: Case) -> Found:
    """Other lengths than asked are other work, whatever `bench.ignore_eos` says.

    The answers to real texts end where the model ends them: their length is then a limit, and is told.
    """
    pairs = [(r.prompt_tokens, r.asked_input) for r in case.whole if r.prompt_tokens is not None and r.asked_input]
    if words := _other_length("prompts", pairs):
        yield Finding(words, True)
    outputs = [(r.output_tokens, r.asked_output) for r in case.whole if r.output_tokens and r.asked_output]
    if words := _other_length("answers", outputs):
        yield Finding(f"{words}: other work than was asked for", not ends_by_itself(case.config.bench))


def ends_by_itself(bench: Bench) -> bool:
    """Tell whether `bench.output_tokens` is but a limit: real texts, and the model may end its answer."""
    return not bench.ignore_eos and bench.workload in ("sharegpt", "needle")


def _other_length(what: str, pairs: Sequence[tuple[int, int]]) -> str | None:
    if not pairs:
        return None
    real, asked = (mean(values) or 0.0 for values in zip(*pairs, strict=True))
    apart = (mean(abs(one - other) for one, other in pairs) or 0.0) / asked
    if apart > APART > abs(real / asked - 1):
        return f"{what} had as many tokens on average as was asked, but each {apart:.0%} more or less"
    return other_length(what, real, asked)


def other_length(what: str, real: float, asked: float) -> str | None:
    """Return words where prompts or answers have not the mean length that was asked for, both in tokens."""
    if abs(real / asked - 1) > LENGTH_TOLERANCE:
        return f"{what} had {real:.5g} tokens on average instead of {asked:.5g}"
    return None


def too_fast(case: Case) -> Found:
    """Answers that no engine can have made."""
    bench = case.config.bench
    fast = [r for r in case.whole if _s_a_token(r) < LEAST_S_A_TOKEN]
    if fast:
        least = min(map(_s_a_token, fast))
        words = (
            f"{len(fast)} of {len(case.whole)} answers came faster than any engine makes them"
            f" ({least * 1e3:.2g} ms a token, at least {LEAST_S_A_TOKEN * 1e3:g}): a cache of answers?"
        )
        yield Finding(words, len(fast) > (1 - bench.min_success) * len(case.whole))


def _s_a_token(record: RequestRecord) -> float:
    end = float(record.chunk_times[-1]) if len(record.chunk_times) else record.end_s
    return (end - record.start_s) / max(1, record.output_tokens or 1)


def pieces(case: Case) -> Found:
    """Answers whose tokens came in few pieces: how fast a user sees them is then not known."""
    several = [r for r in case.whole if (r.output_tokens or 0) > 1]
    at_once = sum(map(in_one_piece, several))
    if at_once:
        yield Finding(f"{at_once} of {len(several)} answers came in one piece: they have no TPOT and no ITL")
        return
    if sum(len(r.chunk_times) > (r.output_tokens or 0) for r in several) > APART * len(several):
        words = "answers came in more pieces than they have tokens: ITL counts what was sent twice, or holds none"
        yield Finding(f"{words}, and TTFT may be that of a piece that no engine made")
        return
    # Chunks that a gateway kept back and sent on together are one piece.
    times, tokens = sum(len(np.unique(r.chunk_times)) for r in several), sum(r.output_tokens or 0 for r in several)
    if times and tokens > TOKENS_AT_ONCE * times:
        yield Finding(f"{tokens / times:.3g} tokens at a time: TPOT and ITL are those of pieces of an answer")
