"""Lengths, batch sizes and memory shares (R3 to R6, R13, R18, R20, R21, R24)."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.engines.ascend import is_true
from jobs.engines.ascend.rules.base import EVERY, NPU, Problem, Question, rule

LEN, BATCHED, SEQS = "parallel.max_model_len", "parallel.max_num_batched_tokens", "parallel.max_num_seqs"


def _too_small(tokens: int, length: int, why: str) -> Problem:
    reason = f"{why}, so a prompt of max_model_len = {length} tokens must fit into one step"
    return Problem(BATCHED, tokens, reason, f"Set {BATCHED} to {length} or more, or lower {LEN}.")


@rule("R3", "error", "<0.12", "vllm-ascend v0.9.1, core/schedule_config.py; pull request 4365 mends the tutorial")
def ascend_scheduler(q: Question) -> Iterator[Problem]:
    """The Ascend scheduler without chunked prefill takes whole prompts only."""
    scheduler = q.section("ascend_scheduler_config")
    tokens = scheduler.get("max_num_batched_tokens", q.config.parallel.max_num_batched_tokens)
    length = q.config.parallel.max_model_len
    whole = is_true(scheduler.get("enabled")) and not is_true(scheduler.get("enable_chunked_prefill"))
    if whole and type(tokens) is int and tokens < length:
        yield _too_small(tokens, length, "ascend_scheduler_config is enabled without enable_chunked_prefill")


@rule("R4", "error", "all", "vllm 0.9.1, config.py; 0.23.0, config/scheduler.py, verify_max_model_len", EVERY)
def whole_prompts(q: Question) -> Iterator[Problem]:
    """Without chunked prefill vLLM takes whole prompts only."""
    tokens, length = q.config.parallel.max_num_batched_tokens, q.config.parallel.max_model_len
    if q.settings.get("enable-chunked-prefill") is False and tokens is not None and tokens < length:
        yield _too_small(tokens, length, "chunked prefill is off")


@rule("R5", "error", "all", "vllm 0.9.1, config.py; 0.23.0, config/scheduler.py, verify_max_model_len", EVERY)
def a_token_for_each_sequence(q: Question) -> Iterator[Problem]:
    """A step must hold one token of every sequence."""
    tokens, seqs = q.config.parallel.max_num_batched_tokens, q.config.parallel.max_num_seqs
    if tokens is not None and seqs is not None and tokens < seqs:
        yield Problem(BATCHED, tokens, f"it is below {SEQS} = {seqs}", f"Raise it to {seqs}, or lower {SEQS}.")


@rule("R6", "warning", "all", "vllm 0.9.1, config.py; 0.23.0, config/scheduler.py, verify_max_model_len", EVERY)
def more_tokens_than_can_be(q: Question) -> Iterator[Problem]:
    """More tokens in a step than all sequences together can have."""
    p = q.config.parallel
    if p.max_num_batched_tokens is not None and p.max_num_seqs is not None:
        most = p.max_num_seqs * p.max_model_len
        if p.max_num_batched_tokens > most:
            reason = f"all sequences together have at most {p.max_num_seqs} x {p.max_model_len} = {most} tokens"
            yield Problem(BATCHED, p.max_num_batched_tokens, reason, f"Lower it to {most}.")


@rule("R13", "warning", "all", "vllm-ascend v0.9.1, platform.py; later utils.py, refresh_block_size", NPU)
def block_of_128(q: Question) -> Iterator[Problem]:
    """With prefix caching or chunked prefill blocks have 128 tokens whatever is asked for."""
    size = q.config.parallel.block_size
    chunked = q.settings.get("enable-chunked-prefill") is not False
    if size not in (None, 128) and (chunked or q.config.parallel.enable_prefix_caching is not False):
        yield Problem("parallel.block_size", size, "the engine forces 128 on NPUs", "Set 128 or null.")


@rule("R18", "error", "all", "vllm 0.9.1, config.py, _get_and_verify_max_len", EVERY)
def longer_than_the_model(q: Question) -> Iterator[Problem]:
    """The model was not made for sequences of this length."""
    length, most = q.config.parallel.max_model_len, q.config.model.shape.max_position_embeddings
    overridden = {"hf-overrides", "rope-scaling"} & {name for name, value in q.settings.items() if value is not None}
    if length > most and not overridden and not is_true(q.env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN")):
        reason = f"the model's config.json allows {most} tokens (model.shape.max_position_embeddings)"
        yield Problem(LEN, length, reason, f"Lower it to {most} or less.")


@rule("R24", "error", ">=0.30", "vllm 0.30.0, config/scheduler.py, verify_max_model_len", EVERY)
def threshold_of_long_prompts(q: Question) -> Iterator[Problem]:
    """A prompt cannot be long only beyond the longest one."""
    name, length = "long-prefill-token-threshold", q.config.parallel.max_model_len
    if q.size(name) > length:
        reason = f"it is above {LEN} = {length}"
        yield Problem(f"engine.args.{name}", q.settings[name], reason, f"Give {length} or less.")


@rule("R20", "warning", "all", "vllm-ascend docs, context parallel tutorials: max_num_seqs x dp >= concurrency", EVERY)
def queueing(q: Question) -> Iterator[Problem]:
    """More requests in flight than the engines run at once: the rest waits, and TTFT holds the wait."""
    concurrency, p, most = q.config.bench.concurrency, q.config.parallel, q.config.parallel.sequences
    if concurrency is not None and most is not None and concurrency > most:
        reason = (
            f"the engines run {SEQS} x data-parallel ranks = {p.max_num_seqs} x {p.engines} = {most} "
            "requests at once: the others queue, and TTFT will hold their wait"
        )
        yield Problem("bench.concurrency", concurrency, reason, f"Raise {SEQS}, or read TTFT as queueing time.")


@rule("R21", "warning", "all", "vllm-ascend docs, tutorials: too high may lead to OOM during actual inference", NPU)
def high_utilization(q: Question) -> Iterator[Problem]:
    """The profile run does not see how unevenly experts are loaded."""
    share = q.config.parallel.gpu_memory_utilization
    if share is not None and share > 0.92:
        reason = "the profile run does not see uneven expert load: out of memory during inference is likely"
        yield Problem("parallel.gpu_memory_utilization", share, reason, "Set 0.92 or less.")
