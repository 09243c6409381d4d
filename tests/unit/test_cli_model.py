"""`python -m jobs model fetch|verify|stage`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_help import shard, write

from jobs.__main__ import main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = main(["model", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


MODEL = ("model.name=none", "model.quantization=ascend")


def test_verify_lists_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"model.path={write(tmp_path / 'R1')}"
    code, found = run(capsys, "verify", path, *MODEL)
    assert (code, found["good"], found["findings"], found["shards"]) == (0, True, [], 2)
    assert found["shares"]["by_type"]["W8A8_DYNAMIC"] > 0.9
    shard(tmp_path / "R1").unlink()
    code, found = run(capsys, "verify", path, *MODEL)
    assert code == 1
    assert {finding["file"] for finding in found["findings"]} == {
        "model-00001-of-00002.safetensors", "quant_model_description.json",
    }  # fmt: skip
    assert main(["model", "verify", path, *MODEL]) == 1
    assert "the index names it and it is not there" in capsys.readouterr().out


def test_the_packaged_architecture_is_what_is_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, "verify", f"model.path={write(tmp_path)}")
    assert code == 1
    problems = [finding["problem"] for finding in found["findings"]]
    assert "it is another model: layers is 2, expected is 61" in problems


def test_two_nodes_are_compared_by_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, manifest = write(tmp_path / "one"), write(tmp_path / "two"), str(tmp_path / "m.json")
    assert run(capsys, "verify", "--manifest", manifest, f"model.path={one}", *MODEL)[0] == 0
    assert run(capsys, "verify", "--against", manifest, f"model.path={two}", *MODEL)[0] == 0
    shard(two).write_bytes(shard(two, 2).read_bytes())
    code, found = run(capsys, "verify", "--against", manifest, f"model.path={two}", *MODEL)
    assert code == 1
    assert any("sampled content" in finding["problem"] for finding in found["findings"])


def test_stage_and_fetch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirror = write(tmp_path / "mirror")
    path = f"model.path={tmp_path / 'R1'}"
    code, found = run(capsys, "fetch", "--from", str(mirror), path, *MODEL)
    assert (code, found["good"]) == (0, True)
    code, found = run(capsys, "stage", path, *MODEL, f"model.stage_to={tmp_path / 'local'}")
    assert (code, found["reused"]) == (0, False)
    code, found = run(capsys, "stage", "--to", str(tmp_path / "local"), path)
    assert (code, found["reused"]) == (0, True)
    code, found = run(capsys, "stage", path)
    assert (code, found["error"]["key"]) == (2, "model.stage_to")
    code, found = run(capsys, "verify", "model.path=/a,/b")
    assert (code, found["error"]["key"]) == (2, "model")


def test_overrides_may_stand_on_both_sides_of_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "engine=simulator", "--json", "bench.concurrency=1,2"]) == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 2
    for words in (["plan", "a=1", "--nosuch"], ["status", "one", "two"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "unrecognized arguments" in capsys.readouterr().err


def test_with_a_container_the_checkpoint_is_behind_its_mounts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the article: /models inside is another directory on the node."""
    write(tmp_path / "data/R1")
    words = ["experiment=article", "container=docker", "container.registry=reg.example", *MODEL]
    words += ["model.path=/models/R1", f"container.mounts=[{tmp_path}/data:/models]"]
    code, found = run(capsys, "verify", *words)
    assert (code, found["path"]) == (0, str(tmp_path / "data/R1"))
    code, found = run(capsys, "stage", "--to", str(tmp_path / "local"), *words)
    assert code == 0
    assert (Path(found["path"]) / "config.json").is_file()
    there = tmp_path / "fetched"
    mirrored = [*words[:-1], f"container.mounts=[{there}:/models]"]
    code, found = run(capsys, "fetch", "--from", str(tmp_path / "data/R1"), *mirrored)
    assert (code, found["path"]) == (0, str(there / "R1"))
