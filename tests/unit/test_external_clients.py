"""External clients: their command lines, their result files, and which results are whole."""

from __future__ import annotations

import ast
import io
import json
import shlex
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_help import ROOT, change, check_golden, checked, config

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.measure.checks import check_client
from jobs.measure.clients import ais_bench, base, judge, run, vllm_bench
from jobs.measure.clients.ais_bench import AisBench
from jobs.measure.clients.result import Result, figures
from jobs.measure.clients.vllm_bench import VllmBench
from jobs.measure.records import Target
from jobs.measure.statistics import latencies

FIXTURES = ROOT / "tests/fixtures/clients"
NOBODY = Target("http://127.0.0.1:8123", "r1")


def point(*overrides: str) -> Config:
    words = ("cluster=local", "engine=vllm_cpu", "model=tiny_llama", "parallel=dp2_tp1", "model.path=/models/tiny")
    return config(*words, "bench.output_tokens=32", "bench.input_tokens=256", *overrides)


@pytest.mark.parametrize("client", ["vllm_bench", "ais_bench"])
@pytest.mark.parametrize("kind", ["random", "sharegpt"])
async def test_what_is_asked_of_a_client(client: str, kind: str, tmp_path: Path) -> None:
    more = (
        ["bench.workload=sharegpt", "bench.dataset=/data/s.json", "bench.request_rate=10"] if kind != "random" else []
    )
    one = point(f"bench.client={client}", "bench.concurrency=8", *more)
    argv = await base.of(one).write(one, NOBODY, tmp_path, 100)
    text = shlex.join(argv)
    if client == "vllm_bench":
        text = text.replace(" --", " \\\n  --")
    else:
        ast.parse((tmp_path / ais_bench.CONFIG).read_text())
    text += "\n" + "".join(path.read_text() for path in sorted(tmp_path.iterdir()))
    text = text.replace(str(ROOT), "").replace(str(tmp_path), "/runs/a/points/b/client")
    check_golden(f"client_{client}_{kind}.txt", text, tmp_path)


async def test_the_flag_that_0_9_1_knows_by_another_name() -> None:
    old = config("experiment=article", "bench.client=vllm_bench")
    assert "--endpoint-type" in await VllmBench().write(old, NOBODY, Path("/x"), 1)
    new = change(old, engine__release="0.13.0")
    assert "--backend" in await VllmBench().write(new, NOBODY, Path("/x"), 1)


def test_the_environment_of_a_client() -> None:
    env = run.environment({"PATH": "/bin", "TERM": "xterm", "http_proxy": "http://p"}, replace(NOBODY, api_key="k"))
    assert env["OPENAI_API_KEY"] == "k"
    assert "TERM" not in env


def test_the_articles_test_runs_with_either_client() -> None:
    for client in ("ais_bench", "vllm_bench"):
        one = config("experiment=article_bench", f"bench.client={client}")
        check_client(one)
        assert base.request_count(one.bench) == 1000
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
        checked(point("bench.client=vllm_bench", *overrides))
    assert caught.value.key == key
    check_client(point(*overrides))  # of the window client nothing is asked here


def test_how_many_requests_are_sent() -> None:
    assert base.request_count(point("bench.concurrency=4").bench) == 64
    assert base.request_count(point("bench.concurrency=100").bench) == 800
    assert base.request_count(point("bench.request_rate=2.5", "bench.window_s=20").bench) == 50
    assert base.request_count(point("bench.num_requests=7").bench) == 7


def test_a_result_of_vllm_bench(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "vllm_bench", tmp_path, dirs_exist_ok=True)
    raw = json.loads((tmp_path / vllm_bench.RESULT).read_text())
    (tmp_path / vllm_bench.RESULT).write_text(json.dumps(raw | {"generated_texts": ["long"] * 200}))
    found = VllmBench().read(tmp_path, 200)
    assert (found.completed, found.failed, found.output_tokens, len(found.output_lengths)) == (200, 0, 6400, 200)
    assert found.figures["ttft_ms_p99"] == raw["p99_ttft_ms"]
    assert found.figures["e2el_ms_std"] == raw["std_e2el_ms"]
    assert found.figures["output_tok_per_s"] == pytest.approx(6400 / raw["duration"])
    assert found.figures["tok_per_s_per_user"] is None, "no mean of TPOTs tells it"
    assert found.figures["input_tokens_mean"] == 51239 / 200
    assert "generated_texts" not in (tmp_path / vllm_bench.RESULT).read_text()


def test_a_result_of_ais_bench() -> None:
    found = AisBench().read(FIXTURES / "ais_bench", 200)
    assert (found.requested, found.completed, found.failed, found.output_tokens) == (200, 200, 0, 6400)
    assert set(found.output_lengths) == {32}
    assert found.figures["ttft_ms_p50"] == 84.3
    assert found.figures["ttft_ms_std"] is None
    assert found.figures["output_tok_per_s"] == 1375.1827
    assert found.seconds == pytest.approx(4.6539272)


