"""What runs first inside a container, run by a real bash here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from containers import ascend, entry
from containers.entry import Entry, Files
from containers.spec import Mount

SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), os.getpid()]))"
BASE = {"PATH": os.environ["PATH"], "HOME": "/"}


def run(
    tmp_path: Path, what: Entry, *words: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    files = Files(tmp_path)
    files.script.write_text(entry.script(what, files))
    argv = entry.command(files, [sys.executable, "-SEc", SHOW, *words])
    return subprocess.run(argv, env=BASE | (env or {}), capture_output=True, text=True, check=False)


def seen(tmp_path: Path, what: Entry, *words: str, env: dict[str, str] | None = None) -> tuple[list[str], Any, str]:
    done = run(tmp_path, what, *words, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Files(tmp_path).pid.read_text().strip() == str(found[3]), "the script has become the engine"
    return found[0], found[1], found[2]


def refused(tmp_path: Path, what: Entry) -> str:
    done = run(tmp_path, what)
    assert (done.returncode, done.stdout) == (entry.REFUSED, "")
    assert done.stderr.startswith("error: ")
    return done.stderr


HARD = {
    "A": "two\nlines\n", "B": '"quoted"', "C": "'x'", "D": "$HOME `id` $(id)", "E": "", "F": " blanks ", "G": "a\\b\\n",
    "H": '{"json": [1, "#"]}', "I": "ü", "HCCL_IF_IP": "10.0.0.1", "ENROOT_X": "kept",
}  # fmt: skip


def test_values_and_words_reach_the_engine_unchanged(tmp_path: Path) -> None:
    words, env, _ = seen(tmp_path, Entry(env=HARD), "a b", "", '{"x":1}', "$(id)", "new\nline", "--")
    assert words == ["a b", "", '{"x":1}', "$(id)", "new\nline", "--"]
    assert {name: env[name] for name in HARD} == HARD


def test_variables_of_the_launcher_are_taken_out(tmp_path: Path) -> None:
    host = {"SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "PMIX_RANK": "0", "PMI_SIZE": "1", "XSLURM_": "stays"}
    _, env, _ = seen(tmp_path, Entry(env={"A": "1"}, scrub=("SLURM_", "PMIX_", "PMI_", "OMPI_")), env=host)
    assert not [name for name in env if name.startswith(("SLURM_", "PMI"))]
    assert env["XSLURM_"] == "stays"


def test_shell_files_extend_paths_and_do_not_overrule_the_config(tmp_path: Path) -> None:
    (tmp_path / "set_env.sh").write_text(
        'export LD_LIBRARY_PATH=/cann/lib:$LD_LIBRARY_PATH HCCL_BUFFSIZE=9 TOOL=1\nset -- junk "$@"; shift\n'
    )
    what = Entry(
        env={"HCCL_BUFFSIZE": "200", "LD_LIBRARY_PATH": "/ours"},
        source=(("/nowhere/set_env.sh", str(tmp_path / "set_env.sh")),),
        libraries=("/usr/local/lib",),
        preload=("/no/such.so",),
    )
    words, env, _ = seen(tmp_path, what, "x y")
    assert words == ["x y"]
    assert (env["HCCL_BUFFSIZE"], env["TOOL"]) == ("200", "1")
    assert env["LD_LIBRARY_PATH"] == "/cann/lib:/ours:/usr/local/lib"
    assert "LD_PRELOAD" not in env


def test_a_library_that_is_there_is_preloaded_before_others(tmp_path: Path) -> None:
    import ctypes.util

    name = next(path for path in Path("/").glob("lib*/*-linux-gnu/libc.so.6"))
    assert ctypes.util.find_library("c")
    what = Entry(env={"LD_PRELOAD": str(name)}, preload=("/no/such.so", str(name)))
    assert seen(tmp_path, what)[1]["LD_PRELOAD"] == f"{name}:{name}"


@pytest.mark.parametrize(
    ("text", "words"), [(None, "the image has no such shell file"), ("return 3\n", "failed")], ids=["missing", "fails"]
)
def test_a_shell_file_that_is_missing_or_fails_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "set_env.sh"
    if text:
        path.write_text(text)
    message = refused(tmp_path, Entry(env={}, source=((str(path), "/other"),)))
    assert f"engine.source = {path}" in message
    assert words in message


def identity(path: Path) -> str:
    return f"{path.stat().st_dev}:{path.stat().st_ino}"


def test_a_mount_that_is_not_there_or_is_another_stops_it(tmp_path: Path) -> None:
    good = {str(tmp_path): identity(tmp_path)}
    seen(tmp_path, Entry(env={}, mounts=good))
    proof = entry.read_proof(Files(tmp_path).proof.read_text())
    assert proof.mounts == good
    assert proof.namespace == str(Path("/proc/self/ns/mnt").readlink())
    assert proof.root == identity(Path("/"))
    for wrong in ({"/no/such": "1:1"}, {str(tmp_path): identity(Path("/"))}):
        assert f"container.mounts = {next(iter(wrong))}" in refused(tmp_path, Entry(env={}, mounts=wrong))


def test_what_is_asked_read_only_must_be(tmp_path: Path) -> None:
    assert "read-only" in refused(tmp_path, Entry(env={}, read_only=("/",)))


def test_a_step_that_runs_on_the_node_stops(tmp_path: Path) -> None:
    """pyxis without an image runs the step on the node, with exit code 0."""
    same = str(Path("/proc/self/ns/mnt").readlink())
    assert "in no container" in refused(tmp_path, Entry(env={}, outside=same))
    seen(tmp_path, Entry(env={}, outside="mnt:[1]"))


def test_another_root_than_the_one_that_was_made_stops_it(tmp_path: Path) -> None:
    Files(tmp_path).root.write_text("1:1")
    assert "container.image" in refused(tmp_path, Entry(env={}))
    Files(tmp_path).root.write_text(identity(Path("/")))
    seen(tmp_path, Entry(env={}))


def test_devices_and_paths_must_be_there(tmp_path: Path) -> None:
    assert "container.devices = /dev/davinci0" in refused(tmp_path, Entry(env={}, devices=("/dev/davinci0",)))
    assert "model.path = /no/model" in refused(tmp_path, Entry(env={}, needed={"model.path": "/no/model"}))
    seen(tmp_path, Entry(env={}, devices=("/dev/null",), needed={"model.path": "/"}))


def test_it_runs_where_it_can_write(tmp_path: Path) -> None:
    what = Entry(env={}, workdir=str(tmp_path))
    _, env, where = seen(tmp_path, what, env={"HOME": "/no/such/home"})
    assert (where, env["HOME"]) == (str(tmp_path), str(tmp_path / "home"))
    assert seen(tmp_path, what, env={"HOME": str(tmp_path)})[1]["HOME"] == str(tmp_path)
    assert "container.workdir" in refused(tmp_path, replace(what, workdir="/no/such"))


def test_only_what_a_node_has_is_lent_and_the_rest_is_named(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/null").symlink_to("/dev/null")
    (tmp_path / "dev/davinci1").write_text("a file is no device")
    (tmp_path / "usr/local/dcmi").mkdir(parents=True)
    wanted = [Mount("/usr/local/dcmi", "/usr/local/dcmi"), Mount("/etc/hccn.conf", "/etc/hccn.conf")]
    lent = ascend.lend(["/dev/null", "/dev/davinci1"], wanted, root=tmp_path)
    assert lent.devices == ("/dev/null",)
    assert lent.mounts == (wanted[0],)
    assert lent.missing == ("/dev/davinci1", "/etc/hccn.conf")


def test_npus_of_other_jobs_are_not_lent() -> None:
    npus, others = ascend.DEVICES[:8], ascend.DEVICES[8:]
    assert ascend.own(ascend.DEVICES, lambda name: name in npus[4:]) == npus[4:] + others
    assert ascend.own(ascend.DEVICES, lambda _: True) == ascend.DEVICES
    assert ascend.own(ascend.DEVICES, lambda _: False) == ascend.DEVICES, "the user lacks the group, docker does not"


def test_the_toolkit_is_looked_for_at_its_old_and_new_path() -> None:
    old, atb, other = ascend.sources(
        ["/usr/local/Ascend/ascend-toolkit/set_env.sh", "/usr/local/Ascend/nnal/atb/set_env.sh", "/x.sh"]
    )
    assert old == ("/usr/local/Ascend/ascend-toolkit/set_env.sh", "/usr/local/Ascend/cann/set_env.sh")
    assert atb[0] == "/usr/local/Ascend/nnal/atb/set_env.sh"
    assert other == ("/x.sh",)


@pytest.mark.parametrize(("release", "more"), [("0.9.1", False), ("0.11.0", False), ("0.18.0", True), ("0.23.0", True)])
def test_what_the_image_keeps_in_its_bashrc_is_set_here(release: str, more: bool) -> None:
    libraries, preload = ascend.shell_additions(release)
    assert (libraries == ("/usr/local/lib",)) is more
    assert ("/usr/lib64/libjemalloc.so.2" in preload) is more


@pytest.mark.parametrize(
    ("installed", "release", "good"),
    [
        ([], "0.9.1", True),
        (["0.9.1"], "0.9.1", True),
        (["0.9.1rc2"], "0.9.1", True),
        (["0.9.1.post1"], "0.9.1", True),
        (["0.9.2.dev4+g1234567"], "0.9.1", True),
        (["0.23.0"], "0.9.1", False),
        (["0.9.10"], "0.9.1", False),
        (["0.9.2"], "0.9.1", False),
        (["0.10.0.dev4+g1234567"], "0.9.1", False),
        (["0.23.0", "0.9.1"], "0.9.1", True),
    ],
)
def test_another_release_than_the_one_that_is_rendered_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: list[str], release: str, good: bool
) -> None:
    monkeypatch.setattr(entry, "SITES", f"{tmp_path}/python3.*/site-packages {tmp_path}/nothing")
    for number, version in enumerate(installed):
        (tmp_path / f"python3.{number}/site-packages/vllm_ascend-{version}.dist-info").mkdir(parents=True)
    if good:
        seen(tmp_path, Entry(env={}, release=release))
    else:
        said = refused(tmp_path, Entry(env={}, release=release))
        assert f"error: engine.release = {release}: the image has vllm-ascend {installed[0]};" in said
    seen(tmp_path, Entry(env={}))
