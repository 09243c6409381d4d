"""Outputs say which setting, point or run they are about, and no verb accepts what another one refuses."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from results_help import measured, planned

from jobs.__main__ import main
from jobs.cli import launch
from jobs.core import files, masking
from jobs.core.errors import ConfigError
from jobs.core.files import read_json, write_json, write_text
from jobs.core.tasks import AllocationTask, ServiceTask
from jobs.results.compare import compare, left_out, text
from jobs.results.pairs import Question
from jobs.sweep import grammar
from jobs.sweep.services_text import which

LAYOUTS = ("parallel=dp2_tp8,dp4_tp4", "parallel.max_model_len=4096,8192")


def test_some_points_are_named_by_what_they_alone_share_or_each() -> None:
    points = [[f"a={a}", f"b={b}", "c=1"] for a in (1, 2) for b in (1, 2, 3, 4, 5)]
    assert which(range(10), points) == "", "all"
    assert which([5, 6, 7, 8, 9], points) == "2"
    assert which([1, 6], points) == "2", "the presets' names"
    assert which([0], points) == "1 1"
    assert which([0, 6], points) == "1 1, 2 2"
    assert which([0, 1, 2, 6], points) == "1 1, 1 2, 1 3 and 1 more"
    assert which([1], [["a.b=1"], ["a.b=2"]]) == "a.b=2"


def test_warnings_say_which_points_they_are_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*LAYOUTS, f"results.root={tmp_path}"]
    assert main(["check", *asked]) == 0
    said = capsys.readouterr().out
    assert "(2 of 4 points: dp4_tp4): only batches of 4 and 64" in said
    assert main(["plan", *asked]) == 0
    said = capsys.readouterr().out
    assert "warning: dp4_tp4 parallel.max_model_len=8192: max_model_len 8192 may not start" in said
    assert "(2 of 4 points: dp4_tp4): only batches of 4 and 64" in said


def test_a_point_alone_is_not_named_by_what_asks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cluster=local", "launch.dry_run=true", "parallel.max_num_seqs=16"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    service ")]
    assert "parallel.max_num_seqs=16" in line
    assert "launch" not in line and "local" not in line


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("results.objective", ["results.objective=foo"]),
        ("cluster.partition", ["cluster.partition=a,b"]),
        ("launch.budget_node_hours", ["launch.budget_node_hours=0.01"]),
        ("engine.env.X_TOKEN", ["engine.env.X_TOKEN=abcdefgh,abcdefgi"]),
        ("tune.budget_node_hours", ["tune.space={parallel.max_num_seqs: [16, 32]}"]),
    ],
)
def test_check_refuses_what_a_plan_or_a_search_refuses(
    key: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--json", f"results.root={tmp_path}", *more]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [one["key"] for one in found["findings"] if one["severity"] == "error"] == [key]
    assert main(["tune" if "tune" in key else "plan", f"results.root={tmp_path}", *more]) == 2
    assert f"error: {key} = " in capsys.readouterr().err


def test_what_is_typed_as_goal_is_named_so(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("tune", "plan", "check", "forecast"):
        assert main([verb, "goal=foo"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: goal = foo: ") and "output_tok_per_s" in said
    assert launch.main(["-m", "goal=foo", "hydra/sweeper=tune"]) == 2
    assert capsys.readouterr().err.startswith("error: goal = foo: ")
    assert main(["plan", "goal=tpot_ms_mean"]) == 0, "it means the same everywhere"


def test_check_asks_the_real_code_for_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.engines.ascend.real import ask

    monkeypatch.setattr(
        ask, "ask_points", lambda _, configs: [(ask.Answer(), ask.Answer(refused="no such flag"))] * len(configs)
    )
    assert main(["check", "--real", "--json", "experiment=official_0_23"]) == 2
    [point] = json.loads(capsys.readouterr().out)["real"]
    assert point["ranks"] == [None, "no such flag"]
    assert main(["check", "--real", "experiment=official_0_23"]) == 2
    assert "rank 1: the real code refuses it: no such flag" in capsys.readouterr().out


def test_a_comparison_says_what_it_compares_and_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (one, first), (two, second) = (planned(tmp_path / name, "bench.concurrency=1,4") for name in "ab")
    for found, made in ((one, first), (two, second)):
        for point in made.points:
            measured(found, point, 100.0, windows=3, driver_version=f"24.{found.path.name}")
    bad = two.point(second.points[1].point).row
    write_json(bad, read_json(bad) | {"valid": False, "invalid_reason": "the client was late"})
    [pair] = compare(one.path, two.path)
    assert pair.settings == ("bench.concurrency=1", "bench.concurrency=1")
    assert pair.differs["driver_version"] == ("24.a", "24.b"), "what both ran on"
    assert text([pair]).startswith(f"a/{first.points[0].point} (bench.concurrency=1) -> b/")
    assert "median" in text([pair])
    last = first.points[1].point
    assert left_out(one.path, two.path) == [
        f"a/{last} (bench.concurrency=4): nothing on the other side belongs to it",
        f"b/{last} (bench.concurrency=4): not valid: the client was late",
    ]
    assert main(["compare", "--json", str(one.path), str(two.path)]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 1
    assert said.err.count("not compared: ") == 2


def test_sweeps_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [planned(tmp_path / user / "a", "bench.concurrency=1") for user in ("one", "two")]
    for found, made in runs:
        measured(found, made.points[0], 100.0)
    [pair] = compare(*(found.path for found, _ in runs))
    assert [pair.a, pair.b] == [f"{found.path}/{made.points[0].point}" for found, made in runs]
    [same] = compare(runs[0][0].path, runs[0][0].path)
    assert same.a == f"a/{runs[0][1].points[0].point}"


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "Free space"), (errno.EACCES, "Choose a place that you can write")]
)
def test_a_file_that_cannot_be_written_has_the_remedy_of_its_cause(number: int, remedy: str) -> None:
    error = files.unwritten(Path("/a/b"), OSError(number, os.strerror(number), "/a/.b.tmp"))
    assert error.remedy.startswith(remedy)
    assert ".tmp" not in str(error)


def test_notes_and_reasons_name_setting_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        found, made = planned(tmp_path / name, "bench.concurrency=1,4")
        measured(found, made.points[0], 100.0, notes="a note")
        measured(found, made.points[1], 100.0, valid=False, invalid_reason="it stopped")
    one, two = (point.point for point in made.points)
    main(["table", str(tmp_path / "a")])
    said = capsys.readouterr().out
    assert f"True* {one} (bench.concurrency=1): a note" in said
    assert f"invalid {two} (bench.concurrency=4): it stopped" in said
    main(["collect", str(tmp_path / "a"), str(tmp_path / "b")])
    said = capsys.readouterr().out
    assert f"invalid {two} (run=a bench.concurrency=4)" in said and f"invalid {two} (run=b bench.concurrency=4)" in said
    main(["report", str(tmp_path / "a")])
    assert f"{one} (bench.concurrency=1): a note" in capsys.readouterr().out


def test_a_diagnosis_says_which_service_it_is_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, made = planned(tmp_path / "a", "parallel.max_model_len=4096,8192", "bench.concurrency=1,4")
    service = made.points[0].service
    work = AllocationTask((ServiceTask(service, tuple(one.point for one in made.points[:2])),), 1)
    write_json(found.allocation(0, 1).task, work)
    write_text(found.service(service, 1).rank(0).log, "RuntimeError: NPU out of memory.\n")
    main(["diagnose", str(found.path)])
    assert f"service {service}  parallel.max_model_len=4096" in capsys.readouterr().out.splitlines()
    main(["diagnose", "--json", str(found.path)])
    assert [one["setting"] for one in json.loads(capsys.readouterr().out)] == ["parallel.max_model_len=4096"]


def test_memory_as_json_names_its_services(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "--json", f"results.root={tmp_path}", *LAYOUTS]) == 0
    assert {one["setting"] for one in json.loads(capsys.readouterr().out)} >= {"dp4_tp4 parallel.max_model_len=4096"}


def test_what_does_not_start_has_no_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["forecast", f"results.root={tmp_path}", "parallel.max_model_len=100000"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert said.count("no forecast: it does not start") == 3, "once for each figure"
    assert "●" not in said


def test_a_dry_run_of_a_search_says_what_it_would_choose_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        *("tune", f"results.root={tmp_path}", "cluster=local", "launch.dry_run=true", "tune.budget_node_hours=9"),
        *("tune.space={parallel.max_num_seqs: [16, 32]}", "bench.input_tokens=12000", "bench.slo.tpot_ms=80"),
    ]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "set by the search: parallel.max_model_len=12288, bench.concurrency=auto" in said
    assert sum("forecast  parallel.max_num_seqs=16" in line for line in said.splitlines()) > 1
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["starts"] == 0
    assert main([*asked, "bench.slo.tpot_ms=1"]) == 0
    assert "nothing can be started: none is expected to keep its limits" in capsys.readouterr().out


def test_a_dry_run_of_a_decision_is_json_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["decide", "parallel.max_num_seqs=16", "parallel.max_num_seqs=32", "--difference", "3%", "--json"]
    assert main([*asked, "--with", "cluster=local", "launch.dry_run=true", f"results.root={tmp_path}"]) == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 2


def test_a_run_without_a_key_is_told_what_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = planned(tmp_path / "a", "bench.concurrency=1")
    assert main(["explain", str(found.path)]) == 2
    assert f"Write: python -m jobs explain {found.path} --key KEY." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("Leave engine.api_key=auto: a key for each service.", "Leave engine.api_key=auto: a key for each service."),
        ("engine.env.X_TOKEN = abcdef: it is swept", "engine.env.X_TOKEN = ***: it is swept"),
        ("engine.api_key = None: every user", "engine.api_key = None: every user"),
        ("X_TOKEN=abc:def", "X_TOKEN=***"),
    ],
)
def test_a_mask_hides_the_value_and_not_the_sentence(words: str, shown: str) -> None:
    assert masking.text(words) == shown


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("results.root=我的 runs", "我的 runs"),
        ("model.path=/数据/DeepSeek-R1", "/数据/DeepSeek-R1"),
        ("model.path='/数据/a'", "/数据/a"),
        ("container.image=HOST#a/b:v1", "HOST#a/b:v1"),
    ],
)
def test_names_in_chinese_are_typed_as_they_are(typed: str, value: str) -> None:
    [one] = grammar.parse([typed])
    assert one.value() == value


def test_a_sweep_of_such_names_and_what_no_quotes_mend() -> None:
    [one] = grammar.parse(["model.path=/数据/a b,/数据/c"])
    assert grammar.sweep_values(one) == ['"/数据/a b"', '"/数据/c"']
    with pytest.raises(ConfigError, match="only between quotes, which the shell must leave"):
        grammar.parse(["results.root=a;b"])
    with pytest.raises(ConfigError, match="Write it as key=value"):
        grammar.parse(["results"])


def test_a_wrong_place_or_word_is_told_what_would_be_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = planned(tmp_path / "a", "bench.concurrency=1")
    assert main(["status", str(tmp_path)]) == 1
    assert f"Give one of the sweeps in it, as {found.path}." in capsys.readouterr().err
    assert main(["status", str(tmp_path / "none")]) == 1
    assert "there is no such directory" in capsys.readouterr().err
    assert launch.main(["plan"]) == 2
    assert "commands are those of python -m jobs" in capsys.readouterr().err
    assert main(["plan", "-m", "parallel.max_num_seqs=16"]) == 0, "as launch.py takes them"
    with pytest.raises(SystemExit):
        main(["plan", "--dry-run"])
    assert "python -m jobs plan --help" in capsys.readouterr().err


def test_version_is_that_of_this_tool(capsys: pytest.CaptureFixture[str]) -> None:
    for run in (main, launch.main):
        assert run(["--version"]) == 0
        assert capsys.readouterr().out.startswith("ascend-serving-sweep ")


def test_keys_are_found_by_a_part_of_their_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "buffsize", "ifname"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["hccl.socket_ifname", "hccl.buffsize"]
    assert main(["keys", "hccl.bufsize"]) == 2
    assert "Did you mean 'hccl.buffsize'?" in capsys.readouterr().err


def test_an_image_store_that_is_empty_is_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "verify", f"results.root={tmp_path}"]) == 0
    assert "no image is imported in " in capsys.readouterr().out


def test_what_differs_between_sweeps_stands_in_their_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("a", 512), ("b", 1024)):
        found, made = planned(tmp_path / name, "bench.concurrency=1", f"hccl.buffsize={size}", f"results.name={name}")
        measured(found, made.points[0], 100.0, driver_version=f"24.{name}")
    runs = [str(tmp_path / name) for name in "ab"]
    assert main(["collect", *runs]) == 0
    said = capsys.readouterr().out
    assert [line.split()[:2] for line in said.splitlines() if "vllm_ascend" in line] == [["a", "512"], ["b", "1024"]]
    assert "results.name" not in said
    assert "driver_version differs: 24.a in a; 24.b in b" in said
    assert main(["collect", *runs, "--json"]) == 0
    assert [one["hccl.buffsize"] for one in json.loads(capsys.readouterr().out)] == [512, 1024]
    planned(tmp_path / "c", "experiment=official_0_23")
    assert main(["collect", *runs, str(tmp_path / "c")]) == 0
    assert "more keys, each a column of --format csv: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("earlier", "said"),
    [
        (
            [(3.0, 3.9), (3.1, 4.0)] * 4,
            "bench.concurrency=4 is faster than bench.concurrency=1: output_tok_per_s differs",
        ),
        (
            [(3.9, 3.0), (4.0, 3.1)] * 4,
            "bench.concurrency=1 is faster than bench.concurrency=4: output_tok_per_s differs",
        ),
        ([(3.0, 3.001), (3.002, 3.0)] * 9, "No difference of 20 % or more in output_tok_per_s"),
        ([], "Not decided: one window"),
    ],
)
def test_a_report_says_of_a_decision_what_decide_says(
    earlier: list[tuple[float, float]], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, made = planned(tmp_path / "a", "bench.concurrency=1,4")
    for point in made.points:
        measured(found, point, 100.0)
    one, two = (point.point for point in made.points)
    write_json(found.question, Question("output_tok_per_s", 0.2, ((one, two),), 0, 1, tuple(earlier)))
    assert main(["report", str(found.path)]) == 0
    assert capsys.readouterr().out.startswith(said)


def test_report_and_memory_speak_chinese_where_the_locale_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, made = planned(tmp_path / "a", "bench.concurrency=1,4")
    measured(found, made.points[0], 100.0)
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert main(["report", str(found.path)]) == 0
    assert "的用户体验" in capsys.readouterr().out
    assert main(["check", "parallel.max_model_len=32768,100000", f"results.root={tmp_path}"]) == 2
    said = capsys.readouterr().out
    assert "可能无法启动：一个 32,768 token 的请求" in said and "按此计算最多可容纳" in said
    assert "one request of" not in said
