"""Registries of back ends: names without imports, one object a name, other distributions by entry points."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from core_help import ROOT

from jobs.core import registry as registries
from jobs.core.errors import ConfigError
from jobs.core.registry import Registry
from jobs.core.schema import build

GROUP = "serving_sweep.shapes"
MODULE = """
from test_registry import SHAPES
@SHAPES.register({name!r})
class Shape:
    pass
"""
SHAPES: Registry[Any] = Registry("a.shape", GROUP, {})
OURS = {one.key: one for one in vars(registries).values() if isinstance(one, Registry)}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on sys.path, and a registry that has one name of its own (round) whose module lies there."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys.modules["test_registry"], "SHAPES", Registry("a.shape", GROUP, {"round": "own_round"}))
    bring(tmp_path, "own_round", "round", installed=False)
    yield tmp_path
    for module in [name for name, one in sys.modules.items() if str(tmp_path) in str(getattr(one, "__file__", ""))]:
        del sys.modules[module]


def bring(site: Path, module: str, name: str, *, installed: bool = True, text: str = MODULE) -> None:
    """Lay a module there and, as pip would, what says that its distribution brings this name."""
    (site / f"{module}.py").write_text(text.format(name=name))
    if installed:
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}\n")
    importlib.invalidate_caches()


def test_own_names_are_known_without_an_import(site: Path) -> None:
    assert "round" in SHAPES and SHAPES.names() == ("round",)
    assert "own_round" not in sys.modules


def test_a_back_end_is_made_once(site: Path) -> None:
    assert type(SHAPES.get("round")).__name__ == "Shape"
    assert SHAPES.get("round") is SHAPES.get("round")


def test_another_distribution_adds_a_name(site: Path) -> None:
    bring(site, "theirs", "square")
    assert "square" in SHAPES and SHAPES.names() == ("round", "square")
    assert "theirs" not in sys.modules
    assert type(SHAPES.get("square")).__module__ == "theirs"


def test_own_names_win(site: Path) -> None:
    bring(site, "theirs", "round")
    assert type(SHAPES.get("round")).__module__ == "own_round"


def error_of(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        SHAPES.get(name)
    assert (caught.value.key, caught.value.value) == ("a.shape", name)
    return str(caught.value)


def test_an_unknown_name_lists_the_valid_ones(site: Path) -> None:
    bring(site, "theirs", "square")
    assert "oval" not in SHAPES
    assert error_of("oval") == "a.shape = oval: there is no such back end. Valid values are round, square."


def test_two_that_bring_one_name(site: Path) -> None:
    bring(site, "hers", "square")
    bring(site, "theirs", "square")
    assert "hers and theirs both bring it" in error_of("square")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import a_package_that_nobody_has", "theirs cannot be imported: No module named 'a_package_that_nobody_has'"),
        ("", "theirs does not register it"),
    ],
)
def test_a_module_that_brings_nothing(site: Path, text: str, reason: str) -> None:
    bring(site, "theirs", "square", text=text)
    assert reason in error_of("square")


@pytest.mark.parametrize("key", OURS)
def test_each_of_our_names_has_its_module(key: str) -> None:
    for name, module in OURS[key].own.items():
        assert type(OURS[key].get(name)).__module__ == module


SEAMS = ["bench.client", "container.runtime", "cluster.kind"]


@pytest.mark.parametrize("key", SEAMS)
def test_a_name_is_compared_with_in_its_own_file_alone(key: str) -> None:
    found = []
    for path in sorted(path for room in ("jobs", "containers") for path in (ROOT / room).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        others = {name for name, its in OURS[key].own.items() if its != module}
        for node in ast.walk(ast.parse(path.read_text())):
            tested = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            tested += [node.value] if isinstance(node, ast.MatchValue) else []
            words = {one.value for each in tested for one in ast.walk(each) if isinstance(one, ast.Constant)}
            found += [f"{module}:{node.lineno} {word}" for word in sorted(words & others)] if words & others else []
    assert not found


@pytest.mark.parametrize("key", OURS)
def test_the_schema_lists_the_names(key: str) -> None:
    section, leaf = key.split(".")
    with pytest.raises(ConfigError) as caught:
        build({section: {leaf: "nonsense"}})
    assert caught.value.key == key and caught.value.value == "'nonsense'"
    assert "valid values are" in caught.value.reason
    assert all(name in caught.value.reason for name in OURS[key].own)


def test_a_schema_asks_without_importing_back_ends() -> None:
    modules = sorted(module for registry in OURS.values() for module in registry.own.values())
    code = f"import sys, jobs.core.schema; print([one for one in {modules!r} if one in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
