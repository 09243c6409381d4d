"""What a program loads before it does anything: each rank, engine, launch and command is a process of its own."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
from core_help import ROOT

from jobs.__main__ import SUBJECTS, commands


def test_each_command_stands_in_the_table_under_its_subject() -> None:
    for subject, words in SUBJECTS.items():
        own = import_module(f"jobs.cli.{subject}").COMMANDS
        assert {command.name.split()[0] for command in own} == set(words), subject
        assert all(commands(word) == own for word in words), "nothing else is loaded for it"
    assert len(commands()) == sum(len(import_module(f"jobs.cli.{subject}").COMMANDS) for subject in SUBJECTS)


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("from jobs.__main__ import commands; commands('status')", ("hydra", "rich", "containers", "pandas")),
        ("from jobs.__main__ import commands; commands('keys')", ("hydra", "rich", "numpy", "omegaconf", "asyncio")),
        ("import jobs.allocation.rank", ("omegaconf", "hydra", "rich", "jobs.forecast")),
        ("import jobs.allocation.head", ("omegaconf", "hydra", "aiohttp", "requests")),
    ],
)
def test_a_program_loads_no_more_than_it_needs(code: str, without: tuple[str, ...]) -> None:
    show = f"import sys; {code}; print([name for name in {without!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
