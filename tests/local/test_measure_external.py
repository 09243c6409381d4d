"""External clients: their command lines, their result files, and what is made of a run that went wrong."""

from __future__ import annotations

import ast
import asyncio
import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from core_help import ROOT, change, check_golden, config, executable

from jobs.core.config import Config
from jobs.core.errors import ConfigError, RunError
from jobs.measure.clients import ais_bench, asked, run, vllm_bench
from jobs.measure.clients.result import COLUMNS, Result, figures
from jobs.measure.records import Target
from jobs.sweep import check

FIXTURES = ROOT / "tests/fixtures/clients"
TARGET = Target("http://127.0.0.1:8123", "r1", "the-key")


def point(*overrides: str) -> Config:
    words = ("cluster=local", "engine=vllm_cpu", "model=tiny_llama", "parallel=dp2_tp1", "model.path=/models/tiny")
    return config(*words, "bench.output_tokens=32", "bench.input_tokens=256", *overrides)


@pytest.mark.parametrize("client", ["vllm_bench", "ais_bench"])
@pytest.mark.parametrize("kind", ["random", "sharegpt"])
def test_what_is_asked_of_a_client(client: str, kind: str, tmp_path: Path) -> None:
    more = (
        ["bench.workload=sharegpt", "bench.dataset=/data/s.json", "bench.request_rate=10"] if kind != "random" else []
    )
    one = point(f"bench.client={client}", "bench.concurrency=8", *more)
    place = Path("/runs/a/points/b/client")
    if client == "vllm_bench":
        text = shlex.join(vllm_bench.argv(one, TARGET, place, 100)).replace(" --", " \\\n  --") + "\n"
        text = text.replace(str(ROOT), "")
    else:
        text = shlex.join(ais_bench.argv(one, place, 100)).replace(str(ROOT), "") + "\n"
        text += ais_bench.config_text(one, replace(TARGET, api_key=None), 100)
        ast.parse(ais_bench.config_text(one, TARGET, 100))
    check_golden(f"client_{client}_{kind}.txt", text, tmp_path)


def test_the_flag_that_0_9_1_knows_by_another_name() -> None:
    old = config("experiment=article", "bench.client=vllm_bench")
    assert "--endpoint-type" in vllm_bench.argv(old, TARGET, Path("/x"), 1)
    new = change(old, engine__release="0.13.0")
    assert "--backend" in vllm_bench.argv(new, TARGET, Path("/x"), 1)


def test_the_key_is_on_no_command_line() -> None:
    one = point("bench.client=vllm_bench")
    for words in (vllm_bench.argv(one, TARGET, Path("/x"), 1), ais_bench.argv(one, Path("/x"), 1)):
        assert not [word for word in words if "the-key" in word]
    env = run.environment({"PATH": "/bin", "TERM": "xterm", "http_proxy": "http://p"}, TARGET)
    assert env["OPENAI_API_KEY"] == "the-key"
    assert "TERM" not in env


