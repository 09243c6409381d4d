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
from jobs.core.files import read_json, write_json
from jobs.engines.checkpoint.copying import Copied
from jobs.engines.checkpoint.manifest import as_json
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


def main(order: Path) -> int:
    """Stage and check as an order says: source, stage_to, check, sampled, w8a8, weights, result."""
    asked = read_json(order)
    result, source = Path(asked["result"]), Path(asked["source"])
    path, teller = source, Teller()
    try:
        check_there(source)
        if asked["stage_to"]:
            done = stage(
                source,
                Path(asked["stage_to"]),
                weights=asked["weights"],
                progress=teller.copied,
                waiting=teller.waiting,
            )
            path = done.path
            print(f"{path}: {'was there' if done.reused else f'staged in {done.seconds:.1f} s'}", flush=True)
        found: dict[str, object] = {"path": str(path)}
        if asked["check"]:
            manifest, findings = check_sizes(
                path, weights=asked["weights"], w8a8=asked["w8a8"], sampled=asked["sampled"]
            )
            if findings:
                more = f" ({len(findings) - 1} more findings)" if len(findings) > 1 else ""
                raise RunError("model.path", path, f"{findings[0]}{more}", "See `python -m jobs model verify`.")
            found |= {"parts": manifest.parts, "manifest": as_json(manifest)}
    except RunError as error:
        write_json(result, {"error": error.args})
        print(f"error: {error}", flush=True)
        return 1
    write_json(result, found)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
