"""What the tests of the core share: configs, golden files, the program as a real process."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.core.config import Config
from jobs.forecast.history import Forecast
from jobs.sweep import check, compose
from jobs.sweep.grouping import unknown
from jobs.sweep.plan import Plan, make_plan
from jobs.sweep.points import points_of

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"

composer = compose.default_composer
"""Composes each choice of groups once for all tests."""


def config(*overrides: str) -> Config:
    """Return the config of one point."""
    [built] = compose.configs([overrides])
    return built


def plan_of(
    *configs: Config,
    overrides: Sequence[Sequence[str]] | None = None,
    forecast_of: Callable[[Config], Forecast] = unknown,
) -> Plan:
    """Check and plan these configs, of which no key is swept."""
    asked = points_of(overrides or [[f"n={index}"] for index in range(len(configs))], configs, ())
    findings = check.findings_of(asked)
    check.refuse_points(asked, findings)
    return make_plan(asked, findings, forecast_of)


def checked(config: Config) -> None:
    """Raise ConfigError for the first thing in a config that cannot work."""
    check.refuse(check.findings(config))


def change(config: Config, **values: Any) -> Config:
    """Return a copy with some leaves changed: `change(config, bench__seed=3)`; nothing is validated."""
    for name, value in values.items():
        *sections, leaf = name.split("__")
        config = _changed(config, sections, leaf, value)
    return config


def _changed(node: Any, sections: list[str], leaf: str, value: Any) -> Any:
    if not sections:
        return replace(node, **{leaf: value})
    return replace(node, **{sections[0]: _changed(getattr(node, sections[0]), sections[1:], leaf, value)})


def python(*words: str, cwd: Path, path: Path | None = None, env: Mapping[str, str] = {}) -> subprocess.Popen[str]:
    """Start this Python in the directory `cwd`; `path` alone is PATH where it is given."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | ({"PATH": str(path)} if path else {}) | dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def executable(path: Path, text: str) -> Path:
    """Write a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def check_golden(name: str, text: str, scratch: Path) -> None:
    """Compare a text with its golden file, or write that anew where `make golden` says so (WRITE_GOLDEN=1).

    On a difference the new text is kept, to be looked at.
    """
    expected = GOLDEN / name
    if os.environ.get("WRITE_GOLDEN"):
        expected.write_text(text)
    kept = scratch / name
    kept.write_text(text)
    assert expected.exists(), f"new: look at {kept}; if it is right: make golden"
    assert text == expected.read_text(), f"changed: diff {expected} {kept}; if it is right: make golden"


FIGURES = 1e-5
"""Relative difference that a golden file allows computed figures: it holds six digits of them, and the last digit of a
fit or a quantile may differ between processors."""


def check_golden_figures(name: str, found: Any, scratch: Path) -> None:
    """Compare nested data with its golden JSON file: floats to FIGURES, all else exactly."""
    text = json.dumps(_rounded(found), indent=1, ensure_ascii=False) + "\n"
    expected = GOLDEN / name
    if not expected.exists() or not _alike(json.loads(text), json.loads(expected.read_text())):
        check_golden(name, text, scratch)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(child) for key, child in value.items()}
    return [_rounded(child) for child in value] if isinstance(value, list | tuple) else value


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=FIGURES)  # 0 is 0: a figure below its noise is not published
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_alike(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


class Pipe:
    """A named pipe to or from another process. Neither side waits for the other to open it, so nothing can hang."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    async def heard(self, patience_s: float = 20.0) -> str:
        """Wait for what the other process writes."""
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._fd, ready.set)
        try:
            await asyncio.wait_for(ready.wait(), patience_s)
        finally:
            loop.remove_reader(self._fd)
        return os.read(self._fd, 65536).decode()

    def tell(self, words: str) -> None:
        """Write one line; the other process reads it by readline()."""
        os.write(self._fd, f"{words}\n".encode())

    def close(self) -> None:
        """Close our end."""
        os.close(self._fd)
