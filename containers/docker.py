"""A `Spec` as docker commands: the article's `docker run` (3.1), then `docker exec` for what it types inside."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from containers.spec import Mount, Spec
from jobs.core.errors import ConfigError, RunError

LABEL = "serving-sweep"
"""Label of our containers; its value is the user and the rank that they belong to, as UID:MARK."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_FLAGS = ("ro", "rw", "z", "Z", "nocopy", "shared", "slave", "private", "rshared", "rslave", "rprivate")
_TMPFS_FLAGS = ("ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "size", "mode", "uid", "gid")


def run_argv(spec: Spec) -> list[str]:
    """Return the article's line: a container that waits in a shell, with the node's own network."""
    words = ["docker", "run"]
    if spec.name:
        words += ["--name", spec.name]
    words.append("--net=host")
    if spec.shm_size:
        words.append(f"--shm-size={spec.shm_size}")
    if not spec.writable:
        words.append("--read-only")
    for device in spec.devices:
        words += ["--device", device]
    for mount in spec.mounts:
        words += mount_words(mount)
    for ports in spec.publish:
        words += ["-p", ports]
    if spec.workdir:
        words += ["--workdir", spec.workdir]
    return [*words, "-it", spec.image.docker(), "bash"]


def detached(argv: Sequence[str], owner: str) -> list[str]:
    """Return a run line for a batch job, which has no terminal: docker keeps one for the shell by itself."""
    program, run, *rest = argv
    return [program, run, "--detach", "--label", f"{LABEL}={owner}", *rest]


def copy_argvs(name: str, folder: str) -> list[list[str]]:
    """Return what puts a directory of the node into a running container, under the same path: no mount is needed.

    The daemon refuses it for a container that is --read-only, wherever the copy would go but to a volume.
    """
    parent = folder.rstrip("/").rpartition("/")[0] or "/"
    return [["docker", "exec", name, "mkdir", "-p", parent], ["docker", "cp", folder, f"{name}:{folder}"]]


def fetch_argv(name: str, inside: str, folder: str) -> list[str]:
    """Return what copies the content of a directory inside into one of the node; the files are then the user's."""
    return ["docker", "cp", f"{name}:{inside}/.", folder]


def pull_argv(reference: str) -> list[str]:
    """Return what fetches an image from its registry."""
    return ["docker", "pull", reference]


def clear_argv(name: str, folder: str) -> list[str]:
    """Return what empties a mounted directory from inside: what root wrote there only root can remove."""
    return ["docker", "exec", name, "find", folder, "-mindepth", "1", "-delete"]


def made_of_argv(name: str) -> list[str]:
    """Return what tells the id of the image that a container was made of."""
    return ["docker", "container", "inspect", "--format", "{{.Image}}", name]


def image_argv(reference: str) -> list[str]:
    """Return what tells the id of the image that a reference stands for on this node, and its registries' digests.

    It ends with code 0 where the daemon has the image.
    """
    return ["docker", "image", "inspect", "--format", "{{.Id}} {{json .RepoDigests}}", reference]


def read_image(output: str, repository: str) -> tuple[str | None, str | None]:
    """Return an image's id, and its digest: that of its repository where it has one, else the id; from image_argv."""
    found, _, rest = output.strip().partition(" ")
    try:
        digests = dict(one.split("@", 1) for one in json.loads(rest or "null") or [])
    except ValueError:
        digests = {}
    return found or None, digests.get(repository) or next(iter(digests.values()), None) or found or None


_KILL = """kill -KILL -- -"$1" "$1" 2> /dev/null
for _ in {1..50}; do kill -0 -- -"$1" 2> /dev/null || exit 0; sleep 0.1; done
echo alive
"""


def terminate_argv(name: str, pid: int) -> list[str]:
    """Return what sends SIGTERM to a process of a container: a signal to `docker exec` does not reach it."""
    return exec_argv(name, ["bash", "-c", 'kill -TERM "$1"', "bash", str(pid)])


def kill_argv(name: str, pid: int) -> list[str]:
    """Return what kills the process group of a command of `docker exec`, which leads a session of its own (runc).

    It waits up to 5 s for the end of all of them, and says "alive" where they do not end.
    """
    return exec_argv(name, ["bash", "-c", _KILL, "bash", str(pid)])


def exec_argv(name: str, command: Sequence[str]) -> list[str]:
    """Return what runs a command in the container. Its variables come from the entry script, not from here."""
    return ["docker", "exec", name, *command]


def remove_argv(name: str) -> list[str]:
    """Return what ends everything in a container, and removes it."""
    return ["docker", "rm", "--force", name]


def list_argv() -> list[str]:
    """Return what lists our containers of this node: a line of name, blank and owner for each."""
    return [
        "docker",
        "ps",
        "--all",
        "--filter",
        f"label={LABEL}",
        "--format",
        f'{{{{.Names}}}} {{{{.Label "{LABEL}"}}}}',
    ]


def version_argv() -> list[str]:
    """Return what says the daemon's version; the client alone cannot answer."""
    return ["docker", "version", "--format", "{{.Server.Version}}"]


def root_argv() -> list[str]:
    """Return what says where the daemon keeps its images."""
    return ["docker", "info", "--format", "{{.DockerRootDir}}"]


def owner(uid: int, tag: str) -> str:
    """Return the value of our label: the user and the rank that a container belongs to."""
    return f"{uid}:{tag}"


def is_clash(output: str) -> bool:
    """Return whether `docker run` failed because a container has the name already; then it made none."""
    return "Conflict. The container name" in output


def holder_argv(name: str) -> list[str]:
    """Return what tells of a container its state, its image, and the value of our label, if it has it."""
    what = f'{{{{.State.Status}}}} {{{{.Config.Image}}}} {{{{index .Config.Labels "{LABEL}"}}}}'
    return ["docker", "container", "inspect", "--format", what, name]


def clash(name: str, holder: str) -> RunError:
    """Return the error that says who has a name; `holder`: what holder_argv told."""
    state, image, owned = (*holder.split(), "", "", "")[:3]
    uid, _, tag = owned.partition(":")
    whose = f"of the rank {tag} (job/service/rank) of user {uid}" if tag else "that this tool did not make"
    return RunError(
        "container.name",
        name,
        f"docker has a container of this name already, {state or 'in some state'}, of {image or 'some image'}, {whose}",
        f"Put {{job}} into the name, or leave it out; `docker rm --force {name}` removes it with all that runs in it.",
    )


def failure(
    argv: Sequence[str], code: int, output: str, key: str = "container.runtime", value: str = "docker"
) -> RunError:
    """Return the error for a command of docker's that failed."""
    reason = f"`{' '.join(argv[:2])}` ended with code {code}: {' '.join(output.split())[-300:]}"
    return RunError(key, value, reason, "Try it by hand on this node.")


def mount_words(mount: Mount) -> list[str]:
    """Return the options of one mount.

    Raises:
        ConfigError: docker has no words for it.
    """
    known = _FLAGS if mount.bind else _TMPFS_FLAGS
    unknown = [flag for flag in mount.flags if flag.partition("=")[0] not in known]
    if mount.source == "umount" or unknown:
        what = f"docker does not know {', '.join(unknown)}" if unknown else "docker cannot take a mount away"
        raise ConfigError("container.mounts", mount, what, f"Use {', '.join(known)}, or another runtime.")
    flags = f":{','.join(mount.flags)}" if mount.flags else ""
    return ["-v", f"{mount.source}:{mount.target}{flags}"] if mount.bind else ["--tmpfs", f"{mount.target}{flags}"]


def check(spec: Spec) -> None:
    """Raise ConfigError for what docker has no words for."""
    if spec.image.path:
        reason = "docker runs no squashfs file"
        raise ConfigError("container.image", spec.image.path, reason, "Name the image, or use container=enroot.")
    if spec.name is not None and not _NAME.fullmatch(spec.name):
        reason = "docker's names are letters, digits, _ . - and begin with a letter or digit"
        raise ConfigError("container.name", spec.name, reason, "Choose another name, or leave it out.")
    for key, given, usual in (("remap_root", spec.remap_root, True), ("mount_home", spec.mount_home, False)):
        if given is not usual:
            reason = "docker's daemon decides the user, and knows no home"
            raise ConfigError(f"container.{key}", given, reason, f"Leave container.{key} out, or use another runtime.")
    for mount in spec.mounts:
        mount_words(mount)
