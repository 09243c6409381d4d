"""`pytest` from the root finds all tests: no two files of one name, no folder that hides another's modules."""

from __future__ import annotations

import subprocess
import sys

from core_help import ROOT


def test_pytest_from_the_root_collects() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-3000:]
    files = {line.split(":")[0] for line in found.stdout.splitlines()}
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/*/test_*.py")} <= files
