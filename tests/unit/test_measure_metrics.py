"""The engines' own token counters."""

from __future__ import annotations

from jobs.measure.metrics import GENERATED, engine_counters, growth

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
