"""Write jobs/engines/ascend/releases/X.yaml: what a release of vllm-ascend accepts. For maintainers.

    python tools/extract_release.py 0.26.0 --previous 0.23.0     # a new release
    python tools/extract_release.py --check                       # is what is committed still what is published?

The wheels of `vllm` and `vllm-ascend` come from `pip download`; only their .py files are kept. Flags come from
vLLM's own parser (extract_flags.py), keys and variables from the source text (extract_keys.py). The output is the
same for the same wheels. What no wheel says (CANN, drivers, images) is kept by hand, in
jobs/engines/ascend/facts/X.yaml.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import extract_keys
import yaml  # type: ignore[import-untyped]

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "jobs/engines/ascend/releases"
PYTHON = "3.11"
PLATFORMS = (
    "manylinux1", "manylinux2014", *(f"manylinux_2_{minor}" for minor in (17, 24, 28, 31, 34, 35, 39)),
)  # fmt: skip
"""Tags of the wheels that releases were published with so far; the machine is always x86_64."""


def download(package: str, version: str, folder: Path) -> Path:
    """Return the wheel of this version, or of the newest patch release of it where it is not published.

    Raises:
        SystemExit: neither is published as a wheel.
    """
    tags = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    for wanted in (f"{package}=={version}", f"{package}=={version}.*"):
        command = [*pip, "--python-version", PYTHON, *tags, "--dest", str(folder), wanted]
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        if not done.returncode:
            [wheel] = folder.glob(f"{package.replace('-', '_')}-{version}*.whl")
            return wheel
    raise SystemExit(f"{package} {version} is not published as a wheel:\n{done.stderr}")


def unpack(wheel: Path, folder: Path) -> str:
    """Unpack the .py files of a wheel, delete it (some have 400 MB), and return its sha256."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith((".py", "METADATA"))])
    digest = hashlib.sha256()
    with wheel.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    wheel.unlink()
    return digest.hexdigest()


def requirements(folder: Path, package: str) -> dict[str, str]:
    """Return what a wheel itself asks for: its Python range and the versions of torch and torch-npu."""
    [metadata] = folder.glob(f"{package.replace('-', '_')}-*.dist-info/METADATA")
    found: dict[str, str] = {}
    for line in metadata.read_text(errors="replace").splitlines():
        key, _, value = line.partition(": ")
        if key == "Requires-Python":
            found["python"] = value
        for name in ("torch", "torch-npu"):
            if key == "Requires-Dist" and value.startswith(name + "=="):
                found[name] = value.removeprefix(name + "==").split(";")[0].strip()
        if not line:
            break
    return found


def extract(release: str, previous: str | None) -> dict[str, Any]:
    """Return the whole description of one release."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, against = {}, {}
        for package in ("vllm", "vllm-ascend"):
            wheel = download(package, release, folder)
            against[package] = wheel.name.split("-")[1]
            source[wheel.name] = f"sha256:{unpack(wheel, folder)}"
        done = subprocess.run(
            [sys.executable, str(HERE / "extract_flags.py"), name], stdout=subprocess.PIPE, check=True
        )
        parser = json.loads(done.stdout)
        plugin, engine = folder / "vllm_ascend", folder / "vllm"
        own = extract_keys.variables(ast.parse((plugin / "envs.py").read_bytes()))
        theirs = extract_keys.variables(ast.parse((engine / "envs.py").read_bytes()))
        data = {
            "release": release,
            "verified_against": against,
            "source": source,
            "requires": requirements(folder, "vllm-ascend"),
            "abbreviations": parser["abbreviations"],
            "flags": parser["flags"],
            "additional_config": extract_keys.additional_config(plugin),
            "variables": {
                "vllm_ascend": own,
                "vllm": sorted(theirs),
                "read_elsewhere": extract_keys.read_elsewhere(plugin, [*own, *theirs]),
                "have_a_key": dict(extract_keys.keys_of_variables(plugin)),
            },
        }
    return data | {"previous": changes(parser["flags"], previous)}


def changes(flags: Sequence[str], previous: str | None) -> dict[str, Any]:
    """Return the flags that came and went since the previous release described here."""
    if previous is None:
        return {"release": None, "added": [], "removed": []}
    before = yaml.safe_load((DATA / f"{previous}.yaml").read_text(encoding="utf-8"))["flags"]
    return {
        "release": previous,
        "added": sorted(set(flags) - set(before)),
        "removed": sorted(set(before) - set(flags)),
    }


def _line(value: Any) -> str:
    return (
        str(yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)).removesuffix("...\n").strip()
    )


def text(data: dict[str, Any]) -> str:
    """Return the YAML: one line an item, so that two releases can be compared by diff."""
    lines = ["# Written by tools/extract_release.py from the wheels named here; do not edit."]
    for key, value in data.items():
        nested = isinstance(value, dict) and key != "verified_against"
        lines += [f"{key}: {_line(value)}"] if not nested else [f"{key}:"]
        lines += [f"  {name}: {_line(item)}" for name, item in value.items()] if nested else []
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write, or with --check compare, the named releases; without a name all that are here, oldest first."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("release", nargs="*")
    options.add_argument("--previous", help="the release to compare flags with; default: the one before, here")
    options.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file would change")
    args = options.parse_args()
    known = sorted((path.stem for path in DATA.glob("*.yaml")), key=_version)
    changed = False
    for release in args.release or known:
        older = [name for name in known if _version(name) < _version(release)]
        made = text(extract(release, args.previous or (older[-1] if older else None)))
        path = DATA / f"{release}.yaml"
        differs = not path.exists() or path.read_text(encoding="utf-8") != made
        changed |= differs
        print(f"{release}: {'differs' if differs else 'the same'}", file=sys.stderr)
        if not args.check:
            path.write_text(made)
            known = sorted({*known, release}, key=_version)
    return 1 if args.check and changed else 0


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("."))


if __name__ == "__main__":
    sys.exit(main())
