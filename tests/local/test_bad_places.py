# ruff: noqa: F811
"""Where a sweep runs on a host that is not as it should be: TMPDIR, and the locale of the shell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from forks import Zygote
from test_two_users import host, launch, the_row  # noqa: F401
from users import Host
from world import ONE, ROOT

RECORDED = ROOT / "tests/fixtures/sweep_vllm_cpu"


def missing(host: Host) -> Path:
    return host.shared / "missing"


def a_file(host: Host) -> Path:
    host.victim.call((host.shared / "file").touch)
    return host.shared / "file"


def full(host: Host) -> Path:
    """Return a file system of the victim's in which not one more directory can be made."""
    place = host.shared / "full"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"nr_inodes=1,uid={host.victim.uid}", "tmpfs", str(place)]
    if subprocess.run(["mount", *options], check=False, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    return place


@pytest.mark.parametrize("where", [missing, a_file, full], ids=lambda where: where.__name__)
def test_a_tmpdir_that_is_none_is_named_in_the_row(host: Host, zygote: Zygote, where: object) -> None:
    assert callable(where)
    place, root = where(host), host.shared / "runs"
    try:
        said = launch(zygote, replace(host.victim, env={"TMPDIR": str(place)}), root).finish()
    finally:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)
    row, [allocation] = the_row(root), list(root.glob("20*/allocations/0/1"))
    assert row["valid"] is False
    assert f"TMPDIR = {place}: " in str(row["invalid_reason"]) or f"TMPDIR {place}" in str(row["invalid_reason"]), said
    logs = "".join(path.read_text() for path in allocation.glob("stdout-*.log"))
    assert "Traceback" not in logs + said
    assert json.loads((allocation / "outcome.json").read_text())["valid"] is False
    assert not (allocation / "reserve").exists(), "the space that was held is given back"


def environment(locale: str, tmp_path: Path) -> dict[str, str]:
    """Return a shell with a locale that has no UTF-8, and Python told to believe it."""
    folder = tmp_path / "locales"
    folder.mkdir()
    if locale != "POSIX":
        argv = ["localedef", "-f", "GB18030", "-i", "zh_CN", str(folder / locale)]
        if shutil.which(argv[0]) is None or not Path("/usr/share/i18n/charmaps/GB18030.gz").exists():
            pytest.skip("this host cannot make the locale")
        subprocess.run(argv, check=True, capture_output=True)
    own = {"LOCPATH": str(folder), "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return {**os.environ, **own}


COMMANDS = """
import sys
from jobs.__main__ import main
from jobs.cli.output import until_closed
def run(name, *more):
    return until_closed(lambda: main([name, sys.argv[1], *more]))
sys.exit(max(run(*words.split()) for words in sys.argv[2:]))
"""
"""Several commands of one sweep, one after the other."""


def run(env: dict[str, str], *argv: str) -> tuple[int, bytes]:
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("locale", ["POSIX", "zh_CN.GB18030"])
def test_commands_take_any_text_whatever_the_locale_of_the_shell(tmp_path: Path, locale: str) -> None:
    env, sweep = environment(locale, tmp_path), tmp_path / "跑" / "一"
    shutil.copytree(RECORDED, sweep)
    reason = "引擎说：设备丢失 … “out of memory” \U0001f525"
    [path, *_] = sorted(sweep.glob("points/*/row.json"))
    row = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(row | {"valid": False, "invalid_reason": reason}, ensure_ascii=False), encoding="utf-8")
    commands = ("status", "table", "collect", "collect --json", "report", "diagnose")
    code, said = run(env, "-c", COMMANDS, str(sweep), *commands)
    assert code in (0, 1) and b"nobody foresaw" not in said and b"Traceback" not in said, said[-2000:]
    assert reason.split()[0] in (sweep / "report.html").read_text(encoding="utf-8")
    assert reason in (sweep / "table.csv").read_text(encoding="utf-8")


def test_a_sweep_runs_under_a_locale_without_letters(tmp_path: Path) -> None:
    code, said = run(environment("POSIX", tmp_path), "launch.py", *ONE, f"results.root={tmp_path}/runs")
    assert code == 0 and the_row(tmp_path / "runs")["valid"] is True, said[-2000:]
