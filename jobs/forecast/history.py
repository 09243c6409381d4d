"""What earlier runs of an engine, release, model and layout showed: memory and times, one small file a layout.

After each run the figures of the log are set beside the prediction. What they leave for activations and HCCL buffers
is the allowance of the next prediction of that layout; the times are those of the next plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.core.config import Config
from jobs.core.errors import ConfigError, RunError
from jobs.core.fields import Section
from jobs.core.files import write_json
from jobs.core.foreign import SMALL, load_form
from jobs.core.records import Number, Seconds
from jobs.core.rundir import Root
from jobs.engines.base import EngineLog, Load
from jobs.engines.checkpoint.architecture import required
from jobs.engines.layout_name import layout_name, layout_of
from jobs.engines.prediction import GIB, Allowance, Prediction
from jobs.forecast.memory import Fit, judge

KEPT = 5
"""Times of so many last runs are kept: the longest of them is what a plan counts with."""


@dataclass(frozen=True)
class PastRuns(Section):
    """What earlier runs of one layout showed. None, or empty: no run has shown it.

    Attributes:
        layout: what the layout is (see `layout_of`).
        run: directory of the last attempt that taught something.
        time: of that, local.
        allowance_gib: activations and HCCL buffers of one NPU, by the last log.
        device_gib: memory of one NPU, by the last log.
        weights_gib, predicted_weights_gib: of one NPU, by the last log and by the sum.
        kv_tokens, predicted_kv_tokens: of one data-parallel rank, by the last log and as predicted before it.
        load_s, teardown_s: of the last runs, oldest first, seconds.
    """

    layout: dict[str, Any]
    run: str = ""
    time: str = ""
    allowance_gib: Number | None = None
    device_gib: Number | None = None
    weights_gib: Number | None = None
    predicted_weights_gib: Number | None = None
    kv_tokens: int | None = None
    predicted_kv_tokens: int | None = None
    load_s: tuple[Seconds, ...] = ()
    teardown_s: tuple[Seconds, ...] = ()


def recall(root: Root, config: Config) -> tuple[PastRuns | None, str | None]:
    """Return what earlier runs of this layout showed, and a word if their file had to be ignored."""
    try:
        path = root.calibration(layout_name(config))
    except ConfigError:  # whoever predicts the memory says what is wrong
        return None, None
    if not path.exists():
        return None, None
    try:
        return load_form(path, PastRuns, SMALL, ours=True), None
    except RunError as error:
        return None, f"{path} is ignored, it cannot be read: {error.reason}"


def remember(
    root: Root,
    config: Config,
    prediction: Prediction | None,
    figures: EngineLog,
    *,
    run: Path,
    load_s: float | None = None,
    teardown_s: float | None = None,
) -> PastRuns:
    """Store what a run showed, beside what earlier ones did. Two writers replace each other's file, never mix.

    Args:
        prediction: made before the run.
        figures: of the head's log.
        run: directory of the attempt.
        load_s: seconds from start to ready; None: it did not get ready.
        teardown_s: seconds from the stop to the end; None: unknown.

    Raises:
        ConfigError: a setting that the sum needs is not a number.
        RunError: the file cannot be written.
    """
    past = recall(root, config)[0] or PastRuns(layout_of(config))
    now = datetime.now().isoformat(timespec="seconds")
    past = replace(
        past,
        run=str(run),
        time=now,
        load_s=(*past.load_s, *([load_s] if load_s is not None else []))[-KEPT:],
        teardown_s=(*past.teardown_s, *([teardown_s] if teardown_s is not None else []))[-KEPT:],
    )
    if prediction:
        past = replace(past, **_measured(prediction, figures))
    write_json(root.calibration(layout_name(config)), past)
    return past


def _measured(made: Prediction, figures: EngineLog) -> dict[str, Any]:
    """Return what the log says about memory, and what was predicted; nothing where it is silent."""
    found: dict[str, Any] = {}
    if figures.weights_gib is not None:
        found |= {"weights_gib": figures.weights_gib, "predicted_weights_gib": made.weights_bytes / GIB}
    if figures.kv_tokens is not None:
        found |= {"kv_tokens": figures.kv_tokens, "predicted_kv_tokens": made.kv_tokens_per_rank}
    if not made.uncertainty_bytes:
        return found
    more = 0.0
    if figures.device_gib is not None:
        found["device_gib"] = figures.device_gib
        more = made.budget_bytes * (figures.device_gib * GIB / made.device_bytes - 1) / GIB
    if figures.available_gib is not None:
        allowance = made.calibrated_bytes(figures.available_gib * GIB, "")
    elif figures.kv_tokens is not None:
        allowance = made.calibrated(figures.kv_tokens, "")
    else:
        return found
    return found | {"allowance_gib": allowance.gib + more}


@dataclass(frozen=True)
class Forecast:
    """What is known of a service before it starts."""

    fit: Fit
    past: PastRuns | None = None
    ignored: str | None = None

    @property
    def predicted_kv_tokens(self) -> int | None:
        """KV cache of one data-parallel rank, tokens; None: no prediction."""
        return self.fit.prediction.kv_tokens_per_rank if self.fit.prediction else None


def forecast(root: Root, config: Config, load: Load) -> Forecast:
    """Return what is known of a service: the sum, corrected by what earlier runs showed. Never an error."""
    fit = judge(config, load)
    past, ignored = recall(root, config)
    if past and past.allowance_gib is not None and fit.prediction and fit.prediction.uncertainty_bytes:
        source = f"measured by {past.run}, {past.time}"
        allowance = Allowance(past.allowance_gib, source, measured=True)
        fit = judge(config, load, allowance=allowance, device_gib=past.device_gib)
    return Forecast(fit, past, ignored)


def forecaster(root: Root) -> Callable[[Config], Forecast]:
    """Return `forecast` for the services of one results.root."""
    return lambda config: forecast(root, config, required)
