"""`python -m containers FILE`: prepare the container of one rank on this node, then become its engine.

It runs in the engine's own process group, so that import and unpacking stop with it, and write to its log. What takes
long is done beforehand, by a first call that starts nothing (jobs/allocation/node/image.py).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

from containers import dead, docker, enroot, pyxis
from containers.entry import Files
from containers.spec import Image
from containers.store import Store, problem
from jobs.core import process
from jobs.core.errors import RunError, UserError
from jobs.core.files import write_json


def main(path: Path) -> NoReturn:
    """Prepare and become, or only bring the image to this node and unpack it.

    The file holds: runtime, name, mark of the rank, argv and env of the start, folder of the entry script; for enroot
    its directories, the image or its file, the store of images and the root that was unpacked beforehand; for docker
    the commands that come before the start. With `result` nothing is started: what was made, or the error, is written
    there.
    """
    signal.signal(signal.SIGTERM, _end)
    task = json.loads(path.read_text())
    if "result" in task:
        sys.exit(_ahead(task, dict(os.environ)))
    runtime, argv, env = task["runtime"], task["argv"], task["env"]
    # Variables of the host serve the preparation (a proxy, for the registry); the engine gets its own alone.
    host = dict(os.environ)
    try:
        if runtime == "enroot":
            _prepare_enroot(task, host)
        elif runtime == "pyxis":
            _prepare_pyxis(task, host)
        elif runtime == "docker":
            _prepare_docker(task, host)
        process.become(argv, env | {process.TAG: host.get(process.TAG, "")})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def _ahead(task: dict[str, object], host: dict[str, str]) -> int:
    """Import, pull and unpack what an engine will need. Returns the exit code."""
    made: dict[str, object] = {}
    try:
        if task["runtime"] == "enroot":
            made["unpacked"] = enroot.identity(_unpack(task, host))
        elif task["runtime"] == "docker":
            dead.remove_containers(host, _say)
            _pull(str(task["reference"]), host, remote=bool(task["remote"]))
        elif task["image"] is not None:
            _import(task, _paths(task), host)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        write_json(Path(str(task["result"])), {"error": error.args})
        return error.exit_code
    write_json(Path(str(task["result"])), made)
    return 0


def _prepare_enroot(task: dict[str, object], host: dict[str, str]) -> None:
    root = _paths(task).data / str(task["name"])
    if not (root.is_dir() and enroot.identity(root) == task.get("unpacked")):
        root = _unpack(task, host)
    Files(Path(str(task["folder"]))).root.write_text(enroot.identity(root))


def _paths(task: dict[str, object]) -> enroot.Paths:
    return enroot.Paths(**{key: Path(value) for key, value in cast(dict[str, str], task["enroot"]).items()})


def _unpack(task: dict[str, object], host: dict[str, str]) -> Path:
    """Make the root of this rank, and remove what dead ones left. Returns its directory."""
    paths, name, tag = _paths(task), str(task["name"]), str(task["mark"])
    paths.make()
    dead.remove_roots(paths, host, _say)
    if (paths.data / name).exists():
        whose = tag if name == enroot.root_name(tag) else enroot.owner(paths.data / name)
        if whose != tag and (whose is None or whose in process.tags()):
            raise enroot.clash(name, paths)
        # Of an earlier attempt of this rank, or of a dead one.
        _say(f"removing {name}, which was left behind and may have been changed")
        enroot.remove(name, paths, host)
    file = task["file"]
    if file is None:
        file = _import(task, paths, host)
    elif wrong := problem(Path(str(file))):
        raise RunError("container.image", file, wrong, "Copy it again, or import it: python -m jobs image import.")
    return enroot.create(Path(str(file)), name, paths, host, tag)


def _import(task: dict[str, object], paths: enroot.Paths, host: dict[str, str]) -> str:
    """Import the image where the store has it not yet. Returns its file."""
    image = Image(**cast(dict[str, Any], task["image"]))
    store = Store(Path(str(task["store"])))
    return store.ensure(
        image,
        lambda output: enroot.fetch(image, output, paths, host),
        lambda: enroot.digest(image, host | paths.env()),
        say=_say,
    ).path


def _pull(reference: str, host: dict[str, str], *, remote: bool) -> None:
    """Fetch an image that docker's daemon lacks."""
    if process.run(docker.image_argv(reference), env=host).returncode == 0:
        return
    if not remote:
        reason = "docker's daemon on this node has no such image"
        raise RunError("container.image", reference, reason, "Load it there, or name a registry.")
    argv = docker.pull_argv(reference)
    code, output = process.stream(argv, host, sys.stderr)
    if code != 0:
        raise docker.failure(argv, code, output, "container.image", reference)


def _prepare_pyxis(task: dict[str, object], host: dict[str, str]) -> None:
    pyxis.check_plugin()
    name = task["name"]
    # Without enroot on PATH nobody can look; the flag `create` of the name still refuses a container that is there.
    if name is not None and shutil.which("enroot"):
        listed = process.run(pyxis.list_argv(), env=pyxis.enroot_env(host)).stdout
        for root in pyxis.roots(str(name), str(task["mark"]).partition("/")[0], listed):
            raise pyxis.clash(str(name), root)
        Files(Path(str(task["folder"]))).free.touch()


def _prepare_docker(task: dict[str, object], host: dict[str, str]) -> None:
    dead.remove_containers(host, _say)
    for argv in cast(list[list[str]], task["prepare"]):
        code, output = process.stream(argv, host, sys.stderr)
        if docker.is_clash(output) and code != 0:
            name = str(task["name"])
            raise docker.clash(name, process.run(docker.holder_argv(name), env=host).stdout)
        if code != 0:
            raise docker.failure(argv, code, output)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _end(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
