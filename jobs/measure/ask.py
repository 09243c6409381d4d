"""Single questions to the service, outside of any window."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from jobs.measure.wire import Connections


async def ask_json(
    connections: Connections, path: str, body: Mapping[str, Any], limit_s: float
) -> tuple[int, dict[str, Any]]:
    """Send one request and return its status and JSON object.

    Status 0: no answer; then, and where the answer is no JSON object, {"error": words} stands for it.
    """
    pieces: list[bytes] = []
    message = json.dumps(body, ensure_ascii=False).encode()
    try:
        async with asyncio.timeout(limit_s):
            status, refusal = await connections.request("POST", path, message, lambda data, _: pieces.append(data))
    except TimeoutError:
        return 0, {"error": f"no answer within {limit_s:g} s"}
    except OSError as error:
        return 0, {"error": str(error) or type(error).__name__}
    text = (b"".join(pieces) if status == 200 else refusal).decode(errors="replace")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    return status, answer if isinstance(answer, dict) else {"error": text[:300]}
