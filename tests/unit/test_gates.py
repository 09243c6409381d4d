"""One gate a kind: files that others may have written are read by core/foreign.py, and written by core/files.py."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from core_help import ROOT

READS = {
    "jobs/core/foreign.py": "the loader",
    "jobs/engines/checkpoint/architecture.py": "files of this package",
    "jobs/forecast/anchors.py": "a file of this package",
    "jobs/results/page/__init__.py": "files of this package",
    "jobs/core/chinese.py": "files of this package",
    "jobs/diagnose/signatures.py": "a file of this package",
    "jobs/sweep/compose.py": "conf/",
    "jobs/sweep/explain.py": "conf/",
    "jobs/engines/ascend/__init__.py": "files of this package",
    "jobs/engines/ascend/migration.py": "files of this package",
    "jobs/engines/ascend/rules/base.py": "files of this package",
    "jobs/engines/vllm/command.py": "a file of this package",
    "jobs/results/provenance.py": "the clone that this runs in",
    "jobs/allocation/node/audit.py": "/proc",
    "jobs/allocation/node/engine.py": "/proc and /sys",
    "jobs/allocation/node/cleanup.py": "/proc",
    "jobs/allocation/node/fingerprint.py": "versions of this node",
    "jobs/cluster/ports.py": "/proc",
    "jobs/allocation/preflight/look.py": "/proc, and programs of this node",
    "jobs/allocation/preflight/tuning.py": "/proc and /sys",
    "jobs/allocation/service.py": "a key of ours",
    "jobs/allocation/context.py": "a key of ours",
    "jobs/measure/clients/ais_bench.py": "what the client wrote in a directory of ours",
    "jobs/measure/clients/vllm_bench.py": "what the client wrote in a directory of ours",
    "containers/enroot.py": "a root of ours",
    "containers/entry.py": "a file of this package",
    "containers/spec.py": "files of this package",
    "containers/ascend.py": "a file of this package",
    "containers/docker.py": "a file of this package",
    "containers/apptainer.py": "a file of this package",
    "jobs/engines/ascend/real/ask.py": "a file of this package, and packages in .engines",
    "jobs/engines/ascend/real/sources.py": "packages in .engines",
    "jobs/engines/ascend/real/run.py": "what it wrote in a directory of its own",
    "jobs/engines/simulator/log.py": "a file of this package",
    "jobs/diagnose/events.py": "a file of this package",
    "jobs/diagnose/places.py": "a file of this package",
    "jobs/measure/prose.py": "a file of this package",
    "jobs/measure/bodies.py": "a file of this package",
    "containers/base.py": "what is in a container of ours",
}
"""Modules that read whole files without the loader, and what these are."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for room in ("jobs", "containers"):
        for path in sorted((ROOT / room).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.Module, *names: str) -> list[int]:
    """Return the lines with a call of a method or function of these names."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")) in names
    ]


def test_whole_files_are_read_by_the_loader() -> None:
    found = {name for name, tree in sources() if calls(tree, "read_text", "read_bytes")}
    assert found <= READS.keys(), "read it by jobs/core/foreign.py"


def test_files_are_opened_for_reading_by_the_loader() -> None:
    """A pipe in a file's place would be waited for, and a device read without an end."""
    for name, tree in sources():
        modes = [
            node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else "r"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "open"
            and not any(not isinstance(one, ast.Constant) for one in node.args)
        ]
        reads = any(isinstance(mode, str) and mode.startswith("r") for mode in modes)
        assert not reads or name in READS, f"{name}: open it by jobs/core/foreign.py"


def test_yaml_is_loaded_in_one_place_and_nothing_is_unpickled() -> None:
    for name, tree in sources():
        text = ast.unparse(tree)
        assert "pickle" not in text and not re.search(r"executor\.(submit|map_array)\b", text), name  # submitit's own
        assert name == "jobs/core/foreign.py" or "yaml.load(" not in text, name


def test_what_is_no_number_is_told_as_int_tells_it() -> None:
    """`isdigit` takes ² and ①, and `int` does not."""
    assert not [name for name, tree in sources() if calls(tree, "isdigit")]


def test_the_number_of_a_directory_is_read_in_one_place() -> None:
    """`int` takes digits of all scripts, signs, blanks and underscores: jobs/core/names.py tells what a number is."""
    for name, tree in sources():
        if name != "jobs/core/rundir.py":
            assert ".iterdir(), key=" not in ast.unparse(tree), name


def test_a_file_is_never_opened_for_writing_by_its_name_alone() -> None:
    """A link at a fixed name would be followed: new files come from core/files.py, or lie in a directory of ours."""
    allowed = {"jobs/core/files.py", "jobs/measure/clients/vllm_bench.py", "containers/enroot.py"}
    allowed |= {"jobs/engines/ascend/real/run.py"}  # it runs in the engine's Python, without this tool
    for name, tree in sources():
        modes = [
            node.args[0].value
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "open"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ]
        assert name in allowed or not any(isinstance(mode, str) and mode[:1] in "wax" for mode in modes), name
        writes = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in ("write_text", "write_bytes")
        ]
        assert name in allowed or not writes, name


def test_no_clock_of_a_file_system_is_held_against_ours() -> None:
    """A file server may be minutes behind: silence and time-outs are judged by the monotonic clock of one host."""
    allowed = {
        "jobs/engines/checkpoint/copying.py": "two times of one file system",
        "jobs/engines/checkpoint/checkpoint.py": "whether a file is the same as before",
        "jobs/engines/checkpoint/stage.py": "whether a file is the same as before",
        "jobs/sweep/reuse.py": "the age of a row, in days",
        "jobs/diagnose/read.py": "the year of a log",
        "jobs/measure/dataset.py": "whether a file is the same as before",
        "containers/base.py": "two times of one file system",
        "containers/store.py": "whether a file is the same as before",
        "containers/imports.py": "a process that may have left something, with a second to spare",
    }
    found = {name for name, tree in sources() for node in ast.walk(tree) if getattr(node, "attr", "")[:8] == "st_mtime"}
    assert found <= allowed.keys(), "judge silence by time.monotonic() since something grew"
