"""A `Spec` as options of pyxis on a nested step: one task on this node, inside the running job.

The image needs no submitit and no Python of ours: the rank stays on the node, only its engine goes inside. Options as
in pyxis 0.11 to 0.24 (README, args.c); no program says which version it is, so `srun --help` is asked for each option.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from containers import entry
from containers.base import Env, Fetched, Inside, Order, Runtime, Start, Stock, check_programs, clash, log, lost
from containers.enroot import brought, check_flags, failed, remove_argv, survives
from containers.spec import Image, Mount, Spec, option_words
from containers.store import Store, stock, tables
from jobs.core import process
from jobs.core.errors import ConfigError, RunError
from jobs.core.files import write_text
from jobs.core.foreign import load_text
from jobs.core.registry import RUNTIMES

STRAY = "PYXIS_CONTAINER_"
"""Every option has an environment twin: a stray one moves plain steps, this tool's own too, into a container."""

SETTINGS = {"ENROOT_LOGIN_SHELL": "n"}
"""Of enroot's own settings pyxis hands this one on. Without it a shell reads the image's /etc/profile, and that of
Debian sets another PATH than the image's."""

_UNSHARE = "--container-unshare"
"""Where srun has this option, pyxis is 0.24 or newer."""


def _step(job: str, node: str) -> list[str]:
    """Return a step of one task on this node, in the running job, whose id is not in an engine's environment.

    --overlap: it shares everything with the step that runs the ranks (srun(1)). --mpi=none: no PMI variables.
    """
    where = ["srun", f"--jobid={job}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}"]
    return [*where, "--cpu-bind=none", "--mpi=none", "--input=none", "--export=ALL"]


def options(spec: Spec) -> list[str]:
    """Return the --container-* options. An image is always among them: without one pyxis ignores all the others and
    runs the step on the node, with exit code 0.

    A name alone would join a running container, or take the root of a stopped one, and ignore the image. With the flag
    `create` it fails there (args.c). Every release that knows --container-env knows the flag; `srun --help` shows none.
    """
    found = [f"--container-image={spec.image.pyxis()}"]
    mounts = [str(mount) for mount in (*spec.mounts, *(Mount(device, device) for device in spec.devices))]
    if mounts:
        found.append(f"--container-mounts={','.join(mounts)}")
    if spec.name:
        found.append(f"--container-name={spec.name}:create")
    found.append("--container-writable" if spec.writable else "--container-readonly")
    found.append("--container-remap-root" if spec.remap_root else "--no-container-remap-root")
    found.append("--container-mount-home" if spec.mount_home else "--no-container-mount-home")
    found.append("--no-container-entrypoint")
    if names := [name for name, value in spec.env.items() if survives(name, value) and "," not in name]:
        found.append(f"--container-env={','.join(names)}")
    if spec.workdir:
        found.append(f"--container-workdir={spec.workdir}")
    return [*found, *option_words(spec.args)]


def check_strays(env: Mapping[str, str] | Iterable[str]) -> None:
    """Raise ConfigError where a shell variable would act as an option of pyxis on every step of the job."""
    for name in env:
        if name.startswith(STRAY):
            value = env[name] if isinstance(env, Mapping) else "(set)"
            reason = "pyxis takes it as an option of every step, so that the ranks themselves would go into a container"
            remedy = f"Run `unset {name}`; the keys of `container` say it for the engine."
            raise ConfigError(name, value, reason, remedy)


