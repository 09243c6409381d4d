"""Roofline, memory and scheduler: pure parts of the rehearsal engine."""

import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_help import R1, settled

from jobs.core.service_config import Shape
from jobs.engines.prediction import GIB, Layout
from jobs.engines.simulator.engine import EngineFailed, kv_blocks
from jobs.engines.simulator.roofline import Clock, weight_bytes
from jobs.engines.simulator.scheduler import Request, Scheduler
from jobs.engines.simulator.settings import hardware
from jobs.engines.steptime import Work, dense_share

DP2_TP8 = "-tp 8 -dp 2 -dpl 1 --enable-expert-parallel --block-size 128 --max-num-batched-tokens 8192"
DP4_TP4 = "-tp 4 -dp 4 -dpl 2 --enable-expert-parallel --block-size 128 --max-num-batched-tokens 8192"


def settings(flags: str):
    return settled(*shlex.split(flags))


@pytest.mark.parametrize(("utilization", "tokens"), [(0.85, 83_456), (0.9, 130_048)])
def test_kv_cache_of_the_full_model(utilization, tokens):
    flags = f"{DP2_TP8} --max-model-len 8192 --gpu-memory-utilization {utilization}"
    assert kv_blocks(settings(flags)) * 128 == tokens


def test_weights_agree_with_the_published_log():
    tp8 = sum(weight_bytes(R1, hardware(), Layout(8, 2, True))) / GIB
    tp4 = sum(weight_bytes(R1, hardware(), Layout(4, 4, True))) / GIB
    assert tp8 == pytest.approx(41.85, abs=0.01)
    assert tp4 == pytest.approx(44.16, rel=0.01)  # vllm-ascend issue 2191
    assert dense_share(Shape()) == 1.0


def test_too_long_a_window_names_the_longest_that_fits():
    with pytest.raises(EngineFailed) as error:
        kv_blocks(settings(f"{DP2_TP8} --max-model-len 131072 --gpu-memory-utilization 0.85"))
    assert (
        "ValueError: To serve at least one request with the models's max seq len (131072), (8.58 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (5.47 GiB). Based on the available memory, the "
        "estimated maximum model length is 83456. Try increasing `gpu_memory_utilization` or decreasing "
        "`max_model_len` when initializing the engine." in str(error.value)
    )
    fits = settings(f"{DP2_TP8} --max-model-len 83456 --gpu-memory-utilization 0.85")
    assert kv_blocks(fits) * 128 == 83_456


def test_no_room_at_all():
    with pytest.raises(EngineFailed, match="No available memory for the cache blocks"):
        kv_blocks(settings(f"{DP2_TP8} --max-model-len 1024 --gpu-memory-utilization 0.7"))
    with pytest.raises(EngineFailed, match="NPU out of memory"):
        kv_blocks(settings("-tp 8 -dp 2 -dpl 1 --max-model-len 1024"))  # experts not spread over both nodes


def test_the_clock_follows_the_work():
    clock = Clock(R1, hardware(), Layout(8, 2, True))

    def decode(n, context=1000):
        return clock.seconds(Work(0, n, n * context, n * context))

    assert decode(1) < decode(16) < decode(64) < 0.1
    assert decode(16, 1000) < decode(16, 8000)
    chunk = clock.seconds(Work(8192, 0, 8192 * 4096, 8192))
    later = clock.seconds(Work(8192, 0, 8192 * (65536 + 4096), 65536 + 8192))
    assert 0.5 < chunk < 2.0 < later
    slow = Clock(R1, replace(hardware(), overhead_ms=hardware().overhead_ms + 100), Layout(8, 2, True))
    assert slow.seconds(Work(0, 1, 1, 1)) - clock.seconds(Work(0, 1, 1, 1)) == pytest.approx(0.1)


def drain(scheduler: Scheduler, limit: int = 100_000) -> list[list[int]]:
    """Run until idle; return the keys that got a token in each step."""
    steps = []
    while scheduler.busy:
        batch = scheduler.plan()
        assert batch.items
        got, _ = scheduler.commit(batch)
        steps.append(got)
        assert len(steps) < limit
    return steps


