"""Starting, signalling and reaping, with real processes."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from core_help import Pipe

from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.process import TAG, Ended, Process

ENV = {"PATH": os.environ["PATH"], "HOME": "/"}


async def start(tmp_path: Path, argv: Sequence[str], source: Sequence[str] = ()) -> Process:
    # The mark is this test's own: whoever runs beside it must not be taken for a part of its tree, nor ended with it.
    return await process.start(argv, ENV, tmp_path / "logs/server.log", f"{tmp_path}/0", source)


def log(tmp_path: Path) -> str:
    return (tmp_path / "logs/server.log").read_text()


MakePipe = Callable[[str], Pipe]


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[MakePipe]:
    """Make pipes between the test and its processes."""
    made: list[Pipe] = []

    def make(name: str) -> Pipe:
        made.append(Pipe(tmp_path / name))
        return made[-1]

    yield make
    for one in made:
        one.close()


def python(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", program, *map(str, arguments)]


def living(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


ODD = [
    "a b",
    "'\"",
    "$(touch pwned)",
    "`id`",
    "new\nline",
    "",
    "--",
    "-x",
    "*",
    "~",
    "\\",
    "$HOME",
    "ü",
    "a=b",
    "; exit 3",
]


async def test_words_and_variables_reach_the_engine_unchanged(tmp_path: Path) -> None:
    program = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    env = ENV | {f"ODD_{n}": text for n, text in enumerate(ODD)}
    started = await process.start(python(program, *ODD), env, tmp_path / "log", f"the mark of {tmp_path}")
    assert await started.wait() == Ended(0)
    words, seen = json.loads((tmp_path / "log").read_text())
    assert words == ODD
    own = {name: text for name, text in seen.items() if name not in ("PWD", "SHLVL", "_", "LC_CTYPE")}
    assert own == env | {TAG: f"the mark of {tmp_path}"}
    assert not list(tmp_path.rglob("pwned"))


async def test_shell_files_are_sourced_first_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "one file.sh").write_text('export A=1 B="$1"\nset -- junk more\nshift\n')
    (tmp_path / "two.sh").write_text("export A=${A}2\nserving=lost\n")
    source = [str(tmp_path / "one file.sh"), str(tmp_path / "two.sh")]
    program = "import os, sys; print(os.environ['A'], repr(os.environ['B']), sys.argv[1:])"
    started = await start(tmp_path, python(program, "x y", "z"), source=source)
    assert await started.wait() == Ended(0)
    assert log(tmp_path) == "12 '' ['x y', 'z']\n"


@pytest.mark.parametrize(
    ("argv", "source", "words"),
    [
        (["no-such-engine", "serve"], [], "no-such-engine"),
        (["true"], ["/no/such/set_env.sh"], "cannot source /no/such/set_env.sh"),
    ],
)
async def test_what_is_missing_is_exit_127_and_named_in_the_log(
    tmp_path: Path, argv: list[str], source: list[str], words: str
) -> None:
    started = await start(tmp_path, argv, source=source)
    assert await started.wait() == Ended(127)
    assert words in log(tmp_path)


@pytest.mark.parametrize("argv", [["true", "a\0b"], ["true", "x" * 200_000]], ids=["nul", "too long"])
async def test_what_the_kernel_refuses_is_a_clear_error(tmp_path: Path, argv: list[str]) -> None:
    with pytest.raises(RunError) as caught:
        await start(tmp_path, argv)
    assert caught.value.key == "true"


async def test_an_engine_has_a_session_of_its_own_and_no_terminal(tmp_path: Path) -> None:
    program = "import os, sys; print(os.getsid(0) == os.getpid() == os.getpgid(0), repr(sys.stdin.read()))"
    started = await start(tmp_path, python(program))
    assert await started.wait() == Ended(0)
    assert log(tmp_path) == "True ''\n"


async def test_the_log_is_continued_not_replaced(tmp_path: Path) -> None:
    for word in ("one", "two"):
        assert await (await start(tmp_path, ["bash", "-c", f"echo {word}; echo err >&2"])).wait() == Ended(0)
    assert log(tmp_path) == "one\nerr\ntwo\nerr\n"


STUBBORN = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
READY = "open(sys.argv[1], 'w').write('up')\n"


async def test_sigterm_is_enough_for_an_engine_that_obeys(tmp_path: Path, pipe: MakePipe) -> None:
    ready = pipe("ready")
    obeys = "import signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n" + READY
    obeys += "signal.sigwait([signal.SIGTERM])\nsys.exit(3)\n"
    started = await start(tmp_path, python(obeys, ready.path))
    assert await ready.heard() == "up"
    assert started.ended is None
    assert await started.stop(grace_s=20) == []
    assert started.ended == Ended(3)


async def test_sigkill_follows_where_sigterm_is_ignored(tmp_path: Path, pipe: MakePipe) -> None:
    ready = pipe("ready")
    started = await start(tmp_path, python(STUBBORN + READY + "while True: time.sleep(60)", ready.path))
    await ready.heard()
    assert await started.stop(grace_s=0.2) == []
    assert started.ended == Ended(-signal.SIGKILL)
    assert str(started.ended) == "killed by SIGKILL"


@pytest.mark.parametrize("all_of_it", [True, False])
async def test_a_tree_that_stands_still_is_ended_without_waiting_for_it(
    tmp_path: Path, pipe: MakePipe, all_of_it: bool
) -> None:
    pid_pipe, ready = pipe("pid"), pipe("ready")
    started = await start(tmp_path, python(CHILD, pid_pipe.path, "own session", ready.path, "stay"))
    pid = int(await pid_pipe.heard())
    await ready.heard()
    for one in (pid, started.pid) if all_of_it else (started.pid,):
        os.kill(one, signal.SIGSTOP)
    os.waitid(os.P_PID, started.pid, os.WSTOPPED | os.WNOWAIT)
    # Far more than a test may take: the grace of one that does not see SIGTERM.
    assert await started.stop(grace_s=3600) == []
    assert started.ended == Ended(-signal.SIGKILL)
    assert not living(pid)


async def test_stopping_one_that_has_ended_is_nothing(tmp_path: Path) -> None:
    started = await start(tmp_path, ["bash", "-c", "exit 5"])
    await started.wait()
    assert await started.stop(grace_s=1) == []
    assert str(started.ended) == "exited with code 5"


CHILD = """
import os, signal, subprocess, sys, time
where = sys.argv[2]
code = "import signal, sys; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w').write('up'); signal.pause()"
if where == "same group without the mark":
    kept = {"PATH": os.environ["PATH"]}
