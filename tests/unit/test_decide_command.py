"""`python -m jobs decide`: its question, errors before a start, what ends it, and the same command again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_help import config

from jobs.__main__ import main
from jobs.allocation.agenda import Agenda
from jobs.allocation.head import agenda_of
from jobs.cli import decide
from jobs.core.config import Config
from jobs.core.files import write_json
from jobs.core.rundir import SweepDir, sweeps_in
from jobs.core.tasks import AllocationTask, read_config, write_config
from jobs.results import pairs
from jobs.results.fingerprint import Fingerprint
from jobs.results.pairs import Question, of_sweep, read_question, standing
from jobs.results.row import NOT_RUN, make_row, write_rows
from jobs.sweep import contest
from jobs.sweep.contest import ask, settings_of
from jobs.sweep.plan import Plan
from jobs.sweep.record import record

HERE = ("engine=simulator", "bench.input_tokens=256")
SEQS = ("parallel.max_num_seqs=16", "parallel.max_num_seqs=32")
LOADS = ("bench.concurrency=8", "bench.concurrency=16")


class Head:
    """Stands for the cluster: measures pairs until the sweep's question is answered, or it is killed."""

    def __init__(self, rate: Callable[[Config, int], float]) -> None:
        self.rate, self.measured, self.most, self.starts = rate, 0, math.inf, 0
        self.detach = False

    def start(self, made: Plan, *, question: Question) -> SweepDir:
        sweep = record(made)
        write_json(sweep.question, question)
        self.starts += 1
        self.run(sweep)
        return sweep

    def run(self, sweep: SweepDir, **_: Any) -> None:
        question = read_question(sweep)
        assert question
        if question.windows:
            [(one, two)] = question.pairs
            for number in range(1, question.windows + 1):
                for point in (one, two):
                    row = self.row(sweep, point)
                    with sweep.point(point).windows.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                if standing(question, of_sweep(sweep, question)).over or number >= self.most:
                    break
            write_rows(sweep, [self.row(sweep, one), self.row(sweep, two)])
            return
        for one, two in question.pairs:
            if sweep.point(two).row.exists():
                continue
            if agenda(sweep).over() or self.measured >= self.most:
                break
            write_rows(sweep, [self.row(sweep, one), self.row(sweep, two)])
            self.measured += 1

    def row(self, sweep: SweepDir, point: str) -> dict[str, Any]:
        config = read_config(sweep, point)
        rate = self.rate(config, (config.parallel.seed or 0) % 7)
        why = None if rate else "out of memory"
        told = {"output_tok_per_s": rate, "ttft_ms_mean": 1e5 / rate} if rate else {}
        return make_row(point, "s", config, valid=rate > 0, invalid_reason=why, **told)

    def follow(self, sweep: SweepDir, out: Any) -> bool:
        if self.detach:
            raise KeyboardInterrupt
        return True


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    """B (32 sequences) has 5 % more; starts scatter by 0.4 %."""
    made = Head(lambda config, seed: 100 + 0.2 * (seed % 3) if config.parallel.max_num_seqs == 16 else 105.0)
    monkeypatch.setattr(decide, "start", made.start)
    monkeypatch.setattr(decide, "follow", made.follow)
    monkeypatch.setattr(decide, "resume", made.run)
    return made


def run(tmp_path: Path, *words: str, both: tuple[str, ...] = HERE) -> int:
    few = () if "--pairs" in words or "--node-hours" in words else ("--pairs", "7")
    return main(["decide", *words, *few, "--with", f"results.root={tmp_path}", *both])


