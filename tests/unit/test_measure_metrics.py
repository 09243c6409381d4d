"""The engines' own token counters."""

from __future__ import annotations

import numpy as np

from jobs.measure import metrics
from jobs.measure.metrics import GENERATED, PREFIX_HITS, engine_counters, finished, growth
from jobs.measure.records import Growth
from jobs.measure.series import Page, between, fresh, grown, samples

PAGE = """
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="a \\"b\\", engine=9"} 12.0
vllm:generation_tokens_total{engine="1",model_name="m"} 1.5e+03
vllm:generation_tokens_total{model_name="other",engine="1"} 10 1700000000000
vllm:generation_tokens_created{engine="1"} 1.7e+09
vllm:generation_tokens_total_more{engine="1"} 99
vllm:generation_tokens_total
vllm:prompt_tokens_total{engine="0"} 77.0
"""


def test_counters_are_summed_over_all_labels_but_the_engine() -> None:
    assert engine_counters(PAGE, GENERATED) == {"0": 12.0, "1": 1510.0}
    assert engine_counters(PAGE, "vllm:prompt_tokens_total") == {"0": 77.0}


def test_a_sample_without_labels_is_engine_0() -> None:
    assert engine_counters("vllm:generation_tokens_total 5\n", GENERATED) == {"0": 5.0}
    assert engine_counters('vllm:generation_tokens_total{model_name="m"} 5\n', GENERATED) == {"0": 5.0}


def test_a_page_without_the_metric_has_no_engine() -> None:
    assert engine_counters("", GENERATED) == {}


def test_growth_by_engine() -> None:
    before = {"0": 100.0, "1": 50.0}
    assert growth(before, {"1": 80.0, "0": 130.0}) == {"0": 30, "1": 30}
    assert growth(before, {"0": 100.0, "1": 50.0}) == {"0": 0, "1": 0}


def test_a_new_or_restarted_engine_counts_from_zero() -> None:
    assert growth({"0": 100.0}, {"0": 7.0, "1": 9.0}) == {"0": 7, "1": 9}


def page(time_s: float, text: str) -> Page:
    return Page(time_s, text, came_s=time_s + 0.5)


BEFORE = page(
    1.0,
    """
vllm:generation_tokens_total{engine="0"} 100
vllm:generation_tokens_total{engine="1"} 100
vllm:num_preemptions_total{engine="0"} 1
vllm:gpu_prefix_cache_queries_total{engine="0"} 10
vllm:gpu_prefix_cache_hits_total{engine="0"} 5
vllm:request_success_total{engine="0",finished_reason="length"} 3
vllm:request_success_total{engine="0",finished_reason="abort"} 9
vllm:num_requests_running{engine="0"} 2
vllm:kv_cache_usage_perc{engine="0"} 0.5
""",
)
AFTER = page(
    2.0,
    """
vllm:generation_tokens_total{engine="0"} 150
vllm:generation_tokens_total{engine="1"} 120
vllm:num_preemptions_total{engine="0"} 4
vllm:gpu_prefix_cache_queries_total{engine="0"} 110
vllm:gpu_prefix_cache_hits_total{engine="0"} 30
vllm:request_success_total{engine="0",finished_reason="length"} 8
vllm:request_success_total{engine="0",finished_reason="stop"} 1
vllm:request_success_total{engine="0",finished_reason="abort"} 99
""",
)


def test_the_first_name_that_the_page_has_is_taken() -> None:
    assert engine_counters(BEFORE.text, *PREFIX_HITS) == {"0": 5.0}
    newer = BEFORE.text + 'vllm:prefix_cache_hits_total{engine="0"} 7\n'
    assert engine_counters(newer, *PREFIX_HITS) == {"0": 7.0}


def test_what_was_counted_between_two_pages() -> None:
    assert grown(BEFORE, AFTER) == Growth(
        {"0": 50, "1": 20},
        preemptions=3,
        prefix_queries=100,
        prefix_hits=25,
        first_s=BEFORE.span_s,
        last_s=AFTER.span_s,
    )
    assert grown(None, AFTER) == grown(BEFORE, None) == Growth({})
    assert grown(page(0, ""), page(1, "")) == Growth({}, first_s=(0, 0.5), last_s=(1, 1.5)), (
        "a page that says nothing is no zero"
    )


def test_aborted_requests_are_not_finished() -> None:
    assert finished(AFTER.text) == {"0": 9.0}
    assert between(BEFORE, AFTER, metrics.finished) == 6
    assert between(BEFORE, page(2.0, ""), metrics.finished) is None
    assert between(BEFORE, AFTER, metrics.generated) == 70
    assert metrics.aborted(AFTER.text).keys() == {"0"} and metrics.prompted(PAGE) == {"0": 77.0}
    assert between(BEFORE, page(2.0, ""), metrics.generated) is between(None, AFTER, metrics.generated) is None


def test_samples_hold_what_the_page_says_of_each_engine() -> None:
    first, second = samples([BEFORE])
    assert (first.engine, first.running, first.waiting, first.kv_use, first.generated_tokens) == (
        "0",
        2,
        None,
        0.5,
        100,
    )
    assert (second.engine, second.running, second.generated_tokens) == ("1", None, 100)


def test_a_page_that_is_given_again_though_tokens_came_is_a_copy() -> None:
    tokens = np.arange(0.0, 14.0, 0.25)
    told = [page(2 * at, text) for at, text in enumerate("aaabbbb")]
    kept, aged_s = fresh(told, tokens)
    assert [(one.text, one.span_s) for one in kept] == [("a", (0, 0.5)), ("b", (4, 6.5))] and aged_s == 5.5
    assert fresh(told, tokens[:1]) == (told, 0.0), "nothing came, so nothing had to be counted"
    assert fresh([page(at, "") for at in range(5)], tokens)[1] == 0.0, "a page without counters"