else:
    kept = dict(os.environ)
child = subprocess.Popen([sys.executable, "-c", code, sys.argv[3]], env=kept, start_new_session=where == "own session")
open(sys.argv[1], "w").write(str(child.pid))
if sys.argv[4] == "leave": sys.exit(0)
signal.pause()
"""


@pytest.mark.parametrize("ending", ["stay", "leave"])
@pytest.mark.parametrize("where", ["own session", "same group without the mark"])
async def test_the_whole_tree_is_found_and_ended(tmp_path: Path, pipe: MakePipe, where: str, ending: str) -> None:
    pid_pipe, ready = pipe("pid"), pipe("ready")
    stranger = await process.start(["sleep", "600"], ENV, tmp_path / "other.log", f"{tmp_path}/1")
    started = await start(tmp_path, python(CHILD, pid_pipe.path, where, ready.path, ending))
    pid = int(await pid_pipe.heard())
    await ready.heard()
    if ending == "leave":
        assert await started.wait() == Ended(0)
    assert pid in {stray.pid for stray in started.strays()}
    assert stranger.pid not in {stray.pid for stray in started.strays()}
    assert await started.stop(grace_s=10) == []
    assert not living(pid)
    assert not started.strays()
    assert living(stranger.pid)
    await stranger.stop(grace_s=10)


async def test_signals_of_slurm_and_submitit_do_not_end_the_engine(tmp_path: Path, pipe: MakePipe) -> None:
    ready, go, answer = (pipe(name) for name in ("ready", "go", "answer"))
    program = (
        "import sys\n" + READY + "word = open(sys.argv[2]).readline()\nopen(sys.argv[3], 'w').write(word.strip() * 2)\n"
    )
    started = await start(tmp_path, python(program, ready.path, go.path, answer.path))
    await ready.heard()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        os.kill(started.pid, number)
    go.tell("still here")
    assert await answer.heard() == "still herestill here"
    assert await started.wait() == Ended(0)


def test_a_living_process_is_known_by_its_argument_too() -> None:
    child = subprocess.Popen(
        ["bash", "-c", "echo up; read word", "600.25"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert process.alive(child.pid, "600.25")
    assert not process.alive(child.pid, "another sleep: its pid may have been given away")
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert not process.alive(child.pid, "600.25")
    child.wait()
    assert not process.alive(child.pid, "600.25")
    process.terminate(child.pid)  # gone: nothing happens


def test_terminate_sends_sigterm() -> None:
    child = subprocess.Popen(["sleep", "600"])
    process.terminate(child.pid)
    assert child.wait(20) == -signal.SIGTERM


def test_run_returns_output_and_code_and_names_what_is_missing() -> None:
    done = process.run(["bash", "-c", "echo out; echo err >&2; exit 4"])
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 4)
    with pytest.raises(RunError, match=r"no-such-program.*not on PATH"):
        process.run(["no-such-program"])
    with pytest.raises(RunError, match=r"no answer within 0.1 s"):
        process.run(["sleep", "60"], timeout_s=0.1)


def test_what_a_stranger_says_is_gathered_up_to_an_end() -> None:
    argv = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    assert process.gather(argv, ENV, 60, 1 << 20) == (3, "out\n", "err\n")
    for script, limit_s, reason in (
        ("yes", 60, "it wrote more than 1 MiB"),
        ("echo out; sleep 600", 0.2, "no answer"),
        ("exec >&- 2>&-; sleep 600", 0.2, "no answer"),
        ("while echo out; do sleep 0.05; done", 0.5, "no answer"),
    ):
        with pytest.raises(RunError, match=reason):
            process.gather(["sh", "-c", f"{script} # {os.getpid()}"], ENV, limit_s, 1 << 20)
        assert process.with_arguments(["-c", f"{script} # {os.getpid()}"]) == []
    with pytest.raises(RunError, match="not on PATH"):
        process.gather(["no-such-program"], ENV, 60, 1)


def test_a_program_that_cannot_be_started_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "squeue").write_text("not a program")
    with pytest.raises(RunError, match="squeue"):
        process.run([str(tmp_path / "squeue")])


def test_a_detached_process_is_out_of_reach_of_our_terminal(tmp_path: Path) -> None:
    words = "import os, sys; print(os.getsid(0) == os.getpid(), os.environ['A'], repr(sys.stdin.read()))"
    with process.detached(python(words), ENV | {"A": "b"}, tmp_path / "log") as child:
        assert not (tmp_path / "log").read_text()
    assert child.wait(20) == 0
    assert (tmp_path / "log").read_text() == "True b ''\n"


def test_a_detached_process_never_runs_where_what_comes_before_it_fails(tmp_path: Path) -> None:
    with pytest.raises(RunError), process.detached(python("print(1)"), ENV, tmp_path / "log") as child:
        raise RunError("record", "x", "disk full", "Free space.")
    assert child.wait(20) != 0
    assert (tmp_path / "log").read_text() == ""
    with process.detached(python("print(1)"), ENV, tmp_path / "log") as child:
        child.kill()
        child.wait(20)  # and nobody minds one that was ended meanwhile


def test_how_a_process_ended_in_words() -> None:
    assert str(Ended(0)) == "exited with code 0"
    assert str(Ended(-signal.SIGSEGV)) == "killed by SIGSEGV"
    assert str(Ended(-255)) == "exited with code -255"


async def test_a_helper_that_ended_by_itself_takes_nothing_of_the_same_mark_with_it(
    tmp_path: Path, pipe: MakePipe
) -> None:
    """Staging, images and the engine of a rank share their mark, and a helper is forgotten once it has ended."""
    assert await (await start(tmp_path, ["true"])).wait() == Ended(0)
    gc.collect()
    ready = pipe("ready")
    started = await start(tmp_path, python("import signal, sys\n" + READY + "signal.pause()", ready.path))
    assert await ready.heard() == "up"
    [guard] = process._guards[started.tag]
    gc.collect()
    assert guard._process.poll() is None
    assert started.ended is None
    assert await started.stop(grace_s=20) == []
    assert started.tag not in process._guards
    assert guard._process.poll() is not None


async def test_helpers_of_one_mark_may_start_at_once(tmp_path: Path, pipe: MakePipe) -> None:
    """The weights are staged while the image is unpacked: each has its guard, and none closes the other's pipe."""
    ready = [pipe("one"), pipe("other")]
    words = [python("import signal, sys\n" + READY + "signal.pause()", one.path) for one in ready]
    one, other = await asyncio.gather(*(start(tmp_path, argv) for argv in words))
    assert [await each.heard() for each in ready] == ["up", "up"]
    assert len(process._guards[one.tag]) == 2
    assert (one.ended, other.ended) == (None, None)
    assert await one.stop(grace_s=20) == []
    await other.wait()
    assert await other.stop(grace_s=20) == []
    assert one.tag not in process._guards


