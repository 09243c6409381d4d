"""What another user of the host can do to ours: each attack by a process of that user, against a process of ours."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from checkpoint_help import write
from core_help import config
from fake_slurm import FakeSlurm
from forks import Zygote
from users import ATTACKER, GROUP, VICTIM, Host, User, two_users
from world import ONE

from jobs.allocation.service import service_seconds
from jobs.cluster import sick_nodes
from jobs.cluster.base import cancel
from jobs.core import files, lock
from jobs.core.errors import RunError
from jobs.core.rundir import Root, SweepDir
from jobs.engines.checkpoint import stage
from jobs.engines.checkpoint.checkpoint import INDEX
from jobs.sweep import reuse

SECRET_TEXT = "only the victim reads this"


@pytest.fixture
def host() -> Iterator[Host]:
    with two_users() as made:
        yield made


@dataclass
class Run:
    """A launch of a user."""

    process: psutil.Process
    output: Path

    def finish(self) -> str:
        self.process.wait(120)
        return self.output.read_text()


def launch(zygote: Zygote, user: User, root: Path, *more: str) -> Run:
    """Start the least sweep as a user."""
    output = user.home.parent / f"said-{user.uid}-{len(list(user.home.parent.iterdir()))}"
    env = user.environment()
    return Run(
        zygote.start(["launch.py", *ONE, f"results.root={root}", *more], env, output, user.uid, user.groups), output
    )


def the_row(root: Path) -> dict[str, object]:
    [row] = (json.loads(path.read_text()) for path in root.glob("20*/points/*/row.json"))
    return dict(row)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def secret_of(user: User) -> Path:
    """Return a file of a user that nobody else may read."""

    def make() -> None:
        (user.home / "secret").write_text(SECRET_TEXT)
        (user.home / "secret").chmod(0o600)

    user.call(make)
    return user.home / "secret"


# -- ports ------------------------------------------------------------------------------------------------------------

FALSE_HEAD = """
import json, os, socket, sys
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listens", flush=True)
start = {"type": "start", "point": sys.argv[2], "service": sys.argv[2], "ranks": 2, "attempt": 1,
         "master_address": "127.0.0.1", "api_port": "1", "rpc_port": "2"}
while True:
    client, _ = listening.accept()
    client.settimeout(2)
    try:
        client.sendall(bytes(32))
        client.recv(4096)
        client.sendall(bytes(32) + b"".join(json.dumps(one).encode() + b"\\n" for one in ({"type": "welcome"}, start)))
        client.recv(4096)
    except OSError:
        pass
    client.close()
"""


def test_who_holds_the_port_of_rank_0_commands_nobody(host: Host, zygote: Zygote) -> None:
    port, root = free_port(), host.shared / "runs"
    with host.attacker.start(FALSE_HEAD, str(port), str(host.attacker.home)) as attacker:
        assert attacker.stdout and attacker.stdout.readline() == "listens\n"
        said = launch(zygote, host.victim, root, f"cluster.control_port={port}").finish()
        attacker.kill()
    row = the_row(root)
    assert row["valid"] is False
    assert f"cluster.control_port = {port}: it is taken by" in said, said
    assert list(root.glob("20*/services/*/*/rank1/command.json")) == [], "rank 1 started something"


IMPOSTOR = """
import socket, sys, time
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind((sys.argv[2], int(sys.argv[1])))
listening.listen()
print("listens", flush=True)
while True:
    client, _ = listening.accept()
    print(repr(client.recv(65536)), flush=True)
    client.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n")
    client.close()
