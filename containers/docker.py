"""A `Spec` as docker commands: the article's `docker run` (3.1), then `docker exec` for what it types inside."""

from __future__ import annotations

from collections.abc import Sequence

from containers.spec import Mount, Spec
from jobs.errors import ConfigError

LABEL = "serving-sweep"
"""Label of our containers; its value is the user and the rank that they belong to, as UID:MARK."""

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
    """Return what puts a directory of the node into a running container, under the same path: no mount is needed."""
    parent = folder.rstrip("/").rpartition("/")[0] or "/"
    return [["docker", "exec", name, "mkdir", "-p", parent], ["docker", "cp", folder, f"{name}:{folder}"]]


def fetch_argv(name: str, inside: str, folder: str) -> list[str]:
    """Return what copies the content of a directory inside into one of the node; the files are then the user's."""
    return ["docker", "cp", f"{name}:{inside}/.", folder]


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
    for key, given, usual in (("remap_root", spec.remap_root, True), ("mount_home", spec.mount_home, False)):
        if given is not usual:
            reason = "docker's daemon decides the user, and knows no home"
            raise ConfigError(f"container.{key}", given, reason, f"Leave container.{key} out, or use another runtime.")
    for mount in spec.mounts:
        mount_words(mount)
