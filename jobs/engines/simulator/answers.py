"""Requests and answers as vLLM 0.9.1 reads and writes them (entrypoints/openai/{serving_engine,protocol}.py)."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from zlib import crc32

from jobs.engines.simulator.settings import Settings

WORDS = (" so", " the", " model", " thinks", " about", " it", ",", " then", " says", " what", " follows", ".")
"""Answers are made of these, one a token."""

DONE = b"data: [DONE]\n\n"
NATURAL_SPREAD = 384

_TOKENS = 100_000
"""Numbers that tokens of a text have."""

_MARK = "\0"
_FACT = re.compile(r"The secret number of (\w+) is (\d+)\.")
_ONE = re.compile(r"What is the secret number of (\w+)\?")
_LARGER = re.compile(r"Which secret number is the larger one, that of (\w+) or that of (\w+)\?")


class Refused(Exception):
    """A request that gets an error at once: HTTP status and body."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


def dumps(value: object) -> str:
    """Return JSON without spaces, as pydantic writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def error_body(message: str, kind: str = "BadRequestError", code: int = 400) -> dict[str, Any]:
    """Return vLLM's error object."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


def bad(message: str) -> Refused:
    """Return vLLM's answer to a request that it cannot take."""
    return Refused(400, error_body(message))


@dataclass(frozen=True)
class Order:
    """What a client asks for.

    Attributes:
        prompt: its length, tokens.
        hashes: of the whole blocks of its prompt; empty without prefix caching.
        recalled: the answer to the question about facts in the prompt; empty: it asks for none.
        limit: tokens to make.
        reason: finish reason that comes after them.
        include_usage: of stream_options.
    """

    model: str
    chat: bool
    prompt: int
    hashes: tuple[int, ...]
    recalled: str
    limit: int
    reason: str
    stream: bool = False
    include_usage: bool = False


