"""Bodies and chunks: the expected bytes were printed by vLLM 0.9.1's own protocol classes."""

import asyncio
import json

import pytest
from simulator_help import settled

from jobs.engines.simulator.answers import (
    Answer,
    Order,
    Refused,
    dumps,
    error_body,
    model_list,
    natural_length,
    pinned_rank,
    read_order,
    text_tokens,
)
from jobs.engines.simulator.engine import Output
from jobs.engines.simulator.frontend import EngineMetrics, render
from jobs.engines.simulator.headless import Remote, pack, receive
from jobs.engines.simulator.scheduler import Figures, Request


class Wire(asyncio.WriteTransport):
    """A connection that keeps what was written, one chunk of HTTP's chunked encoding each."""

    def __init__(self) -> None:
        self.chunks: list[str] = []

    def is_closing(self) -> bool:
        return False

    def write(self, data) -> None:
        size, _, rest = data.partition(b"\r\n")
        assert rest[int(size, 16) :] == b"\r\n"
        self.chunks.append(rest[:-2].decode())


def answer(chat: bool, wire: Wire | None = None, begin: str = "") -> Answer:
    order = Order("m", chat, 1, (), "", 2, "length", stream=bool(wire), include_usage=True)
    return Answer(order, "chatcmpl-x" if chat else "cmpl-x", wire, begin, created=1)


async def streamed(chat: bool) -> list[str]:
    made = answer(chat, wire := Wire())
    made.token(None)
    made.token("length")
    assert made.ended.done()
    return wire.chunks


async def test_text_completion_chunks():
    head = 'data: {"id":"cmpl-x","object":"text_completion","created":1,"model":"m","choices":['
    assert await streamed(chat=False) == [
        head + '{"index":0,"text":" so","logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":null}\n\n',
        head
        + '{"index":0,"text":" the","logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":null}\n\n',
        head + '],"usage":{"prompt_tokens":1,"total_tokens":3,"completion_tokens":2}}\n\n',
        "data: [DONE]\n\n",
    ]


async def test_chat_chunks():
    head = 'data: {"id":"chatcmpl-x","object":"chat.completion.chunk","created":1,"model":"m","choices":['
    assert await streamed(chat=True) == [
        head + '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n',
        head + '{"index":0,"delta":{"content":" so"},"logprobs":null,"finish_reason":null}]}\n\n',
        head
        + '{"index":0,"delta":{"content":" the"},"logprobs":null,"finish_reason":"length","stop_reason":null}]}\n\n',
        head + '],"usage":{"prompt_tokens":1,"total_tokens":3,"completion_tokens":2}}\n\n',
        "data: [DONE]\n\n",
    ]


async def test_a_broken_stream_ends_with_an_error_event():
    made = answer(False, wire := Wire())
    made.fail("x")
    made.token("length")
    assert wire.chunks[1:] == ["data: [DONE]\n\n"]
    assert json.loads(wire.chunks[0].removeprefix("data: "))["error"] == error_body("x")


async def whole(chat: bool, begin: str = "") -> str:
    made = answer(chat, begin=begin)
    made.token(None)
    made.token("length")
    await made.ended
    return dumps(made.body())


async def test_whole_bodies():
    assert await whole(chat=False) == (
        '{"id":"cmpl-x","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" so the",'
        '"logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_logprobs":null}],"usage":{"prompt_tokens":1,'
        '"total_tokens":3,"completion_tokens":2,"prompt_tokens_details":null},"kv_transfer_params":null}'
    )
    assert await whole(chat=True, begin="7") == (
        '{"id":"chatcmpl-x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":'
        '"assistant","reasoning_content":null,"content":"7 the","tool_calls":[]},"logprobs":null,'
        '"finish_reason":"length","stop_reason":null}],"usage":{"prompt_tokens":1,"total_tokens":3,"completion_tokens":2,'
        '"prompt_tokens_details":null},"prompt_logprobs":null,"kv_transfer_params":null}'
    )
    listed = model_list(("m",), "/p", 8)["data"][0]
    assert (listed["id"], listed["root"], listed["max_model_len"], listed["owned_by"]) == ("m", "/p", 8, "vllm")
    error = {"object": "error", "message": "x", "type": "BadRequestError", "param": None, "code": 400}
    assert error_body("x") == error


def ask(chat: bool = False, **body: object):
    return read_order(body, chat, settled("--max-model-len", "1000", "--no-enable-prefix-caching"))


