"""Download a checkpoint from an HTTP mirror: resumed by Range, sizes checked, whole files only under final names."""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import requests

from jobs.core.errors import RunError
from jobs.core.files import open_append
from jobs.engines.checkpoint.checkpoint import BESIDE, CONFIG, PART, check_small, modules, read_object, shard_names
from jobs.engines.checkpoint.copying import Count, Progress, check_space

CHUNK_BYTES, TRIES, PATIENCE_S = 1 << 20, 5, (10.0, 120.0)
PLAIN = {"Accept-Encoding": "identity"}  # lengths and ranges are those of the file itself


def download(base: str, target: Path, *, parallel: int, progress: Progress, pause_s: float = 1.0) -> None:
    """Download the shards of the index and the usual files beside it; pauses between tries double. Raises RunError."""
    mirror = _Mirror(base.rstrip("/") + "/", target, pause_s)
    mirror.tried(CONFIG, mirror.small)
    for name in (*BESIDE, *modules(read_object(target / CONFIG)[0])):
        mirror.tried(name, mirror.small, needed=False)
    shards, pool = shard_names(target), ThreadPoolExecutor(parallel)
    try:
        sizes = dict(zip(shards, pool.map(lambda n: mirror.tried(n, lambda n: mirror.head(n)[0]), shards), strict=True))
        todo = [name for name in shards if _size(target / name) != sizes[name]]
        missing, total = sum(sizes[name] for name in todo), sum(sizes.values())
        check_space("--to", target, missing, "Free space there, or name another file system.")
        mirror.add = Count(total, total - missing, progress).add
        list(pool.map(lambda n: mirror.tried(n, mirror.get), todo))
    finally:
        pool.shutdown(cancel_futures=True)


class _Mirror:
    def __init__(self, base: str, target: Path, pause_s: float) -> None:
        self._base, self._target, self._pause_s = base, target, pause_s
        self.add: Callable[[int], None] = lambda _: None

    def tried(self, name: str, work: Callable[[str], int], *, needed: bool = True) -> int:
        for attempt in range(TRIES):
            try:
                return work(name)
            except requests.RequestException as error:
                status, last = getattr(error.response, "status_code", 500), str(error)
            except OSError as error:
                raise RunError(str(self._target / name), "(write)", str(error), "Free space or mend it.") from None
            if status < 500:
                break
            time.sleep(self._pause_s * 2**attempt)
        if status in (404, 410) and not needed:
            return 0
        reason = "the mirror has no such file" if status in (404, 410) else f"it failed: {last}"
        raise RunError("--from", self._base + name, reason, "The same command again goes on where it stopped.")

    def head(self, name: str) -> tuple[int, str]:
        answer = requests.head(self._base + quote(name), timeout=PATIENCE_S, allow_redirects=True, headers=PLAIN)
        answer.raise_for_status()
        said = [answer.headers.get(key, "") for key in ("Content-Length", "ETag", "Last-Modified")]
        if not said[0].isdecimal() or len(said[0]) > 15:
            raise RunError("--from", self._base + name, "the mirror does not tell its size", "Use another mirror.")
        return int(said[0]), hashlib.sha256(repr(said).encode()).hexdigest()[:12]

    def small(self, name: str) -> int:
        return self.get(name, small=True)

    def get(self, name: str, *, small: bool = False) -> int:
        file, (size, state) = self._target / name, self.head(name)
        if small:
            check_small("--from", self._base + name, size)
        if _size(file) == size:
            return size
        part = file.with_name(f"{file.name}.{state}{PART}")  # of another state: another half, the two are never mixed
        file.parent.mkdir(parents=True, exist_ok=True)
        for old in set(part.parent.glob(f"{file.name}.*{PART}")) - {part}:
            old.unlink()
        if _size(part) != size:
            asked = PLAIN | ({"Range": f"bytes={_size(part)}-"} if _size(part) > 0 else {})
            with requests.get(self._base + quote(name), headers=asked, stream=True, timeout=PATIENCE_S) as answer:
                answer.raise_for_status()
                if answer.status_code != 206:
                    part.unlink(missing_ok=True)
                left = size - max(0, _size(part))
                with open_append(part, 0o666) as out:
                    for chunk in answer.iter_content(CHUNK_BYTES):
                        left -= len(chunk)
                        if left < 0:
                            raise requests.ConnectionError(f"more than {size} bytes came")
                        out.write(chunk)
                        self.add(len(chunk))
        if _size(part) != size:
            raise requests.ConnectionError(f"{_size(part)} of {size} bytes came")
        return _size(part.replace(file))


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1
