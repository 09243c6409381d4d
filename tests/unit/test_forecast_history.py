"""What a run showed changes what the next plan predicts."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from core_help import change, composer, config

from jobs.allocation.service import service_seconds
from jobs.core.config import Config
from jobs.core.log import read_all
from jobs.core.rundir import Root, SweepDir
from jobs.engines.base import EngineLog
from jobs.engines.vllm.serve import VllmServe
from jobs.forecast import duration, history
from jobs.forecast.history import KEPT, Forecast, forecaster, recall, remember
from jobs.sweep import compose, road, show

LOGS = Path(__file__).resolve().parents[1] / "fixtures/logs"
R1 = config("parallel=dp2_tp8", "cluster=slurm")


def look(root: Root, made: Config = R1) -> Forecast:
    return forecaster(root)(made)


def learn(root: Root, figures: EngineLog, made: Config = R1, **times: float) -> None:
    remember(root, made, look(root, made).fit.prediction, figures, run=Path("/runs/a"), **times)


# --- the lines of a log


def test_memory_lines_of_0_9_1() -> None:
    found = VllmServe().read_log(read_all(LOGS / "healthy_0.9.1-rank0.log"))
    assert found.kv_tokens == 133_376
    assert found.weights_gib == pytest.approx(41.85, abs=0.01)
    assert found.available_gib == pytest.approx(9377168172 / 2**30)
    assert found.device_gib == pytest.approx(61.2)


def test_memory_lines_of_later_releases_and_of_the_cpu_engine() -> None:
    text = (
        "Loading model weights took 44.9320 GB\nLoading model weights took 44.9000 GB\n"
        "Available KV cache memory: 8.73 GiB\nAvailable KV cache memory: 8.51 GiB\nGPU KV cache size: 130,048 tokens\n"
    )
    assert VllmServe().read_log(text) == EngineLog(130_048, 130_048, 44.932, 8.51)
    assert VllmServe().read_log(read_all(LOGS / "healthy-rank0.log")).kv_tokens == 1_048_576
    assert VllmServe().read_log("Model loading took 8.3215 GiB and 25.3 seconds") == EngineLog(weights_gib=8.3215)
    workers = "".join(f"INFO Loading weights took {took} seconds\n" for took in ("98.11", "130.5", "99"))
    assert VllmServe().read_log(workers) == EngineLog(weights_s=130.5)
    assert VllmServe().read_log("") == EngineLog()


# --- memory


@pytest.mark.parametrize(
    "figures",
    [
        EngineLog(kv_tokens=90_112),
        EngineLog(available_gib=90_112 * 70_272 / 2**30 + 0.001, kv_tokens=90_112),
        # The device is smaller than assumed: the allowance takes none of the blame.
        EngineLog(available_gib=90_112 * 70_272 / 2**30 + 0.001, device_gib=60.96, kv_tokens=90_112),
    ],
)
def test_after_a_run_the_prediction_is_what_was_measured(tmp_path: Path, figures: EngineLog) -> None:
    root = Root(tmp_path)
    before = look(root)
    assert before.predicted_kv_tokens == 31_744
    learn(root, figures)
    after = look(root)
    assert after.predicted_kv_tokens == 90_112
    assert after.fit.prediction
    assert after.fit.prediction.uncertainty_bytes == 0.25 * 2**30
    assert "measured by /runs/a" in after.fit.prediction.allowance.source
    past = after.past
    assert past is not None
    assert (past.kv_tokens, past.predicted_kv_tokens) == (90_112, 31_744)
    if figures.device_gib:
        assert (past.device_gib, after.fit.prediction.device_bytes) == (60.96, 60.96 * 2**30)


def test_it_holds_for_other_lengths_and_utilizations_of_the_layout_and_for_no_other_layout(tmp_path: Path) -> None:
    root = Root(tmp_path)
    learn(root, EngineLog(kv_tokens=90_112))
    longer = look(root, change(R1, parallel__max_model_len=32768, parallel__max_num_seqs=8))
    assert longer.predicted_kv_tokens == 90_112
    more = look(root, change(R1, parallel__gpu_memory_utilization=0.92)).predicted_kv_tokens
    assert more == pytest.approx(90_112 + 0.02 * 60.96 * 2**30 / 70_272, abs=128)
    for other in (
        change(R1, engine__release="0.13.0"),
        change(R1, hccl__buffsize=200),
        change(R1, parallel__max_num_batched_tokens=4096),
        change(R1, parallel__data_parallel_size=4, parallel__tensor_parallel_size=4),
        change(R1, engine__name="vllm_cpu"),
        change(R1, engine__args={"speculative-config": {"method": "mtp"}}),
    ):
        assert look(root, other).past is None


def test_a_start_that_failed_for_lack_of_memory_teaches_too(tmp_path: Path) -> None:
    root = Root(tmp_path)
    learn(root, EngineLog(weights_gib=42.0, available_gib=1.0))
    assert look(root).predicted_kv_tokens == pytest.approx(2**30 / 70_272, abs=128)
    past = look(root).past
    assert past is not None
    assert (past.weights_gib, past.load_s) == (42.0, ())


def test_a_silent_log_changes_nothing(tmp_path: Path) -> None:
    root = Root(tmp_path)
    learn(root, EngineLog(kv_tokens=90_112))
    learn(root, EngineLog())
    assert look(root).predicted_kv_tokens == 90_112


def test_a_rehearsal_learns_times_but_no_memory(tmp_path: Path) -> None:
    root, made = Root(tmp_path), config("engine=simulator")
    learn(root, EngineLog(kv_tokens=5), made, load_s=3.0)
    found = look(root, made)
    assert found.predicted_kv_tokens == 130_048
    assert found.past is not None
    assert (found.past.kv_tokens, found.past.allowance_gib, found.past.load_s) == (5, None, (3.0,))
    assert look(root, change(made, engine__rehearsal__load_s=9.0)).past is None


# --- times


def test_the_longest_of_the_last_runs_is_what_a_plan_counts_with(tmp_path: Path) -> None:
    root = Root(tmp_path)
    for load_s in (4000.0, *range(100, 100 + KEPT)):
        learn(root, EngineLog(), load_s=float(load_s), teardown_s=7.5)
    past = look(root).past
    assert past is not None
    assert past.load_s == (100.0, 101.0, 102.0, 103.0, 104.0), "the first, cold one is forgotten"
    spent = duration.phases([R1, R1], past)
    assert (spent.load, spent.teardown, spent.window) == (104.0, 7.5, 2 * 3 * 120.0)
    assert spent.source == "past runs of this model and layout"
    made = road.plan(compose.expand(["cluster=slurm", "parallel=dp2_tp8", f"results.root={tmp_path}"]), composer)
    assert made.services[0].seconds == pytest.approx(duration.measure_seconds(R1) + 104 + 7.5)
    assert "load from past runs of this model and layout" in show.plan_text(made)
    # The allocation itself counts with it too, where this very service never ran.
    needed = service_seconds(SweepDir(tmp_path / "b"), "0123456789", R1, None)
    assert needed == pytest.approx(104 + duration.point_seconds(R1))


# --- the file


def file_of(root: Root) -> Path:
    [path] = (root.path / ".calibration").glob("*.json")
    return path


@pytest.mark.parametrize("broken", ["{", "[]", '{"layout": 1}', '{"layout": {}, "kv_tokens": "many"}', ""])
def test_a_broken_file_is_ignored_with_a_word_and_mended_by_the_next_run(tmp_path: Path, broken: str) -> None:
    root = Root(tmp_path)
    learn(root, EngineLog(kv_tokens=90_112))
    path = file_of(root)
    path.write_text(broken)
    found = look(root)
    assert (found.past, found.predicted_kv_tokens) == (None, 31_744)
    assert str(found.ignored).startswith(f"{path} is ignored, it cannot be read: ")
    made = road.plan(compose.expand(["cluster=slurm", "parallel=dp2_tp8", f"results.root={tmp_path}"]), composer)
    assert found.ignored in made.warnings
    learn(root, EngineLog(kv_tokens=90_112))
    assert look(root).predicted_kv_tokens == 90_112


def test_two_writers_leave_a_whole_file(tmp_path: Path) -> None:
    root = Root(tmp_path)
    made = look(root).fit.prediction

    def write(tokens: int) -> None:
        for _ in range(20):
            remember(root, R1, made, EngineLog(kv_tokens=tokens), run=Path(f"/runs/{tokens}"), load_s=1.0)

    writers = [threading.Thread(target=write, args=(tokens,)) for tokens in (90_112, 100_096)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    past, ignored = recall(root, R1)
    assert ignored is None
    assert past is not None
    assert past.run == f"/runs/{past.kv_tokens}", "both figures are of one run"
    assert [path.name for path in (tmp_path / ".calibration").iterdir()] == [file_of(root).name]


def test_the_verb_shows_prediction_calibration_and_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.__main__ import main

    learn(Root(tmp_path), EngineLog(weights_gib=42.1, kv_tokens=90_112))
    words = ["parallel=dp2_tp8", "cluster=slurm", f"results.root={tmp_path}"]
    assert main(["memory", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kv_tokens_per_rank"] == found["calibration"]["kv_tokens"] == 90_112
    assert found["calibration"]["predicted_kv_tokens"] == 31_744
    assert main(["memory", *words]) == 0
    text = capsys.readouterr().out
    assert "KV cache: 90,112 tokens, predicted 31,744 (-64.8%)" in text
    assert "weights: 42.10 GiB, predicted 41.84 (-0.6%)" in text


def test_a_layout_that_cannot_be_named_has_no_past(tmp_path: Path) -> None:
    odd = change(R1, engine__args={"speculative-config": "{"})
    assert recall(Root(tmp_path), odd) == (None, None)
    assert "it is not JSON" in look(Root(tmp_path), odd).fit.unknown


def test_past_is_what_is_stored(tmp_path: Path) -> None:
    root = Root(tmp_path)
    learn(root, EngineLog(kv_tokens=90_112), load_s=800.0, teardown_s=9.0)
    past, _ = recall(root, R1)
    assert past is not None
    assert past.layout == history.layout_of(R1)
    assert replace(past, load_s=(800.0,), teardown_s=(9.0,)) == past
