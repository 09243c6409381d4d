"""Make a release: `make release` tags the version of pyproject.toml and builds its wheel into dist/. For maintainers.

Nothing is published. Refused are a tree with changes, a version that is tagged already, and one of which CHANGELOG.md
says nothing.

Exit codes: 0 done, 1 refused or the wheel could not be built.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def version(root: Path) -> str:
    """Return the version that pyproject.toml names."""
    return str(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def refusals(root: Path) -> list[str]:
    """Return why this tree cannot be released, a sentence each."""
    number, found = version(root), []
    if changed := _git(root, "status", "--porcelain"):
        found.append(f"the tree has changes: {', '.join(line[3:] for line in changed.splitlines()[:5])}")
    if _git(root, "tag", "--list", f"v{number}"):
        found.append(f"v{number} is tagged already: set another version in pyproject.toml")
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(number)}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE):
        found.append(f"CHANGELOG.md has no line `## [{number}] - YYYY-MM-DD`")
    return found


def _git(root: Path, *argv: str) -> str:
    return subprocess.run(["git", "-C", str(root), *argv], capture_output=True, text=True, check=True).stdout.rstrip()


def main() -> int:
    """Refuse, or build and tag."""
    if found := refusals(ROOT):
        print("\n".join(f"error: {sentence}" for sentence in found), file=sys.stderr)
        return 1
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would put what lies there into the wheel
    built = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    if code := subprocess.run(built, cwd=ROOT, check=False).returncode:
        return code
    tag = f"v{version(ROOT)}"
    _git(ROOT, "tag", "--annotate", tag, "--message", tag)
    print(f"tagged {tag}; its wheel is in dist/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
