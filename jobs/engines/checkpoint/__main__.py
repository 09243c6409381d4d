"""What a rank runs before its engine starts: `python -m jobs.engines.checkpoint ORDER.json`.

A process of its own: a file system that hangs must not hang the rank, and a copy that is no longer wanted ends with
its process. It says how far it is, one line a second; its result is a file.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jobs.core.errors import RunError
from jobs.core.files import write_json
from jobs.core.log import take_any_text
from jobs.engines.checkpoint.copying import Copied
from jobs.engines.checkpoint.stage import Answer, StageOrder, check_there, stage
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
        answer = asdict(_carry_out(order, teller))
    except RunError as error:
        answer = {"error": error.args}
        print(f"error: {error}", flush=True)
    write_json(Path(order.result), answer)
    return int("error" in answer)


def _carry_out(order: StageOrder, teller: Teller) -> Answer:
    path, gb_s = Path(order.source), None
    check_there(path)
    if order.stage_to:
        target = Path(order.stage_to)
        done = stage(path, target, weights=order.weights, progress=teller.copied, waiting=teller.waiting)
        path = done.path
        gb_s = done.bytes / max(done.seconds, 1e-3) / 1e9 if done.bytes else None
        print(f"{path}: {'was there' if done.reused else f'staged in {done.seconds:.1f} s'}", flush=True)
    if not order.check:
        return Answer(str(path), gb_s=gb_s)
    manifest, findings = check_sizes(path, weights=order.weights, quantized=order.quantized, sampled=order.sampled)
    if findings:
        more = f" ({len(findings) - 1} more findings)" if len(findings) > 1 else ""
        raise RunError("model.path", path, f"{findings[0]}{more}", "See `python -m jobs model verify`.")
    return Answer(str(path), manifest.parts, asdict(manifest), gb_s)


if __name__ == "__main__":
    take_any_text()
    sys.exit(main(Path(sys.argv[1])))
