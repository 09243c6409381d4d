"""What a rank runs before its engine starts: `python -m jobs.engines.checkpoint ORDER.json`.

A process of its own: a file system that hangs must not hang the rank, and a copy that is no longer wanted ends with
its process. It says how far it is, one line a second; its result is a file.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from jobs.core.errors import RunError
from jobs.engines.checkpoint.copying import Copied
from jobs.engines.checkpoint.manifest import as_json
from jobs.engines.checkpoint.order import Staged, StageOrder, write_error
from jobs.engines.checkpoint.stage import check_there, stage
from jobs.engines.checkpoint.verify import check_sizes

EVERY_S = 1.0


@dataclass
class Teller:
    """Prints how far a copy is, seldom."""

    begun: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def copied(self, now: Copied) -> None:
        """Print a line of progress, at most one a second and one at the end."""
        moment = time.monotonic()
        if moment - self.told < EVERY_S and now.done < now.total:
            return
        self.told = moment
        rate = (now.done - now.kept) / max(moment - self.begun, 1e-3) / 1e9
        print(f"staged {now.done / 2**30:.1f}/{now.total / 2**30:.1f} GiB, {rate:.2f} GB/s", flush=True)

    def waiting(self, who: str) -> None:
        """Print that another process of this node is at work."""
        print(f"{who} stages the same checkpoint: waiting", flush=True)


def main(path: Path) -> int:
    """Stage and check as the order in a file says. Returns the exit code."""
    order, teller = StageOrder.read(path), Teller()
    try:
        staged = _carry_out(order, teller)
    except RunError as error:
        write_error(Path(order.result), error)
        print(f"error: {error}", flush=True)
        return 1
    staged.write(Path(order.result))
    return 0


def _carry_out(order: StageOrder, teller: Teller) -> Staged:
    path = Path(order.source)
    check_there(path)
    if order.stage_to:
        target = Path(order.stage_to)
        done = stage(path, target, weights=order.weights, progress=teller.copied, waiting=teller.waiting)
        path = done.path
        print(f"{path}: {'was there' if done.reused else f'staged in {done.seconds:.1f} s'}", flush=True)
    if not order.check:
        return Staged(str(path))
    manifest, findings = check_sizes(path, weights=order.weights, w8a8=order.w8a8, sampled=order.sampled)
    if findings:
        more = f" ({len(findings) - 1} more findings)" if len(findings) > 1 else ""
        raise RunError("model.path", path, f"{findings[0]}{more}", "See `python -m jobs model verify`.")
    return Staged(str(path), manifest.parts, as_json(manifest))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