"""


def loading(run: Run, root: Path, rank: int) -> None:
    """Wait until the engine of a rank has bound its port, and loads."""
    end = time.monotonic() + 60
    while not any("bound" in path.read_text() for path in root.glob(f"20*/services/*/*/rank{rank}/server.log")):
        assert time.monotonic() < end, run.output.read_text()
        time.sleep(0.05)


def test_an_api_that_another_user_brought_up_gets_no_key(host: Host, zygote: Zygote) -> None:
    port, root = free_port(), host.shared / "runs"
    run = launch(zygote, host.victim, root, f"engine.port={port}", "+engine.env.QUICK_LOAD_S=60")
    loading(run, root, 0)
    with host.attacker.start(IMPOSTOR, str(port), "127.0.0.1") as attacker:
        said = run.finish()
        attacker.kill()
        assert attacker.stdout
        heard = attacker.stdout.read().removeprefix("listens\n")
    assert "uthorization" not in heard
    assert f"user {ATTACKER} " in said and "listens there in the engine's place" in said, said
    assert the_row(root)["valid"] is False


def test_the_api_of_a_replica_that_another_user_brought_up_gets_no_key(host: Host, zygote: Zygote) -> None:
    """Rank 0 sends the key to the other node as well, where the rank of the replica has to look."""
    root, two = host.shared / "runs", ("model=deepseek_v3_1_w4a8", "parallel=replicas2_tp8")
    run = launch(zygote, host.victim, root, *two, "+engine.env.QUICK_LOAD_S=60")
    loading(run, root, 1)
    [command] = root.glob("20*/services/*/*/rank1/command.json")
    argv = json.loads(command.read_text())["argv"]
    port, address = (argv[argv.index(flag) + 1] for flag in ("--port", "--host"))
    with host.attacker.start(IMPOSTOR, port, address) as attacker:
        said = run.finish()
        attacker.kill()
        assert attacker.stdout
        heard = attacker.stdout.read().removeprefix("listens\n")
    assert "uthorization" not in heard
    assert f"user {ATTACKER} listens there in the engine's place" in said, said
    assert "rank 1" in str(the_row(root)["invalid_reason"])


FLOOD = """
import socket, sys, time
held = []
print("floods", flush=True)
while True:
    try:
        one = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1)
        one.sendall(b"x" * 4096)
        held = [*held[-500:], one]
    except OSError:
        time.sleep(0.001)
