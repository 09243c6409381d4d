"""What people read, in Chinese: nothing of it is left out, and what programs read stays as it is."""

from __future__ import annotations

import itertools
import json
import re
import string
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from core_help import ROOT
from results_help import planned, row
from test_tools_engines import load

from jobs.__main__ import SUBJECTS, commands, main
from jobs.core import chinese
from jobs.results.gather import read_run
from jobs.results.report import data

CHINESE = re.compile("[\u4e00-\u9fff]")
LOCALES = ("LC_ALL", "LC_MESSAGES", "LANG")
REFUSED = (
    (["check", "parallel.max_num_seqss=16"], "parallel.max_num_seqss = 16"),
    (["check", "parallel.max_num_seqs=0"], "parallel.max_num_seqs = 0"),
    (["plan", "engine.release=0.99"], "engine.release = 0.99"),
    (["forecast", "bench.output_tokens=999999"], "parallel.max_model_len = 8192"),
    (["tune", "tune.space={}", "tune.budget_node_hours=1"], "tune.space = (empty)"),
    (["decide", "parallel.max_num_seqs=16", "--difference", "3%"], "A B = parallel.max_num_seqs=16"),
    (["status", "/nowhere"], "RUN = /nowhere"),
)


@pytest.fixture
def in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")


def test_each_text_that_people_read_has_its_chinese_and_no_other() -> None:
    """`python tools/spoken.py` prints what is lacking; add it to jobs/core/chinese.json or chinese_diagnoses.json."""
    spoken = load("spoken")
    assert spoken.templates() | spoken.printed() == set(chinese.OURS.texts)
    assert spoken.diagnoses() == set(chinese.DIAGNOSES.texts)


@pytest.mark.parametrize("catalogue", [chinese.OURS, chinese.DIAGNOSES], ids=["ours", "diagnoses"])
def test_what_is_filled_in_is_filled_in_in_both(catalogue: chinese.Catalogue) -> None:
    for english, text in catalogue.texts.items():
        places = Counter(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)
        asked = {str(number) for number in range(len(chinese.words(english)) - 1)}
        assert set(places) <= asked and len(asked) - len(places) <= 1, english  # an English plural has no place
        words = chinese.words(english)
        same = "".join(f"{{{number - 1}}}" * (number > 0) + word for number, word in enumerate(words))
        half = text.translate({ord("："): ": ", ord("（"): " (", ord("）"): ")"})
        assert CHINESE.search(text) or half == same or not re.search("[A-Za-z]", english), english
        assert re.findall(r"%\(?\w+\)?", english) == re.findall(r"%\(?\w+\)?", text), english


@pytest.mark.parametrize(("arguments", "named"), REFUSED)
def test_an_error_names_key_and_value_and_tells_the_rest_in_chinese(
    arguments: list[str], named: str, in_chinese: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) in (1, 2)
    said = capsys.readouterr()
    line = next(line for line in (said.err + said.out).splitlines() if named in line)
    assert line.startswith(("error", "错误")) and CHINESE.search(line.partition(": ")[2])
    main([*arguments, "--json"])
    assert not CHINESE.search(capsys.readouterr().out), "programs read the same in every locale"