def enroot_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which enroot sees what pyxis made: pyxis strips these, enroot.conf alone counts."""
    return {name: value for name, value in env.items() if not re.fullmatch(r"ENROOT_[A-Z]+_PATH", name)}


def roots(order: Order, env: Env) -> list[str]:
    """Return the roots on this node that a rank's name stands for: container_scope=global, or =job.

    Raises:
        RunError: enroot did not say.
    """
    argv = ["enroot", "list"]
    done = process.run(argv, env=enroot_env(env))
    if done.returncode != 0:
        raise failed(argv, "container.name", order.name, done.returncode, done.stdout + done.stderr)
    listed = done.stdout.split()
    return [root for root in (f"pyxis_{order.name}", f"pyxis_{order.job}_{order.name}") if root in listed]


def left_behind(order: Order, root: str, env: Env) -> bool:
    """Whether a root is that of a dead rank of ours: this node remembers its name, and the mark inside says the same.

    Where no rank of ours had the name nothing is run in the root: `enroot start` writes into it.
    """
    try:
        tag = load_text(order.local.claim(order.name, order.node), ours=True).strip()
    except (OSError, RunError):
        return False
    if not tag or tag in process.tags():
        return False
    rc = order.local.path / "rc"
    write_text(rc, entry.RC)
    words = ["enroot", "start", "--rc", str(rc), root, "cat", entry.MARK]
    return process.run(words, env={**enroot_env(env), **SETTINGS}).stdout.strip() == tag


def check_free(order: Order, env: Env) -> None:
    """Remove the root of a dead rank that has this rank's name.

    Raises:
        RunError: another has it. It would be joined, or its root taken as it is.
    """
    for root in roots(order, env):
        if left_behind(order, root, env):
            log(f"removing {root}, which was left behind")
            process.run(remove_argv(root), env=enroot_env(env), timeout_s=600)
    for root in roots(order, env):
        known = f"there is a container of this name already on this node ({root}), which this rank did not make"
        raise clash(order.name, known, f"on the node `enroot remove {root}` removes it.")


def may_import(spec: Spec) -> bool:
    """Whether the image can be imported once for all nodes. Else each step of pyxis does that by itself."""
    tools = shutil.which("enroot") and shutil.which("unsquashfs")
    return bool(tools) and spec.image.remote


def found(order: Order) -> Image:
    """Return the image as a step is to take it: its file, where the store has it."""
    image = order.spec.image
    if order.fetched and order.fetched.file:
        return replace(image, path=order.fetched.file)
    if image.path or not order.tag or not shutil.which("unsquashfs"):
        return image
    entry = Store(order.store).find(image)
    return replace(image, path=entry.path) if entry else image


@RUNTIMES.register("pyxis")
class Pyxis(Runtime):
    """A nested step with pyxis' options; its containers are enroot's, in the directories of the site's enroot.conf."""

    name = "pyxis"
    programs = ("srun",)
    version = ("srun", "--version")
    of_slurm = True
    unnamed = True
    marks = True
    owned = ("container-env", "container-image", "container-mounts", "container-name", "container-workdir", "jobid",
             "nodelist", "nodes", "ntasks", "overlap")  # fmt: skip

    def check(self, spec: Spec, *, here: bool = False) -> None:
        """Plain Slurm knows --container, an OCI bundle, and nothing else."""
        if here:
            self._check_plugin(spec)
        check_flags(spec.mounts)
        for mount in spec.mounts:
            if re.search(r'["$`]', f"{mount.source}{mount.target}"):
                reason = "pyxis writes a mount into a shell script, which reads the quotes, $ and ` in it"
                raise ConfigError("container.mounts", mount, reason, "Use a path without them, or a link to it.")
        if not str(spec.image).startswith(("/", "docker://", "dockerd://")):
            reason = f"pyxis does not know {spec.image.scheme}:// and would look for it in a registry"
            raise ConfigError("container.image", spec.image, reason, "Use dockerd://, a registry, or container=enroot.")
        if spec.name is not None and (not spec.name or ":" in spec.name or "/" in spec.name):
            raise ConfigError("container.name", spec.name, "a name has no : and no /", "Choose another name.")

    def _check_plugin(self, spec: Spec) -> None:
        """Raise RunError where Slurm has no pyxis, or one that is too old for what is asked of it.

        An engine always has variables. Before 0.24 a blank ends a path in the file of mounts (pyxis_slurmstepd.c).
        """
        check_programs(self)
        known = set(re.findall(r"--[\w-]+", process.run(["srun", "--help"]).stdout))
        words = [word.partition("=")[0] for word in options(replace(spec, env={"VARIABLE": ""}))]
        lacking = [word for word in words if re.match("--(no-)?container-", word) and word not in known]
        if "--container-image" in lacking:
            reason = "`srun --help` has no --container-image here, so the plugin is not loaded"
            remedy = "Ask for pyxis in plugstack.conf, or use container=enroot."
            raise RunError("container.runtime", self.name, reason, remedy)
        newer = "Ask for a newer pyxis, or use container=enroot."
        if lacking:
            reason = f"the pyxis here is too old: `srun --help` has no {', '.join(lacking)}"
            raise RunError("container.runtime", self.name, reason, newer)
        for mount in spec.mounts:
            if re.search(r"[\s\\]", f"{mount.source}{mount.target}") and _UNSHARE not in known:
                reason = "the pyxis here is older than 0.24, and takes no blank or backslash in a mount"
                raise RunError("container.mounts", mount, reason, "Use a path without them, or a link to it.")

    def look(self, order: Order, env: Env) -> Stock:
        """Where pyxis unpacks the site says."""
        found = stock(order)
        return found if may_import(order.spec) else replace(found, needs=())

    def fetch(self, order: Order, env: Env) -> Fetched:
        # Without enroot on PATH nobody can look; the flag `create` of the name still refuses a container that is there.
        looks = bool(order.spec.name and shutil.which("enroot"))
        if looks:
            check_free(order, env)
        if order.folder is None:
            if order.spec.image.path:
                return Fetched({"content": tables(Path(order.spec.image.path))}, order.spec.image.path)
            return brought(order, env) if may_import(order.spec) else Fetched()
        self._check_plugin(order.spec)
        if looks:
            order.local.make(order.local.claims)
            write_text(order.local.claim(order.name, order.node), order.tag + "\n")
            order.files.free.touch()
        return order.fetched or Fetched()

    def start(self, order: Order) -> Start:
        spec = replace(order.spec, image=found(order))
        return Start(([*_step(order.job, order.node), *options(spec), *order.command],), {**order.spec.env, **SETTINGS})

    def reach(self, order: Order, env: Env) -> Inside:
        return InPyxis(order, env)


