"""Runs that somebody else wrote, or damaged: every command says what it skips, and none ends in a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from core_help import change, config
from results_help import copied, measured, planned, row

from jobs.__main__ import main
from jobs.allocation import serving, submission
from jobs.allocation.searching import told
from jobs.allocation.service import service_seconds
from jobs.cli.output import until_closed
from jobs.cluster import sick_nodes
from jobs.core.errors import RunError
from jobs.core.files import read_json, write_json
from jobs.core.rundir import Root, SweepDir
from jobs.forecast import history
from jobs.results import requests
from jobs.results.pairs import Question
from jobs.results.search import answer_of, lines
from jobs.sweep import reuse
from jobs.sweep.record import record
from jobs.sweep.space import ask

STRANGER = 61_002
BAD = ("[]", '{"valid": true}', "[" * 100_000, '{"services": [{"x": 1}]}')
COMMANDS = (
    *(("status",), ("table",), ("table", "--format", "csv"), ("collect",), ("report",), ("report", "--json")),
    *(("diagnose",), ("export", "--to", "vllm_bench"), ("cancel",), ("explain", "--key", "bench.concurrency")),
)


def small(tmp_path: Path) -> SweepDir:
    """Return a copy of the recorded sweep with one point."""
    sweep = SweepDir(copied(tmp_path))
    plan = read_json(sweep.plan)
    [service] = [one for one in plan["services"] if plan["points"][0]["point"] in one["points"]]
    service["points"] = service["points"][:1]
    kept = service["points"][0]
    plan |= {"points": [one for one in plan["points"] if one["point"] == kept], "services": [service]}
    for path in (sweep.path / "points").iterdir():
        if path.name != kept:
            shutil.rmtree(path)
    write_json(sweep.plan, plan)
    return sweep


def all_commands(path: Path) -> None:
    """Run every command that reads a run; an exception would go up to here."""
    for name, *more in COMMANDS:
        with contextlib.suppress(SystemExit):
            main([name, str(path), *more])
    with contextlib.suppress(SystemExit):
        main(["compare", str(path), str(path)])


def kinds(sweep: SweepDir) -> list[Path]:
    """Return one file of each name."""
    return list({path.name: path for path in sorted(sweep.path.rglob("*")) if path.is_file()}.values())


@pytest.mark.parametrize("bad", BAD)
def test_a_damaged_file_of_any_name_ends_no_command_with_a_traceback(tmp_path: Path, bad: str) -> None:
    sweep = small(tmp_path)
    for path in kinds(sweep):
        good = path.read_bytes()
        path.write_text(bad)
        all_commands(sweep.path)
        path.write_bytes(good)


def searched(tmp_path: Path) -> SweepDir:
    """Return a search that has found something, with a question of A or B beside it."""
    space = ("tune.space={parallel.max_num_seqs: [1, 16]}", "tune.budget_node_hours=1", "bench.input_tokens=64")
    asked = ask(["engine=simulator", "cluster=local", "bench.window_s=1", f"results.root={tmp_path}/runs", *space])
    first = asked.plan.points[0]
    sweep = record(asked.plan, asked.search, [first.point])
    measured(sweep, first, 50.0, ttft_ms_mean=5.0, tpot_ms_mean=3.0, load_s=2.0, measure_s=2.0, windows=2)
    told(sweep)
    write_json(sweep.question, Question("output_tok_per_s", 0.1, ((first.point, first.point),), 0, 1))
    return sweep


@pytest.mark.parametrize("bad", [*BAD, "[" * 600 + "]" * 600, "null", '{"settings": [], "mean": [], "covariance": []}'])
def test_a_damaged_search_or_question_ends_no_command_with_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RunError("sbatch", "x", "nothing is submitted here", "")

    monkeypatch.setattr(submission, "submit_allocation", refuse)
    sweep = searched(tmp_path)
    for path in (sweep.search, sweep.answer, sweep.question):
        good = path.read_bytes()
        path.write_text(bad)
        for command in ("status", "table", "follow", "resume", "report", "cancel"):
            with contextlib.suppress(SystemExit):
                main([command, str(sweep.path)])
        path.write_bytes(good)


def test_an_answer_that_names_no_figure_or_has_no_end_is_none(tmp_path: Path) -> None:
    sweep = searched(tmp_path)
    good = read_json(sweep.answer)
    assert lines(answer_of(sweep))
    many = good["settings"][:1] * 20_000
    for wrong in ({"goal": "x"}, {"goal": "point"}, {"settings": many}, {"node_hours": 1e300}, {"starts": "many"}):
        write_json(sweep.answer, good | wrong)
        assert answer_of(sweep) == {}, wrong
    best = good["answer"] | {"overrides": ["a=1\nrm -rf x", "$(id)", "\x1b]52;c;eA==\x07"]}
    write_json(sweep.answer, good | {"answer": best})
    [said] = [one for one in lines(answer_of(sweep)) if "serve it" in one]
    assert shlex.split(said)[-3:] == ["a=1\nrm -rf x", "$(id)", "\\x1b]52;c;eA==\\x07"]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, endless, Path.mkdir], ids=lambda make: make.__name__)
def test_what_is_no_file_holds_no_command(tmp_path: Path, make: Callable[[Path], None]) -> None:
    sweep = small(tmp_path)
    for path in kinds(sweep):
        aside = path.rename(tmp_path / "aside")
        make(path)
        all_commands(sweep.path)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        aside.rename(path)


@pytest.mark.parametrize("where", ["allocations", "allocations/0", "services", "points", "."])
def test_a_directory_of_a_strange_name_is_passed_over(tmp_path: Path, where: str) -> None:
    sweep = small(tmp_path)
    for name in ("abc", "rankx", "-1", "1e5", "9" * 30, "\u0663"):
        (sweep.path / where / name).mkdir()
    all_commands(sweep.path)


@pytest.mark.parametrize("value", [None, True, 10**30, float("nan"), "../../x", {}])
def test_a_field_of_another_form_in_a_row_ends_no_command(tmp_path: Path, value: Any) -> None:
    sweep = small(tmp_path)
    [path] = (sweep.path / "points").glob("*/row.json")
    row = json.loads(path.read_text())
    for name in row:
        path.write_text(json.dumps(row | {name: value}))
        with contextlib.suppress(SystemExit):
            main(["collect", str(sweep.path), "--json"])
        with contextlib.suppress(SystemExit):
            main(["report", str(sweep.path), "--json"])


def test_a_row_cannot_give_its_point_another_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = small(tmp_path)
    [path] = (sweep.path / "points").glob("*/row.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"point": "../../../x"}))
    assert main(["collect", str(sweep.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["point"] == path.parent.name


def test_a_small_file_that_stands_for_many_values_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path, *_] = sorted(small(tmp_path).path.glob("points/*/requests.parquet"))
    assert requests.read_requests(path) is not None
    monkeypatch.setattr(requests, "MOST_VALUES", 10)  # they are counted before any is read
    assert requests.read_requests(path) is None


def sibling(sweep: SweepDir, service: str, text: str) -> Path:
    path = sweep.path.parent / "other/services" / service / "1/service.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    return path


def test_a_hint_of_a_sweep_beside_it_can_at_most_be_ignored(tmp_path: Path) -> None:
    sweep, one = SweepDir(tmp_path / "own"), change(config("cluster=local"))
    least = service_seconds(sweep, "s", one, 10.0)
    for text in (
        "{",
        "[]",
        '{"load_s": "x"}',
        '{"load_s": 1e300}',
        '{"load_s": Infinity}',
        '{"load_s": -5}',
        '{"load_s": NaN}',
    ):
        path = sibling(sweep, "s", text)
        assert service_seconds(sweep, "s", one, 10.0) == least, text
    path.unlink()
    os.mkfifo(path)
    assert service_seconds(sweep, "s", one, 10.0) == least
    path = sibling(sweep, "s", '{"load_s": 100.0}')
    assert service_seconds(sweep, "s", one, 10.0) == least + 90
    if os.geteuid() == 0:
        os.chown(path, STRANGER, STRANGER)
        assert service_seconds(sweep, "s", one, 10.0) == least


@pytest.mark.parametrize(
    "text", ['{"load_s": [Infinity]}', '{"load_s": [-5]}', "[]", '{"layout": {}, "allowance_gib": NaN}']
)
def test_what_was_learnt_from_earlier_runs_is_checked(tmp_path: Path, text: str) -> None:
    root, one = Root(tmp_path), config("cluster=local")
    path = root.calibration(history.layout_name(one))
    path.parent.mkdir()
    path.write_text(text)
    found, ignored = history.recall(root, one)
    assert found is None and ignored and str(path) in ignored
    path.unlink()
    os.mkfifo(path)
    assert history.recall(root, one)[0] is None


def test_only_own_evidence_with_the_name_of_a_host_keeps_a_node_away(tmp_path: Path) -> None:
    root = Root(tmp_path)
    for number, node in enumerate(("good", "n1\ntouch PWN #", "n1 --wrap=x", "n[1-9]", "$(id)")):
        write_json(root.node(number), {"node": node, "time": 4e9, "reasons": ["broken"]})
    assert [one.node for one in sick_nodes.sick(root)] == ["good"]
    if os.geteuid() == 0:
        os.chown(root.node(0), STRANGER, STRANGER)
        assert sick_nodes.sick(root) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_row_of_another_user_is_from_where_it_lay(tmp_path: Path) -> None:
    sweep, own = small(tmp_path), SweepDir(tmp_path / "own")
    [path] = (sweep.path / "points").glob("*/row.json")
    row = json.loads(path.read_text()) | {"reused_from": "/made/up"}
    path.write_text(json.dumps(row))
    past = reuse.Past(path.parent.name, sweep, row, ())
    for owner, origin in ((0, "/made/up"), (STRANGER, str(sweep.path))):
        os.chown(path, owner, owner)
        reuse.take(own, [past])
        assert read_json(own.point(past.point).row)["reused_from"] == origin
    (mine := tmp_path / "mine.json").write_text("{}")
    path.unlink()
    reuse.take(own, [past])  # it went after it was read
    path.symlink_to(mine)  # or is a link to a file of ours by now
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    reuse.take(own, [past])
    assert read_json(own.point(past.point).row)["reused_from"] == str(sweep.path)


def test_a_job_that_a_record_names_is_a_job(tmp_path: Path) -> None:
    sweep = small(tmp_path)
    [folder] = sweep.allocations()
    for wrong in ({"job_id": "-1"}, {"job_id": "1 --me"}, {"kind": "../x"}, {"pid": -1}, {"pid": 1}, {"nodes": 0}):
        good = folder.job.read_bytes()
        folder.job.write_text(json.dumps(json.loads(good) | wrong))
        with pytest.raises(RunError):
            from jobs.cluster.base import cancel

            cancel(folder)
        folder.job.write_bytes(good)


SERVING = {
    "host": "n1",
    "base_url": "http://n1:8000/v1",
    "replicas": ["http://n2:8000/v1"],
    "model": "a 'b",
    "api_key_file": "/root/.ssh/id_rsa",
    "tunnel": "ssh -N -L 8000:n1:8000 -L 8001:n2:8000 me@login",
    "chat": False,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("base_url", one) for one in ("http://n1:1/v1; touch x #", "http://[x/v1", "http://n1:1/v1\n", 5)),
        *(("host", "n1; touch x"), ("replicas", ["http://$(touch x):1/v1"]), ("model", 4), ("chat", None)),
        *(("tunnel", one) for one in ("ssh -o ProxyCommand=x y", "ssh -N -L 1:n1:1 me@-oProxyCommand=x", 6)),
    ],
)
def test_how_to_reach_a_service_is_no_line_of_somebody_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: object
) -> None:
    """People paste it into a shell; and a file that it names would be sent as the key."""
    sweep, _ = planned(tmp_path / "s", "engine=simulator", "bench.concurrency=1")
    folder = sweep.allocation(0, 1)
    write_json(folder.task, {"services": [], "attempt": 1})
    write_json(folder.serving, SERVING)
    assert main(["reach", str(sweep.path)]) == 0
    said = capsys.readouterr().out
    assert "id_rsa" not in said and f"cat {folder.api_key}" in said
    folder.serving.write_text(json.dumps(SERVING | {name: value}))
    with pytest.raises(RunError, match=name):
        serving.read(folder)
    folder.serving.write_text("{}")
    assert until_closed(lambda: main(["reach", str(sweep.path)])) == 1


@pytest.mark.timeout(60)
def test_a_diagnosis_of_somebody_else_is_not_translated_for_minutes(tmp_path: Path) -> None:
    sweep, made = planned(tmp_path / "s", "engine=simulator", "bench.concurrency=1")
    row(sweep, made.points[0], invalid_reason="x")
    service = sweep.service(made.points[0].service, 1)
    for text in ("a. " * 300_000, "  cause: of\n" * 80_000, "  cause: " + "a. " * 6000):
        service.path.mkdir(parents=True, exist_ok=True)
        service.diagnosis.write_text(text)
        assert main(["report", str(sweep.path)]) == 0