"""


def test_a_crowd_at_the_door_of_rank_0_keeps_no_rank_out(host: Host, zygote: Zygote) -> None:
    port, root = free_port(), host.shared / "runs"
    with host.attacker.start(FLOOD, str(port)) as attacker:
        assert attacker.stdout and attacker.stdout.readline() == "floods\n"
        said = launch(zygote, host.victim, root, f"cluster.control_port={port}").finish()
        attacker.kill()
    assert the_row(root)["valid"] is True, said
    logs = "".join(path.read_text() for path in root.glob("20*/allocations/*/*/stdout-*.log"))
    assert "Traceback" not in logs


# -- one results.root for two -----------------------------------------------------------------------------------------


def test_two_users_share_a_results_root_and_read_nothing_of_each_other(host: Host, zygote: Zygote) -> None:
    root = host.shared / "runs"
    host.attacker.call(root.mkdir, 0o777)
    root.chmod(0o1777)
    for user in (host.attacker, host.victim, host.attacker):
        said = launch(zygote, user, root).finish()
        assert "True" in said, said
    sweeps = [path for path in root.iterdir() if not path.name.startswith(".") and not path.is_symlink()]
    assert len(sweeps) == 3
    for sweep in sweeps:
        owner = sweep.stat().st_uid
        other = host.attacker if owner == VICTIM else host.victim
        assert not other.can_read(sweep)
    mine = [path for path in root.rglob("*") if path.is_file() and path.stat().st_uid == VICTIM]
    assert mine and not any(host.attacker.can_read(path) for path in mine)


def links(root: Path, target: Path) -> None:
    """Put links to one file wherever the tool writes below a shared root."""
    for name in (".hydra", ".images", ".nodes"):
        (root / name).mkdir(mode=0o777)
    for name in (
        ".hydra/multirun.yaml",
        ".images/x.lock",
        ".nodes/localhost.json",
        "latest",
        ".fetch.lock",
        "sweep.log",
    ):
        (root / name).symlink_to(target)
    for name in (".calibration", f".calibration-{VICTIM}", f".calibration-{VICTIM}-2", f".hydra-{VICTIM}"):
        (root / name).symlink_to(target.parent)
    for name in (".decide", f".decide-{VICTIM}", f".nodes-{VICTIM}", f".images-{VICTIM}"):
        (root / name).mkdir(mode=0o777)
        (root / name).chmod(0o777)


def test_links_of_others_in_a_shared_root_are_not_written_through(host: Host, zygote: Zygote) -> None:
    secret, root = secret_of(host.victim), host.shared / "runs"
    root.mkdir()
    root.chmod(0o1777)
    host.attacker.call(links, root, secret)
    for more in (("launch.dry_run=true",), ()):
        launch(zygote, host.victim, root, *more).finish()
        assert secret.read_text() == SECRET_TEXT, more
    assert sorted(path.name for path in host.victim.home.iterdir()) == ["secret", "tmp"]
    for name in (".fetch.lock", ".images/x.lock"):
        with pytest.raises(RunError):
            host.victim.call(hold, root / name)
    assert secret.read_text() == SECRET_TEXT


def hold(path: Path) -> None:
    with lock.exclusive(path):
        pass


def hostile_sweep(root: Path, service: str) -> None:
    """Make a sweep whose files hang, explode or lie."""
    sweep = root / "2026-01-01_00-00-00"
    (sweep / "points/abc").mkdir(parents=True)
    (sweep / "plan.json").write_text('{"services": 5}')
    (sweep / "points/abc/config.yaml").symlink_to("/dev/zero")
    os.mkfifo(sweep / "points/abc/row.json")
    (sweep / "services" / service / "1").mkdir(parents=True)
    os.mkfifo(sweep / "services" / service / "1/service.json")
    (sweep / "services" / service / "2").mkdir()
    (sweep / "services" / service / "2/service.json").write_text('{"load_s": 1e300}')
    (root / ".nodes").mkdir()
    (root / ".nodes/x.json").write_text(json.dumps({"node": "localhost", "time": 4e9, "reasons": ["broken"]}))
    os.mkfifo(root / ".nodes/y.json")


def test_what_a_sweep_next_door_says_is_at_most_ignored(host: Host, zygote: Zygote) -> None:
    root, one = host.shared / "runs", config("cluster=local")
    root.mkdir()
    root.chmod(0o1777)
    host.attacker.call(hostile_sweep, root, "s")
    alone = host.victim.call(service_seconds, SweepDir(host.victim.home / "x"), "s", one, 10.0)
    assert host.victim.call(service_seconds, SweepDir(root / "own"), "s", one, 10.0) == alone
    assert host.victim.call(sick_nodes.sick, Root(root)) == []
    assert host.victim.call(reuse.find, [], [root]) == {}
    assert "True" in launch(zygote, host.victim, root).finish()


# -- secrets ----------------------------------------------------------------------------------------------------------

WATCH = """
import os, sys, time
seen = set()
print("watches", flush=True)
while True:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("cmdline", "environ"):
            try:
                if os.stat("/proc/" + pid).st_uid == int(sys.argv[1]):
                    with open("/proc/%s/%s" % (pid, name), "rb") as file:
                        words = file.read()
                    if words not in seen:
                        seen.add(words)
                        sys.stdout.write(repr(words) + "\\n")
            except OSError:
                pass
    sys.stdout.flush()
    time.sleep(0.02)
