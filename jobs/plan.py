"""Points to services to allocations: fewest engine starts, within the time limit. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from jobs import schema
from jobs.config import Config
from jobs.errors import ConfigError
from jobs.service import checks, command, environment, placement

START_S = 120.0
"""Seconds of an engine start that do not depend on the weights: imports, graph capture, warm-up."""


@dataclass(frozen=True)
class Point:
    """One fully resolved configuration: one row of the table. `values` holds the swept keys."""

    point: str
    service: str
    overrides: tuple[str, ...]
    values: Mapping[str, Any]
    config: Config


@dataclass(frozen=True)
class Service:
    """One start of the engine and the points it serves, in the order of measuring."""

    service: str
    points: tuple[str, ...]
    config: Config
    seconds: float


@dataclass(frozen=True)
class Allocation:
    """One Slurm job and the services that it runs one after the other."""

    services: tuple[str, ...]
    nodes: int
    seconds: float

    @property
    def node_hours(self) -> float:
        """Predicted use, in node-hours."""
        return self.nodes * self.seconds / 3600


@dataclass(frozen=True)
class Plan:
    """What one sweep will do."""

    points: tuple[Point, ...]
    services: tuple[Service, ...]
    allocations: tuple[Allocation, ...]
    swept: tuple[str, ...]
    asked: tuple[str, ...] = ()
    """The point of every override list, in their order: two lists may ask for the same point."""

    def points_of(self, service: str) -> tuple[Point, ...]:
        """Return the points of one service in the order of measuring."""
        by_id = {point.point: point for point in self.points}
        chosen = next(item for item in self.services if item.service == service)
        return tuple(by_id[point] for point in chosen.points)


def identity(config: Config, *scopes: str) -> str:
    """Return a short hash of the leaves that belong to these scopes: same question, same name (design.md)."""
    tree = asdict(config)
    leaves = {key: _get(tree, key) for key, scope in schema.schema().items() if scope in scopes}
    return hashlib.sha256(_canonical(leaves).encode()).hexdigest()[:10]


def make_plan(overrides: Sequence[Sequence[str]], configs: Sequence[Config], swept: Sequence[str]) -> Plan:
    """Group points into services and services into allocations.

    Args:
        overrides: override list of each point.
        configs: resolved config of each point, same order.
        swept: keys whose overrides differ between points; a key of scope `sweep` is refused.

    Raises:
        ConfigError: a config that cannot work, a swept key that does not change the question, points that want
            different clusters.
    """
    leaves = _swept_leaves(swept, configs)
    _check_one_cluster(configs)
    points: dict[str, Point] = {}
    asked: list[str] = []
    for words, config in zip(overrides, configs, strict=True):
        checks.check(config)
        tree = asdict(config)
        point = Point(
            point=identity(config, "service", "point"),
            service=identity(config, "service"),
            overrides=tuple(words),
            values={key: _get(tree, key) for key in leaves},
            config=config,
        )
        points.setdefault(point.point, point)
        asked.append(point.point)
    services = _services(tuple(points.values()))
    return Plan(tuple(points.values()), services, pack(services), leaves, tuple(asked))


def _check_one_cluster(configs: Sequence[Config]) -> None:
    """Refuse points of which an experiment or a group wants another cluster: one sweep is asked for in one way."""
    first = configs[0]
    for config in configs[1:]:
        for section in ("cluster", "results", "launch"):
            if (one := getattr(config, section)) != (other := getattr(first, section)):
                name = next(f.name for f in fields(one) if getattr(one, f.name) != getattr(other, f.name))
                raise ConfigError(
                    f"{section}.{name}",
                    f"{getattr(other, name)} and {getattr(one, name)}",
                    "the points of one sweep differ in it",
                    "Give it one value, or start one sweep for each.",
                )


def _swept_leaves(swept: Sequence[str], configs: Sequence[Config]) -> tuple[str, ...]:
    """Return the keys that stand in the table: the swept keys, a swept group by every leaf that differs."""
    leaves: list[str] = []
    trees = [asdict(config) for config in configs]
    for key in swept:
        leaf = schema.leaf_of(key)
        scopes = {scope for name, scope in schema.schema().items() if name == leaf or name.startswith(key + ".")}
        if scopes == {"sweep"}:
            raise ConfigError(
                key,
                "(swept)",
                "it belongs to the whole sweep and does not change what is asked",
                "Give it one value, and start one sweep for each further value.",
            )
        if leaf is not None:
            leaves.append(key)
            continue
        # A swept group (parallel=dp2_tp8,dp4_tp4; engine=...; experiment=...) may set keys of every section.
        prefix = key + "." if "." in key else ""
        for name, scope in schema.schema().items():
            wanted = name.startswith(prefix) and scope != "sweep"
            if wanted and len({_canonical(_get(tree, name)) for tree in trees}) > 1:
                leaves.append(name)
    return tuple(dict.fromkeys(leaves))


def _services(points: Sequence[Point]) -> tuple[Service, ...]:
    """Group points by their service, in order of first appearance; inside a service from low to high load."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.service, []).append(point)
    services = []
    for name, members in groups.items():
        ordered = sorted(members, key=lambda p: (p.config.bench.concurrency or 0, p.config.bench.request_rate or 0))
        config = ordered[0].config
        seconds = load_seconds(config) + sum(measure_seconds(p.config) for p in ordered)
        services.append(Service(name, tuple(p.point for p in ordered), config, seconds))
    return tuple(services)


