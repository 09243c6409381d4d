"""A small benchmark program: completions of random token ids, so many at a time."""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("url", "model", "result"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("requests", "concurrency", "input", "output", "low", "high", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    asked = parser.parse_args()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}

    def send(number: int) -> int:
        draw = random.Random(f"{asked.seed} {number}")
        prompt = [draw.randrange(asked.low, asked.high) for _ in range(asked.input)]
        body = {"model": asked.model, "prompt": prompt, "max_tokens": asked.output, "ignore_eos": True}
        with urlopen(Request(f"{asked.url}/v1/completions", json.dumps(body).encode(), headers)) as answer:
            return int(json.load(answer)["usage"]["completion_tokens"])

    begun = time.monotonic()
    with ThreadPoolExecutor(asked.concurrency) as pool:
        tasks = [pool.submit(send, number) for number in range(asked.requests)]
    errors = [str(task.exception()) for task in tasks if task.exception()]
    tokens = [task.result() for task in tasks if not task.exception()]
    said = {"seconds": time.monotonic() - begun, "output_tokens": tokens, "errors": errors}
    Path(asked.result).write_text(json.dumps(said))