def test_the_single_requests_of_vllm_bench(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "vllm_bench", tmp_path, dirs_exist_ok=True)
    raw = json.loads((tmp_path / vllm_bench.RESULT).read_text())
    assert VllmBench().read(tmp_path, 200).requests == [], "it does not tell of the gaps"
    more = {"itls": [[0.01] * 31] * 200, "start_times": [7.0 + at for at in range(200)]}
    more |= {"request_rate": 4.0, "queue_times": [0.5] * 198 + [9.0] * 2, "errors": [""] * 199 + ["refused"]}
    for left_out in ((), ("start_times", "queue_times")):
        told = {key: value for key, value in (raw | more).items() if key not in left_out}
        (tmp_path / vllm_bench.RESULT).write_text(json.dumps(told))
        found = VllmBench().read(tmp_path, 200)
        one = latencies(found.requests[3])
        wait_ms = 0.0 if left_out else 500.0
        assert one.ttft == pytest.approx(raw["ttfts"][3] * 1e3 + wait_ms)
        assert one.e2el == pytest.approx(raw["ttfts"][3] * 1e3 + 310.0 + wait_ms)
        assert one.tpot == pytest.approx(10.0)
        assert [record.status for record in found.requests] == ["ok"] * 199 + ["failed"]
        assert found.tells_waits is not bool(left_out)
        assert found.figures["wait_ms_p50"] == (None if left_out else 500.0)
    (tmp_path / vllm_bench.RESULT).write_text(json.dumps(raw | more | {"itls": [[0.01] * 31] * 199}))
    assert VllmBench().read(tmp_path, 200).requests == [], "one is missing"


def test_the_single_requests_of_ais_bench(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "ais_bench", tmp_path, dirs_exist_ok=True)
    [details] = tmp_path.glob("*/performances/service/prompts_details.jsonl")
    base = details.with_name("db_data") / "service.db"
    base.parent.mkdir()
    rows = [json.loads(line) for line in details.read_text().splitlines()]
    with closing(sqlite3.connect(base)) as made, made:
        made.execute("CREATE TABLE numpy_store (id INTEGER PRIMARY KEY AUTOINCREMENT, arr_blob BLOB NOT NULL)")
        for number, row in enumerate(rows, 1):
            np.save(buffer := io.BytesIO(), row["id"] + np.array([0.0, 0.25, 0.26, 0.28]))
            made.execute("INSERT INTO numpy_store (arr_blob) VALUES (?)", (buffer.getvalue(),))
            row |= {"db_name": base.name, "time_points": {"__db_ref__": number}, "prediction": "one\u2028two"}
    rows[9]["success"] = False

    def read(lines: list[dict[str, Any]]) -> Result:
        details.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines), encoding="utf-8")
        return AisBench().read(tmp_path, 200)

    found = read(rows)
    assert [record.start_s for record in found.requests[:3]] == [0.0, 1.0, 2.0], "in the order of their sending"
    assert [record.status for record in found.requests] == ["ok"] * 199 + ["failed"]
    one = latencies(found.requests[5])
    assert (one.ttft, one.e2el) == (pytest.approx(250.0), pytest.approx(280.0))
    assert len(found.output_lengths) == 199, "a text with another end of a line is no torn file"
    assert read([rows[0] | {"time_points": {"__db_ref__": 9999}}, *rows[1:]]).requests == []
    base.unlink()
    assert read(rows).requests == []


@pytest.mark.parametrize(("text", "value"), [("18.412 req/s", 18.412), ("140.0 ms", 140.0), (64, 64.0), ("5", 5.0)])
def test_units_are_taken_off(text: Any, value: float) -> None:
    assert ais_bench.number(text) == value


def test_no_answer_is_no_figure(tmp_path: Path) -> None:
    raw = json.loads((FIXTURES / "vllm_bench" / vllm_bench.RESULT).read_text())
    zeros = {key: 0 for key in raw if key.endswith("_ms")}
    nothing = raw | zeros | {"completed": 0, "total_output_tokens": 0, "errors": ["refused"] * 200}
    (tmp_path / vllm_bench.RESULT).write_text(json.dumps(nothing))
    found = VllmBench().read(tmp_path, 200)
    assert found.figures["ttft_ms_p50"] is None
    assert found.output_lengths == []
    assert judge.fault(point(), found, {}) == "no request was completed: refused"


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
        ({}, {"0": 1000, "1": 1000}, "it counted 3200 tokens, and the engines made 2000"),
    ],
)
def test_a_run_is_judged_by_its_file(change_: dict[str, Any], tokens: dict[str, int], reason: str | None) -> None:
    found = judge.fault(point("bench.concurrency=8"), replace(RESULT, **change_), tokens)
    assert (found or "").startswith(reason or "") and (found is None) == (reason is None)
