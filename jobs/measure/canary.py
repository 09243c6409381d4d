"""The canary: one known question before and after the windows. A fast service that answers nonsense is not valid.

It stands among the load as well (underload.py), for kernels that are right when idle and wrong under concurrency.
It is the article's own check ("解释一下量子纠缠", by chat, 100 tokens), sent while nothing else runs, at temperature 0.
Where any words will do, a few are enough.
"""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, replace
from difflib import SequenceMatcher
from typing import Any

from jobs.core.config import Bench
from jobs.measure.records import Answer, Target
from jobs.measure.wire import Connections, request_json

QUESTION = "解释一下量子纠缠"
TOKENS = {"sane": 100, "answer": 16}
"""Length of the answer by `bench.canary`, tokens."""

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

LIMIT_S = 300.0
"""A 100-token answer of an idle service takes seconds; a first graph compilation may be among them."""

REPEATED = 0.6
"""Share of an answer that one word, character or short phrase may make up."""

ASKED_SCRIPT = 0.5
"""Share of the words that must be of the script that was asked in; a Chinese character counts as one."""

_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_OTHER_WORD = re.compile(r"[^\W\d_]+")

ALIKE = 0.2
"""Likeness of the two answers (difflib) below which it is noted: batches differ, so they need not be equal."""


def body(model: str, tokens: int) -> dict[str, Any]:
    """Return the article's request, made repeatable."""
    messages = [{"role": "user", "content": QUESTION}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": False}


def curl(target: Target, tokens: int) -> str:
    """Return a line for a shell that asks the same; the key, where there is one, is left to the reader's variable."""
    argv = ["curl", "-s", "-H", "Content-Type: application/json", target.base_url + CHAT]
    argv += ["-d", json.dumps(body(target.model, tokens), ensure_ascii=False)]
    line = " ".join(shlex.quote(text) for text in argv)
    return line if target.api_key is None else line + ' -H "Authorization: Bearer $API_KEY"'


async def ask(connections: Connections, target: Target, tokens: int, *, chat: bool | None = None) -> Answer:
    """Ask the canary's question, with an answer of so many tokens.

    `chat` None: by chat, and a model without a chat template for a completion.
    """
    asked = body(target.model, tokens)
    status, answer = 400, dict[str, Any]()
    if chat is not False:
        status, answer = await request_json(connections, CHAT, asked, LIMIT_S)
    if chat is False or (chat is None and status == 400 and "chat template" in json.dumps(answer).lower()):
        del asked["messages"]
        status, answer = await request_json(connections, COMPLETIONS, asked | {"prompt": QUESTION}, LIMIT_S)
        return replace(read(status, answer), chat=False)
    return read(status, answer)


def read(status: int, answer: Mapping[str, Any]) -> Answer:
    """Return the words of a whole answer by chat or completion, or why there are none."""
    if status != 200:
        return Answer("", None, f"HTTP {status}: {_words(answer)}" if status else str(answer["error"]))
    try:
        choice = answer["choices"][0]
        message = choice.get("message") or {"content": choice.get("text")}
        # A reasoning parser puts what comes first apart; within 100 tokens it may be all there is.
        said = [message.get(key) for key in ("reasoning_content", "reasoning", "content")]
        usage = answer.get("usage") or {}
        text = "".join(text for text in said if text)
        return Answer(text, usage.get("completion_tokens"), None, usage.get("prompt_tokens"))
    except (KeyError, IndexError, TypeError, AttributeError):
        return Answer("", None, f"no chat answer: {json.dumps(answer)[:200]}")


def _words(answer: Mapping[str, Any]) -> str:
    error = answer.get("error") or answer
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]


def fault(answer: Answer, bench: Bench) -> str | None:
    """Return what is wrong with an answer by the measure of `bench.canary`, or None."""
    if answer.error:
        return f"no answer: {answer.error}"
    if bench.canary == "sane":
        return insane(answer.text)
    if not answer.text and not answer.tokens:
        return "an empty answer"
    return None


def insane(text: str) -> str | None:
    """Return why these are no sane words on a Chinese question, or None.

    What broken weights, wrong quantisation and broken kernels give: nothing, one token for ever, broken characters,
    or letters of every script.
    """
    said = text.strip()
    if not any(unicodedata.category(character).startswith("L") for character in said):
        return "an answer without a letter" if said else "an empty answer"
    if said.count("\ufffd") > 0.05 * len(said):
        return "broken characters"
    if (share := _repetition(said)) > REPEATED:
        return f"{share:.0%} of it is one thing repeated"
    chinese = len(_CHINESE.findall(said))
    asked = chinese / (chinese + len(_OTHER_WORD.findall(_CHINESE.sub(" ", said))))
    if asked < ASKED_SCRIPT:
        return f"{asked:.0%} of its words are Chinese, as the question is"
    return None


def _repetition(text: str) -> float:
    """Return the largest share of a text that equals the text a few characters before: 1 for a short loop."""
    if len(text) < 16:
        return 0.0
    shares = []
    for period in range(1, min(16, len(text) // 4) + 1):
        equal = sum(one == other for one, other in zip(text, text[period:], strict=False))
        shares.append(equal / (len(text) - period))
    return max(shares)


def alike(one: Answer, other: Answer) -> float:
    """Return how much two answers have in common, 0 to 1."""
    return SequenceMatcher(None, one.text, other.text, autojunk=False).ratio()


def differ(before: Answer, after: Answer) -> str | None:
    """Return a note where the two answers are unlike."""
    likeness = alike(before, after)
    return f"the canary's answers before and after are unlike ({likeness:.0%} alike)" if likeness < ALIKE else None


def record(target: Target, bench: Bench, answers: Mapping[str, Answer]) -> dict[str, Any]:
    """Return what is kept: the question as a line for a shell, and both answers."""
    said = {when: asdict(answer) | {"fault": fault(answer, bench)} for when, answer in answers.items()}
    return {"curl": curl(target, TOKENS[bench.canary]), **said}
