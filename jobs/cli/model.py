"""The checkpoint: fetch it, verify it, stage it to this node's own disk."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from jobs.allocation.node import container
from jobs.cli import Command
from jobs.cli.output import tell
from jobs.core import session
from jobs.core.config import Model
from jobs.core.errors import ConfigError
from jobs.engines.checkpoint import fetch as fetching
from jobs.engines.checkpoint import stage as staging
from jobs.engines.checkpoint.architecture import packaged
from jobs.engines.checkpoint.copying import Copied
from jobs.engines.checkpoint.manifest import SAMPLED, read_manifest
from jobs.engines.checkpoint.verify import Expected, Report, verify
from jobs.sweep import compose, show

NEWS_S = 10.0
"""Without a terminal a line of progress comes this often."""


def _fetch(options: argparse.Namespace) -> int:
    model, path = _model(options)
    target = options.to or path
    name = options.name or model.source
    # The client shows bars of its own.
    with session.orderly(), _bar(show.console(stderr=True), "fetch", shown=options.origin != fetching.CLIENT) as bar:
        fetching.fetch(
            options.origin,
            name,
            target,
            client=options.client,
            revision=options.revision,
            parallel=options.parallel,
            progress=bar.copied,
            waiting=bar.waiting,
        )
    report = verify(target, _expected(model))
    return _show(report, options)


def _verify(options: argparse.Namespace) -> int:
    model, path = _model(options)
    against = read_manifest(options.against) if options.against else None
    with _bar(show.console(stderr=True), "read") as bar:
        report = verify(
            path,
            _expected(model),
            sampled=options.sample,
            whole=options.full,
            seed=options.seed,
            against=against,
            progress=bar.read,
        )
    if options.manifest:
        report.manifest.write(options.manifest)
    return _show(report, options)


def _stage(options: argparse.Namespace) -> int:
    model, path = _model(options)
    root = options.to or (Path(model.stage_to) if model.stage_to else None)
    if root is None:
        raise ConfigError("model.stage_to", None, "there is no place to stage to", "Set it, or give --to DIR.")
    out = show.console(stderr=True)
    with _bar(out, "stage") as bar:
        done = staging.stage(
            path,
            root,
            parallel=options.parallel,
            weights=model.load_format != "dummy",
            progress=bar.copied,
            waiting=bar.waiting,
        )
    if options.json:
        print(json.dumps(asdict(done), default=str))
    else:
        what = "was there already" if done.reused else f"{done.bytes / 2**30:.1f} GiB copied in {done.seconds:.1f} s"
        tell(f"{done.path}: {what}")
    return 0


def _model(options: argparse.Namespace) -> tuple[Model, Path]:
    """Return the model, and where its checkpoint is on this node: with a container, behind the container's mounts."""
    found = compose.configs(compose.expand(options.overrides))
    models = [(config.model, container.checkpoint(config)) for config in found]
    if any(model != models[0] for model in models):
        raise ConfigError("model", " ".join(options.overrides), "these are several", "Ask for one model at a time.")
    return models[0]


def _expected(model: Model) -> Expected:
    return Expected(packaged(model.name), quantized=model.quantized)


def _show(report: Report, options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(report.as_json(), ensure_ascii=False))
        return 1 if report.findings else 0
    size = sum(report.manifest.sizes.values()) / 2**30
    tell(f"{report.path}: {len(report.manifest.sizes)} files, {report.shards} weight files, {size:.1f} GiB")
    if report.shares:
        kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in report.shares.by_type.items())
        tell(f"quantization by share of all elements: {kinds}")
    tell(f"content sampled in {len(report.manifest.samples)} weight files")
    for finding in report.findings:
        tell(f"  {finding}")
    tell(show.count(len(report.findings), "finding") if report.findings else "good")
    return 1 if report.findings else 0


class _Bar:
    """Progress of bytes: a bar on a terminal, else a line now and then."""

    def __init__(self, out: Console, word: str, bar: Progress) -> None:
        self._out, self._word, self._bar = out, word, bar
        self._task = bar.add_task(word, total=None)
        self._lock, self._told, self._read = threading.Lock(), time.monotonic(), 0

    def copied(self, now: Copied) -> None:
        """Show how far a copy is."""
        self._bar.update(self._task, completed=now.done, total=now.total)
        self._say(f"{self._word}: {now.done / 2**30:.1f} of {now.total / 2**30:.1f} GiB")

    def read(self, count: int) -> None:
        """Show that so many more bytes were read."""
        with self._lock:
            self._read += count
        self._bar.update(self._task, completed=self._read)
        self._say(f"{self._word}: {self._read / 2**30:.1f} GiB")

    def waiting(self, who: str) -> None:
        """Print that another process is at work on the same files."""
        self._out.print(f"{self._word}: {who} is at work on the same checkpoint: waiting", markup=False)

    def _say(self, text: str) -> None:
        if self._out.is_terminal or time.monotonic() - self._told < NEWS_S:
            return
        self._told = time.monotonic()
        self._out.print(text, markup=False)


@contextmanager
def _bar(out: Console, word: str, *, shown: bool = True) -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    hidden = not (shown and out.is_terminal)
    with Progress(*columns, TimeRemainingColumn(), console=out, transient=True, disable=hidden) as bar:
        yield _Bar(out, word, bar)


MODEL = (
    "overrides",
    {"nargs": "*", "metavar": "OVERRIDE", "help": "as launch.py takes them: model=NAME model.path=DIR"},
)
PARALLEL = "files at a time"

COMMANDS = (
    Command(
        "model fetch",
        _fetch,
        "fetch the checkpoint into model.path and verify it; again: go on where it stopped",
        (
            MODEL,
            (
                "--from",
                {
                    "dest": "origin",
                    "default": fetching.CLIENT,
                    "help": "modelscope (default), the directory of a mirror, or its http(s) URL",
                },
            ),
            ("--to", {"type": Path, "help": "another directory than that of model.path"}),
            ("--name", {"help": "ORGANISATION/NAME at ModelScope; default: model.source"}),
            ("--revision", {"help": "branch or tag at ModelScope"}),
            ("--client", {"default": fetching.CLIENT, "help": "the modelscope program, in whatever environment"}),
            ("--parallel", {"type": int, "default": fetching.PARALLEL, "help": PARALLEL}),
        ),
    ),
    Command(
        "model verify",
        _verify,
        "config, W8A8 by content, every shard by its header, sampled hashes, tokenizer; exit code 1: findings",
        (
            MODEL,
            ("--manifest", {"type": Path, "metavar": "FILE", "help": "write what it is, for --against elsewhere"}),
            ("--against", {"type": Path, "metavar": "FILE", "help": "compare with a manifest, the other node's say"}),
            ("--sample", {"type": int, "default": SAMPLED, "help": "weight files of which blocks are hashed"}),
            ("--full", {"action": "store_true", "help": "hash all weight files as a whole (hours)"}),
            ("--seed", {"type": int, "default": 0, "help": "choice of the sample"}),
        ),
    ),
    Command(
        "model stage",
        _stage,
        "copy the checkpoint to this node's own disk, once",
        (
            MODEL,
            ("--to", {"type": Path, "help": "directory; default: model.stage_to"}),
            ("--parallel", {"type": int, "default": staging.PARALLEL, "help": PARALLEL}),
        ),
    ),
)
