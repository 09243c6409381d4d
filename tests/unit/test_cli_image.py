"""`python -m jobs image`: import, list, verify, prune."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from container_fakes import DIGEST, REGISTRY, Fakes

from containers.spec import recipes, resolve
from jobs.__main__ import main

PINNED = f"docker://{REGISTRY}#ascend/vllm-ascend:v0.9.1-openeuler"


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    fakes = Fakes(tmp_path / "bin")
    fakes.tell(images={PINNED: DIGEST})
    monkeypatch.setenv("PATH", fakes.path)
    site = [f"container.local_dir={tmp_path}/node"]

    def run(*words: str) -> tuple[int, Any]:
        code = main(["image", *words[:1], *words[1:2], f"results.root={tmp_path}/runs", *site, *words[2:], "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_a_recipe_is_imported_listed_verified_and_pruned(call: Any, tmp_path: Path) -> None:
    code, [made] = call("import", "v0.9.1-openeuler", f"container.registry='{REGISTRY}'")
    assert code == 0
    assert (made["reference"], made["digest"]) == (PINNED, DIGEST)
    assert Path(made["path"]).parent == tmp_path / "runs/.images"
    again = call("import", "v0.9.1-openeuler", f"container.registry='{REGISTRY}'", "--refresh")
    assert again == (0, [made]), "the tag has not moved"
    code, listed = call("list")
    assert code == 0
    assert listed["images"] == [made]
    assert set(listed["recipes"]) == {"v0.9.1-openeuler", "v0.23.0-openeuler"}
    assert call("verify") == (0, [{"reference": PINNED, "path": made["path"], "problem": None}])
    content = bytearray(Path(made["path"]).read_bytes())
    content[300] ^= 1
    Path(made["path"]).write_bytes(content)
    code, [wrong] = call("verify", "v0.9.1-openeuler", f"container.registry='{REGISTRY}'")
    assert code == 1
    assert "changed" in wrong["problem"]
    (tmp_path / "node/enroot/data/serving-sweep.1.dead.0").mkdir(parents=True)
    layers = tmp_path / f"node/enroot/temp/serving-sweep.import.{socket.gethostname()}.999999999-7"
    layers.mkdir()
    found = [str(layers), str(tmp_path / "node/enroot/data/serving-sweep.1.dead.0")]
    assert call("prune") == (0, {"removed": found})
    assert call("prune", "container.shm_size=2g", "--older-days", "0")[1]["removed"][0] == PINNED
    assert call("list")[1]["images"] == []


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["import"], "IMAGE"),
        (["import", "v0.9.1-openeuler"], "container.registry"),
        (["import", "./m.sqsh"], "IMAGE"),
        (["import", "m.sqsh"], "container.image"),
        (["import", "r.example#a/b:v1"], "container.image"),
    ],
)
def test_what_cannot_be_imported_is_said(call: Any, words: list[str], key: str) -> None:
    code, answer = call(*words)
    assert code in (1, 2)
    assert answer["error"]["key"] == key


def test_what_is_not_imported_is_not_good(call: Any) -> None:
    code, [answer] = call("verify", "r.example#a/b:v1")
    assert (code, answer["problem"]) == (1, "it is not imported")


def test_recipes_are_pinned_and_name_no_registry() -> None:
    for tag, recipe in recipes().items():
        assert recipe.tag == tag == f"v{recipe.release}-openeuler"
        assert "." not in recipe.repository.partition("/")[0]
        assert resolve(tag, "r.example").enroot() == f"docker://r.example#{recipe.repository}:{tag}"
