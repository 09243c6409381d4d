"""Starts this tool's own programs by fork alone: what Python imports, most of a start, is there already (forks.py).

    python -m warm FD

reads orders from a socket, one JSON each, and answers each with the pid of a process that does what `python ARGV...`
does: a child of who ordered it, with the three open files that came along; or (output, uid, groups) one of its own with
a file for its output, which begins after a further word: who ordered it has had a look at it by then.
In it, and in all that it starts through `subprocess`, a command line that begins with this interpreter becomes a fork,
too: with its own command line and environment in /proc, signals as after exec(2), no open files but its three, and
nothing that modules have remembered but what they cache.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import logging
import os
import platform
import runpy
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

MODULES = (
    *("jobs.cli.launch", "jobs.allocation.head", "jobs.allocation.headless", "jobs.allocation.rank"),
    *("jobs.allocation.submission", "jobs.results.report", "jobs.sweep.status", "jobs.sweep.resume"),
    *("submitit.local.local", "jobs.engines.simulator.__main__"),
)
OWN_FLAGS = ("-u",)
_FIELDS = {"start_code": 26, "end_code": 27, "start_stack": 28, "start_data": 45, "end_data": 46, "start_brk": 47}
"""Where proc(5) has them in /proc/self/stat."""
_PR_SET_DUMPABLE, _PR_SET_MM, _PR_SET_MM_MAP, _PR_GET_TID_ADDRESS = 4, 35, 14, 40
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x8000, 0x200000, 0x1000000
_kept: list[Any] = []
_exec = subprocess.Popen._execute_child  # type: ignore[attr-defined]


class _Map(ctypes.Structure):
    """struct prctl_mm_map (linux/prctl.h)."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("start_code", "end_code", "start_data", "end_data", "start_brk", "brk")),
        *((name, ctypes.c_uint64) for name in ("start_stack", "arg_start", "arg_end", "env_start", "env_end", "auxv")),
        *((name, ctypes.c_uint32) for name in ("auxv_size", "exe_fd")),
    ]


def show(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Let /proc/self/cmdline and environ say this.

    Raises:
        OSError: the kernel does not allow it.
    """
    words = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sbrk.restype = ctypes.c_uint64
    one = _Map(exe_fd=0xFFFFFFFF, brk=libc.sbrk(0), **{name: int(words[at - 3]) for name, at in _FIELDS.items()})
    for name, texts in (("arg", argv), ("env", [f"{key}={value}" for key, value in env.items()])):
        buffer = ctypes.create_string_buffer(b"".join(os.fsencode(text) + b"\0" for text in texts))
        _kept.append(buffer)
        setattr(one, f"{name}_start", ctypes.addressof(buffer))
        setattr(one, f"{name}_end", ctypes.addressof(buffer) + max(0, len(buffer) - 1))
    if libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(one), ctypes.sizeof(one), 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_MM_MAP)")


def _become(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str | None,
    files: Sequence[int],
    *,
    leads: bool,
    deaf: Sequence[int] = (),
) -> NoReturn:
    """Do what `python ARGV...` does, in a process that was just forked. `deaf`: signals that it ignores."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        for number in deaf:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        copies = [os.dup(file) for file in files]
        for target, copy in enumerate(copies):
            os.dup2(copy, target)
        os.closerange(3, 4096)
        if leads:
            os.setsid()
        if cwd:
            os.chdir(cwd)
        show([sys.executable, *argv], env)
        os.environ.clear()
        os.environ.update(env)
        logging.getLogger().handlers.clear()
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "rw"[n > 0], closefd=False, buffering=1) for n in (0, 1, 2))
        words = [word for word in argv if word not in OWN_FLAGS]
        sys.argv = words[1:] if words[0] == "-m" else words
        try:
            if words[0] == "-m":
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.path.insert(0, str(Path(words[0]).parent.resolve()))
                runpy.run_path(words[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            sys.excepthook(*sys.exc_info())
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code & 0xFF)


def _drop(uid: int, groups: Sequence[int]) -> None:
    """Be another user, as a program that was started by it."""
    os.setgroups(list(groups))
    os.setgid(uid)
    os.setuid(uid)
    os.umask(0o022)
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # else its own /proc would be root's


def _start(self: Any, args: Any, *rest: Any) -> None:
    """Stand for Popen._execute_child (CPython 3.11 to 3.13, subprocess.py): fork where the program is this one."""
    words = [] if isinstance(args, str) else list(args)
    deaf = words[:2] == ["bash", "-c"] and words[4:8] == ["--", sys.executable, "-m", "jobs.engines.simulator"]
    words = words[5:] if deaf else words  # without the shell that jobs/core/process.py has before an engine
    if words[:1] != [sys.executable] or "-I" in words:
        _exec(self, args, *rest)
        return
    _, _, _, _, cwd, env, _, _, _, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_ = rest
    leads = bool(rest[-2])
    files = [own if own != -1 else number for number, own in enumerate((p2cread, c2pwrite, errwrite))]
    self.pid = os.fork()
    if self.pid == 0:
        ignored = (signal.SIGUSR1, signal.SIGUSR2) if deaf else ()
        _become(words[1:], dict(os.environ if env is None else env), cwd, files, leads=leads, deaf=ignored)
    self._child_created = True
    self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def _can_show() -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            show(["x"], {})
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _sibling() -> int:
    """Fork a child of our own parent, which can wait for it: clone(2) as fork(3) calls it, but for that."""
    tid, libc, python = ctypes.c_void_p(), ctypes.PyDLL(None), ctypes.pythonapi
    libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(tid), 0, 0, 0)
    flags = _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD
    python.PyOS_BeforeFork()
    pid: int = libc.syscall(_CLONE[platform.machine()], flags, None, None, tid, tid)  # its place is 4th or 5th
    (python.PyOS_AfterFork_Parent if pid else python.PyOS_AfterFork_Child)()
    return pid


def _of_its_own(order: Mapping[str, Any], orders: socket.socket) -> None:
    """Start a program that is no child of who orders it, with a file for its output, as a user."""
    waits, goes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(goes)
        os.read(waits, 1)
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if order["uid"]:
            _drop(order["uid"], order["groups"])
        nothing = os.open(os.devnull, os.O_RDONLY)
        _become(order["argv"], order["env"], order["cwd"], (nothing, output, output), leads=True)
    orders.send(str(pid).encode())
    orders.recv(64)
    os.close(goes)
    os.close(waits)


def main() -> None:
    """Obey until the other end of the socket is closed."""
    warnings.simplefilter("ignore")
    for name in MODULES:
        importlib.import_module(name)
    importlib.import_module("jobs.__main__").commands()
    importlib.import_module("jobs.core.schema").build({})  # makes what checks a config, too
    importlib.import_module("jobs.sweep.compose").configs([[], ["engine=simulator"]])
    subprocess.Popen._execute_child = _start  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()
    orders = socket.socket(fileno=int(sys.argv[1]))
    orders.send(b"warm" if _can_show() else b"the kernel does not let a process say what its command line is")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets who has ended
    while True:
        text, files, _, _ = socket.recv_fds(orders, 1 << 20, 3)
        if not text:
            return
        order = json.loads(text)
        if not files:
            _of_its_own(order, orders)
        elif pid := _sibling():
            orders.send(str(pid).encode())
        else:
            _become(order["argv"], order["env"], order["cwd"], files, leads=order["leads"])
        for file in files:
            os.close(file)


if __name__ == "__main__":
    main()