OWNER = """
import asyncio, json, os, sys
from pathlib import Path
from jobs.core import process

async def own():
    argv, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    (folder / "scratch").mkdir()
    await process.start(argv, dict(os.environ), folder / "log", str(folder), scratch=str(folder / "scratch"))
    await asyncio.Event().wait()

asyncio.run(own())
"""


@pytest.mark.parametrize("where", ["own session", "same group without the mark"])
async def test_a_tree_ends_with_its_owner_also_where_that_is_killed(tmp_path: Path, pipe: MakePipe, where: str) -> None:
    pid_pipe, ready = pipe("pid"), pipe("ready")
    argv = python(CHILD, pid_pipe.path, where, ready.path, "stay")
    owner = subprocess.Popen(python(OWNER, json.dumps(argv), tmp_path))
    child = psutil.Process(int(await pid_pipe.heard()))
    await ready.heard()
    main = child.parent()
    assert main is not None
    assert main.pid != owner.pid
    owner.kill()
    owner.wait(20)
    _, left = await asyncio.to_thread(psutil.wait_procs, [main, child], 30)
    assert left == [], "the child ignores SIGTERM"
    while (tmp_path / "scratch").exists():  # the guard's last act
        await asyncio.sleep(0.02)


LEAVES = """import os, subprocess, sys, time
for more in ({"process_group": 0}, {"start_new_session": True}):
    child = ["bash", "-c", "trap '' TERM; sleep 600 & wait; sleep 600"]
    print(subprocess.Popen(child, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more).pid, flush=True)
"""
"""A program whose children have a group, and a session, of their own."""

