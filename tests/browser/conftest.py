"""The browser of these tests. It is gone with its module: its driver keeps an event loop, which asyncio tests lack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import NoBrowser, browser, program
from playwright.sync_api import Browser


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the pictures of the documentation be written anew."""
    parser.addoption("--pictures", action="store_true", help="write docs/img/report_*.png")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Yield a headless Chromium; skip with the reason where there can be none, fail under CI=true."""
    log: Path = tmp_path_factory.mktemp("chromium") / "apt.log"
    try:
        found = program(log)
    except NoBrowser as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have a browser: {error}")
        pytest.skip(str(error))
    with browser(found) as started:
        yield started