@given(
    requests=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=30),
    blocks=st.integers(13, 40),
    budget=st.integers(4, 64),
    seqs=st.integers(1, 4),
)
def test_every_token_is_made_whatever_the_room(requests, blocks, budget, seqs):
    scheduler = Scheduler(blocks, 8, budget, seqs)
    for key, (prompt, limit) in enumerate(requests):
        scheduler.add(Request(key, prompt, limit))
    made = dict.fromkeys(range(len(requests)), 0)
    while scheduler.busy:
        batch = scheduler.plan()
        assert 0 < sum(tokens for _, tokens in batch.items) <= budget
        assert len(batch.items) <= len(scheduler.running) <= seqs
        assert sum(r.blocks for r in scheduler.running) <= blocks
        for key in scheduler.commit(batch)[0]:
            made[key] += 1
    assert made == {key: limit for key, (_, limit) in enumerate(requests)}
    assert scheduler.figures.usage == 0


def test_long_prompts_are_cut_and_mixed_with_decoding():
    scheduler = Scheduler(100, 8, 32, 8)
    scheduler.add(Request(1, 8, 50))
    scheduler.commit(scheduler.plan())
    scheduler.add(Request(2, 100, 1))
    batch = scheduler.plan()
    assert [(r.key, n) for r, n in batch.items] == [(1, 1), (2, 31)]
    assert (batch.work.new_tokens, batch.work.prompt_tokens) == (1, 31)
    assert scheduler.commit(batch)[0] == [1]


def test_queueing_is_in_order_of_arrival():
    scheduler = Scheduler(100, 8, 64, 2)
    for key in range(4):
        scheduler.add(Request(key, 4, 3))
    scheduler.commit(scheduler.plan())
    assert [r.key for r in scheduler.running] == [0, 1] and [r.key for r in scheduler.waiting] == [2, 3]
    assert drain(scheduler)[-1] == [2, 3]


def test_the_youngest_is_preempted_and_begins_again():
    scheduler = Scheduler(4, 8, 64, 8)
    scheduler.add(Request(1, 15, 16))
    scheduler.add(Request(2, 15, 8))
    scheduler.commit(scheduler.plan())  # both prompts: 2 blocks each
    scheduler.commit(scheduler.plan())  # 16 tokens each
    scheduler.commit(scheduler.plan())  # 1 needs a third block
    assert scheduler.figures.preemptions == 1
    assert [r.key for r in scheduler.running] == [1] and scheduler.waiting[0].key == 2
    assert scheduler.waiting[0].made == 2 and scheduler.waiting[0].computed == 0
    assert sum(step.count(2) for step in drain(scheduler)) == 6


def test_without_chunked_prefill_prompts_go_first_and_alone():
    scheduler = Scheduler(100, 8, 64, 8, chunked=False)
    scheduler.add(Request(1, 40, 5))
    scheduler.commit(scheduler.plan())
    scheduler.add(Request(2, 40, 5))
    scheduler.add(Request(3, 40, 5))
    assert [(r.key, n) for r, n in scheduler.plan().items] == [(2, 40)]


def test_abort_frees_the_blocks_even_in_the_middle_of_a_step():
    scheduler = Scheduler(10, 8, 64, 8)
    scheduler.add(Request(1, 20, 5))
    scheduler.add(Request(2, 20, 5))
    batch = scheduler.plan()
    scheduler.abort([1, 99])
    assert scheduler.commit(batch)[0] == [2]
    assert scheduler.figures.usage == pytest.approx(0.3)


def test_prefix_cache_spares_what_an_earlier_prompt_left():
    scheduler = Scheduler(100, 8, 64, 8)
    scheduler.add(Request(1, 20, 1, hashes=(11, 12)))
    drain(scheduler)
    scheduler.add(Request(2, 20, 1, hashes=(11, 12)))
    scheduler.add(Request(3, 20, 1, hashes=(11, 13)))
    assert [n for _, n in scheduler.plan().items] == [4, 12]
    assert (scheduler.figures.prefix_queries, scheduler.figures.prefix_hits) == (60, 24)
