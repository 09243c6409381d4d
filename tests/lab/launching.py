"""Run the tool's own programs from a login host of the lab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lab import Lab

ROOT = Path(__file__).resolve().parents[2]


def python(lab: Lab, *words: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` in the project's directory to its end, whatever its exit code."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | lab.env,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
