"""`python -m containers FILE`: prepare the container of one rank on this node, then become its engine.

It runs in the engine's own process group, so that import and unpacking stop with it, and write to its log.
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

from containers import docker, enroot, pyxis
from containers.entry import Files
from containers.spec import Image
from containers.store import Store, problem
from jobs import process
from jobs.errors import RunError, UserError


def main(path: Path) -> NoReturn:
    """Prepare and become.

    The file holds: runtime, name, mark of the rank, argv and env of the start, folder of the entry script; for enroot
    its directories, the image or its file, and the store of images; for docker the commands that come before the start.
    """
    signal.signal(signal.SIGTERM, _end)
    task = json.loads(path.read_text())
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
        process.become(argv, env | {process.MARK: host.get(process.MARK, "")})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def _prepare_enroot(task: dict[str, object], host: dict[str, str]) -> None:
    paths = enroot.Paths(**{key: Path(value) for key, value in cast(dict[str, str], task["enroot"]).items()})
    name, mark = str(task["name"]), str(task["mark"])
    paths.make()
    old = enroot.leftovers(paths, process.marks)
    if (paths.data / name).exists():
        whose = mark if name == enroot.root_name(mark) else enroot.owner(paths.data / name)
        if whose != mark and (whose is None or whose in process.marks()):
            raise enroot.clash(name, paths)
        old.append(name)  # of an earlier attempt of this rank, or of a dead one: it may have been changed
    for one in old:
        _say(f"removing {one}, which was left behind")
        enroot.remove(one, paths, host)
    file = task["file"]
    if file is None:
        image = Image(**cast(dict[str, Any], task["image"]))
        store = Store(Path(str(task["store"])))
        file = store.ensure(
            image,
            lambda output: enroot.fetch(image, output, paths, host),
            lambda: enroot.digest(image, host | paths.env()),
            say=_say,
        ).path
    elif wrong := problem(Path(str(file))):
        raise RunError("container.image", file, wrong, "Copy it again, or import it: python -m jobs image import.")
    root = enroot.create(Path(str(file)), name, paths, host, mark)
    Files(Path(str(task["folder"]))).root.write_text(enroot.identity(root))


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
    shown = process.run(docker.list_argv(), env=host).stdout.splitlines()
    living = {f"{os.getuid()}:{mark}" for mark in process.marks()}  # asked last: see enroot.leftovers
    for line in shown:
        name, _, owner = line.partition(" ")
        if owner.startswith(f"{os.getuid()}:") and owner not in living:  # not of another user of this daemon
            _say(f"removing {name}, which was left behind")
            process.run(docker.remove_argv(name), env=host)
    for argv in cast(list[list[str]], task["prepare"]):
        code, output = process.stream(argv, host, sys.stderr)
        if docker.is_clash(output) and code != 0:
            name = str(task["name"])
            raise docker.clash(name, process.run(docker.holder_argv(name), env=host).stdout)
        if code != 0:
            reason = f"`{' '.join(argv[:2])}` ended with code {code}: {' '.join(output.split())[-300:]}"
            raise RunError("container.runtime", "docker", reason, "Try it by hand on this node.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _end(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
