"""Stands for `vllm serve` where only its life and death matter: it starts in a few milliseconds and answers at once.

    python -I -S quick_engine.py serve MODEL [FLAGS...]

The head answers /health, /v1/models, /v1/completions and /metrics for all data-parallel ranks; a headless rank waits to
be told to end. A wrong key is refused. Only what starts fast is imported.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from _thread import start_new_thread

TOKEN_S = 0.002
FLAGS = dict(zip(sys.argv, sys.argv[1:], strict=False))
SIZE = int(FLAGS.get("--data-parallel-size", 1))
MODEL = FLAGS.get("--served-model-name", sys.argv[2])
KEY = os.environ.get("VLLM_API_KEY")
lock, tokens, prompts, done, turn = threading.Lock(), [0] * SIZE, [0] * SIZE, [0] * SIZE, [0]


def metrics() -> str:
    series = (("prompt_tokens_total", prompts), ("generation_tokens_total", tokens))
    lines = [f'vllm:{name}{{engine="{rank}",model_name="{MODEL}"}} {values[rank]:.1f}\n'
             for name, values in series for rank in range(SIZE)]  # fmt: skip
    labels = 'finished_reason="length",model_name="' + MODEL
    lines += [f'vllm:request_success_total{{engine="{rank}",{labels}"}} {done[rank]:.1f}\n' for rank in range(SIZE)]
    return "".join(lines)


def complete(client: socket.socket, headers: dict, body: dict) -> None:
    with lock:
        turn[0] += 1
        rank = int(headers.get("x-data-parallel-rank", turn[0] % SIZE))
        prompts[rank] += len(body.get("prompt", ()))
    count, stream = body.get("max_tokens", 1), body.get("stream")
    if stream:
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
    for number in range(count):
        time.sleep(TOKEN_S)
        with lock:
            tokens[rank] += 1
            done[rank] += number + 1 == count
        if stream:
            reason = "length" if number + 1 == count else None
            event(client, {"choices": [{"index": 0, "text": " a", "finish_reason": reason}]})
    usage = {"prompt_tokens": len(body.get("prompt", ())), "completion_tokens": count}
    if stream:
        event(client, {"choices": [], "usage": usage})
        client.sendall(b"data: [DONE]\n\n")
    else:
        text = {"choices": [{"index": 0, "text": " a" * count, "finish_reason": "length"}], "usage": usage}
        answer(client, "200 OK", json.dumps(text))


def event(client: socket.socket, value: dict) -> None:
    client.sendall(f"data: {json.dumps(value)}\n\n".encode())


def answer(client: socket.socket, status: str, text: str) -> None:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n"
    client.sendall(f"{head}connection: close\r\n\r\n{text}".encode())


def serve(client: socket.socket) -> None:
    try:
        with client, client.makefile("rb") as reader:
            _, path, _ = reader.readline().decode().split()
            headers = {}
            while line := reader.readline().decode().strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = reader.read(int(headers.get("content-length", 0)))
            if path.startswith("/v1") and KEY and headers.get("authorization") != f"Bearer {KEY}":
                answer(client, "401 Unauthorized", "{}")
            elif path == "/v1/completions":
                complete(client, headers, json.loads(body))
            elif path == "/v1/models":
                answer(client, "200 OK", json.dumps({"data": [{"id": MODEL}]}))
            elif path in ("/health", "/metrics"):
                answer(client, "200 OK", metrics() if path == "/metrics" else "")
            else:
                answer(client, "404 Not Found", "{}")
    except (OSError, ValueError):
        pass  # the client has gone


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if "--headless" in sys.argv:
        while True:
            signal.pause()
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((FLAGS.get("--host", ""), int(FLAGS["--port"])))
    print("bound", flush=True)
    time.sleep(float(os.environ.get("QUICK_LOAD_S", "0")))  # as vLLM: bound at the start, and listening after the load
    listening.listen(128)
    print("ready", flush=True)
    while True:
        start_new_thread(serve, (listening.accept()[0],))


if __name__ == "__main__":
    main()
