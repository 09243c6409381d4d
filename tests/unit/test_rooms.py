"""The shape of the house (docs/architecture.md): which rooms there are, how large files and functions may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from core_help import ROOT

ROOMS = {
    "allocation", "cli", "cluster", "core", "diagnose", "engines", "forecast", "measure", "results", "sweep"
}  # fmt: skip
MOST_LINES = 400

LONGEST_FUNCTION = 60

LONGEST_CHAIN = 16
"""Files that import one another in a row when a program starts: each is one more to read before one understands it."""


def sources() -> list[Path]:
    return [path for room in ("jobs", "containers") for path in sorted((ROOT / room).rglob("*.py"))]


def test_every_file_has_a_room() -> None:
    entries = {path.name for path in (ROOT / "jobs").iterdir() if path.name != "__pycache__"}
    assert entries - {"py.typed"} == ROOMS | {"__init__.py", "__main__.py"}


def test_no_file_is_long() -> None:
    long = []
    for path in sources():
        name = str(path.relative_to(ROOT))
        if _lines(path) > MOST_LINES:
            long.append(name)
    assert not long


def test_no_function_is_long() -> None:
    long = []
    for path in (*sources(), ROOT / "launch.py", *(ROOT / "hydra_plugins").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name, lines = f"{path.relative_to(ROOT)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{name} has {lines} lines")
    assert not long


def imported(tree: ast.AST, files: set[str]) -> Iterator[str]:
    """Return the files of ours that a file imports, also inside of functions; what only a type checker sees is none."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            yield from {f"{node.module}.{item.name}" for item in node.names} & files or {str(node.module)} & files
        elif isinstance(node, ast.Import):
            yield from {item.name for item in node.names} & files
        yield from imported(node, files)


def test_no_chain_of_imports_is_long() -> None:
    """TopologicalSorter refuses a circle, so there is none."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sources()
    }
    graph = {
        name: set(imported(ast.parse(path.read_text(encoding="utf-8")), set(names)))
        for name, path in names.items()
    }  # fmt: skip
    longest: dict[str, tuple[str, ...]] = {}
    for name in TopologicalSorter(graph).static_order():
        longest[name] = (name, *max((longest[one] for one in graph[name]), key=len, default=()))
    chain = max(longest.values(), key=len)
    assert len(chain) <= LONGEST_CHAIN, " -> ".join(chain)
    assert len(chain) > 10, "the imports were not found"


def test_only_programs_end_the_process() -> None:
    """Everything else raises, or returns how it went."""
    ending = []
    for path in sources():
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        is_program = path.name == "__main__.py" or '__name__ == "__main__"' in text
        if "sys.exit(" in text and not is_program and Path(name).parent != Path("jobs/cli"):
            ending.append(name)
    assert not ending


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_text_is_read_in_the_locale_of_the_day() -> None:
    """A login shell may say GBK, and a compute node C: files of a sweep are UTF-8 everywhere."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                needed = {"read_text": 1, "write_text": 2}.get(node.func.attr, 0)
                named = any(keyword.arg == "encoding" for keyword in node.keywords)
                if len(node.args) < needed and not named:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found
