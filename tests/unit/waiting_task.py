"""Stands for what every task of an allocation runs: says that it is there, and waits to be ended.

It also ends with whoever started it: a controller that is told to end while it starts leaves its tasks alone.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    folder, kind = sys.argv[1:]
    print(f"task of {kind} in {Path(folder).name}", flush=True)
    starter = int(os.environ.get("SUBMITIT_LOCAL_JOB_ID", os.getppid()))  # it may be gone already
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while os.getppid() == starter and signal.sigtimedwait({signal.SIGTERM}, 0.5) is None:
        pass
