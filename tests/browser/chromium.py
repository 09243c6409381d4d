"""A real headless Chromium: Debian's package, driven by playwright. It is installed by the tests where that can be."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

PACKAGES = ("chromium", "fonts-noto-cjk")
"""The second holds the letters that the Chinese page needs."""

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


class NoBrowser(Exception):
    """Why there is no Chromium here."""


def program(log: Path) -> str:
    """Return the path of Chromium; as root on Debian it is installed first where it is missing.

    Raises:
        NoBrowser: it is missing and cannot be installed.
    """
    found = shutil.which("chromium")
    if found:
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NoBrowser("Chromium is missing, and only root on Debian can install it: apt-get install chromium")
    options = ["-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]

    def apt(*words: str) -> bool:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with log.open("ab") as output:
            done = subprocess.run(["apt-get", *words], check=False, stdout=output, stderr=output, env=env)
        return done.returncode == 0

    if not (apt("install", *options, *PACKAGES) or (apt("update") and apt("install", *options, *PACKAGES))):
        raise NoBrowser(f"apt-get could not install {' '.join(PACKAGES)}; its words are in {log}")
    found = shutil.which("chromium")
    if not found:
        raise NoBrowser("the package chromium was installed, and there is no program of this name on PATH")
    return found


@contextmanager
def browser(executable: str) -> Iterator[Browser]:
    """Yield a headless Chromium that may not use any network: every address but files is refused."""
    # Root has no sandbox of its own; the page is ours.
    words = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-dev-shm-usage"]
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=executable, headless=True, args=words)
        try:
            yield started
        finally:
            started.close()


class Opened:
    """A page in the browser, with everything that it complained of or asked the network for."""

    def __init__(self, browser: Browser, file: Path, **context: Any) -> None:
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self._context = browser.new_context(**({"locale": "en-US"} | context))
        self.page: Page = self._context.new_page()
        self.page.on("console", lambda said: self._heard(said.type, said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.resolve().as_uri())
        self.drawn()

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def drawn(self) -> None:
        """Wait until every plot that the page asked for stands."""
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('.plot')].every(one => one.querySelector('.main-svg'))"
        )

    def close(self) -> None:
        """Close the page."""
        self._context.close()
