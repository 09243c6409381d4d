"""Where a setting of a run came from, how it reached the ranks, and what they had."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from core_help import composer
from results_help import RECORDED, copied

from jobs.__main__ import main
from jobs.core import schema
from jobs.core.errors import RunError
from jobs.core.files import read_json, write_json
from jobs.results.gather import dotted
from jobs.sweep import compose, road
from jobs.sweep.explain import explain, source_of, text


def test_a_swept_flag_reached_every_rank(tmp_path: Path) -> None:
    found = explain(RECORDED, "max-model-len")
    assert found.config_key == "parallel.max_model_len"
    assert [(one.value, one.source) for one in found.values] == [
        (length, f"override parallel.max_model_len={length}") for length in (2048, 8192, 1048576)
    ]
    read_back = [one for one in found.ranks if one.agrees is not None]
    assert [(one.rank, one.way, one.intended, one.effective) for one in read_back] == [
        (rank, "argument --max-model-len", length, length) for length in ("2048", "8192") for rank in (0, 1)
    ]
    assert all(one.agrees for one in read_back)
    assert "not read back" in text(found), "the third service never ran"
    assert f"service {read_back[0].service} parallel.max_model_len=2048 attempt 1 rank 0: " in text(found)


def test_a_variable_that_a_rank_lost_is_seen(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    [path] = [path for path in folder.rglob("rank1/effective.json") if read_json(path)["env"]][:1]
    record = read_json(path)
    assert record["env"].pop("VLLM_CPU_KVCACHE_SPACE") == "1"
    write_json(path, record)
    found = explain(folder, "VLLM_CPU_KVCACHE_SPACE")
    assert [one.source for one in found.values] == ["conf/engine/vllm_cpu.yaml"]
    assert [(one.rank, one.effective) for one in found.ranks if one.agrees is False] == [(1, None)]
    assert "the process had None: NOT as intended" in text(found)


def test_a_variable_that_nobody_set_is_said_to_be_so(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    for path in folder.rglob("rank0/effective.json"):
        record = read_json(path)
        write_json(path, record | {"env": record["env"] | {"VLLM_STRAY": "1"}})
    found = explain(folder, "VLLM_STRAY")
    assert found.config_key is None
    assert not found.values
    assert {(one.rank, one.intended, one.effective) for one in found.ranks} == {(0, None, "1")}


@pytest.mark.parametrize(
    ("key", "value", "overrides", "source"),
    [
        ("hccl.buffsize", 1024, (), "conf/hccl/default.yaml"),
        ("hccl.buffsize", 512, ("hccl.buffsize=512",), "override hccl.buffsize=512"),
        ("engine.env.A", 1, ("engine.env={A:1}",), "override engine.env={A:1}"),
        ("bench.window_s", 3.0, ("engine=simulator",), "conf/engine/simulator.yaml"),
        ("bench.window_s", 10.0, ("experiment=demo",), "conf/experiment/demo.yaml"),
        ("model.name", "tiny_llama", ("experiment=demo",), "conf/model/tiny_llama.yaml"),
        ("limits.stop_s", 31.0, (), "unknown: conf/ has changed since this run"),
        ("bench.seed", 0, (), "default in jobs/core/config.py"),
    ],
)
def test_what_set_it(key: str, value: object, overrides: tuple[str, ...], source: str) -> None:
    if key == "limits.stop_s" and not (schema.CONF / "limits/default.yaml").read_text().count("stop_s"):
        source = "default in jobs/core/config.py"
    assert source_of(key, value, overrides) == source


@pytest.mark.parametrize("overrides", [[], ["engine=simulator"], ["experiment=demo"], ["experiment=article"]])
def test_every_key_of_every_choice_has_a_source(overrides: list[str]) -> None:
    [point] = road.plan(compose.expand(["cluster=local", *overrides]), composer).points
    tree = json.loads(json.dumps(asdict(point.config)))
    for key in schema.schema():
        source = source_of(key, dotted(tree, key), ("cluster=local", *overrides))
        assert not source.startswith("unknown") or key == "cluster.kind", (key, source)


def test_an_unknown_name_is_an_error_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="HCCL_BUFFSIZE"):
        explain(RECORDED, "HCCL_BUFSIZE")
    assert main(["explain", str(RECORDED), "--key", "bench.window_s", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["values"][0]["value"] == 4.0
    assert not found["ranks"]
