"""The canary: what is sane, and how it is asked."""

from __future__ import annotations

import json
import shlex
from contextlib import closing
from typing import Any

import pytest
from aiohttp import web

from jobs.core.config import Bench
from jobs.measure import canary
from jobs.measure.canary import differ, fault, insane
from jobs.measure.records import Answer, Target
from jobs.measure.wire import Connections

ARTICLE = (
    "量子纠缠是量子力学中的一种现象,指两个或多个粒子之间存在一种特殊的关联,使得它们的量子状态不能被分别描述,而只能作为"
    "一个整体来描述,即使这些粒子在空间上相距遥远。这种关联是超距的,似乎违反了局域性原理,但这是量子世界的基本特性之一。"
)


@pytest.mark.parametrize(
    "text",
    [
        ARTICLE,
        "<think>\n好的,用户让我解释量子纠缠。首先,我需要回忆 entanglement 的定义。</think>" + ARTICLE,
        "纠缠是关联。",
    ],
)
def test_sane_answers(text: str) -> None:
    assert insane(text) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty answer"),
        (" \n\n ", "an empty answer"),
        ("!!!! 1234 ????", "an answer without a letter"),
        ("的" * 100, "100% of it is one thing repeated"),
        ("量子纠缠" * 25, "100% of it is one thing repeated"),
        (ARTICLE[:20] + "是的" * 60, "is one thing repeated"),
        ("量�子�纠�缠�是�一�种�", "broken characters"),
        ("Quantum entanglement is a phenomenon in which particles share one state.", "0% of its words are Chinese"),
        ("คำตอบ jest это ответ متشابك δεσμός 量子 réponse keine Ahnung", "of its words are Chinese"),
    ],
)
def test_answers_of_a_broken_model(text: str, words: str) -> None:
    found = insane(text)
    assert found is not None
    assert words in found


def test_each_mode_has_its_measure() -> None:
    nonsense = Answer("so the model thinks", 4, None)
    assert fault(nonsense, Bench(canary="answer")) is None
    assert fault(nonsense, Bench(canary="sane")) == "0% of its words are Chinese, as the question is"
    assert fault(Answer("", 0, None), Bench(canary="answer")) == "an empty answer"
    assert fault(Answer("", None, "HTTP 500: dead"), Bench(canary="answer")) == "no answer: HTTP 500: dead"


def test_unlike_answers_are_noted() -> None:
    one, other = Answer(ARTICLE, 100, None), Answer("今天的天气很好,我们去公园散步吧。", 100, None)
    assert differ(one, one) is None
    assert differ(one, Answer(ARTICLE[:60] + "换一种说法也可以", 100, None)) is None
    assert "are unlike" in (differ(one, other) or "")


def test_the_curl_line_is_the_articles_request_and_shows_no_key() -> None:
    line = canary.curl(Target("http://10.0.0.1:8000", "/models/R1", "secret"), 100)
    words = shlex.split(line)
    assert words[0] == "curl" and "http://10.0.0.1:8000/v1/chat/completions" in words
    body = json.loads(words[words.index("-d") + 1])
    assert body["messages"] == [{"role": "user", "content": "解释一下量子纠缠"}]
    assert (body["model"], body["max_tokens"], body["stream"]) == ("/models/R1", 100, False)
    assert "secret" not in line and words[-1] == "Authorization: Bearer $API_KEY"


async def asked(chat: Any, completion: Any = None) -> Answer:
    """Ask a service that answers the chat route with `chat`, the other one with `completion` (status, body)."""
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        seen.append(request.path)
        assert body["temperature"] == 0 and body["max_tokens"] == 7 and not body["stream"]
        assert ("messages" in body) == (request.path == canary.CHAT)
        status, message = chat if request.path == canary.CHAT else completion
        return web.json_response(message, status=status)

    app = web.Application()
    app.router.add_post(canary.CHAT, answer)
    app.router.add_post(canary.COMPLETIONS, answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    target = Target(f"http://127.0.0.1:{runner.addresses[0][1]}", "m")
    try:
        with closing(Connections(target.base_url, {"Content-Type": "application/json"})) as connections:
            return await canary.ask(connections, target, 7)
    finally:
        await runner.cleanup()


async def test_reasoning_and_content_are_both_words() -> None:
    message = {"role": "assistant", "reasoning_content": "想", "content": "答"}
    answer = await asked((200, {"choices": [{"message": message}], "usage": {"completion_tokens": 7}}))
    assert answer == Answer("想答", 7, None)


async def test_a_model_without_a_chat_template_is_asked_for_a_completion() -> None:
    refusal = {"object": "error", "message": "As of transformers v4.44, default chat template is no longer allowed"}
    answer = await asked((400, refusal), (200, {"choices": [{"text": "abc"}], "usage": {"completion_tokens": 3}}))
    assert answer == Answer("abc", 3, None, chat=False)


async def test_what_is_no_answer_says_why() -> None:
    assert (await asked((500, {"error": {"message": "EngineDeadError"}}))).error == "HTTP 500: EngineDeadError"
    assert (await asked((200, {"object": "odd"}))).error == 'no chat answer: {"object": "odd"}'
