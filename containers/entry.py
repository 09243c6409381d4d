"""What runs first inside a container: a shell script that sets the variables, checks, and becomes the engine.

It is the one way that is the same for every runtime. `enroot start -e` cuts a value at its first newline and strips
outer quotes; pyxis lets the image's value win; a login profile may replace PATH; no shell of a batch job reads
~/.bashrc. Here values are quoted text in a file that only its owner can read, and never stand on a command line.
The script also proves, from inside, that it is in the asked container with the asked mounts.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.core.filetable import File

PATHS = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH")
"""Lists that shell files extend: they are set before these files are sourced, and not again afterwards."""

REFUSED = 125
"""Exit code of the script where it finds something wrong."""


@dataclass(frozen=True)
class Files:
    """The files of one container in a directory of the node that is mounted inside under the same path."""

    path: Path

    script = File("enter.sh", "the entry script")
    rc = File("rc", "enroot's command script; the image's would put its ENTRYPOINT before the command")
    root = File("root", "device and inode of the root directory that was made for this container")
    free = File("free", "there where nobody had the name of the container before its start (pyxis)")
    entered = File("entered", "there where the script has run: the container is the one that was asked for, and ours")
    pid = File("pid", "process id of the engine, as the inside counts")
    proof = File("proof", "what the inside saw")


MARK = "/.serving-sweep-rank"
"""File in the root of a container, as seen inside, with the tag of the rank that it was made for."""

RC = 'exec "$@"\n'


@dataclass(frozen=True)
class Entry:
    """What the script has to do.

    Attributes:
        env: variables of the engine.
        scrub: prefixes of variables that must not reach it.
        source: shell files, each with others that may stand in its place; one of them must be there.
        libraries: directories that are added to LD_LIBRARY_PATH after the files were sourced.
        preload: libraries of which those that exist are put before LD_PRELOAD.
        workdir: where it runs.
        outside: the mount namespace of the node, in which it must not be; None: not checked.
        mounts: device and inode of what must be seen, by path inside.
        read_only: paths inside that must be mounted read-only.
        devices: character devices that must be there.
        needed: paths that must exist, by the config key that names them.
        release: of vllm-ascend that must be installed, as far as it can be seen; None: any.
        programs: programs that must be there, with the config key that names each.
        inside: the mount namespace of the container that it must have joined; None: not checked.
        mark: written into the root directory where that can be: whose it is, for whoever finds it later.
    """

    env: Mapping[str, str]
    scrub: tuple[str, ...] = ()
    source: tuple[tuple[str, ...], ...] = ()
    libraries: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    workdir: str | None = None
    outside: str | None = None
    mounts: Mapping[str, str] | None = None
    read_only: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    needed: Mapping[str, str] | None = None
    release: str | None = None
    programs: tuple[tuple[str, str], ...] = ()
    inside: str | None = None
    mark: str | None = None


_HEAD = Path(__file__).with_name("enter.sh").read_text(encoding="utf-8").replace("@REFUSED@", str(REFUSED))

SITES = """/usr/local/python*/lib/python3*/site-packages \\
    /usr/{,local/}lib{,64}/python3*/{site,dist}-packages"""
"""Where the images' Python packages are, as words of a shell."""


