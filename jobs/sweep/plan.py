"""Points to services to allocations: fewest engine starts, within time limit and budget. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

from jobs.allocation.node import container
from jobs.cluster.time_limit import limit_seconds
from jobs.core import schema
from jobs.core.config import Config, in_container
from jobs.core.errors import ConfigError
from jobs.core.layout import local_sizes
from jobs.engines import placement
from jobs.engines.vllm import command, environment
from jobs.forecast.duration import Phases
from jobs.forecast.history import Forecast
from jobs.sweep import check
from jobs.sweep.check import Shared
from jobs.sweep.grouping import Dropped, group, refusals, unknown, warnings, within_budget
from jobs.sweep.grouping import Point as Point
from jobs.sweep.grouping import Service as Service


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
    """What one sweep will do.

    Attributes:
        refused: points that get a row with this reason and are not run, since they cannot fit
            (`launch.infeasible=drop`).
        dropped: points that get no row (`launch.budget_node_hours`).
        warnings: what will be measured, or may fail, and is perhaps not meant.
    """

    points: tuple[Point, ...]
    services: tuple[Service, ...]
    allocations: tuple[Allocation, ...]
    swept: tuple[str, ...]
    asked: tuple[str, ...] = ()
    """The point of every override list, in their order: two lists may ask for the same point."""
    refused: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Shared, ...]:
        """What is risky with the points, each once."""
        return check.shared(point.findings for point in self.points)

    def points_of(self, service: str) -> tuple[Point, ...]:
        """Return the points of one service in the order of measuring."""
        return self._points_of[service]

    @cached_property
    def _points_of(self) -> Mapping[str, tuple[Point, ...]]:
        by_id = {point.point: point for point in self.points}
        return {service.service: tuple(by_id[name] for name in service.points) for service in self.services}


def identity(config: Config, *scopes: str) -> str:
    """Return a short hash of the leaves that belong to these scopes: same question, same name."""
    leaves = {key: _get(config, key) for key, scope in schema.schema().items() if scope in scopes}
    return hashlib.sha256(_canonical(leaves).encode()).hexdigest()[:10]


def make_plan(
    overrides: Sequence[Sequence[str]],
    configs: Sequence[Config],
    swept: Sequence[str],
    look: Callable[[Config], Forecast] = unknown,
) -> Plan:
    """Group points into services and services into allocations.

    Args:
        overrides: override list of each point.
        configs: resolved config of each point, same order.
        swept: keys whose overrides differ between points; a key of scope `sweep` is refused.
        look: says what is known of a service before it starts; asked once for each.

    Raises:
        ConfigError: a config that cannot work, a swept key that does not change the question, points that want
            different clusters, a service that cannot fit (`launch.infeasible=fail`), a budget for nothing.
    """
    leaves = _swept_leaves(swept, configs)
    points: dict[str, Point] = {}
    every: list[Point] = []
    for words, config in zip(overrides, configs, strict=True):
        found = check.findings(config)
        check.refuse(found)
        point = Point(
            point=identity(config, "service", "point"),
            service=identity(config, "service"),
            overrides=tuple(words),
            values={key: _plain(_get(config, key)) for key in leaves},
            config=config,
            findings=found,
        )
        points.setdefault(point.point, point)
        every.append(point)
    refuse_unlike([(point.config, point.service) for point in every])
    _check_effect(leaves, tuple(points.values()))
    launch = configs[0].launch
    grouped = group(tuple(points.values()), look)
    refused: dict[str, str] = {}
    if launch.infeasible != "keep":
        refused = refusals(grouped, fail=launch.infeasible == "fail")
    feasible = tuple(service for service in grouped if service.points[0] not in refused)
    services, dropped = within_budget(feasible, points, launch.budget_node_hours)
    gone = {one.point.point for one in dropped}
    return Plan(
        points=tuple(point for point in points.values() if point.point not in gone),
        services=services,
        allocations=pack(services),
        swept=leaves,
        asked=tuple(point.point for point in every),
        refused=refused,
        dropped=dropped,
        warnings=warnings(services, points),
    )


def refuse_unlike(asked: Sequence[tuple[Config, str]]) -> None:
    """Refuse points, each with its service, that a group makes differ in what belongs to the whole sweep.

    What a service or a load has of such keys (engine.port, container.name) may differ between services: each is started
    with its own.
    """
    keys = [key for key, scope in schema.schema().items() if scope == "sweep"]
    mixed = {key.partition(".")[0] for key, scope in schema.schema().items() if scope != "sweep"}
    of_all = [key for key in keys if key.partition(".")[0] not in mixed]
    of_service = [key for key in keys if key not in of_all]
    _refuse_other([config for config, _ in asked], of_all)
    members: dict[str, list[Config]] = {}
    for config, service in asked:
        members.setdefault(service, []).append(config)
    for configs in members.values():
        _refuse_other(configs, of_service)


def _refuse_other(configs: Sequence[Config], keys: Sequence[str]) -> None:
    """Raise ConfigError for the first of these keys in which a config differs from the first one."""
    values = attrgetter(*keys)
    first = values(configs[0])
    for config in configs[1:]:
        if (other := values(config)) != first:
            key, one, two = next(found for found in zip(keys, first, other, strict=True) if found[1] != found[2])
            reason = "the points of one sweep differ in it"
            raise ConfigError(key, f"{one} and {two}", reason, "Give it one value, or start one sweep for each.")


def _swept_leaves(swept: Sequence[str], configs: Sequence[Config]) -> tuple[str, ...]:
    """Return the keys that stand in the table: the swept keys, a swept group by every leaf that differs."""
    leaves: list[str] = []
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
            if wanted and _differs(configs, name):
                leaves += _parts(configs, name)
    return tuple(dict.fromkeys(leaves))


def _check_effect(swept: Sequence[str], points: Sequence[Point]) -> None:
    """Refuse two points that differ in nothing that their release reads: two loads would measure the same (N5)."""
    unread: dict[str, set[str]] = {}
    for point in points:
        keys = {found.key for found in point.findings if found.rule == "N5" and found.key in swept}
        unread.setdefault(point.config.engine.release, set()).update(keys)
    seen: dict[str, Point] = {}
    for point in points:
        without = unread[point.config.engine.release]
        if not without:
            continue
        rest = {key: value for key, value in point.values.items() if key not in without}
        other = seen.setdefault(_canonical(rest | {"": point.config.engine.release}), point)
        key = next((one for one in swept if one in without and other.values.get(one) != point.values.get(one)), None)
        if key is not None:
            raise ConfigError(
                key,
                f"{other.values.get(key)} and {point.values.get(key)}",
                f"vllm-ascend {point.config.engine.release} does not read it: points that differ in it alone would"
                " load the engine again and measure the same",
                "Sweep what this release reads; the files of conf/moe name their releases.",
            )


def _differs(configs: Sequence[Config], name: str) -> bool:
    return len({_canonical(_get(config, name)) for config in configs}) > 1


def _parts(configs: Sequence[Config], name: str) -> list[str]:
    """Return the keys of an open mapping (`engine.env`) that differ; of any other leaf the leaf itself."""
    values = [_get(config, name) for config in configs]
    if name not in schema.open_mappings() or not all(isinstance(value, Mapping) for value in values):
        return [name]
    keys = dict.fromkeys(str(key) for value in values for key in value)
    return [f"{name}.{key}" for key in keys if "." not in key and _differs(configs, f"{name}.{key}")] or [name]


def pack(services: Sequence[Service]) -> tuple[Allocation, ...]:
    """Pack services, in order, into as few allocations as time limit, number of nodes and network interface allow."""
    allocations: list[Allocation] = []
    interface: str | None = None
    for service in services:
        nodes = len(local_sizes(service.config))
        limit = limit_seconds(service.config.cluster.time_limit)
        last = allocations[-1] if allocations and interface == service.config.hccl.socket_ifname else None
        interface = service.config.hccl.socket_ifname
        if last and last.nodes == nodes and (limit is None or last.seconds + service.seconds <= limit):
            allocations[-1] = Allocation((*last.services, service.service), nodes, last.seconds + service.seconds)
        else:
            allocations.append(Allocation((service.service,), nodes, service.seconds))
    return tuple(allocations)


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain data (the form of `python -m jobs plan --json`)."""
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
                "engine": service.config.engine.name,
                "release": service.config.engine.release,
                "predicted_s": round(service.seconds),
                "phases": _phases_json(service.phases),
                "memory": _memory_json(service.forecast),
                "ranks": [
                    {
                        "rank": place.rank,
                        "role": place.role,
                        "env": environment.variables(service.config, place),
                        "source": list(service.config.engine.source),
                        "argv": command.argv(service.config, place),
                    }
                    | _container(service.config, place)
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
        "refused": [{"point": point, "reason": reason} for point, reason in plan.refused.items()],
        "dropped": [
            {
                "point": one.point.point,
                "overrides": list(one.point.overrides),
                "values": dict(one.point.values),
                "reason": one.reason,
            }
            for one in plan.dropped
        ],
        "warnings": list(plan.warnings),
    }


