"""Download a checkpoint from an HTTP mirror: resumed by Range, lengths checked, whole files only under final names.

A plain mirror lists nothing: the shards are those of the index, the other files are asked for by their usual names.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import requests

from jobs.core.errors import RunError
from jobs.engines.checkpoint.checkpoint import CONFIG, DESCRIPTION, FETCH_AGAIN, INDEX, PART, index_name, read_object
from jobs.engines.checkpoint.copying import Abandoned, Copied, Progress, check_space, raise_first

INDICES = (
    INDEX,
    "quant_model_weights.safetensors.index.json",
    "quant_model_weight_w8a8_dynamic.safetensors.index.json",
)
"""Names of the index: of transformers, and of two generations of msModelSlim."""

OPTIONAL = (
    DESCRIPTION, "configuration.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
PLAIN = {"Accept-Encoding": "identity"}
"""Lengths and ranges are those of the file itself."""

CHUNK_BYTES = 1 << 20
"""What is under way when a connection breaks comes again: at most this."""

TRIES = 5
PATIENCE = (10.0, 120.0)
"""Seconds to connect, and between two chunks."""

T = TypeVar("T")
R = TypeVar("R")


class _Absent(Exception):
    """The mirror has no such file."""


def download(base: str, target: Path, *, parallel: int, progress: Progress, pause_s: float = 1.0) -> None:
    """Download a checkpoint.

    Args:
        base: URL of the directory.
        target: where the files go; it exists.
        parallel: files at a time.
        progress: told how far the weight files are.
        pause_s: first pause before a broken download is tried again; it doubles.

    Raises:
        RunError: the mirror does not answer, lacks a file, or sends what its own lengths contradict.
    """
    one = _Mirror(base.rstrip("/") + "/", target, pause_s)
    one.get(CONFIG)
    config, wrong = read_object(target / CONFIG)
    if wrong:
        raise RunError("--from", base, str(wrong), "Is this the base URL of a checkpoint?")
    codes = config.get("auto_map") or {}
    modules = {f"{str(value).split('.')[0]}.py" for value in codes.values() if "--" not in str(value)}
    for name in (*INDICES, *OPTIONAL, *sorted(modules)):
        one.get(name, needed=False)
    shards = _shards(target) or ["model.safetensors"]
    lengths = dict(zip(shards, _map(parallel, one.length, shards), strict=True))
    missing = {name: size for name, size in lengths.items() if not one.has(name, size)}
    check_space("--to", target, sum(missing.values()), "Free space there, or name another file system.")
    total, kept, lock = sum(lengths.values()), sum(lengths.values()) - sum(missing.values()), threading.Lock()
    now = Copied(kept, total, kept)
    progress(now)

    def add(count: int) -> None:
        nonlocal now
        with lock:
            now = Copied(now.done + count, total, kept)
            progress(now)

    _map(parallel, lambda name: one.get(name, add=add), list(missing))


def _shards(target: Path) -> list[str]:
    name = index_name(target)
    if not name:
        return []
    index, wrong = read_object(target / name)
    mapping = index.get("weight_map")
    if wrong or not isinstance(mapping, dict):
        raise RunError(name, target, str(wrong or "it has no weight_map"), FETCH_AGAIN)
    shards = sorted(set(mapping.values()))
    for shard in shards:
        if Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise RunError(name, shard, "it names a file outside the checkpoint", "Do not trust this mirror.")
    return shards


def _map(parallel: int, work: Callable[[T], R], items: list[T]) -> list[R]:
    with ThreadPoolExecutor(parallel) as pool:
        jobs = [pool.submit(work, item) for item in items]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
        finally:
            for job in jobs:
                job.cancel()
    raise_first(jobs)
    return [job.result() for job in jobs]


class _Mirror:
    """One mirror and the directory that it is copied to."""

    def __init__(self, base: str, target: Path, pause_s: float) -> None:
        self._base, self._target, self._pause_s = base, target, pause_s
        self._stop = threading.Event()

    def has(self, name: str, size: int) -> bool:
        """Return whether a file is here already, whole."""
        file = self._target / name
        return file.is_file() and file.stat().st_size == size

    def length(self, name: str) -> int:
        """Return the length of a file at the mirror."""
        try:
            return self._tried(name, lambda: self._head(name))[0]
        except _Absent:
            raise self._lacking(name) from None

    def get(self, name: str, *, needed: bool = True, add: Callable[[int], None] = lambda _: None) -> None:
        """Bring one file here, unless it is here already; a missing one is an error only where it is needed."""
        try:
            self._tried(name, lambda: self._get(name, add))
        except _Absent:
            if needed:
                raise self._lacking(name) from None

    def _lacking(self, name: str) -> RunError:
        return RunError("--from", self._base + name, "the mirror has no such file", "Give its base URL.")

    def _tried(self, name: str, work: Callable[[], R]) -> R:
        pause, last = self._pause_s, ""
        for _ in range(TRIES):
            try:
                return work()
            except _Absent:
                raise
            except (requests.RequestException, ConnectionError) as error:
                last = str(error)
                refused = getattr(error.response, "status_code", 500) if isinstance(error, requests.HTTPError) else 500
                if refused < 500:
                    break
            except OSError as error:
                self._stop.set()
                raise RunError(str(self._target / name), "(write)", str(error), "Free space or mend it.") from None
            if self._stop.wait(pause):
                break
            pause *= 2
        self._stop.set()
        reason = f"it failed: {last}"
        raise RunError("--from", self._base + name, reason, "The same command again goes on where it stopped.")

    def _head(self, name: str) -> tuple[int, str]:
        """Return the length of a file, and a short mark of its state at the mirror."""
        asked = requests.head(self._url(name), timeout=PATIENCE, allow_redirects=True, headers=PLAIN)
        if asked.status_code in (404, 410):
            raise _Absent(name)
        asked.raise_for_status()
        length = asked.headers.get("Content-Length")
        if not (length or "").isdigit():
            raise RunError("--from", self._url(name), "the mirror does not tell its length", "Use another mirror.")
        state = [length, asked.headers.get("ETag"), asked.headers.get("Last-Modified")]
        return int(str(length)), hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]

    def _get(self, name: str, add: Callable[[int], None]) -> None:
        length, tag = self._head(name)
        if self.has(name, length):
            return
        # Another state of the file at the mirror is another half: two states are never mixed.
        part = self._target / f"{name}.{tag}{PART}"
        part.parent.mkdir(parents=True, exist_ok=True)
        for old in part.parent.glob(f"{part.name.removesuffix(tag + PART)}*{PART}"):
            if old != part:
                old.unlink()
        have = part.stat().st_size if part.exists() else 0
        if have > length:
            part.unlink()
            have = 0
        if have < length or not part.exists():
            self._stream(name, part, have, length, add)
        if part.stat().st_size != length:
            raise ConnectionError(f"{part.stat().st_size} of {length} bytes came")
        part.replace(self._target / name)

    def _stream(self, name: str, part: Path, have: int, length: int, add: Callable[[int], None]) -> None:
        headers = PLAIN | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(self._url(name), headers=headers, stream=True, timeout=PATIENCE) as answer:
            answer.raise_for_status()
            resumed = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            with part.open("ab" if resumed else "wb") as file:
                add(have if resumed else 0)
                for chunk in answer.iter_content(CHUNK_BYTES):
                    if self._stop.is_set():
                        raise Abandoned(name)
                    file.write(chunk)
                    add(len(chunk))
                    if file.tell() > length:
                        break

    def _url(self, name: str) -> str:
        return self._base + quote(name)