def test_the_answer_comes_first_and_is_found_again_without_a_new_start(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *SEQS, "--difference", "3%") == 0
    said = capsys.readouterr().out
    assert "B is faster than A: output_tok_per_s is higher, by at least 4." in said
    assert "4 pairs of starts" in said and "A: parallel.max_num_seqs=16" in said
    assert head.measured == 4, "it ends with the answer, and not with the plan"
    assert run(tmp_path, *SEQS, "--difference", "0.03", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answer"] == "better" and 0.04 < found["low"] < found["change"] < found["high"] < 0.06
    assert len(found["pairs"]) == 4 and head.starts == 1


def test_a_latency_falls_where_b_is_faster(head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, *reversed(SEQS), "--difference", "3%", "--goal", "ttft_ms_mean") == 0
    said = capsys.readouterr().out
    assert "A is faster than B: ttft_ms_mean is lower, by at least 4." in said
    assert "ttft_ms_mean from A to B: +4.7%" in said


def test_windows_of_two_loads_are_pairs_of_one_start(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head.rate = lambda config, _: 100.0 * (config.bench.concurrency or 1) ** 0.5
    assert run(tmp_path, "bench.concurrency=8,16", "--difference", "10%") == 0
    assert "6 pairs of windows" in capsys.readouterr().out
    [sweep] = sweeps_in(tmp_path)
    question = read_question(sweep)
    assert question and question.windows == question.most == 7
    assert set(agenda(sweep).by_turns) == sweep.point_names()


def test_the_head_ends_the_turns_with_the_answer(head: Head, tmp_path: Path) -> None:
    head.most = 1
    assert run(tmp_path, *LOADS, "--difference", "5%") == 1
    [sweep] = sweeps_in(tmp_path)
    asked = read_question(sweep)
    assert asked and not agenda(sweep).round_over(runs(asked, 3)) and agenda(sweep).round_over(runs(asked, 6))
    assert agenda(sweep).over() is None, "it has one service"
    sweep.question.unlink()
    assert not agenda(sweep).round_over({})


def agenda(sweep: SweepDir) -> Agenda:
    """Return what the head of an allocation goes by."""
    return agenda_of(sweep, AllocationTask((), 1))


def runs(asked: Question, count: int) -> Any:
    """Return the runs of two points after so many windows: B has 10 % more."""
    figures = ([100.0 + one, 110.0 + one] for one in range(count))
    lines = zip(*([{"valid": True, "output_tok_per_s": rate} for rate in both] for both in figures), strict=True)
    return {point: SimpleNamespace(lines=told) for point, told in zip(asked.pairs[0], lines, strict=True)}


def test_equal_settings_are_not_told_apart_and_a_small_budget_leaves_it_open(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head.rate = lambda config, seed: 100.0 + 0.1 * ((seed + (config.parallel.max_num_seqs or 0) // 16) % 3)
    assert run(tmp_path, *SEQS, "--difference", "3%", "--pairs", "3") == 1
    said = capsys.readouterr().out
    assert "the budget has 3 pairs, and nothing is decided before 4" in said
    assert "not decided: the budget is spent" in said
    assert head.measured == 3
    assert run(tmp_path, *SEQS, "--difference", "3%") == 0, "more pairs, in a sweep of their own"
    assert "no difference of 3 % or more" in capsys.readouterr().out
    assert len(sweeps_in(tmp_path)) == 2 and head.measured == 4


def test_rows_of_another_engine_do_not_count(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, *SEQS, "--difference", "3%") == 0
    monkeypatch.setattr(Fingerprint, "changes", lambda *_: ["engine_version 1 -> 2"] if head.starts < 2 else [])
    capsys.readouterr()
    assert run(tmp_path, *SEQS, "--difference", "3%") == 0
    assert "not counted: the rows of" in capsys.readouterr().out
    seeds = [{read_config(sweep, name).parallel.seed for name in sweep.point_names()} for sweep in sweeps_in(tmp_path)]
    assert len(seeds) == 2 and not seeds[0] & seeds[1], "other starts, not the same ones again"


@pytest.mark.parametrize("both", [SEQS, LOADS])
def test_what_was_ended_goes_on_where_it_was(
    head: Head, both: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head.rate = lambda config, _: 100.0 + (config.parallel.max_num_seqs or 0) + (config.bench.concurrency or 0)
    head.most = 2
    assert run(tmp_path, *both, "--difference", "5%") == 1
    assert "ended after 2 pairs" in capsys.readouterr().out
    head.most, head.detach = math.inf, True
    assert run(tmp_path, *both, "--difference", "5%") == 130
    assert "the same command follows it" in capsys.readouterr().out
    head.detach = False
    assert run(tmp_path, *both, "--difference", "5%") == 0
    assert f"{4 if both is SEQS else 6} pairs" in capsys.readouterr().out


def test_a_setting_that_never_runs_is_given_up_with_its_reason(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head.rate = lambda config, _: 0.0 if config.parallel.max_num_seqs == 32 else 100.0
    assert run(tmp_path, *SEQS, "--difference", "3%") == 1
    assert "2 pairs in a row have no figures: B: out of memory" in capsys.readouterr().out
    assert head.measured == 2


def test_bisection_names_the_first_that_is_slower(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head.rate = lambda config, seed: (0.94 if (config.parallel.max_num_seqs or 0) >= 18 else 1.0) * (100 + 0.1 * seed)
    values = "parallel.max_num_seqs=16,17,18,19"
    assert run(tmp_path, "--bisect", values, "--difference", "5%") == 0
    said = capsys.readouterr().out
    assert "the first that is slower than parallel.max_num_seqs=16: parallel.max_num_seqs=18" in said
    assert "for 3 comparisons" in said and len(sweeps_in(tmp_path)) == 3
    head.rate = lambda config, seed: 100 + 0.1 * seed
    assert run(tmp_path, "--bisect", "parallel.max_num_seqs=48,64", "--difference", "5%") == 0
    assert "none is slower than parallel.max_num_seqs=48 by 5 % or more" in capsys.readouterr().out
    assert run(tmp_path, "--bisect", "parallel.max_num_seqs=48,80", "--difference", "5%", "--pairs", "3") == 1
    assert "not decided: parallel.max_num_seqs=80 beside" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((SEQS[0], SEQS[0]), "A and B are the same setting"),
        (("parallel.seed=1", "parallel.seed=2"), "the same setting, measured again"),
        (("bench.repeats=1,2",), "the same setting, measured again"),
        (("parallel.max_seqs=16", SEQS[1]), "there is no such key"),
        (("engine=simulator", "engine=vllm_cpu model=tiny_llama"), "one of them is a rehearsal"),
        ((SEQS[0],), "two settings are compared, and these are 1"),
        ((*SEQS, "parallel.max_num_seqs=64"), "these are 3"),
        ((*SEQS, "--goal", "itl_ms_p50"), "no pair is compared by it"),
        ((*SEQS, "--difference", "0"), "a share above 0"),
        ((*SEQS, "--difference", "200%"), "a share above 0"),
        ((*SEQS, "--difference", "3"), "a share above 0"),
        ((*SEQS, "--node-hours", "0.0001"), "one pair takes about"),
        ((*SEQS, "--node-hours", "-1"), "a number above 0 is needed"),
        ((*SEQS, "--pairs", "0"), "a number above 0 is needed"),
        (("bench.request_rate=1", "bench.request_rate=2"), "it is the rate that is offered"),
        (("bench.search=concurrency bench.slo.ttft_ms=900", SEQS[1]), "a search has no pairs"),
        ((f"{SEQS[0]} launch.follow=false", f"{SEQS[1]} launch.follow=false"), "an answer needs the rows"),
        (tuple(f"{one} results.name=x" for one in SEQS), "named after the question"),
        (tuple(f"{one} bench.client=vllm_bench" for one in LOADS), "only the tool's own client"),
        (("--bisect", "parallel.max_num_seqs=16"), "one value has none before it"),
        (("--bisect", "parallel.max_num_seqs=16,32,16"), "A and B are the same setting"),
        (("--bisect", "parallel.max_num_seqs=16,32,32"), "a value stands in it twice"),
        ((SEQS[0], "--bisect", "parallel.max_num_seqs=16,32"), "a bisection has no A and B"),
    ],
)
def test_a_question_that_cannot_be_is_one_clear_error(
    head: Head, words: tuple[str, ...], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = () if "--difference" in words else ("--difference", "3%")
    assert run(tmp_path, *words, *more) == 2
    assert reason in capsys.readouterr().err.replace("\n", " ")
    assert not head.starts


def test_a_dry_run_shows_the_first_pair(head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, *SEQS, "--difference", "3%", both=(*HERE, "launch.dry_run=true")) == 0
    said = capsys.readouterr().out
    assert "2 points in 2 services" in said and "at most 7 pairs" in said and "Nothing was submitted" in said
    assert not head.starts


def test_one_argument_may_hold_several_overrides() -> None:
    one, two = settings_of(["parallel.max_num_seqs=16 hccl.buffsize=200", "engine.command=[a, b]"], ["bench.seed=1"])
    assert one == ("bench.seed=1", "parallel.max_num_seqs=16", "hccl.buffsize=200")
    assert two == ("bench.seed=1", "engine.command=[a,b]")


def test_the_sweeps_of_two_settings_have_one_name_whatever_is_asked_of_them() -> None:
    sides = (("engine=simulator", SEQS[0]), ("engine=simulator", SEQS[1]))
    one, two = (ask(sides, goal, share) for goal, share in (("ttft_ms_mean", 0.01), ("output_tok_per_s", 0.1)))
    assert one.name == two.name != ask((sides[1], sides[0]), "ttft_ms_mean", 0.01).name


def question(**about: Any) -> Question:
    base = {"goal": "output_tok_per_s", "difference": 0.03, "pairs": (("a", "b"),), "windows": 0, "most": 9}
    return Question(**{**base, **about})


def test_pairs_after_the_one_that_decides_do_not_count() -> None:
    told: list[pairs.Pair] = [(1.0, 1 + one) for one in (0.05, 0.051, 0.049, 0.05, 0.05, 0.051, -0.3, -0.3)]
    made = standing(question(), told)
    assert made.decision.answer == "better" and len(made.logs) == 4 and "decided by 4 pairs" in made.over
    assert standing(question(earlier=((1.0, 1.05), (1.0, 1.051))), told[2:]).decision.pairs == 4
    assert standing(question(windows=9), told).decision.pairs == 6, "windows"
    assert standing(question(most=3), told[:3]).over == "all pairs are measured"
    assert not standing(question(), told[:3]).over


def test_a_pair_without_figures_is_left_out_and_two_in_a_row_end_it() -> None:
    bad = pairs.pair_of(
        "output_tok_per_s", {"valid": True, "output_tok_per_s": 2.0}, {"valid": True, "saturated": True}
    )
    assert bad == "B: it is saturated: its latencies are those of a queue that grows"
    assert pairs.pair_of("tpot_ms_mean", {"valid": True, "tpot_ms_mean": None}, {}) == "A: it has no tpot_ms_mean"
    same = (1.0, 1.01)
    assert standing(question(), [same, bad, same, bad]).broken == ""
    assert standing(question(), [same, bad, bad, same]).broken == bad
    assert not standing(question(windows=9), [same, bad, bad, same]).broken, "a window costs little"


def test_a_row_that_is_to_be_run_again_ends_what_is_known(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path)
    asked = question(pairs=(("a", "b"), ("c", "d")))

    def put(point: str, **about: Any) -> None:
        write_config(sweep, point, config("engine=simulator"))
        write_rows(sweep, [make_row(point, "s", config("engine=simulator"), **about)])

    both = (math.log(100), math.log(100))
    for point in "abc":
        put(point, valid=True, output_tok_per_s=100.0)
    assert of_sweep(sweep, asked) == [both]
    put("d", invalid_reason=NOT_RUN + "cancelled")
    assert of_sweep(sweep, asked) == [both]
    put("d", invalid_reason="rank 1 died")
    assert of_sweep(sweep, asked) == [both, "B: rank 1 died"]
    assert agenda(sweep).by_turns == () and agenda(sweep).over() is None, "nothing is asked of it"


@pytest.mark.parametrize("torn", ['{"goal": "out', "[]", '{"goal": 3}'])
def test_a_question_that_cannot_be_read_is_told_and_not_counted(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str], torn: str
) -> None:
    assert run(tmp_path, *SEQS, "--difference", "3%") == 0
    [sweep] = sweeps_in(tmp_path)
    sweep.question.write_text(torn)
    capsys.readouterr()
    assert run(tmp_path, *SEQS, "--difference", "3%") == 0
    said = capsys.readouterr().out
    assert said.count(f"not counted: {sweep.path}: its question.json cannot be read: it ") == 1
    assert head.starts == 2 and len(sweeps_in(tmp_path)) == 2, "the question is asked anew"


def test_a_sweep_that_runs_with_a_question_that_cannot_be_read_is_no_place_for_another(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, *SEQS, "--difference", "3%") == 0
    [sweep] = sweeps_in(tmp_path)
    sweep.question.write_text("{")
    monkeypatch.setattr(contest, "runs", lambda _: True)
    capsys.readouterr()
    assert run(tmp_path, *SEQS, "--difference", "3%") == 1
    told = capsys.readouterr().err
    assert "and it runs" in told and f"python -m jobs cancel {sweep.path}" in told and head.starts == 1
