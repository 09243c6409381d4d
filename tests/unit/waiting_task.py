"""Stands for what every task of an allocation runs: says that it is there, and waits to be ended."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    folder, kind = sys.argv[1:]
    print(f"task of {kind} in {Path(folder).name}", flush=True)
    signal.sigwait({signal.SIGTERM})
