"""tools/install.py: what uv is told of pip's configuration, and that pip does what uv cannot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from core_help import executable
from test_tools_engines import load

install: ModuleType = load("install")

CONFIG = r"""
:env:.default-timeout='180'
global.cert='/etc/ssl/all.crt'
global.extra-index-url='file:///a/simple\nfile:///b/simple'
global.find-links='/wheels /more=wheels'
global.index-url='file:///mirror/simple'
global.proxy='loopback:3128'
install.find-links='/others /wheels'
list.format='columns'
global.quiet='1'
"""


def test_uv_is_told_where_pip_looks_and_how_it_gets_there() -> None:
    assert install.told(CONFIG) == {
        "UV_DEFAULT_INDEX": "file:///mirror/simple",
        "UV_INDEX": "file:///a/simple file:///b/simple",
        "UV_FIND_LINKS": "/others,/wheels",
        "UV_HTTP_TIMEOUT": "180",
        "SSL_CERT_FILE": "/etc/ssl/all.crt",
        "HTTP_PROXY": "loopback:3128",
        "HTTPS_PROXY": "loopback:3128",
    }


def test_what_was_set_in_the_environment_overrides_pips_files() -> None:
    text = "global.index-url='file:///of/the/site'\n:env:.index-url='file:///of/today'\n"
    assert install.told(text) == {"UV_DEFAULT_INDEX": "file:///of/today"}


def test_who_speaks_to_uv_is_heard_first_and_the_rest_of_the_environment_stays() -> None:
    found = install.environment(CONFIG, {"UV_DEFAULT_INDEX": "file:///mine", "UV_CACHE_DIR": "/scratch", "HOME": "/h"})
    assert found["UV_DEFAULT_INDEX"] == "file:///mine"
    assert found["UV_CACHE_DIR"] == "/scratch"
    assert found["HOME"] == "/h"
    assert found["UV_INDEX_STRATEGY"] == "unsafe-best-match", "a local version may stand in the second index only"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that writes how it was called, as pip would be, and its folder for a uv."""
    code = "import json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(7)\n"
    return executable(tmp_path / "bin/python", f"#!{sys.executable} -SE\n{code}")


def uv(python: Path, code: int) -> None:
    text = f"import json, sys\nprint(json.dumps(['uv', *sys.argv[1:]]))\nsys.exit({code})\n"
    executable(python.with_name("uv"), f"#!{sys.executable} -SE\n{text}")


def called(capfd: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


UV = ["uv", "pip", "install", "--python", "/env/bin/python", "--no-deps", "-r", "lock"]
PIP = ["-I", "-m", "pip", "--no-input", "--disable-pip-version-check", "--python", "/env/bin/python", "install"]
WORDS = ["/env/bin/python", "--no-deps", "-r", "lock"]


def test_a_uv_that_cannot_run_here_is_no_end(
    python: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    python.with_name("uv").write_bytes(b"of another processor")
    python.with_name("uv").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert install.main(WORDS) == 7
    assert called(capfd) == [[*PIP, "--progress-bar=off", *WORDS[1:]]]


@pytest.mark.parametrize(
    ("of_uv", "code", "calls"),
    [
        (None, 7, [[*PIP, "--progress-bar=off", *WORDS[1:]]]),
        (0, 0, [UV]),
        (1, 7, [UV, [*PIP, "--progress-bar=off", *WORDS[1:]]]),
    ],
)
def test_uv_installs_and_pip_where_uv_cannot(
    of_uv: int | None,
    code: int,
    calls: list[list[str]],
    python: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if of_uv is not None:
        uv(python, of_uv)
    monkeypatch.setattr(sys, "executable", str(python))
    assert install.main(WORDS) == code
    assert called(capfd) == calls