STREAMS = """import os, sys
from jobs.core import process, session
with session.orderly():
    print(process.stream(sys.argv[1:], os.environ, sys.stdout)[0], flush=True)
"""

ATTENDS = STREAMS.replace(
    "process.stream(sys.argv[1:], os.environ, sys.stdout)[0]", "process.attend(sys.argv[1:], 0.1)"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("way", [STREAMS, ATTENDS], ids=["stream", "attend"])
def test_what_a_program_left_in_other_groups_and_sessions_ends_with_whoever_waited_for_it(
    way: str, number: int
) -> None:
    # Under nohup SIGHUP is ignored, and what is ignored stays so.
    words = ["env", "--default-signal=HUP", *python(way, *python(LEAVES + "time.sleep(600)"))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ours:
        assert ours.stdout is not None
        children = [psutil.Process(int(ours.stdout.readline())) for _ in range(2)]
        ours.send_signal(number)
        assert ours.wait(60) in (128 + number, -number)
        if number != signal.SIGKILL:
            assert not [one for one in children if living(one.pid)], "all have ended before we did"
        assert psutil.wait_procs(children, timeout=60)[1] == []


def test_a_program_that_failed_leaves_nothing_and_one_that_ended_well_may_leave_a_monitor() -> None:
    code, output = process.stream(python(LEAVES + "sys.exit(3)"), ENV, sys.stderr)
    assert code == 3
    assert not [pid for pid in output.split() if living(int(pid))]
    code, output = process.stream(python(LEAVES), ENV, sys.stderr)
    grouped, apart = map(int, output.split())
    assert (code, living(grouped), living(apart)) == (0, False, True)
    os.kill(apart, signal.SIGKILL)


def test_a_short_command_that_hangs_ends_with_its_children_which_hold_its_output() -> None:
    with pytest.raises(RunError, match="no answer within"):
        process.run(["bash", "-c", "sleep 600.125 & wait"], timeout_s=0.5)
    assert process.with_arguments(["sleep", "600.125"]) == []
