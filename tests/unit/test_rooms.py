"""The shape of the house (docs/architecture.md): which rooms there are, and how large a file may be."""

from __future__ import annotations

from pathlib import Path

from core_help import ROOT

ROOMS = {
    "allocation", "cli", "cluster", "core", "diagnose", "engines", "forecast", "measure", "results", "sweep"
}  # fmt: skip
MOST_LINES = 400
TO_BE_SPLIT = {"jobs/allocation/service.py": 415, "jobs/core/rundir.py": 430}


def sources() -> list[Path]:
    return [path for room in ("jobs", "containers") for path in sorted((ROOT / room).rglob("*.py"))]


def test_every_file_has_a_room() -> None:
    entries = {path.name for path in (ROOT / "jobs").iterdir() if path.name != "__pycache__"}
    assert entries - {"py.typed"} == ROOMS | {"__init__.py", "__main__.py"}


def test_no_file_is_long() -> None:
    long = []
    for path in sources():
        name = str(path.relative_to(ROOT))
        if _lines(path) > TO_BE_SPLIT.get(name, MOST_LINES):
            long.append(name)
    assert not long


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
