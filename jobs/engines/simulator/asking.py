"""Reading a request: what vLLM 0.9.1 takes and what it refuses, with its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.engines.simulator.recall import recall
from jobs.engines.simulator.replies import error_body
from jobs.engines.simulator.settings import Settings

NATURAL_SPREAD = 384


class Refused(Exception):
    """A request that gets an error at once: HTTP status and body."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


@dataclass(frozen=True)
class Prompt:
    """One prompt: its length in tokens, the hashes of its whole blocks (with prefix caching only), what it asks for."""

    tokens: int
    hashes: tuple[int, ...] = ()
    answer: str | None = None


@dataclass(frozen=True)
class Ask:
    """What a client asks for.

    Attributes:
        limits: tokens to make for each prompt, with the finish reason that comes after them.
    """

    prompts: tuple[Prompt, ...]
    limits: tuple[tuple[int, str], ...]
    model: str
    stream: bool
    include_usage: bool
    continuous_usage: bool


def bad(message: str) -> Refused:
    """Return vLLM's answer to a request that it cannot take."""
    return Refused(400, error_body(message))


def text_tokens(text: str) -> int:
    """Estimate the tokens of a text: one for four bytes, but at least one a word (there is no tokenizer here)."""
    return max(1, -(-len(text.encode()) // 4), len(text.split()))


def natural_length(prompt: int) -> int:
    """Return after how many tokens the pretended model ends by itself: 128 to 511, by the prompt's length."""
    return 128 + prompt * 37 % NATURAL_SPREAD


def read_ask(body: object, chat: bool, settings: Settings) -> Ask:
    """Check the JSON body of a request.

    Raises:
        Refused: 404 for another model, 400 for everything else that vLLM refuses.
    """
    if not isinstance(body, dict):
        raise bad("[{'type': 'model_attributes_type', 'loc': ('body',), 'msg': 'Input should be a valid dictionary'}]")
    model = body.get("model")
    if model is not None and model not in settings.names:
        raise Refused(404, error_body(f"The model `{model}` does not exist.", "NotFoundError", 404))
    prompts = _chat_prompt(body) if chat else _prompts(body, settings)
    options = body.get("stream_options") or {}
    stream = bool(body.get("stream"))
    if options and not stream:
        raise bad("Value error, Stream options can only be defined when `stream=True`.")
    asked = (body.get("max_completion_tokens") or body.get("max_tokens")) if chat else body.get("max_tokens", 16)
    include = bool(options.get("include_usage"))
    return Ask(
        prompts=prompts,
        limits=tuple(_limit(prompt.tokens, asked, bool(body.get("ignore_eos")), settings) for prompt in prompts),
        model=settings.names[0] if model is None else str(model),
        stream=stream,
        include_usage=include,
        continuous_usage=include and bool(options.get("continuous_usage_stats")),
    )


def _limit(prompt: int, asked: object, ignore_eos: bool, settings: Settings) -> tuple[int, str]:
    """Return tokens to make and finish reason (serving_engine.py _validate_input, sampling_params.py)."""
    longest = settings.max_model_len
    if asked is None:
        if prompt >= longest:
            raise bad(
                f"This model's maximum context length is {longest} tokens. However, you requested {prompt} tokens in "
                "the messages, Please reduce the length of the messages."
            )
        asked = longest - prompt
    if not isinstance(asked, int) or isinstance(asked, bool):
        raise bad(f"[{{'type': 'int_type', 'loc': ('body', 'max_tokens'), 'input': {asked!r}}}]")
    if prompt + asked > longest:
        raise bad(
            f"This model's maximum context length is {longest} tokens. However, you requested {asked + prompt} tokens "
            f"({prompt} in the messages, {asked} in the completion). Please reduce the length of the messages or "
            "completion."
        )
    if asked < 1:
        raise bad(f"max_tokens must be at least 1, got {asked}.")
    natural = natural_length(prompt)
    return (natural, "stop") if not ignore_eos and natural < asked else (asked, "length")


def _chat_prompt(body: Mapping[str, Any]) -> tuple[Prompt, ...]:
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
    return (Prompt(total, answer=recall(said)),)


def _prompts(body: Mapping[str, Any], settings: Settings) -> tuple[Prompt, ...]:
    given = body.get("prompt")
    if isinstance(given, str):
        return (Prompt(text_tokens(given)),)
    if isinstance(given, list) and given:
        if all(type(item) is int for item in given):
            return (_ids(given, settings),)
        if all(isinstance(item, str) for item in given):
            return tuple(Prompt(text_tokens(item)) for item in given)
        if all(isinstance(item, list) and item and all(type(i) is int for i in item) for item in given):
            return tuple(_ids(item, settings) for item in given)
    raise bad("Either prompt or prompt_embeds must be provided and non-empty.")


def _ids(ids: Sequence[int], settings: Settings) -> Prompt:
    """Hash the whole blocks of a prompt, each together with all before it."""
    hashes: list[int] = []
    if settings.prefix_caching:
        size, before = settings.block_size, 0
        for start in range(0, len(ids) - size + 1, size):
            before = hash((before, tuple(ids[start : start + size])))
            hashes.append(before)
    return Prompt(len(ids), tuple(hashes))


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