class InPyxis(Inside):
    """A container of a step: its processes are the node's, and one without a name goes with its step."""

    def image(self) -> str:
        return str(found(self.order))

    def join(self, command: Sequence[str]) -> Start:
        if (step := self.proof().step) is None:
            raise lost("its step is not known")
        # It joins the namespaces (pyxis, exec.bats); a container without a name is called after the step that made it.
        spec, name = self.order.spec, f"--container-name={self.order.spec.name or step}"
        root = "--container-remap-root" if spec.remap_root else "--no-container-remap-root"
        return Start(([*_step(step.partition(".")[0], self.order.node), name, root, *command],))

    def remove(self) -> list[str]:
        """Remove what pyxis keeps for ever (container_scope=global), if it has a name.

        Where the entry script did not run, somebody else may have made it: it is told.
        """
        order = self.order
        if order.spec.name is None or order.folder is None:
            return []
        entered = order.files.entered.exists()
        if not entered and not order.files.free.exists():
            return []
        if not shutil.which("enroot"):
            return [f"container {order.name}: there is no enroot on PATH that could remove it"]
        left = roots(order, self.env)
        if not entered:
            return [f"container {root}: remove it if nobody else made it: `enroot remove {root}`" for root in left]
        for root in left:
            process.run(remove_argv(root), env=enroot_env(self.env), timeout_s=600)
        kept = roots(order, self.env)
        if not kept:
            order.local.claim(order.name, order.node).unlink(missing_ok=True)
        return [f"container {root}" for root in kept]