def test_lengths_and_finish_reasons():
    def limit(**body):
        made = ask(**body)
        return made.limit, made.reason

    assert limit(prompt=[1, 2, 3], max_tokens=5, ignore_eos=True) == (5, "length")
    assert limit(prompt=[1, 2, 3]) == (16, "length")
    assert limit(prompt=[1, 2, 3], max_tokens=900) == (natural_length(3), "stop")
    assert limit(chat=True, messages=[{"role": "user", "content": "hi"}], ignore_eos=True) == (995, "length")
    assert text_tokens("one two three") == 4 and text_tokens("a b c d e f") == 6


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"prompt": [1] * 996, "max_tokens": 5}, 400,
         "This model's maximum context length is 1000 tokens. However, you requested 1001 tokens (996 in the messages, "
         "5 in the completion). Please reduce the length of the messages or completion."),
        ({"prompt": [1] * 1000, "max_tokens": None}, 400, "you requested 1000 tokens in the messages, Please reduce"),
        ({"prompt": [1], "max_tokens": 0}, 400, "max_tokens must be at least 1, got 0."),
        ({"prompt": [1], "max_tokens": "5"}, 400, "max_tokens"),
        ({"prompt": []}, 400, "Either prompt or prompt_embeds must be provided"),
        ({"prompt": [1, "a"]}, 400, "Either prompt"),
        ({"prompt": [[1], [2, 3]]}, 400, "one prompt a request"),
        ({"prompt": [1], "model": "other"}, 404, "The model `other` does not exist."),
        ({"prompt": [1], "stream_options": {"include_usage": True}}, 400, "Stream options can only be defined"),
    ],
)  # fmt: skip
def test_what_is_refused(body, status, words):
    with pytest.raises(Refused) as refusal:
        ask(**body)
    assert refusal.value.status == status and words in refusal.value.body["message"]


def test_pinning():
    assert pinned_rank(None, 2) is None and pinned_rank("1", 2) == 1
    for header in ("2", "-1", "one"):
        with pytest.raises(Refused):
            pinned_rank(header, 2)


def test_prefix_hashes_depend_on_all_before():
    def hashes(*ids: int):
        return read_order({"prompt": list(ids)}, False, settled("--block-size", "8")).hashes

    one, two = hashes(*range(20)), hashes(*range(16), 99, 98, 97, 96, 95, 94, 93, 92)
    assert len(one) == 2 and one == two[:2] and len(two) == 3
    assert hashes(5, *range(1, 20))[1] != one[1]


class Socket(asyncio.StreamReader):
    """Both ends of a connection: what is written to it is read from it."""

    write = asyncio.StreamReader.feed_data

    def is_closing(self) -> bool:
        return False


async def test_messages_survive_the_wire():
    wire = Socket()
    output = Output(1, [1, 2], [[2, "length"]], [3], "words", Figures(4, 5, 0.25, 6, 7, 8))
    wire.write(pack("out", *output))
    kind, *message = await receive(wire)
    assert (kind, Output.of(message)) == ("out", output)
    remote, request = Remote(1), Request(1, 2, 3, "stop", [4, 5])
    remote.abort([9])  # of nobody: it is lost
    remote.writer = wire
    remote.add(request)
    remote.abort([1])
    kind, *message = await receive(wire)
    assert kind == "add" and vars_of(Request(*message)) == vars_of(request)
    assert await receive(wire) == ["abort", [1]]
    wire.feed_eof()
    assert await receive(wire) is None


def vars_of(request: Request):
    return request.key, request.prompt, request.limit, request.reason, request.hashes


def test_metrics_page():
    metrics = EngineMetrics(Figures(running=3, waiting=2, usage=0.5, preemptions=4), generation_tokens=7)
    lines = render([(1, metrics)], "m").splitlines()
    assert 'vllm:num_requests_running{engine="1",model_name="m"} 3.0' in lines
    assert 'vllm:num_requests_waiting{engine="1",model_name="m"} 2.0' in lines
    assert 'vllm:gpu_cache_usage_perc{engine="1",model_name="m"} 0.5' in lines
    assert 'vllm:num_preemptions_total{engine="1",model_name="m"} 4.0' in lines
    assert 'vllm:generation_tokens_total{engine="1",model_name="m"} 7.0' in lines
    assert 'vllm:request_success_total{engine="1",finished_reason="length",model_name="m"} 0.0' in lines
    assert "# TYPE vllm:num_preemptions_total counter" in lines
