"""Before anything is submitted: what is wrong or risky, and what another release changes."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from jobs.allocation.node import container
from jobs.cli import OVERRIDES, Argument, Command
from jobs.cli.output import tell
from jobs.core import chinese, session
from jobs.core.config import Config, in_container
from jobs.core.errors import ConfigError
from jobs.engines.ascend.real import ask, image, sources
from jobs.engines.base import Finding, engine_of
from jobs.sweep import check, compose, road, show, space
from jobs.sweep.check import Shared


def judge(points: Sequence[Sequence[str]], composer: compose.Composer = compose.default_composer) -> tuple[Shared, ...]:
    """Return the findings of all points, errors first; a point that cannot be composed is a finding too."""

    @functools.cache
    def once(groups: tuple[str, ...]) -> DictConfig:
        return composer(list(groups))

    def judged(overrides: Sequence[str]) -> tuple[Finding, ...]:
        try:
            [config] = compose.configs([overrides], lambda groups: once(tuple(groups)))
        except ConfigError as error:
            return (Finding.of(error),)
        return (*check.findings(config, memory=True), *check.unused_image(config, overrides))

    return check.shared(judged(overrides) for overrides in points)


def as_json(found: Sequence[Shared], points: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the findings as plain data, each with the override lists of its points."""
    errors = sum(one.finding.severity == "error" for one in found)
    return {
        "points": len(points),
        "errors": errors,
        "warnings": len(found) - errors,
        "findings": [asdict(one.finding) | {"points": [list(points[i]) for i in one.points]} for one in found],
    }


def _check(options: argparse.Namespace) -> int:
    points = compose.expand(options.overrides)
    found = judge(points)
    if not any(one.finding.severity == "error" for one in found):
        found = (*_together(options.overrides, points), *found)
    if not options.json:
        found = check.alike_as_one(found)
    errors = sum(one.finding.severity == "error" for one in found)
    wanted, real = options.real or options.real_packages, list[dict[str, Any]]()
    if not options.json:
        for one in found:
            print(text(one, points))
        wrong = f"{show.count(errors, 'error')}, {show.count(len(found) - errors, 'warning')}"
        tell(f"{show.count(len(points), 'point')}: {wrong}")
    with session.orderly():
        for point in _real(points, packages=options.real_packages) if wanted and not errors else ():
            real.append(point)
            if not options.json:
                _tell_real(point)
    if options.json:
        asked = {"real": None if errors else real} if wanted else {}
        print(json.dumps(as_json(found, points) | asked, default=str))
    refused = any(rank is not None for point in real for rank in point["ranks"])
    return 2 if errors or refused else 0


def _tell_real(point: dict[str, Any]) -> None:
    """Say what the real code makes of a point, and where that code is."""
    tell(f"{' '.join(point['overrides']) or '(the defaults)'}: vllm-ascend {point['release']}")
    versions = f"vllm {point['vllm'] or '?'}, vllm-ascend {point['vllm_ascend'] or '?'}"
    if point["image"]:
        tell(f"    asked in the image {point['image']}: {versions}")
    else:
        tell(f"    asked of the published packages: {versions}")
    if point["left_out"]:
        tell(f"    without these mounts, which are not here: {', '.join(point['left_out'])}")
    if _differs(point):
        tell(f"    warning: that is not engine.release={point['release']}, for which the command line is made")
    for rank, refused in enumerate(point["ranks"]):
        said = "accepts it" if refused is None else f"refuses it: {refused}"
        tell(f"    rank {rank}: the real code {said}")


def _differs(point: dict[str, Any]) -> bool:
    """Whether the plugin of an image is another release than that of the point; what a build adds (+...) is none."""
    return bool(point["vllm_ascend"]) and point["vllm_ascend"].partition("+")[0] != point["release"]


def _together(overrides: Sequence[str], points: Sequence[Sequence[str]]) -> tuple[Shared, ...]:
    """Return why a plan, or a search, refuses points each of which could be asked: an objective, a budget, a space."""
    try:
        if any(text.lstrip("+").startswith("tune.space") for text in overrides):
            space.ask(overrides)
        else:
            road.plan(points)
    except ConfigError as error:
        return (Shared(Finding.of(error), tuple(range(len(points)))),)
    return ()


def text(one: Shared, points: Sequence[Sequence[str]]) -> str:
    """Return one finding in two lines: what and why; remedy and source."""
    finding, some = one.finding, show.of_points(one, points)
    words = chinese.error(finding.key, f"{finding.value}{some}", finding.reason, finding.remedy, "\n    ")
    return f"{chinese.printed(finding.severity)} {finding.rule}: {words} [{finding.source}]"


def _real(points: Sequence[Sequence[str]], *, packages: bool) -> Iterator[dict[str, Any]]:
    """Ask the real code of each point; yield by point why it refuses each rank (None: it accepts it), and where it is.

    That is the point's own image where it has a container, else the packages of its release, or if `packages`.
    """
    alike: dict[str, list[tuple[Sequence[str], Config]]] = {}
    for point, config in zip(points, compose.configs(points), strict=True):
        if not engine_of(config).traits.npus:
            raise ConfigError("engine", config.engine.name, "it has no vllm-ascend", "Set engine=vllm_ascend.")
        inside = in_container(config) and not packages
        alike.setdefault(repr(config.container) if inside else config.engine.release, []).append((point, config))
    for of_it in alike.values():  # it is imported once for all of them
        configs = [config for _, config in of_it]
        if in_container(configs[0]) and not packages:
            told = image.ask_points(container.of(configs[0]), container.order(configs[0]), configs)
            where: dict[str, Any] = {"image": told.image, "left_out": told.left_out, **told.packages}
            found = told.points
        else:
            release = configs[0].engine.release
            where = {"image": None, "left_out": (), "vllm": sources.engine_version(release), "vllm_ascend": release}
            found = ask.ask_points(release, configs)
        for (point, config), answers in zip(of_it, found, strict=True):
            ranks = [one.refused for one in answers]
            yield {"overrides": list(point), "release": config.engine.release, **where, "ranks": ranks}


REAL: Argument = (
    "--real",
    {
        "action": "store_true",
        "help": "also ask the real vLLM-Ascend, on this machine and without an NPU: that in the point's image where it "
        "has a container, else the packages that were published of its release; it takes minutes",
    },
)
PACKAGES: Argument = (
    "--real-packages",
    {"action": "store_true", "help": "the same, of the published packages, whether the point has a container or not"},
)
COMMANDS = (
    Command("check", _check, "list everything that is wrong or risky with these points", (OVERRIDES, REAL, PACKAGES)),
)
