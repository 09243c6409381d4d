"""Container images: import once for all nodes, list, verify, prune."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict

from containers import apptainer, enroot, imports
from containers.base import check_programs
from containers.spec import recipes, resolve
from containers.store import Store
from jobs.allocation.node import container
from jobs.cli import OVERRIDES, Command
from jobs.cli.output import tell
from jobs.core import session
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.sweep import compose, grammar

DAY_S = 86_400.0


def _image(options: argparse.Namespace) -> int:
    # What a person types is IMAGE and overrides in any order; an override has a "=" in it.
    given = [*([options.image] if options.image else []), *options.overrides]
    overrides = [text for text in given if "=" in text]
    names = [text for text in given if "=" not in text]
    grammar.check(overrides)
    [config] = compose.configs([grammar.ours(overrides)])
    return ACTIONS[options.action](options, config, names)


def _import(options: argparse.Namespace, config: Config, names: list[str]) -> int:
    named = names or ([config.container.image] if config.container.image else [])
    if not named:
        known = ", ".join(recipes())
        raise ConfigError("IMAGE", None, "no image is named", f"Name one, or a recipe: {known}.")
    local, env = container.local(config, container.Words.here()), dict(os.environ)
    store = Store(container.images(config))
    made = []
    for name in named:
        image = resolve(name, config.container.registry)
        if image.path:
            raise ConfigError("IMAGE", name, "it is a file already", "Use it as container.image.")
        if image.remote and image.registry is None:
            remedy = "Set container.registry=HOST, or write HOST#image:tag."
            raise ConfigError("container.registry", None, f"{name} names no registry", remedy)
        check_programs(enroot.Enroot())
        with session.orderly():
            made.append(enroot.imported(store, image, local, env, options.arch, options.refresh))
    if options.json:
        print(json.dumps([asdict(entry) for entry in made]))
    else:
        print("\n".join(f"{entry.reference}\n  {entry.digest}\n  {entry.path}" for entry in made))
    return 0


def _stores(config: Config) -> tuple[Store, ...]:
    """Return the stores of both forms of image files."""
    folder = container.images(config)
    return (Store(folder), apptainer.store(folder))


def _list(options: argparse.Namespace, config: Config, names: list[str]) -> int:
    entries = [entry for store in _stores(config) for entry in store.entries()]
    if options.json:
        found = {"images": [asdict(entry) for entry in entries]}
        print(json.dumps(found | {"recipes": {tag: asdict(recipe) for tag, recipe in recipes().items()}}))
        return 0
    for entry in entries:
        tell(f"{entry.reference} ({entry.arch})  {entry.bytes / 2**30:.2f} GiB\n  {entry.digest}\n  {entry.path}")
    for tag, recipe in recipes().items():
        tell(f"recipe {tag}: {recipe.repository}:{recipe.tag}, vllm-ascend {recipe.release}, CANN {recipe.cann}")
    return 0


def _verify(options: argparse.Namespace, config: Config, names: list[str]) -> int:
    wanted = {str(resolve(name, config.container.registry)) for name in names}
    every = [(store, entry) for store in _stores(config) for entry in store.entries()]
    entries = [entry for _, entry in every if not wanted or entry.reference in wanted]
    found = [(entry, store.verify(entry)) for store, entry in every if entry in entries]
    missing = sorted(wanted - {entry.reference for entry in entries})
    if options.json:
        results = [{"reference": entry.reference, "path": entry.path, "problem": problem} for entry, problem in found]
        results += [{"reference": name, "path": None, "problem": "it is not imported"} for name in missing]
        print(json.dumps(results))
    else:
        for entry, problem in found:
            tell(f"{entry.reference}: {problem or 'good'} ({entry.path})")
        for name in missing:
            tell(f"{name}: it is not imported")
        if not every:
            tell(f"no image is imported in {container.images(config)}")
    return 1 if missing or any(problem for _, problem in found) else 0


def _prune(options: argparse.Namespace, config: Config, names: list[str]) -> int:
    older_s = None if options.older_days is None else options.older_days * DAY_S
    removed = [name for store in _stores(config) for name in store.prune(older_s)]
    local = container.local(config, container.Words.here())
    removed += [str(local.temp / name) for name in imports.sweep(local.temp)]
    removed += [str(local.data / name) for name in enroot.Enroot().sweep(local, os.environ, lambda _: None)]
    print(json.dumps({"removed": removed})) if options.json else tell("\n".join(removed) or "nothing to remove")
    return 0


ACTIONS = {"import": _import, "list": _list, "verify": _verify, "prune": _prune}

COMMANDS = (
    Command(
        "image",
        _image,
        "container images: import once for all nodes, list, verify by content, prune what is left over",
        (
            ("action", {"choices": tuple(ACTIONS), "help": "what to do"}),
            ("image", {"nargs": "?", "metavar": "IMAGE", "help": "a reference, or the tag of a recipe"}),
            OVERRIDES,
            ("--arch", {"help": "import: as `uname -m` says it on the nodes; by default this host's"}),
            ("--refresh", {"action": "store_true", "help": "import: ask the registry whether the tag has moved since"}),
            ("--older-days", {"type": float, "help": "prune: remove images that were imported longer ago as well"}),
        ),
    ),
)
