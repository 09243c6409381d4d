"""Bodies and chunks: the expected bytes were printed by vLLM 0.9.1's own protocol classes."""

import json

import pytest
from simulator_help import settled

from jobs.engines.simulator.asking import Refused, natural_length, pinned_rank, read_ask, text_tokens
from jobs.engines.simulator.engine import Output
from jobs.engines.simulator.metrics import EngineMetrics, one_two_five, render
from jobs.engines.simulator.replies import Form, dumps, error_event, model_list
from jobs.engines.simulator.scheduler import Request
from jobs.engines.simulator.wire import pack_output, pack_request, unpack_output, unpack_request

TEXT = Form("cmpl-x", 1, "m", chat=False)
CHAT = Form("chatcmpl-x", 1, "m", chat=True)


def chunk(form: Form, word: str, reason: str | None = None) -> str:
    before, after = form.token_parts(0)
    end = form.chunk_end(1, 2)
    return (before + word.encode() + (after if reason is None else form.last_part(reason)) + end).decode()


def test_text_completion_chunks():
    assert chunk(TEXT, " a") == (
        'data: {"id":"cmpl-x","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" a",'
        '"logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":null}\n\n'
    )
    counted = Form("cmpl-x", 1, "m", chat=False, include_usage=True, continuous_usage=True)
    assert chunk(counted, " a", "length") == (
        'data: {"id":"cmpl-x","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" a",'
        '"logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":{"prompt_tokens":1,"total_tokens":3,'
        '"completion_tokens":2,"prompt_tokens_details":null}}\n\n'
    )
    assert TEXT.usage_chunk(1, 2).decode() == (
        'data: {"id":"cmpl-x","object":"text_completion","created":1,"model":"m","choices":[],"usage":'
        '{"prompt_tokens":1,"total_tokens":3,"completion_tokens":2}}\n\n'
    )


def test_chat_chunks():
    head = 'data: {"id":"chatcmpl-x","object":"chat.completion.chunk","created":1,"model":"m","choices":['
    assert CHAT.role_chunk(0, 1).decode() == (
        head + '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert chunk(CHAT, " a") == head + '{"index":0,"delta":{"content":" a"},"logprobs":null,"finish_reason":null}]}\n\n'
    assert chunk(CHAT, " a", "length") == (
        head + '{"index":0,"delta":{"content":" a"},"logprobs":null,"finish_reason":"length","stop_reason":null}]}\n\n'
    )
    assert CHAT.usage_chunk(1, 2).decode() == (
        head + '],"usage":{"prompt_tokens":1,"total_tokens":3,"completion_tokens":2}}\n\n'
    )


def test_whole_bodies():
    assert dumps(TEXT.body([(" a", "length")], 1, 2)) == (
        '{"id":"cmpl-x","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" a",'
        '"logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_logprobs":null}],"usage":{"prompt_tokens":1,'
        '"total_tokens":3,"completion_tokens":2,"prompt_tokens_details":null},"kv_transfer_params":null}'
    )
    assert dumps(CHAT.body([("a", "length")], 1, 2)) == (
        '{"id":"chatcmpl-x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":'
        '"assistant","reasoning_content":null,"content":"a","tool_calls":[]},"logprobs":null,"finish_reason":"length",'
        '"stop_reason":null}],"usage":{"prompt_tokens":1,"total_tokens":3,"completion_tokens":2,'
        '"prompt_tokens_details":null},"prompt_logprobs":null,"kv_transfer_params":null}'
    )
    listed = model_list(("m",), "/p", 8)["data"][0]
    assert (listed["id"], listed["root"], listed["max_model_len"], listed["owned_by"]) == ("m", "/p", 8, "vllm")
    error = json.loads(error_event("x").decode().removeprefix("data: "))["error"]
    assert error == {"object": "error", "message": "x", "type": "BadRequestError", "param": None, "code": 400}


def ask(chat: bool = False, **body: object):
    return read_ask(body, chat, settled("--max-model-len", "1000", "--no-enable-prefix-caching"))


def test_lengths_and_finish_reasons():
    assert ask(prompt=[1, 2, 3], max_tokens=5, ignore_eos=True).limits == ((5, "length"),)
    assert ask(prompt=[1, 2, 3]).limits == ((16, "length"),)
    assert ask(prompt=[1, 2, 3], max_tokens=900).limits == ((natural_length(3), "stop"),)
    assert ask(prompt=[[1], [2, 3]], max_tokens=5).limits == ((5, "length"),) * 2
    assert ask(chat=True, messages=[{"role": "user", "content": "hi"}], ignore_eos=True).limits == ((995, "length"),)
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
        return read_ask({"prompt": ids and list(ids)}, False, settled("--block-size", "8")).prompts[0].hashes

    one, two = hashes(*range(20)), hashes(*range(16), 99, 98, 97, 96, 95, 94, 93, 92)
    assert len(one) == 2 and one == two[:2] and len(two) == 3
    assert hashes(5, *range(1, 20))[1] != one[1]


def test_messages_survive_the_wire():
    output = Output(1, (1, 2), ((2, "length"),), (3,), "words", 4, 5, 0.25, 6, 7, 8)
    data = pack_output(output)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert unpack_output(json.loads(data[4:])) == output
    request = unpack_request(json.loads(pack_request(Request(1, 2, 3, "stop", (4, 5)))[4:]))
    assert (request.key, request.prompt, request.limit, request.reason, request.hashes) == (1, 2, 3, "stop", (4, 5))


def test_metrics_page():
    metrics = EngineMetrics(1000)
    metrics.last = Output(1, running=3, waiting=2, usage=0.5, preemptions=4)
    metrics.generation_tokens = 7
    metrics.first_token.add(0.3)
    lines = render([(1, metrics)], "m", 10, 128).splitlines()
    assert 'vllm:num_requests_running{engine="1",model_name="m"} 3.0' in lines
    assert 'vllm:num_requests_waiting{engine="1",model_name="m"} 2.0' in lines
    assert 'vllm:gpu_cache_usage_perc{engine="1",model_name="m"} 0.5' in lines
    assert 'vllm:num_preemptions_total{engine="1",model_name="m"} 4.0' in lines
    assert 'vllm:generation_tokens_total{engine="1",model_name="m"} 7.0' in lines
    assert 'vllm:request_success_total{engine="1",finished_reason="length",model_name="m"} 0.0' in lines
    assert 'vllm:time_to_first_token_seconds_bucket{engine="1",le="0.25",model_name="m"} 0.0' in lines
    assert 'vllm:time_to_first_token_seconds_bucket{engine="1",le="0.5",model_name="m"} 1.0' in lines
    assert 'vllm:time_to_first_token_seconds_count{engine="1",model_name="m"} 1.0' in lines
    assert one_two_five(100) == (1, 2, 5, 10, 20, 50, 100)