def test_the_articles_test_runs_with_either_client() -> None:
    for client in ("ais_bench", "vllm_bench"):
        one = config("experiment=article_bench", f"bench.client={client}")
        asked.check(one)
        assert asked.requests(one.bench) == 1000
        assert (one.bench.request_rate, one.engine.release) == (10.0, "0.9.1")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["bench.workload=sharegpt"], "bench.dataset"),
        (["engine=simulator"], "bench.client"),
        (["bench.concurrency=null"], "bench.concurrency"),
    ],
)
def test_what_a_client_cannot_do_is_refused(overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check.check(point("bench.client=vllm_bench", *overrides))
    assert caught.value.key == key
    asked.check(point(*overrides))  # of the window client nothing is asked here


def test_how_many_requests_are_sent() -> None:
    assert asked.requests(point("bench.concurrency=4").bench) == 64
    assert asked.requests(point("bench.concurrency=100").bench) == 800
    assert asked.requests(point("bench.request_rate=2.5", "bench.window_s=20").bench) == 50
    assert asked.requests(point("bench.num_requests=7").bench) == 7


def test_a_result_of_vllm_bench(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "vllm_bench", tmp_path, dirs_exist_ok=True)
    raw = json.loads((tmp_path / vllm_bench.RESULT).read_text())
    (tmp_path / vllm_bench.RESULT).write_text(json.dumps(raw | {"generated_texts": ["long"] * 200}))
    found = vllm_bench.read(tmp_path, 200)
    assert (found.completed, found.failed, found.output_tokens, len(found.output_lengths)) == (200, 0, 6400, 200)
    assert tuple(found.figures) == COLUMNS
    assert found.figures["ttft_ms_p99"] == raw["p99_ttft_ms"]
    assert found.figures["e2el_ms_std"] == raw["std_e2el_ms"]
    assert found.figures["output_tok_s"] == pytest.approx(6400 / raw["duration"])
    assert found.figures["tok_s_per_user"] == pytest.approx(1e3 / raw["mean_tpot_ms"])
    assert found.figures["input_tokens_mean"] == 51239 / 200
    assert "generated_texts" not in (tmp_path / vllm_bench.RESULT).read_text()


def test_a_result_of_ais_bench() -> None:
    found = ais_bench.read(FIXTURES / "ais_bench", 200)
    assert (found.requested, found.completed, found.failed, found.output_tokens) == (200, 200, 0, 6400)
    assert set(found.output_lengths) == {32}
    assert found.figures["ttft_ms_p50"] == 84.3
    assert found.figures["ttft_ms_std"] is None
    assert found.figures["output_tok_s"] == 1375.1827
    assert found.seconds == pytest.approx(4.6539272)


@pytest.mark.parametrize(("text", "value"), [("18.412 req/s", 18.412), ("140.0 ms", 140.0), (64, 64.0), ("5", 5.0)])
def test_units_are_taken_off(text: Any, value: float) -> None:
    assert ais_bench.number(text) == value


def test_no_answer_is_no_figure(tmp_path: Path) -> None:
    raw = json.loads((FIXTURES / "vllm_bench" / vllm_bench.RESULT).read_text())
    zeros = {key: 0 for key in raw if key.endswith("_ms")}
    nothing = raw | zeros | {"completed": 0, "total_output_tokens": 0, "errors": ["refused"] * 200}
    (tmp_path / vllm_bench.RESULT).write_text(json.dumps(nothing))
    found = vllm_bench.read(tmp_path, 200)
    assert found.figures["ttft_ms_p50"] is None
    assert found.output_lengths == []
    assert run.judge(point(), found, {}) == "no request was completed: refused"


RESULT = Result(100, 100, 0, 5.0, 3200, [32] * 100, [], figures({}))


@pytest.mark.parametrize(
    ("change_", "tokens", "reason"),
    [
        ({}, {"0": 1600, "1": 1600}, None),
        ({}, {}, None),
        ({}, {"1": 1600}, None),  # 0.9.1 shows one engine's counter only
        ({"completed": 0}, {}, "no request was completed"),
        ({"failed": 3, "completed": 97, "errors": ["Connection reset"]}, {}, "3 of 100 requests failed: Connection"),
        ({"completed": 92}, {}, "8 of 100 requests are missing"),
        ({"output_lengths": [32] * 84 + [30] * 16}, {}, "16 answers are shorter than bench.output_tokens=32"),
        ({}, {"0": 3200, "1": 0}, "data-parallel rank 1 served no token"),
        ({}, {"0": 1000, "1": 1000}, "it counted 3200 tokens, and the engines made 2000"),
    ],
)
def test_a_run_is_judged_by_its_file(change_: dict[str, Any], tokens: dict[str, int], reason: str | None) -> None:
    found = run.judge(point("bench.concurrency=8"), replace(RESULT, **change_), tokens)
    assert (found or "").startswith(reason or "") and (found is None) == (reason is None)


# -- programs that stand in for the client -------------------------------------------------------------------


def client(tmp_path: Path, code: str) -> str:
    """Return a program that gets the words of the client."""
    text = f"#!{sys.executable}\nimport json, os, pathlib, signal, sys, time\n{code}\n"
    return str(executable(tmp_path / "bin/client", text))


GOOD = """
words = sys.argv[1:]
place = pathlib.Path(words[words.index("--result-dir") + 1])
shown = json.loads(pathlib.Path(os.environ["SHOWN"]).read_text())
(place / words[words.index("--result-filename") + 1]).write_text(json.dumps(shown))
(place / "seen").write_text(os.environ["OPENAI_API_KEY"])
"""


async def measured(
    tmp_path: Path, program: str, *overrides: str, stop: asyncio.Event | None = None, unused_port: int = 9
) -> run.External:
    one = point("bench.client=vllm_bench", "bench.concurrency=8", "bench.num_requests=200", *overrides)
    one = change(one, bench__program=program)
    target = Target(f"http://127.0.0.1:{unused_port}", "r1", "the-key")
    env = {"PATH": "/usr/bin:/bin", "SHOWN": str(FIXTURES / "vllm_bench" / vllm_bench.RESULT)}
    return await run.measure(
        one, target, tmp_path / "client", run.Node(env), "mark", stop=stop or asyncio.Event(), on_phase=lambda _: None
    )


async def test_a_run_that_ends_well(tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    (tmp_path / "client/old").write_text("of an earlier attempt")
    found = await measured(tmp_path, client(tmp_path, GOOD))
    assert (found.reason, found.truncated) == (None, False)
    assert found.result is not None
    assert found.result.figures["completed"] == 200
    assert (tmp_path / "client/seen").read_text() == "the-key"
    assert not (tmp_path / "client/old").exists()


async def test_code_0_without_a_result_is_no_success(tmp_path: Path) -> None:
    found = await measured(tmp_path, client(tmp_path, "print('all is well')"))
    assert found.result is None
    assert found.reason is not None
    assert found.reason.startswith("vllm_bench left no result (exited with code 0)")


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    found = await measured(tmp_path, str(tmp_path / "nothing"))
    assert found.reason is not None
    assert "exited with code 127" in found.reason


async def test_a_client_that_hangs_ends_with_its_limit(tmp_path: Path) -> None:
    hangs = client(tmp_path, "signal.pause()")
    found = await measured(tmp_path, hangs, "limits.client_s=0.5")
    assert found.reason is not None
    assert "limits.client_s=0.5 is over" in found.reason
    assert not found.truncated


async def test_a_client_ends_with_the_service(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    text = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\npathlib.Path({str(begun)!r}).touch()\nsignal.pause()"
    stop = asyncio.Event()
    work = asyncio.create_task(measured(tmp_path, client(tmp_path, text), stop=stop))
    while not begun.exists():
        await asyncio.sleep(0.01)
    stop.set()
    found = await work
    assert (found.reason, found.truncated) == ("the window was cut short", True)


def test_the_key_is_forgotten(tmp_path: Path) -> None:
    one = point("bench.client=ais_bench", "bench.concurrency=8")
    ais_bench.write_config(one, TARGET, tmp_path, 10)
    assert (tmp_path / ais_bench.CONFIG).stat().st_mode & 0o777 == 0o600
    for copy in ("tmp/a_params.py", "20260101_000000/configs/a.py"):
        (tmp_path / copy).parent.mkdir(parents=True)
        shutil.copy(tmp_path / ais_bench.CONFIG, tmp_path / copy)
    ais_bench.forget_key(one, TARGET, tmp_path, 10)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept == [tmp_path / ais_bench.CONFIG]
    assert "the-key" not in kept[0].read_text()


def test_half_a_result_is_none(tmp_path: Path) -> None:
    (tmp_path / vllm_bench.RESULT).write_text('{"completed": 3')
    with pytest.raises(RunError, match=r"vllm_bench\.json"):
        vllm_bench.read(tmp_path, 200)
    with pytest.raises(RunError, match="performances"):
        ais_bench.read(tmp_path, 200)
