"""Bodies and event-stream chunks as vLLM 0.9.1 writes them (entrypoints/openai/protocol.py)."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WORDS = (" so", " the", " model", " thinks", " about", " it", ",", " then", " says", " what", " follows", ".")
"""Answers are made of these, one a token."""

DONE = b"data: [DONE]\n\n"


def dumps(value: object) -> str:
    """Return JSON without spaces, as pydantic writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def error_body(message: str, kind: str = "BadRequestError", code: int = 400) -> dict[str, Any]:
    """Return vLLM's error object."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


def error_event(message: str) -> bytes:
    """Return the event that breaks a stream off."""
    return f"data: {json.dumps({'error': error_body(message)})}\n\n".encode()


def usage(prompt: int, completion: int, *, details: bool) -> dict[str, Any]:
    """Return the usage object; `details` adds the key that is null without prompt token details."""
    out: dict[str, Any] = {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
    }
    return out | {"prompt_tokens_details": None} if details else out


def model_list(names: tuple[str, ...], path: str, max_model_len: int) -> dict[str, Any]:
    """Return the body of /v1/models."""
    now = int(time.time())
    allowed = {"allow_sampling": True, "allow_logprobs": True, "allow_view": True}
    denied = {"allow_create_engine": False, "allow_search_indices": False, "allow_fine_tuning": False}
    return {
        "object": "list",
        "data": [
            {
                "id": name,
                "object": "model",
                "created": now,
                "owned_by": "vllm",
                "root": path,
                "parent": None,
                "max_model_len": max_model_len,
                "permission": [
                    {
                        "id": f"modelperm-{uuid.uuid4().hex}",
                        "object": "model_permission",
                        "created": now,
                        **allowed,
                        **denied,
                        "organization": "*",
                        "group": None,
                        "is_blocking": False,
                    }
                ],
            }
            for name in names
        ],
    }


@dataclass(frozen=True)
class Form:
    """How one request is answered: its ids and what the client asked for.

    Attributes:
        chat: chat completion; else a text completion.
        stream: event stream.
        include_usage, continuous_usage: of stream_options.
    """

    identity: str
    created: int
    model: str
    chat: bool
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False

    def chunk_head(self) -> str:
        """Return the beginning of each chunk, up to its choices."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        head = {"id": self.identity, "object": kind, "created": self.created, "model": self.model}
        return f"data: {dumps(head)[:-1]},"

    def role_chunk(self, index: int, prompt: int) -> bytes:
        """Return the chunk that opens a chat answer."""
        delta = '{"role":"assistant","content":""}'
        choice = f'{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":null}}'
        return f'{self.chunk_head()}"choices":[{choice}]{self._usage(prompt, 0)}}}\n\n'.encode()

    def token_parts(self, index: int) -> tuple[bytes, bytes]:
        """Return what stands before and after the word of a chunk that is not the last one, without its end."""
        if self.chat:
            before = f'{self.chunk_head()}"choices":[{{"index":{index},"delta":{{"content":"'
            return before.encode(), b'"},"logprobs":null,"finish_reason":null}]'
        before = f'{self.chunk_head()}"choices":[{{"index":{index},"text":"'
        return before.encode(), b'","logprobs":null,"finish_reason":null,"stop_reason":null}]'

    def last_part(self, reason: str) -> bytes:
        """Return what stands after the word of the last chunk, without its end."""
        brace = "}" if self.chat else ""
        return f'"{brace},"logprobs":null,"finish_reason":"{reason}","stop_reason":null}}]'.encode()

    def chunk_end(self, prompt: int, completion: int) -> bytes:
        """Return the end of a chunk with its usage; text completions say null where none was asked for."""
        return f"{self._usage(prompt, completion)}}}\n\n".encode()

    def usage_chunk(self, prompt: int, completion: int) -> bytes:
        """Return the chunk before [DONE] that holds the usage of the whole request."""
        total = dumps(usage(prompt, completion, details=False))
        return f'{self.chunk_head()}"choices":[],"usage":{total}}}\n\n'.encode()

    def body(self, choices: list[tuple[str, str]], prompt: int, completion: int) -> dict[str, Any]:
        """Return the whole answer of a request without a stream; a choice is text and finish reason."""
        head: Mapping[str, Any] = {
            "id": self.identity,
            "object": "chat.completion" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
        }
        tail = {"usage": usage(prompt, completion, details=True)}
        if self.chat:
            message = {"role": "assistant", "reasoning_content": None}
            listed: list[dict[str, Any]] = [
                {"index": i, "message": {**message, "content": text, "tool_calls": []}, "logprobs": None,
                 "finish_reason": reason, "stop_reason": None}
                for i, (text, reason) in enumerate(choices)
            ]  # fmt: skip
            return {**head, "choices": listed, **tail, "prompt_logprobs": None, "kv_transfer_params": None}
        listed = [
            {"index": i, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": None,
             "prompt_logprobs": None}
            for i, (text, reason) in enumerate(choices)
        ]  # fmt: skip
        return {**head, "choices": listed, **tail, "kv_transfer_params": None}

    def _usage(self, prompt: int, completion: int) -> str:
        if self.continuous_usage:
            return f',"usage":{dumps(usage(prompt, completion, details=not self.chat))}'
        return "" if self.chat else ',"usage":null'