"""


def test_no_secret_stands_where_others_look(host: Host, zygote: Zygote) -> None:
    root, token = host.shared / "runs", "hf_0123456789abcdef"
    watcher = host.attacker.start(WATCH, str(VICTIM))
    assert watcher.stdout and watcher.stdout.readline() == "watches\n"
    user = replace(host.victim, env={"HF_TOKEN": token})
    said = launch(zygote, user, root, "+engine.env.HF_TOKEN=${oc.env:HF_TOKEN}", "launch.dry_run=false").finish()
    watcher.terminate()
    seen, _ = watcher.communicate()
    assert "True" in said, said
    [key] = root.glob("20*/allocations/*/*/api.key")
    assert "quick_engine" in seen, "the watcher saw nothing"
    for word in (token, key.read_text().strip()):
        assert word not in seen
        assert word not in said
        held = [path.name for path in root.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]
        assert set(held) <= {"api.key"}, held


# -- checkpoints ------------------------------------------------------------------------------------------------------


def bad_checkpoint(folder: Path, target: Path, kind: str) -> None:
    write(folder, shards=2)
    folder.chmod(0o755)
    if kind == "link":
        (folder / "generation_config.json").symlink_to(target)
    else:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"]["nope"] = str(target)
        (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("kind", ["link", "index"])
def test_a_checkpoint_of_another_user_takes_no_file_of_ours(host: Host, kind: str) -> None:
    secret, source = secret_of(host.victim), host.attacker.home / "ckpt"
    host.attacker.home.chmod(0o755)
    host.attacker.call(bad_checkpoint, source, secret, kind)
    with pytest.raises((RunError, RuntimeError)):
        host.victim.call(stage.stage, source, host.shared / "staged")
    assert secret.read_text() == SECRET_TEXT
    copies = [path for path in (host.shared / "staged").rglob("*") if path.is_file()]
    assert not any(host.attacker.can_read(path) for path in copies if path.suffix != ".lock")
    assert not any(SECRET_TEXT.encode() in path.read_bytes() for path in copies)


# -- /tmp -------------------------------------------------------------------------------------------------------------


def test_a_directory_that_another_user_prepared_in_tmp_is_refused(host: Host) -> None:
    def prepare() -> None:
        (host.shared / "caches").mkdir(mode=0o777)
        (host.shared / "caches").chmod(0o777)
        (host.shared / "link").symlink_to(host.victim.home)

    host.attacker.call(prepare)
    for name in ("caches/data", "link/data"):
        with pytest.raises(OSError):
            host.victim.call(files.make_private, host.shared / name)


# -- jobs -------------------------------------------------------------------------------------------------------------


def false_record(path: Path, sweep: Path) -> None:
    """Copy a sweep, and let its record name a job that is somebody else's."""
    shutil.copytree(sweep, path)
    for one in (path, *path.rglob("*")):
        one.chmod(0o755 if one.is_dir() else 0o644)
    [job] = path.glob("allocations/*/*/job.json")
    job.write_text(json.dumps(json.loads(job.read_text()) | {"kind": "slurm", "job_id": "4711"}))


def test_a_record_of_another_user_cancels_no_job_of_ours(
    host: Host, zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, evil = host.shared / "runs", host.shared / "evil/2026-01-01_00-00-00"
    launch(zygote, host.attacker, root).finish()
    [sweep] = root.glob("20*")
    slurm = FakeSlurm(host.shared / "bin")
    slurm.job("4711", "RUNNING", asked={"job-name": f"sweep-{evil.name}-ab12-0"})
    for path in (slurm.folder, *slurm.folder.iterdir()):
        path.chmod(0o777)
    monkeypatch.setenv("PATH", f"{slurm.folder}:{os.environ['PATH']}")
    host.attacker.call(false_record, evil, sweep)
    [folder] = SweepDir(evil).allocations()
    with pytest.raises(RunError, match="this sweep belongs to another user"):
        host.victim.call(cancel, folder)
    assert slurm.calls("scancel") == []
    assert slurm.calls("squeue"), "it was asked for"


# -- a sweep that is shared -------------------------------------------------------------------------------------------


def test_a_group_reads_a_shared_sweep_with_every_command_that_only_reads(host: Host, zygote: Zygote) -> None:
    name, number = GROUP
    root = host.shared / "runs"
    owner, colleague = (replace(one, groups=(number,)) for one in (host.victim, host.attacker))
    assert "True" in launch(zygote, owner, root, f"cluster.share_group={name}").finish()
    [sweep] = root.glob("20*")
    assert not host.attacker.can_read(sweep / "plan.json"), "somebody outside of the group"
    for words in (
        ["status"],
        ["table"],
        ["table", "--format", "csv"],
        ["follow"],
        ["report"],
        ["diagnose"],
        ["cancel"],
    ):
        output = host.shared.parent / f"said-{'-'.join(words)}"
        argv = ["-m", "jobs", words[0], str(sweep), *words[1:]]
        run = Run(zygote.start(argv, colleague.environment(), output, colleague.uid, colleague.groups), output)
        said = run.finish()
        assert "error" not in said and "Traceback" not in said, (words, said)
    assert not any(colleague.can_read(path) for path in sweep.glob("allocations/*/*/*.key"))