def script(entry: Entry, files: Files) -> str:
    """Return the text of the script; its arguments are the engine's command line."""
    quote = shlex.quote
    lines = [_HEAD.replace("@SITES@", SITES)]
    # First of all: whoever ends it meanwhile has to know which process it is.
    lines += [f"echo $$ > {quote(str(files.pid))}", f": > {quote(str(files.entered))}"]
    if entry.mark:
        lines.append(f"echo {quote(entry.mark)} 2>/dev/null > {MARK} || :")
    if entry.scrub:
        lines.append(f"unset -v {' '.join('${!' + prefix + '@}' for prefix in entry.scrub)}")
    exports = [f"export {name}={quote(value)}" for name, value in entry.env.items()]
    lines += exports
    lines += _checks(entry, files)
    for choices in entry.source:
        words = " ".join(quote(name) for name in choices)
        tried = (
            f'[ -r "$shell_file" ] && {{ set --; . "$shell_file" || {_fail("engine.source", choices[0], "failed")}; '
        )
        lines += [
            'serving_sweep_words=("$@"); serving_sweep_done=',
            f"for shell_file in {words}; do {tried}serving_sweep_done=1; break; }}; done",
            f'[ "$serving_sweep_done" ] || {_fail("engine.source", choices[0], "the image has no such shell file")}',
            'set -- "${serving_sweep_words[@]}"',
        ]
    if entry.source:
        lines += [line for line, name in zip(exports, entry.env, strict=True) if name not in PATHS]
    lines += [f'export LD_LIBRARY_PATH="${{LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}}"{quote(x)}' for x in entry.libraries]
    lines += [
        f'[ -e {quote(name)} ] && export LD_PRELOAD={quote(name)}"${{LD_PRELOAD:+:$LD_PRELOAD}}"'
        for name in entry.preload
    ]
    lines += [
        f"command -v -- {quote(name)} > /dev/null || {_fail(key, name, 'the image has no such program')}"
        for key, name in entry.programs
    ]
    home = quote(str(files.path / "home"))
    lines.append(f'[ -w "${{HOME:-/nowhere}}" ] || {{ mkdir -p {home} && export HOME={home}; }}')
    if entry.workdir:
        stuck = _fail("container.workdir", entry.workdir, "cannot change to it")
        lines.append(f"cd {quote(entry.workdir)} 2>/dev/null || {stuck}")
    lines.append("{ serving_sweep_proof")
    lines += [f'  echo "mount $(identity {quote(path)})" {quote(path)}' for path in entry.mounts or {}]
    lines += [f"}} > {quote(str(files.proof))}", 'exec "$@"']
    return "\n".join(lines) + "\n"


def _checks(entry: Entry, files: Files) -> Iterator[str]:
    """Yield what is looked at before any shell file is sourced."""
    quote, runtime = shlex.quote, ("container.runtime", "(proof)")
    namespace = '"$(readlink /proc/self/ns/mnt)"'
    if entry.outside:
        wrong = _fail(*runtime, "the step runs on the node, in no container")
        yield f"[ {namespace} != {quote(entry.outside)} ] || {wrong}"
    if entry.inside:
        wrong = _fail(*runtime, "this is not the container of the engine")
        yield f"[ {namespace} = {quote(entry.inside)} ] || {wrong}"
    root = quote(str(files.root))
    wrong = _fail("container.image", "(proof)", "the root directory inside is not the one that was made of the image")
    yield f'[ ! -e {root} ] || [ "$(identity /)" = "$(cat {root})" ] || {wrong}'
    for path, identity in (entry.mounts or {}).items():
        wrong = _fail("container.mounts", path, "inside, it is not what the node has there")
        yield f'[ "$(identity {quote(path)})" = {quote(identity)} ] || {wrong}'
    for path in entry.read_only:
        yield f"option {quote(path)} ro || {_fail('container.mounts', path, 'it is not mounted read-only')}"
    for path in entry.devices:
        yield f"[ -c {quote(path)} ] || {_fail('container.devices', path, 'the device is not there inside')}"
    for key, path in (entry.needed or {}).items():
        yield f"[ -e {quote(path)} ] || {_fail(key, path, 'there is no such path inside; mount it')}"
    if entry.release:
        yield f"serving_sweep_release {quote(entry.release)} {quote(entry.release.rpartition('.')[0])}"


def _fail(key: str, value: str, reason: str) -> str:
    return f"fail {shlex.quote(key)} {shlex.quote(value)} {shlex.quote(reason)}"


@dataclass(frozen=True)
class Proof:
    """What the inside saw: its mount namespace, its root directory, its system, engine packages, and its mounts.

    `step` is the step of Slurm that it belongs to, as JOB.STEP; None: it belongs to none.
    """

    namespace: str | None
    root: str | None
    os: str | None
    step: str | None
    packages: tuple[str, ...]
    mounts: Mapping[str, str]


def read_proof(text: str) -> Proof:
    """Return the proof that the script wrote; what it did not reach is None or empty."""
    pairs = [line.partition(" ")[::2] for line in text.splitlines()]
    first = dict(reversed(pairs))
    mounts = dict(value.partition(" ")[::2] for key, value in pairs if key == "mount")
    return Proof(
        namespace=first.get("namespace"),
        root=first.get("root"),
        os=first.get("os"),
        step=None if first.get("step") == "." else first.get("step"),
        packages=tuple(sorted({value for key, value in pairs if key == "package"})),
        mounts={path: identity for identity, path in mounts.items()},
    )


def command(files: Files, words: Sequence[str]) -> list[str]:
    """Return the command that a runtime starts inside."""
    return ["bash", str(files.script), *words]
