"""Speculative decoding in a row: the engines' counters of every vLLM, and prompts that do it no justice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from core_help import composer
from results_help import measured, planned

from jobs.core.config import Bench, Config
from jobs.engines.speculation import Speculation, speculation_of
from jobs.measure.dataset import is_text
from jobs.measure.objective import combine
from jobs.measure.records import Drafts
from jobs.measure.series import Page, grown
from jobs.measure.speculation import COLUMNS, NOT_TEXT, figures, notes
from jobs.results.gather import read_run
from jobs.results.verdict import judge
from jobs.sweep import check, compose, road

NGRAM4 = Speculation("ngram", 4)
MTP3 = {"speculative-config": {"method": "mtp", "num_speculative_tokens": 3}}


def config(args: dict[str, Any] | None = None, **bench: Any) -> Config:
    made = Config(bench=Bench(**{"concurrency": 4} | bench))
    return replace(made, engine=replace(made.engine, args=args or {}))


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ({}, None),
        ({"speculative-config": None}, None),
        ({"speculative-config": {}}, None),
        (MTP3, Speculation("mtp", 3)),
        ({"--speculative_config": '{"method": "eagle3", "num_speculative_tokens": 1}'}, Speculation("eagle3", 1)),
        ({"speculative-config.method": "ngram", "speculative_config.num_speculative_tokens": 4}, NGRAM4),
        ({"spec-method": "suffix", "spec-tokens": "8"}, Speculation("suffix", 8)),
        ({"speculative-config": {"model": "/drafter"}}, Speculation("", None)),
        ({"speculative-model": "[ngram]", "num-speculative-tokens": 2}, Speculation("", 2)),
    ],
)  # fmt: skip
def test_every_spelling_of_the_command_line(args: dict[str, Any], found: Speculation | None) -> None:
    assert speculation_of(config(args)) == found


def page(time_s: float, counted: dict[str, float], *, total: str = "_total") -> Page:
    """One page; a name ends in /N for a position."""
    lines = []
    for name, value in counted.items():
        what, _, position = name.partition("/")
        more = f',position="{position}"' if position else ""
        for engine in ("0", "1"):
            lines.append(f'vllm:spec_decode_num_{what}{total}{{engine="{engine}"{more},model_name="m"}} {value / 2}')
            lines.append(f'vllm:spec_decode_num_{what}_created{{engine="{engine}"{more}}} 1.7e9')
    return Page(time_s, "\n".join(lines), time_s)


V1 = {"drafts": 100, "draft_tokens": 300, "accepted_tokens": 30, "accepted_tokens_per_pos/0": 20,
      "accepted_tokens_per_pos/1": 8, "accepted_tokens_per_pos/2": 2}  # fmt: skip
LATER = {"drafts": 1100, "draft_tokens": 3300, "accepted_tokens": 1530, "accepted_tokens_per_pos/0": 820,
         "accepted_tokens_per_pos/1": 508, "accepted_tokens_per_pos/2": 202}  # fmt: skip


@pytest.mark.parametrize("total", ["_total", ""])
def test_counters_of_a_span(total: str) -> None:
    drafts = grown(page(1, V1, total=total), page(2, LATER, total=total)).drafts
    assert drafts == Drafts(3000, 1500, 1000, (800, 500, 200))
    row = figures(config(MTP3, workload="text"), drafts, text=True)
    assert row == {
        "spec_tokens": 3,
        "spec_acceptance": 0.5,
        "spec_tokens_per_step": 2.5,
        "spec_by_position": "[0.8, 0.5, 0.2]",
        "spec_text": True,
    }
    assert notes(config(MTP3, workload="text"), row) == []


def test_an_engine_before_v1_counts_emitted_tokens() -> None:
    before = {"draft_tokens": 0, "accepted_tokens": 0, "emitted_tokens": 0}
    after = {"draft_tokens": 300, "accepted_tokens": 120, "emitted_tokens": 210}
    drafts = grown(page(1, before), page(2, after)).drafts
    row = figures(config(MTP3, workload="text"), drafts, text=True)
    assert (row["spec_acceptance"], row["spec_tokens_per_step"]) == (0.4, 2.1), "100 steps gave 210 tokens"
    assert row["spec_by_position"] is None


def test_ten_positions_stand_in_their_order() -> None:
    counted = {"drafts": 100.0, "draft_tokens": 1100.0, "accepted_tokens": 550.0}
    counted |= {f"accepted_tokens_per_pos/{place}": 100.0 - 8 * place for place in range(11)}
    drafts = grown(page(1, dict.fromkeys(counted, 0.0)), page(2, counted)).drafts
    assert drafts is not None
    assert drafts.by_position == tuple(100 - 8 * place for place in range(11))


def test_counters_of_which_some_are_missing() -> None:
    counted = {"drafts": 100.0, "draft_tokens": 200.0, "accepted_tokens": 90.0}
    counted |= {"accepted_tokens_per_pos/0": 60.0, "accepted_tokens_per_pos/2": 30.0}
    drafts = grown(page(1, dict.fromkeys(counted, 0.0)), page(2, counted)).drafts
    assert drafts == Drafts(200, 90, 100, (60, 0, 30)), "the second one was never accepted"
    row = figures(config(workload="text"), Drafts(200, 900, 100), text=True)
    assert (row["spec_tokens"], row["spec_acceptance"]) == (2, None), "more accepted than drafted"
    assert "a part of them" in notes(config(), row)[0]


@pytest.mark.parametrize("missing", ["draft_tokens_total", "drafts_total", "accepted_tokens_total"])
def test_an_engine_that_tells_a_part_of_its_counters_is_left_out(missing: str) -> None:
    pages = [page(time_s, counted) for time_s, counted in ((1, V1), (2, LATER))]
    cut = f'vllm:spec_decode_num_{missing}{{engine="1"'
    some = [replace(one, text="\n".join(x for x in one.text.splitlines() if not x.startswith(cut))) for one in pages]
    drafts = grown(*some).drafts
    assert drafts == Drafts(1500, 750, 500), "places are told of all engines together"
    row = figures(config(MTP3, workload="text"), drafts, text=True)
    assert (row["spec_acceptance"], row["spec_tokens_per_step"]) == (0.5, 2.5)


def test_a_row_without_speculation() -> None:
    assert figures(config(), None, text=True) == dict.fromkeys(COLUMNS) | {"spec_tokens": 0}
    assert grown(page(1, {}), page(2, {})).drafts is None


def test_counters_tell_of_speculation_that_the_config_hides() -> None:
    row = figures(config(workload="random"), Drafts(30, 3, 10, (2, 1, 0)), text=False)
    assert (row["spec_tokens"], row["spec_text"], row["spec_acceptance"]) == (3, False, 0.1)
    assert notes(config(), row) == [NOT_TEXT]


def test_speculation_that_drafts_nothing_or_tells_nothing_is_said() -> None:
    for drafts in (None, Drafts(0, 0, 0, (0, 0, 0))):
        row = figures(config(MTP3, workload="text"), drafts, text=True)
        assert (row["spec_tokens"], row["spec_acceptance"], row["spec_tokens_per_step"]) == (3, None, None)
        [note] = notes(config(MTP3), row)
        assert "no draft" in note


def test_several_windows_have_the_mean_of_each_position() -> None:
    windows = [{"spec_by_position": text, "spec_acceptance": share, "spec_text": True, "output_tok_per_s": 1.0}
               for text, share in (("[0.8, 0.5]", 0.65), ("[0.6, 0.3]", 0.45))]  # fmt: skip
    row = combine(windows)
    assert json.loads(row["spec_by_position"]) == [0.7, 0.4]
    assert (row["spec_acceptance"], row["spec_text"]) == (pytest.approx(0.55), True)


@pytest.mark.parametrize("workload", ["random", "shared_prefix", "multi_turn", "needle"])
def test_drawn_prompts_are_no_text(workload: str) -> None:
    assert not is_text(Bench(concurrency=1, workload=workload))


def test_a_trace_is_text_where_it_holds_prompts(tmp_path: Path) -> None:
    said, drawn = tmp_path / "said.jsonl", tmp_path / "drawn.jsonl"
    line = {"timestamp": 0, "output_length": 4}
    said.write_text(json.dumps(line | {"prompt": "One day it rained."}))
    drawn.write_text("\n".join(json.dumps(line | one) for one in ({"prompt": "So."}, {"input_length": 9})))
    assert is_text(Bench(workload="trace", dataset=str(said)))
    assert not is_text(Bench(workload="trace", dataset=str(drawn)))
    assert is_text(Bench(workload="trace", dataset=str(tmp_path / "none")))


ON = "engine.args.speculative-config={method:ngram,num_speculative_tokens:3}"


def test_the_plan_warns_of_random_ids() -> None:
    words = ["engine=vllm_cpu", "model=tiny_llama", "cluster=local", "parallel=dp2_tp1"]
    for more, warned in (((ON,), True), ((), False)):
        made = road.plan(compose.expand([*words, *more]), composer)
        assert any(one.finding.reason == NOT_TEXT for one in made.findings) == warned
        assert all(one.finding.severity == "warning" for one in made.findings)
    [point] = road.plan(compose.expand([*words, ON]), composer).points
    assert [one.rule for one in check.findings(point.config)] == ["C3"]


def test_speculation_on_random_ids_wins_over_nothing(tmp_path: Path) -> None:
    found, made = planned(tmp_path / "a", "parallel.max_model_len=8192,32768")
    measured(found, made.points[0], 50.0, windows=3, spec_text=False, spec_acceptance=0.9)
    measured(found, made.points[1], 90.0, windows=3, spec_tokens=0)
    verdict = judge(read_run(found.path))
    said = {one.id: one.values for one in verdict.sentences}
    assert said["left_out_not_text"] == {"count": 1}
    assert said["only"]["setting"] == "parallel.max_model_len=32768"
    assert verdict.winner is None
    measured(found, made.points[0], 50.0, windows=3, spec_text=True, spec_acceptance=0.9)
    said = {one.id: one.values for one in judge(read_run(found.path)).sentences}
    assert "left_out_not_text" not in said
    assert said["ahead"]["setting"] == "parallel.max_model_len=8192", "on text it may win"
