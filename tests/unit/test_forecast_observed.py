"""Rows are kept under results.root, learnt from, and set beside what was predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from core_help import config

from jobs.__main__ import main
from jobs.core.rundir import Root
from jobs.forecast.observed import beside, forecaster, learnt_of, observation, remember
from jobs.results.row import FORECAST as FORECAST_COLUMNS
from jobs.results.row import columns

LOADS = [("parallel.max_num_seqs=64", f"bench.concurrency={load}", f"bench.input_tokens={length}")
         for load in (1, 4, 16) for length in (1024, 4096)]  # fmt: skip


def rows(slow: float = 1.0):
    """Rows of a machine that is as the anchors say, all of it `slow` times as slow."""
    predict = forecaster(Root(Path("/nowhere")))
    for load in LOADS:
        said = predict(config(*load), None)
        yield (
            config(*load),
            {
                "valid": True,
                "ttft_ms_mean": said["ttft_s"].value * 1e3 * slow,
                "tpot_ms_mean": said["tpot_s"].value * 1e3 * slow,
                "output_tok_per_s": said["output_per_s"].value / slow,
            },
        )


def seen(slow: float = 1.0):
    return {str(place): one for place, (made, row) in enumerate(rows(slow)) if (one := observation(made, None, row))}


def test_what_rows_showed_is_kept_and_narrows_the_interval(tmp_path: Path) -> None:
    root, point = Root(tmp_path), config(*LOADS[3])
    before = forecaster(root)(point, None)["tpot_s"]
    remember(root, seen(1.5).values())
    after = forecaster(root)(point, None)["tpot_s"]
    assert after.value == pytest.approx(before.value * 1.5, rel=0.03)
    assert after.high / after.low < 1.2 < before.high / before.low
    (tmp_path / ".calibration/figures/vllm_ascend.json").write_text("torn")
    assert forecaster(root)(point, None)["tpot_s"] == before


def test_a_row_that_does_not_count_teaches_nothing() -> None:
    made, row = next(rows())
    assert observation(made, None, row | {"valid": False}) is None
    assert observation(made, None, row | {"truncated": True}) is None
    assert observation(config("bench.workload=sharegpt", "bench.dataset=x"), None, row) is None
    rate = observation(config("bench.request_rate=1"), None, row)
    assert rate is not None and "output_per_s" not in rate.measured


def test_a_row_far_outside_is_unexpected_with_what_would_explain_it(tmp_path: Path) -> None:
    root = Root(tmp_path)
    remember(root, seen().values())
    expected = beside(learnt_of(root, "vllm_ascend"), seen())
    assert all("unexpected" not in one and one["forecast_output_tok_per_s"] > 0 for one in expected.values())
    slow = beside(learnt_of(root, "vllm_ascend"), seen(1.6))
    assert all("would explain it" in one["unexpected"] for one in slow.values())
    assert "output_tok_per_s is below" in slow["0"]["unexpected"]
    assert set(FORECAST_COLUMNS) <= set(columns(()))
    assert set().union(*slow.values()) <= set(FORECAST_COLUMNS)


def test_a_row_is_judged_no_finer_than_its_own_windows_lie_apart(tmp_path: Path) -> None:
    root = Root(tmp_path)
    remember(root, seen().values())
    learnt = learnt_of(root, "vllm_ascend")
    for ends, healthy in (((0.99, 1.01), False), ((0.7, 1.4), True), ((0.2, 1.01), False)):
        apart = {f"output_tok_per_s_{end}": ends[end == "max"] for end in ("min", "max")}
        found = {
            str(place): one
            for place, (made, row) in enumerate(rows(1.3))
            if (
                one := observation(
                    made, None, row | {"windows": 3} | {k: v * row["output_tok_per_s"] for k, v in apart.items()}
                )
            )
        }
        assert all(("unexpected" not in one) == healthy for one in beside(learnt, found).values()), ends


def test_one_row_of_a_machine_that_no_anchor_tells_of_marks_no_other_setting(tmp_path: Path) -> None:
    def cpu(*more: str, rate: float, tpot: float):
        made = config("experiment=demo", "bench.concurrency=16", *more)
        row = {"valid": True, "output_tok_per_s": rate, "ttft_ms_mean": 2e3 * 100 / rate, "tpot_ms_mean": tpot}
        return observation(made, None, row)

    one, two = cpu("parallel.max_num_seqs=2", rate=620, tpot=3.0), cpu("parallel.max_num_seqs=16", rate=1913, tpot=6.2)
    remember(Root(tmp_path), [one])
    assert "unexpected" not in beside(learnt_of(Root(tmp_path), "vllm_cpu"), {"two": two})["two"]


def test_the_command_prints_charts_and_its_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["forecast", f"results.root={tmp_path}", "parallel.max_model_len=8192"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "dp2_tp8" in said and "●" in said and "tokens of KV cache in each rank" in said
    assert "met within" in said
    assert main([*asked, "bench.concurrency=1,8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["concurrency"] for one in found["loads"]] == [1, 8]
    low, high = (one["said"]["output_tok_per_s"] for one in found["loads"])
    assert low["low"] < low["value"] < low["high"] and low["value"] < high["value"]
    levers = ["experiment=long_context", "parallel=dp2_tp8", "parallel.max_model_len=32768", "lever=none,mtp1"]
    assert main(["forecast", *levers, "bench.input_tokens=8192", "bench.output_tokens=128,256", "--json"]) == 0
    one, other = json.loads(capsys.readouterr().out)
    assert one["service"].startswith("none: ") and other["service"].startswith("mtp1: ")
    assert [cell["label"] for cell in one["loads"]] == ["bench.output_tokens=128", "bench.output_tokens=256"]
    assert main([*asked, "bench.output_tokens=9000"]) == 2
    assert "the engine would refuse every request" in capsys.readouterr().err
    assert (
        main(["forecast", "engine=vllm_cpu", "model=tiny_llama", "parallel=dp2_tp1", f"results.root={tmp_path}"]) == 0
    )
    assert "no forecast: measure any point on this site first" in capsys.readouterr().out
