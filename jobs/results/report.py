"""The report of a sweep: all that its page shows, as plain data, and the page itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from jobs.core import chinese
from jobs.core.fields import dotted
from jobs.core.files import write_text
from jobs.core.records import tolerant
from jobs.core.rundir import SweepDir
from jobs.core.tasks import read_head
from jobs.engines.base import is_simulated
from jobs.results import columns, page, sections, slo, verdict
from jobs.results.columns import LOADS, STARRED, key_of, load_of, low_is_best
from jobs.results.curves import LENGTHS_FOR_LINE, fit
from jobs.results.fingerprint import NAMES
from jobs.results.gather import Run, read_run
from jobs.results.search import answer_of

LENGTHS = ("bench.input_tokens", "parallel.max_model_len")
"""Keys that are a context length, tokens."""

CURVES = ("ttft_ms_p50", "tpot_ms_p50", "output_tok_per_s")

DATA_VERSION = 1
"""Version of the form of `data`."""


def data(run: Run) -> dict[str, Any]:
    """Return everything that a report shows. Pure data: JSON without NaN; paths of this machine do not appear."""
    spoken = verdict.speculation(run)
    told = [run.plan.presets.get(row["point"], {}) for row in run.rows]
    shown = columns.by_preset(run.swept, told, run.rows[0] if run.rows else ())
    found = {
        "data_version": DATA_VERSION,
        "name": run.name,
        "simulated": sum(is_simulated(row["engine"]) for row in run.rows),
        "swept": list(dict.fromkeys(shown.values())),
        "lengths": [key for key in LENGTHS if key in run.swept],
        "search": answer_of(run.sweep),
        "verdict": asdict(verdict.judge(run, spoken)),
        "objective": {"column": verdict.objective(run), "low_is_best": low_is_best(verdict.objective(run))},
        "starred": {name: "low" if low_is_best(name) else "high" for name in STARRED},
        "speculation": [
            {"setting": line.setting, "drafted": line.drafted, **one} for line in spoken for one in line.rows
        ],
        "slo": next((found for row in run.rows if (found := slo.limits(run, row))), {}),
        "example": slo.EXAMPLE,
        "largest": largest_loads(run),
        "plan": sections.against_plan(run),
        "rows": [
            _shown(run, row) | {name: columns.preset_of(one, key) for key, name in shown.items() if name != key}
            for row, one in zip(run.rows, told, strict=True)
        ],
        "curves": curves(run),
        "lengths_for_line": LENGTHS_FOR_LINE,
        "time": sections.time_by_phase(run),
        "balance": sections.balance(run),
        "failures": sections.failures(run),
        "notices": sections.notices(run),
        "memory": sections.memory(run),
        "provenance": provenance(run),
        "skipped": [{"what": Path(one.what).name, "reason": one.reason} for one in run.skipped],
    }
    return dict(_finite(found | {"zh": chinese_of(found)}))


def chinese_of(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the Chinese of every text in the data of a report that people read: reasons, notes, a search's words."""
    rows = [row.get(name) for row in found["rows"] for name in ("invalid_reason", "notes", "unexpected")]
    said = [value for one in found["verdict"]["sentences"] for value in one["values"].values()]
    asked = found["search"]
    of_search = (*(one["out"] for one in asked.get("settings", ())), *asked.get("ruled_out", {}).values())
    texts = {
        *(one["reason"] for one in (*found["failures"], *found["skipped"])),
        *(one["text"] for one in found["notices"]),
        *(asked.get("why"), *of_search, *rows, *said),
    }
    rest = sorted(text for text in texts if isinstance(text, str))
    diagnoses = list(dict.fromkeys(one["diagnosis"] for one in found["failures"] if one["diagnosis"]))
    known = [*zip(rest, chinese.in_time(rest, chinese.ALL.translated), strict=True)]
    known += zip(diagnoses, chinese.in_time(diagnoses, chinese.diagnosis), strict=True)
    return {text: said for text, said in known if said != text}


