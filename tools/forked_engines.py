# A plugin of vLLM (group `vllm.general_plugins`, which every process of it loads before it makes its configuration).
# tools/engines.py puts it into the environment of the CPU build.
"""Lets VLLM_WORKER_MULTIPROC_METHOD=fork hold for vLLM's CPU build.

Its platform spawns, whatever is asked for (platforms/cpu.py, `check_and_update_config`): each of the five processes of
a service over two ranks then imports for some 12 s of processor time. What is forked has imported already.
"""

from __future__ import annotations

import os
import signal
from typing import Any

NAME = "VLLM_WORKER_MULTIPROC_METHOD"


def register() -> None:
    """Give the variable its value back after the platform has changed it."""
    from vllm.platforms import current_platform

    platform = type(current_platform)
    if os.environ.get(NAME) != "fork" or hasattr(platform, "forks"):
        return
    original = platform.check_and_update_config

    def check_and_update_config(config: Any) -> None:
        original(config)
        os.environ[NAME] = "fork"

    platform.forks = True
    platform.check_and_update_config = staticmethod(check_and_update_config)
    # A signal to a child must not wake the parent's event loop, as if the parent had got it.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
