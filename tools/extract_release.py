"""Write jobs/engines/ascend/releases/X.yaml: what a release of vllm-ascend accepts. For maintainers.

    python tools/extract_release.py 0.26.0 --previous 0.23.0     # a new release
    python tools/extract_release.py --check                       # is what is committed still what is published?

The packages of `vllm` and `vllm-ascend` come from `pip download` (wheels, else the source archive) into
`.engines/ascend/X`; only their text is kept. Flags and the fields of the settings inside them come from vLLM's own
classes (extract_flags.py), keys, variables and registered names from the source text (extract_keys.py,
extract_names.py). The output is the same for the
same packages. What no wheel says (CANN, drivers, images) is kept by hand, in
jobs/engines/ascend/facts/X.yaml.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import extract_keys
import extract_names
import yaml  # type: ignore[import-untyped]
from packaging.version import InvalidVersion, Version

from jobs.core.errors import RunError
from jobs.engines.ascend.real import sources

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "jobs/engines/ascend/releases"


def requirements(folder: Path, package: str) -> dict[str, str]:
    """Return what a wheel itself asks for: its Python range and the versions of torch and torch-npu."""
    name = package.replace("-", "_")
    [metadata] = [*folder.glob(f"{name}-*.dist-info/METADATA"), *folder.glob(f"{name}.egg-info/PKG-INFO")]
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
    folder = sources.obtain(release)
    source = dict(sources.packages(folder))
    against = {
        package: next(file for file in source if file.startswith(package.replace("-", "_") + "-")).split("-")[1]
        for package in ("vllm", "vllm-ascend")
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "extract_flags.py"), str(folder)], stdout=subprocess.PIPE, check=True
    )
    parser = json.loads(done.stdout)
    plugin, engine = folder / "vllm_ascend", folder / "vllm"
    own = extract_keys.variables(ast.parse((plugin / "envs.py").read_bytes()))
    theirs = extract_keys.variables(ast.parse((engine / "envs.py").read_bytes()))
    data = {
        "release": release,
        "verified_against": {name: version.removesuffix(".tar.gz") for name, version in against.items()},
        "source": source,
        "requires": requirements(folder, "vllm-ascend"),
        "abbreviations": parser["abbreviations"],
        "flags": parser["flags"],
        "settings": parser["settings"],
        "names": extract_names.registered(folder),
        "additional_config": extract_keys.additional_config(plugin),
        "variables": {
            "vllm_ascend": own,
            "vllm": sorted(theirs),
            "read_elsewhere": extract_keys.read_elsewhere(plugin, [*own, *theirs]),
            "have_a_key": dict(extract_keys.keys_of_variables(plugin)),
        },
    }
    whole(data, previous)
    return data | {"previous": changes(parser["flags"], previous)}


LEAST = 0.7
"""Share of the release before below which a part counts as not read: no release has dropped so many names at once."""


def whole(data: dict[str, Any], previous: str | None) -> None:
    """Stop where a part has far fewer names than the release before: its source has a form that is not known here.

    Raises:
        SystemExit: which part, and how many.
    """
    if previous is None:
        return
    before = yaml.safe_load((DATA / f"{previous}.yaml").read_text(encoding="utf-8"))
    for part in ("flags", "additional_config", "settings"):
        now, then = len(data[part]), len(before.get(part) or ())
        if now < LEAST * then:
            raise SystemExit(
                f"{data['release']}: {part} has {now} names and {then} in {previous}. The release has them in another "
                "form than tools/extract_keys.py and extract_flags.py read: mend those first."
            )


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
        try:
            made = text(extract(release, args.previous or (older[-1] if older else None)))
        except RunError as error:
            raise SystemExit(f"error: {error}") from None
        path = DATA / f"{release}.yaml"
        differs = not path.exists() or path.read_text(encoding="utf-8") != made
        changed |= differs
        print(f"{release}: {'differs' if differs else 'the same'}", file=sys.stderr)
        if not args.check:
            path.write_text(made)
            known = sorted({*known, release}, key=_version)
    return 1 if args.check and changed else 0


def _version(name: str) -> Version:
    try:
        return Version(name)
    except InvalidVersion:
        raise SystemExit(f"error: {name} is no version, such as 0.23.0.post1 or 0.30.0rc2") from None


if __name__ == "__main__":
    sys.exit(main())
