"""A `Spec` as options of pyxis on a nested step: one task on this node, inside the running job.

The image needs no submitit and no Python of ours: the rank stays on the node, only its engine goes inside. Options as
in pyxis 0.11 to 0.24 (README, args.c); --container-env is there since 0.15.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from containers.spec import Mount, Spec, check_flags
from jobs.core import process
from jobs.core.errors import ConfigError, RunError

STRAY = "PYXIS_CONTAINER_"
"""Every option has an environment twin: a stray one moves plain steps, this tool's own too, into a container."""

_OPTION = re.compile(r"--container-image\b")


def step_argv(spec: Spec, job: str, node: str, command: Sequence[str]) -> list[str]:
    """Return the step that runs a command in the container.

    Args:
        spec: the container.
        job: id of the running job; the variables that name it are taken out of an engine's environment.
        node: name of this node, as Slurm knows it.
        command: program and arguments inside.

    --overlap: the step shares everything with the one that runs the ranks (srun(1)). --mpi=none: no PMI variables.
    """
    return [*_step(job, node), *options(spec), *command]


def join_argv(spec: Spec, job: str, node: str, name: str, command: Sequence[str]) -> list[str]:
    """Return the step that runs a further command in a running container: it joins its namespaces (pyxis, exec.bats).

    Args:
        spec: the running container; its mounts hold for whoever joins it, and cannot be added to.
        job: id of the running job.
        node: name of this node, as Slurm knows it.
        name: the container's; one without a name of its own is called JOB.STEP after the step that made it.
        command: program and arguments inside.
    """
    root = "--container-remap-root" if spec.remap_root else "--no-container-remap-root"
    return [*_step(job, node), f"--container-name={name}", root, *command]


def _step(job: str, node: str) -> list[str]:
    return [
        "srun",
        f"--jobid={job}",
        "--overlap",
        "--nodes=1",
        "--ntasks=1",
        f"--nodelist={node}",
        "--cpu-bind=none",
        "--mpi=none",
        "--input=none",
        "--export=ALL",
    ]


def options(spec: Spec) -> list[str]:
    """Return the --container-* options. An image is always among them: without one pyxis ignores all the others and
    runs the step on the node, with exit code 0.

    A name alone would join a running container, or take the root of a stopped one, and ignore the image. With the flag
    `create` it fails there (args.c). Every release that knows --container-env knows the flag; `srun --help` shows none.
    """
    found = [f"--container-image={spec.image.pyxis()}"]
    mounts = [mount_text(mount) for mount in (*spec.mounts, *(Mount(device, device) for device in spec.devices))]
    if mounts:
        found.append(f"--container-mounts={','.join(mounts)}")
    if spec.name:
        found.append(f"--container-name={spec.name}:create")
    found.append("--container-writable" if spec.writable else "--container-readonly")
    found.append("--container-remap-root" if spec.remap_root else "--no-container-remap-root")
    found.append("--container-mount-home" if spec.mount_home else "--no-container-mount-home")
    found.append("--no-container-entrypoint")
    if spec.env:
        found.append(f"--container-env={','.join(spec.env)}")
    if spec.workdir:
        found.append(f"--container-workdir={spec.workdir}")
    return found


def mount_text(mount: Mount) -> str:
    """Return a mount as pyxis takes it: it puts x-create=auto,rbind before the flags by itself."""
    return str(mount)


def check(spec: Spec) -> None:
    """Raise ConfigError for what pyxis has no words for."""
    check_flags(spec.mounts)
    if spec.image.scheme == "podman":
        reason = "pyxis does not know podman:// and would look for it in a registry"
        raise ConfigError("container.image", spec.image, reason, "Use dockerd://, a registry, or container=enroot.")
    if spec.name is not None and (not spec.name or ":" in spec.name or "/" in spec.name):
        raise ConfigError("container.name", spec.name, "a name has no : and no /", "Choose another name.")


def check_plugin() -> None:
    """Raise RunError where `srun` has no pyxis: plain Slurm knows --container, an OCI bundle, and nothing else."""
    if not _OPTION.search(process.run(["srun", "--help"]).stdout):
        raise RunError(
            "container.runtime",
            "pyxis",
            "`srun --help` has no --container-image here, so the plugin is not loaded",
            "Ask for pyxis in plugstack.conf, or use container=enroot.",
        )


def check_strays(env: Mapping[str, str] | Iterable[str]) -> None:
    """Raise ConfigError where a shell variable would act as an option of pyxis on every step of the job."""
    for name in env:
        if name.startswith(STRAY):
            value = env[name] if isinstance(env, Mapping) else "(set)"
            reason = "pyxis takes it as an option of every step, so that the ranks themselves would go into a container"
            raise ConfigError(
                name, value, reason, f"Run `unset {name}`; the keys of `container` say it for the engine."
            )


def enroot_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which enroot sees what pyxis made: pyxis strips these, enroot.conf alone counts."""
    return {name: value for name, value in env.items() if not re.fullmatch(r"ENROOT_[A-Z]+_PATH", name)}


def list_argv() -> list[str]:
    """Return what lists the roots of this user on this node, one a line."""
    return ["enroot", "list"]


def roots(name: str, job: str, listed: str) -> list[str]:
    """Return the roots that a name stands for, of those that are there: container_scope=global, or =job."""
    return [root for root in (f"pyxis_{name}", f"pyxis_{job}_{name}") if root in listed.split()]


def remove_argv(root: str) -> list[str]:
    """Return what removes the root of a named container: pyxis keeps it for ever (container_scope=global)."""
    return ["enroot", "remove", "--force", root]


def clash(name: str, root: str) -> RunError:
    """Return the error for a name that a container has already: pyxis would join it, or take its root as it is."""
    return RunError(
        "container.name",
        name,
        f"there is a container of this name already on this node ({root}), which this rank did not make",
        f"Put {{job}} into the name, or leave it out; on the node `enroot remove {root}` removes it.",
    )