def _shown(run: Run, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with what its plots need: its length, its load, and the name of the series it belongs to."""
    return {name: value for name, value in row.items() if value is not None} | {
        "_load": load_of(run, row),
        "_load_key": key_of(run, row),
        "_p99": slo.p99(run, row) if row["valid"] and any(key in run.swept for key in LENGTHS) else {},
        "_lengths": {key: run.value(row, key) for key in LENGTHS},
        "_work": columns.setting_text(tuple(key for key in run.swept if columns.is_work(key)), row),
        "_setting": series(run, row, leave_out=(*LOADS, *(key for key in run.swept if columns.is_work(key)))),
        "_series": series(run, row, leave_out=LOADS),
        "_simulated": is_simulated(row["engine"]),
    }


def series(run: Run, row: Mapping[str, Any], leave_out: tuple[str, ...]) -> str:
    """Return the name of the line that a row belongs to: other swept values, and whether it is simulated."""
    told = run.plan.presets.get(row["point"], {})
    asked = (key for key in run.swept if key not in leave_out)
    words = list(dict.fromkeys(told.get(key) or f"{key.rpartition('.')[2]}={row[key]}" for key in asked))
    if is_simulated(row["engine"]):
        words.append("(simulator)")
    return " ".join(words)


def curves(run: Run) -> list[dict[str, Any]]:
    """Return each figure of CURVES against each swept context length: points, and a curve where they are enough.

    Rows that differ in anything but the length stand in different series. Invalid rows have no point, nor have those
    of a queue that grew: how long was measured is in their figures.
    """
    found = []
    for key in (name for name in LENGTHS if name in run.swept):
        for column in CURVES:
            lines: dict[str, list[tuple[float, float]]] = {}
            for row in run.rows:
                if row["valid"] and not row.get("saturated") and isinstance(row.get(column), int | float):
                    lines.setdefault(series(run, row, (key,)), []).append((row[key], row[column]))
            for name, points in lines.items():
                xs, ys = zip(*sorted(points), strict=True)
                curve = fit(xs, ys, rate=not low_is_best(column))
                found.append({
                    "key": key,
                    "column": column,
                    "series": name,
                    "x": list(xs),
                    "y": list(ys),
                    "curve": asdict(curve) if curve else None,
                })  # fmt: skip
    return found


def largest_loads(run: Run) -> list[dict[str, Any]]:
    """Return the largest load within the objective against each swept context length, as `curves` does.

    Where no objective is set, the example stands for it. A length at which no valid row tells has None, a gap: it is
    not the same as 0, a length at which every load breaks the objective.
    """
    asked = None if slo.is_set(run) else slo.EXAMPLE
    found = []
    for key in (name for name in LENGTHS if name in run.swept):
        lines: dict[str, dict[float, list[float | None]]] = {}
        for row in (row for row in run.rows if row["valid"]):
            line = lines.setdefault(series(run, row, (key, key_of(run, row))), {})
            line.setdefault(row[key], []).append(slo.largest(run, row, asked))
        for name, line in lines.items():
            xs = sorted(line)
            ys = [_most(line[x]) for x in xs]
            # 0 is less than the least load that was measured, no figure that a curve could go through.
            told = [(x, y) for x, y in zip(xs, ys, strict=True) if y]
            curve = fit(*zip(*told, strict=True), rate=True) if told else None
            found.append({"key": key, "series": name, "x": xs, "y": ys, "curve": asdict(curve) if curve else None})
    return found


def _most(loads: list[float | None]) -> float | None:
    """Return the largest load that keeps the objective; None: none is known to, and not all are known not to."""
    most = max((load for load in loads if load is not None), default=None)
    return None if not most and None in loads else most


def provenance(run: Run) -> dict[str, Any]:
    """Return with what the sweep was made: tool, config, nodes, image, and what each rank's process really had."""
    ranks = []
    for service, folder in sections.attempts(run):
        for rank in folder.ranks():
            intended, real = tolerant(rank.command), tolerant(rank.effective)
            if argv := real.get("argv") or intended.get("argv"):
                ranks.append({
                    "service": service,
                    "attempt": int(folder.path.name),
                    "rank": rank.path.name,
                    "argv": argv,
                    "effective": bool(real),
                    "env": real.get("env") or {},
                    "differences": real.get("differences") or [],
                })  # fmt: skip
    heads = [sections.told(read_head, allocation) for allocation in run.sweep.allocations()]
    return {
        "tool": tolerant(run.sweep.provenance),
        "releases": sorted({f"{row['engine']} {row['release']}" for row in run.rows}),
        "image": dotted(run.config, "container.image"),
        "seen": _seen(run),
        "nodes": sorted({f"{head.host} ({head.address})" for head in heads if head}),
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
        "ranks": ranks,
    }


def _seen(run: Run) -> dict[str, list[str]]:
    """Return what the rows say of versions and digests (fingerprint.py): every value that there is."""
    found = {name: {str(row[name]) for row in run.rows if row.get(name) is not None} for name in NAMES}
    return {name: sorted(values) for name, values in found.items() if values}


def write_report(sweep: SweepDir, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Write report.html beside the table, say its first sentence, and return its path; of a sweep that this user may
    only read it is not written.

    Raises:
        RunError: the plan cannot be read, or the report cannot be written.
    """
    shown = data(read_run(sweep.path))
    if sweep.writable:
        write_text(sweep.report, page.render(shown))
    tell(page.worded(shown["verdict"]["sentences"][0]))
    return sweep.report


def _finite(value: Any) -> Any:
    """Return plain JSON data: NaN and infinity become None, numpy scalars Python's own numbers."""
    if isinstance(value, Mapping):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else json.loads(json.dumps(value, default=str))
