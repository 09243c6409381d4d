"""Install packages into an environment: `python tools/install.py PYTHON [words of pip install]...`.

PYTHON is the environment's; it needs no pip of its own. uv does it where it stands beside the Python that runs this
(`make` puts it into .venv), and pip, which takes several times as long, where there is none or it fails. uv does not
read pip's configuration, so what that says of indexes and the network is told to it. Words that both understand are
--no-deps, -r, -e, --only-binary, --compile, --no-compile, --config-settings and --quiet.

Exit code: that of the last program.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".engines" / ".uv"
"""What uv has unpacked, on the disk of the environments: they hold links to it, so that a file is there once."""

SECTIONS = ("global", "install", ":env:")
"""Of pip's configuration; each overrides those before it (pip.pypa.io, Configuration, Precedence)."""

WORDS = {
    "index-url": ("UV_DEFAULT_INDEX",),
    "extra-index-url": ("UV_INDEX",),
    "find-links": ("UV_FIND_LINKS",),
    "no-index": ("UV_NO_INDEX",),
    "constraint": ("UV_CONSTRAINT",),
    "trusted-host": ("UV_INSECURE_HOST",),
    "timeout": ("UV_HTTP_TIMEOUT",),
    "default-timeout": ("UV_HTTP_TIMEOUT",),
    "cert": ("SSL_CERT_FILE",),
    "client-cert": ("SSL_CLIENT_CERT",),
    "proxy": ("HTTP_PROXY", "HTTPS_PROXY"),
}
"""What uv calls the settings of pip (docs.astral.sh/uv/reference/environment)."""


def told(config: str) -> dict[str, str]:
    """Return pip's configuration as environment variables of uv.

    Args:
        config: what `pip config list` prints: lines like `global.index-url='...'`.
    """
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in config.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in found and name in WORDS:
            found[section][name] = str(ast.literal_eval(value))
    said: dict[str, str] = {}
    for name, value in (found["global"] | found["install"] | found[":env:"]).items():
        # pip parts several by white space everywhere, uv parts places of packages by commas.
        together = ("," if name == "find-links" else " ").join(value.split())
        said |= dict.fromkeys(WORDS[name], together)
    return said


def environment(config: str, own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for uv: among indexes pip's rule, the best version of all. What somebody has set stays."""
    ours = {"UV_CACHE_DIR": str(CACHE), "UV_INDEX_STRATEGY": "unsafe-best-match", "UV_NO_PROGRESS": "1"}
    return ours | told(config) | dict(own)


def main(argv: Sequence[str]) -> int:
    """Install; see the module's text."""
    python, *words = argv
    pip = [sys.executable, "-I", "-m", "pip"]
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        config = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False).stdout
        command = [str(uv), "pip", "install", "--python", python, *words]
        try:
            if subprocess.run(command, env=environment(config, os.environ), check=False).returncode == 0:
                return 0
        except OSError as error:  # of another processor, or not allowed to run
            print(f"{uv}: {error.strerror}", file=sys.stderr)
        print("uv cannot install this here: pip does it", file=sys.stderr, flush=True)
    general = ["--no-input", "--disable-pip-version-check", "--python", python]
    return subprocess.run([*pip, *general, "install", "--progress-bar=off", *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
