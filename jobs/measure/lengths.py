"""Lengths of single requests: exact numbers, a pure function of (bench.seed, index)."""

from __future__ import annotations

import math

import numpy as np

from jobs.core.config import Bench

_LENGTHS = 2  # a branch of the seed of its own, apart from prompts and arrivals
_FAR = 3.0
"""Lognormal lengths are cut at mean x (1 + 3 x spread), so that one can tell beforehand whether they fit."""


def drawn(bench: Bench, index: int) -> tuple[int, int]:
    """Return prompt and output length of request number `index`, each at least 1.

    uniform: whole numbers of [mean (1 - spread), mean (1 + spread)]. lognormal: `spread` is the standard
    deviation as a share of the mean, so sigma^2 = ln(1 + spread^2) and mu = ln(mean) - sigma^2 / 2.
    """
    means = (bench.input_tokens, bench.output_tokens)
    if bench.lengths == "fixed" or not bench.length_spread:
        return means
    random = np.random.default_rng(np.random.SeedSequence(bench.seed, spawn_key=(_LENGTHS, index)))
    first, second = (_one(random, bench, mean) for mean in means)
    return first, second


def _one(random: np.random.Generator, bench: Bench, mean: int) -> int:
    spread = bench.length_spread
    if bench.lengths == "uniform":
        return int(random.integers(max(1, math.ceil(mean * (1 - spread))), math.floor(mean * (1 + spread)) + 1))
    variance = math.log1p(spread * spread)
    value = random.lognormal(math.log(mean) - variance / 2, math.sqrt(variance))
    return min(max(1, round(value)), _longest(bench, mean))


def _longest(bench: Bench, mean: int) -> int:
    if bench.lengths == "fixed":
        return mean
    return math.floor(mean * (1 + bench.length_spread * (_FAR if bench.lengths == "lognormal" else 1.0)))


def turn_input(bench: Bench, turn: int) -> int:
    """Return the prompt length of a turn of a conversation: all that was said before, and `input_tokens` more."""
    return bench.input_tokens + turn * (bench.input_tokens + bench.output_tokens)


def longest(bench: Bench) -> int | None:
    """Return the tokens of the longest request, prompt and output; None where a data set decides."""
    if bench.workload in ("sharegpt", "trace"):
        return None
    if bench.workload == "multi_turn":
        return turn_input(bench, bench.turns - 1) + bench.output_tokens
    return _longest(bench, bench.input_tokens) + _longest(bench, bench.output_tokens)