def text_tokens(text: str) -> int:
    """Estimate the tokens of a text: one for four bytes, but at least one a word (there is no tokenizer here)."""
    return max(1, -(-len(text.encode()) // 4), len(text.split()))


def text_ids(text: str) -> list[int]:
    """Return one number for each of these tokens; equal pieces of text are equal tokens."""
    data, count = text.encode(), text_tokens(text)
    cuts = [len(data) * place // count for place in range(count + 1)]
    return [crc32(data[begin:end]) % _TOKENS for begin, end in pairwise(cuts)]


def natural_length(prompt: int) -> int:
    """Return after how many tokens the pretended model ends by itself: 128 to 511, by the prompt's length."""
    return 128 + prompt * 37 % NATURAL_SPREAD


def read_order(body: object, chat: bool, settings: Settings) -> Order:
    """Check the JSON body of a request. Refused: 404 for another model, 400 for everything else that vLLM refuses."""
    if not isinstance(body, dict):
        raise bad("[{'type': 'model_attributes_type', 'loc': ('body',), 'msg': 'Input should be a valid dictionary'}]")
    model = body.get("model")
    if model is not None and model not in settings.names:
        raise Refused(404, error_body(f"The model `{model}` does not exist.", "NotFoundError", 404))
    prompt, hashes, recalled = _chat(body) if chat else _prompt(body, settings)
    options = body.get("stream_options") or {}
    stream = bool(body.get("stream"))
    if options and not stream:
        raise bad("Value error, Stream options can only be defined when `stream=True`.")
    asked = (body.get("max_completion_tokens") or body.get("max_tokens")) if chat else body.get("max_tokens", 16)
    limit, reason = _limit(prompt, asked, bool(body.get("ignore_eos")), settings)
    name, usage = settings.names[0] if model is None else str(model), bool(options.get("include_usage"))
    return Order(name, chat, prompt, hashes, recalled, limit, reason, stream, usage)


def _limit(prompt: int, asked: object, ignore_eos: bool, settings: Settings) -> tuple[int, str]:
    """Return tokens to make and finish reason (serving_engine.py _validate_input, sampling_params.py)."""
    longest = settings.max_model_len
    most = f"This model's maximum context length is {longest} tokens. However, you requested "
    if asked is None:
        if prompt >= longest:
            raise bad(f"{most}{prompt} tokens in the messages, Please reduce the length of the messages.")
        asked = longest - prompt
    if not isinstance(asked, int) or isinstance(asked, bool):
        raise bad(f"[{{'type': 'int_type', 'loc': ('body', 'max_tokens'), 'input': {asked!r}}}]")
    if prompt + asked > longest:
        raise bad(
            f"{most}{asked + prompt} tokens ({prompt} in the messages, {asked} in the completion). Please reduce the "
            "length of the messages or completion."
        )
    if asked < 1:
        raise bad(f"max_tokens must be at least 1, got {asked}.")
    natural = natural_length(prompt)
    return (natural, "stop") if not ignore_eos and natural < asked else (asked, "length")


def _chat(body: Mapping[str, Any]) -> tuple[int, tuple[int, ...], str]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("[{'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}]")
    total, said = 2, ""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = [str(part.get("text") or "") for part in parts if isinstance(part, dict)]
        total += 2 + sum(map(text_tokens, texts))
        said = "".join(texts)
    return total, (), recall(said)


def _prompt(body: Mapping[str, Any], settings: Settings) -> tuple[int, tuple[int, ...], str]:
    given = body.get("prompt")
    if isinstance(given, str):
        return text_tokens(given), (), ""
    if isinstance(given, list) and given and all(type(item) is int for item in given):
        return len(given), _hashes(given, settings.block_size) if settings.prefix_caching else (), ""
    raise bad("Either prompt or prompt_embeds must be provided and non-empty; a rehearsal takes one prompt a request.")


def _hashes(ids: Sequence[int], size: int) -> tuple[int, ...]:
    """Hash the whole blocks of a prompt, each together with all before it."""
    hashes, before = [], 0
    for start in range(0, len(ids) - size + 1, size):
        before = hash((before, tuple(ids[start : start + size])))
        hashes.append(before)
    return tuple(hashes)


def recall(text: str) -> str:
    """Return the answer to the question of jobs/measure/needle.py at the end of a text; empty: there is none."""
    facts: dict[str, str] = dict(_FACT.findall(text))
    if one := _ONE.search(text):
        return facts.get(one[1], "")
    larger = _LARGER.search(text)
    if larger and facts.keys() >= set(larger.groups()):
        return max((facts[name] for name in larger.groups()), key=int)
    return ""


def pinned_rank(header: str | None, size: int) -> int | None:
    """Return the data-parallel rank that the header X-data-parallel-rank names, or None.

    Raises:
        Refused: 400, the rank does not exist (vLLM: v1/engine/processor.py).
    """
    if header is None:
        return None
    try:
        rank = int(header)
    except ValueError:
        raise bad(f"X-data-parallel-rank must be an integer, got {header!r}.") from None
    if not 0 <= rank < size:
        raise bad(f"data_parallel_rank {rank} is out of range [0, {size}).")
    return rank


def event(value: object) -> str:
    """Return one event of a stream."""
    return f"data: {dumps(value)}\n\n"


@dataclass
class Answer:
    """The answer to one request, token by token; a listener of the front end.

    A stream goes straight to the transport, one chunk a token; the response's head has been sent.

    Attributes:
        begin: text that a whole answer begins with; it stands for its first token.
        ended: done once the last token is there; a whole answer that failed has its error.
    """

    order: Order
    identity: str
    transport: asyncio.WriteTransport | None = None
    begin: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    made: int = 0
    reason: str | None = None

    def __post_init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._around = self.chunk(_MARK).split(json.dumps(_MARK)[1:-1])  # a word joins them to a chunk

    def token(self, reason: str | None, count: int = 1) -> None:
        """Take the tokens of one step; `reason` is set with the last ones. They are one chunk, as in vLLM."""
        if self.ended.done():
            return
        word = "".join(WORDS[(self.made + place) % len(WORDS)] for place in range(count))
        first, self.made = not self.made, self.made + count
        self.reason = reason
        if self.transport:
            if first and self.order.chat:
                self._write(self._event({"role": "assistant", "content": ""}, None))
            self._write(word.join(self._around) if reason is None else self.chunk(word, reason))
            if reason is not None:
                usage = {**self._head(".chunk"), "choices": [], "usage": self._usage()}
                self._close(event(usage) if self.order.include_usage else None)
        elif reason is not None:
            self.ended.set_result(None)

    def fail(self, text: str) -> None:
        """Take the news that no further token comes; the status of a stream stays 200, as in vLLM."""
        if self.ended.done():
            return
        if self.transport:
            self._close(f"data: {json.dumps({'error': error_body(text)})}\n\n")
        else:
            self.ended.set_exception(RuntimeError(text))

    def chunk(self, word: str, reason: str | None = None) -> str:
        """Return the chunk of one token."""
        return self._event({"content": word} if self.order.chat else word, reason)

    def body(self) -> dict[str, Any]:
        """Return the whole answer of a request without a stream."""
        text = self.begin + "".join(WORDS[i % len(WORDS)] for i in range(bool(self.begin), self.made))
        told = {"logprobs": None, "finish_reason": self.reason, "stop_reason": None}
        usage = {"usage": {**self._usage(), "prompt_tokens_details": None}}
        if self.order.chat:
            message = {"role": "assistant", "reasoning_content": None, "content": text, "tool_calls": list[Any]()}
            choices = [{"index": 0, "message": message, **told}]
            return {**self._head(), "choices": choices, **usage, "prompt_logprobs": None, "kv_transfer_params": None}
        choices = [{"index": 0, "text": text, **told, "prompt_logprobs": None}]
        return {**self._head(), "choices": choices, **usage, "kv_transfer_params": None}

    def _head(self, chunk: str = "") -> dict[str, Any]:
        kind = f"chat.completion{chunk}" if self.order.chat else "text_completion"
        return {"id": self.identity, "object": kind, "created": self.created, "model": self.order.model}

    def _event(self, said: object, reason: str | None) -> str:
        chat = self.order.chat
        choice = {"index": 0, "delta" if chat else "text": said, "logprobs": None, "finish_reason": reason}
        told = {} if chat and reason is None else {"stop_reason": None}
        return event({**self._head(".chunk"), "choices": [choice | told], **({} if chat else {"usage": None})})

    def _usage(self) -> dict[str, int]:
        prompt, made = self.order.prompt, self.made
        return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}

    def _write(self, text: str | bytes) -> None:
        """Write text as one chunk of HTTP's chunked encoding."""
        data = text.encode() if isinstance(text, str) else text
        if self.transport and not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _close(self, last: str | None) -> None:
        if last is not None:
            self._write(last)
        self._write(DONE)
        self.ended.set_result(None)


def model_list(names: tuple[str, ...], path: str, max_model_len: int) -> dict[str, Any]:
    """Return the body of /v1/models."""
    now = int(time.time())
    told = {"created": now, "owned_by": "vllm", "root": path, "parent": None, "max_model_len": max_model_len}
    listed = [{"id": name, "object": "model", **told} for name in names]
    return {"object": "list", "data": listed}