@pytest.mark.parametrize("word", [word for words in SUBJECTS.values() for word in words])
def test_each_command_tells_in_chinese_what_it_is_for(
    word: str, in_chinese: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and shown.startswith("用法") and "选项" in shown
    described = [one for one in commands(word) if one.name == word]
    helps = [one.help for one in described] + [o.get("help", "") for one in described for _, o in one.arguments]
    for text in filter(None, helps):
        assert chinese.OURS.translated(text) != text
        assert "".join(chinese.OURS.translated(text).replace("%%", "%").split()) in "".join(shown.split())


def test_a_diagnosis_is_told_in_chinese_and_quotes_its_lines(
    tmp_path: Path, in_chinese: None, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "ERROR 11-24 10:00:08 [w.py:1] RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB"
    (tmp_path / "server.log").write_text(f"{line}\n")
    assert main(["diagnose", str(tmp_path / "server.log")]) == 0
    shown = capsys.readouterr().out.splitlines()
    labels = [text.strip().partition("：")[0] for text in shown if text.startswith("  ")]
    assert CHINESE.search(shown[1]) and shown[1].endswith("(npu-memory)") and {"结论", "日志行", "办法"} <= set(labels)
    assert any("Tried to allocate 2.00 GiB" in text for text in shown)


def test_launch_helps_in_chinese() -> None:
    done = subprocess.run(
        [sys.executable, "launch.py", "--help"],
        cwd=ROOT,
        env={"LC_ALL": "zh_CN.UTF-8", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "配置组" in done.stdout and "parallel: dp1_tp16" in done.stdout


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({"LANG": "zh_CN.UTF-8"}, True),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, False),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_TW"}, True),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, True),
    ],
)
def test_the_locale_asks_as_posix_has_it(variables: dict[str, str], asked: bool) -> None:
    assert chinese.is_asked(variables) is asked


def test_a_text_that_nobody_translated_stays_and_its_known_sentences_do_not(tmp_path: Path) -> None:
    known = {"it is {} long": "长度为 {0}", "Shorten it.": "缩短它。", "{} of {}": "{1} 中的 {0}"}
    (tmp_path / "words.json").write_text(json.dumps(known), encoding="utf-8")
    translated = chinese.Catalogue(tmp_path / "words.json").translated
    assert translated("nobody knows this") == "nobody knows this"
    assert translated("Shorten it. Nobody knows this.") == "缩短它。Nobody knows this."
    assert translated("it is 3 of {x} long") == "长度为 {x} 中的 3", "what is filled in is no template"


NOTES = (
    "repeats 1, 3: 31 requests: too few for a p99",
    "repeat 2: the client was up to 12.2 ms late (p99): so far its stamps may be off",
    "repeat 2: data-parallel rank 1 served no token in the window: 3 requests in flight did not need it",
    "the service does not tell all counters: requests of others by their number and cache hits are not checked",
    "3 preemptions: the KV cache was full",
    "limited by: 3 requests failed: connection closed before the end of the answer (at 8), not by the objective",
    "tpot_ms_p50 differs by 93% between the windows: their median is that of no one service",
)


@pytest.mark.parametrize("text", [*NOTES, *map("; ".join, itertools.permutations(NOTES, 2))])
def test_a_note_beside_others_is_told_as_a_whole(text: str) -> None:
    said = chinese.ALL.translated(text)
    assert not re.search("[a-z]{3,} [a-z]{3,}", said)
    assert re.findall(r"[\d.]+", said) == re.findall(r"[\d.]+", text), "no figure is lost, in the order of the notes"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rank 1 (headless): RuntimeError: device lost", "rank 1 (headless)：RuntimeError: device lost"),
        ("not run: rank 1 is lost", "未运行：rank 1 失联"),
        ("exited with code 1", "以退出码 1 退出"),
        (
            "rank 0: max_model_len is longer than the model was made for (model-length): ValueError: too long for it",
            "rank 0: max_model_len 超过模型本身支持的长度 (model-length)：ValueError: too long for it",
        ),
        ("2 pairs in a row have no figures: B: died", "连续 2 对没有结果：B: died"),
        ("3 points, of dp2_tp8 and dp4_tp4", "3 points, of dp2_tp8 and dp4_tp4"),
        ("parallel.max_num_seqs and bench.window_s", "parallel.max_num_seqs 和 bench.window_s"),
        ("2 x 200 MB (0.9.1)", "2 x 200 MB (0.9.1)"),
    ],
)
def test_what_an_engine_said_stays_beside_what_is_said_of_it(text: str, said: str) -> None:
    assert chinese.ALL.translated(text) == said


def test_an_interval_keeps_its_comma(in_chinese: None) -> None:
    line = "no difference seen: +1.2% [-45.1%, +82.3%], 3 starts a side; about 8.0% would have been seen"
    assert "+1.2% [-45.1%, +82.3%]，每边 3 次启动；" in chinese.printed(line)


def test_columns_stay_where_they_are_though_a_chinese_letter_takes_two(in_chinese: None) -> None:
    lines = [f"  {'as configured':<16}  load 2 s, 16 s more", f"  {'seqs=256':<16}  load 3 s, 16 s more"]
    said = chinese.printed("\n".join(lines)).split("\n")
    assert [chinese.width(one[: one.index("权重")]) for one in said] == [20, 20]
    assert chinese.width("首 token") == 8


def test_a_plan_is_told_in_chinese_and_its_commands_are_as_they_are_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["plan", "experiment=article", "bench.concurrency=1,16"]

    def shown() -> list[str]:
        assert main(asked) == 0
        return capsys.readouterr().out.splitlines()

    english = shown()
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    told = shown()
    first = english.index(next(line for line in english if line.startswith("# service")))
    assert told[-len(english[first:]) :] == english[first:]
    for line in told[: -len(english[first:])]:
        assert not line or CHINESE.search(line), line
    main([*asked, "--json"])
    assert "2 points" not in (said := capsys.readouterr().out) and not CHINESE.search(said)


def test_a_row_is_told_in_chinese_where_it_is_printed_and_in_a_report(
    tmp_path: Path, in_chinese: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, made = planned(tmp_path, "bench.concurrency=1,4")
    row(sweep, made.points[0], notes=NOTES[0])
    row(sweep, made.points[1], invalid_reason="the time limit is near")
    assert main(["table", str(sweep.path)]) == 1
    shown = capsys.readouterr().out
    assert "第 1, 3 个窗口：31 个请求" in shown and "无效" in shown and "临近时间上限" in shown and " valid " in shown
    assert main(["status", str(sweep.path)]) == 0
    assert "无效：临近时间上限" in capsys.readouterr().out
    found = data(read_run(sweep.path))
    assert found["zh"]["the time limit is near"] == "临近时间上限" and NOTES[0] in found["zh"]
    assert not CHINESE.search(sweep.table("csv").read_text("utf-8")), "files are English"