def _phases_json(spent: Phases | None) -> dict[str, Any] | None:
    """Return the phases with whole seconds."""
    if spent is None:
        return None
    seconds = {f"{name}_s": round(value) for name, value in asdict(spent).items() if name != "source"}
    return seconds | {"source": spent.source}


def _memory_json(forecast: Forecast | None) -> dict[str, Any] | None:
    """Return what is known of a service's memory; `unknown` says why there is no sum."""
    if forecast is None:
        return None
    made = forecast.fit.prediction
    if made is None:
        return {"unknown": forecast.fit.unknown}
    return {
        "predicted_kv_tokens": made.kv_tokens_per_rank,
        "largest_max_model_len": made.largest_max_model_len,
        "uncertainty_gib": round(made.uncertainty_bytes / (1 << 30), 2),
        "allowance_source": made.allowance.source,
    }


def _container(config: Config, place: placement.Placement) -> dict[str, Any]:
    """Return the commands of a rank's container, where there is one."""
    if not in_container(config):
        return {}
    variables = environment.variables(config, place)
    return {"container": container.planned(config, place, command.argv(config, place), variables)}


def _canonical(value: Any) -> str:
    """Return the same text for the same value, whatever the order of its keys."""
    if value is None or isinstance(value, int):  # most leaves; json.dumps says the same
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{_canonical(k)}:{_canonical(v)}" for k, v in value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_canonical(item) for item in value) + "]"
    return json.dumps(value, default=str)


def _get(config: Config, key: str) -> Any:
    """Return a leaf by its dotted name, or an entry of an open mapping; None where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    return value


def _plain(value: Any) -> Any:
    """Return lists for tuples, as they stand in a plan."""
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items()}
    return [_plain(child) for child in value] if isinstance(value, list | tuple) else value