def load_seconds(config: Config) -> float:
    """Predict seconds from start to ready: every node reads the whole checkpoint once, plus a fixed part."""
    if config.engine.name == "simulator":
        return config.engine.rehearsal.load_s + 2
    gib = config.model.shape.weight_gib
    return START_S + gib * 1.0737 / config.cluster.model_read_gb_s


def measure_seconds(config: Config) -> float:
    """Predict seconds of one point: warm-up, window, and a quarter window for the drain."""
    return config.bench.warmup_s + 1.25 * config.bench.window_s


def pack(services: Sequence[Service]) -> tuple[Allocation, ...]:
    """Pack services, in order, into as few allocations as time limit, number of nodes and network card allow."""
    allocations: list[Allocation] = []
    card: str | None = None
    for service in services:
        nodes = len(placement.local_sizes(service.config))
        limit = limit_seconds(service.config.cluster.time_limit)
        last = allocations[-1] if allocations and card == service.config.hccl.socket_ifname else None
        card = service.config.hccl.socket_ifname
        if last and last.nodes == nodes and (limit is None or last.seconds + service.seconds <= limit):
            allocations[-1] = Allocation((*last.services, service.service), nodes, last.seconds + service.seconds)
        else:
            allocations.append(Allocation((service.service,), nodes, service.seconds))
    return tuple(allocations)


WEEK_MIN = 7 * 24 * 60

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


def limit_seconds(time_limit: int | str | None) -> int | None:
    """Return a Slurm time limit in seconds: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S (sbatch(1), --time).

    None is no limit; so is zero, as in sbatch(1).

    Raises:
        ConfigError: it is none of these.
    """
    if time_limit is None or str(time_limit).upper() in ("UNLIMITED", "INFINITE"):
        return None
    match = _TIME.fullmatch(str(time_limit))
    if not match:
        raise ConfigError(
            "cluster.time_limit",
            time_limit,
            "it is not a Slurm time",
            "Write minutes, H:MM:SS or D-HH:MM:SS.",
        )
    if str(time_limit).isdigit() and int(str(time_limit)) > WEEK_MIN:
        # YAML reads an unquoted 8:00:00 as the number 28800.
        raise ConfigError(
            "cluster.time_limit",
            time_limit,
            "it is more than a week of minutes: perhaps YAML read H:MM:SS as a number",
            'Quote it ("8:00:00"), or write D-HH:MM:SS.',
        )
    days, first, second, third = (
        int(part) if part else None for part in match.group("days", "first", "second", "third")
    )
    if days is not None:
        return (days * 86400 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0)) or None
    if third is not None:
        return ((first or 0) * 3600 + (second or 0) * 60 + third) or None
    return ((first or 0) * 60 + (second or 0)) or None


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain data (issue 2: the form of `python -m jobs plan --json`)."""
    return {
        "points": [
            {
                "point": point.point,
                "overrides": list(point.overrides),
                "service": point.service,
                "values": dict(point.values),
            }
            for point in plan.points
        ],
        "services": [
            {
                "service": service.service,
                "points": list(service.points),
                "predicted_s": round(service.seconds),
                "ranks": [
                    {
                        "rank": place.rank,
                        "role": place.role,
                        "env": environment.variables(service.config, place),
                        "source": list(service.config.engine.source),
                        "argv": command.argv(service.config, place),
                    }
                    for place in placement.planned(service.config)
                ],
            }
            for service in plan.services
        ],
        "allocations": [
            {
                "services": list(allocation.services),
                "nodes": allocation.nodes,
                "predicted_s": round(allocation.seconds),
                "node_hours": round(allocation.node_hours, 3),
            }
            for allocation in plan.allocations
        ],
        "swept": list(plan.swept),
    }


def _canonical(value: Any) -> str:
    """Return the same text for the same value, whatever the order of its keys."""
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{_canonical(k)}:{_canonical(v)}" for k, v in value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_canonical(item) for item in value) + "]"
    return json.dumps(value, default=str)


def _get(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value
