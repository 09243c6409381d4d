"""What counts as a token, what as the end, and what as a fault of a stream."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measure_stub import delta, event, token, usage

from jobs.measure.sse import StreamParser

DONE = b"data: [DONE]\n\n"


def read(*pieces: bytes, chat: bool = False) -> StreamParser:
    """Feed one piece a second, from second 1."""
    parser = StreamParser(chat=chat)
    for moment, piece in enumerate(pieces, start=1):
        parser.feed(piece, float(moment))
    return parser


def test_each_token_chunk_is_stamped_and_usage_is_read() -> None:
    parser = read(event(token()), event(token()), event(token(finish="length")), event(usage(7, 3)), DONE)
    assert parser.chunk_times.tolist() == [1.0, 2.0, 3.0]
    assert (parser.prompt_tokens, parser.output_tokens) == (7, 3)
    assert parser.fault(3) is None


def test_chunks_that_come_in_one_read_share_a_moment() -> None:
    parser = read(event(token()) + event(token()), event(token()) + event(usage(1, 3)) + DONE)
    assert parser.chunk_times.tolist() == [1.0, 1.0, 2.0]
    assert parser.fault(3) is None


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_any_split_over_reads_gives_the_same(end: bytes, cuts: list[int]) -> None:
    texts = ["", "é漢", 'x"y', '"choices":[{', "\n\n", "data: [DONE]"]
    stream = b"".join(event(token(text)) for text in texts) + b": ping\n\n" + event(usage(5, 6)) + DONE
    stream = b"\xef\xbb\xbf" + stream.replace(b"\n", end)
    edges = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
    parser = read(*(stream[a:b] for a, b in pairwise(edges)))
    assert len(parser.chunk_times) == 6
    assert parser.fault(6) is None


def test_json_with_spaces_is_read_too() -> None:
    parser = read(*(b"data: " + json.dumps(m).encode() + b"\n\n" for m in (token(), token(), usage(1, 2))), DONE)
    assert parser.chunk_times.tolist() == [1.0, 2.0]
    assert parser.fault(2) is None


@pytest.mark.parametrize("key", ["content", "reasoning_content", "reasoning"])
def test_the_role_of_a_chat_is_not_its_first_token(key: str) -> None:
    pieces = [delta(role="assistant", content=""), delta(**{key: "so"}), delta(content=""), delta("stop", content="")]
    parser = read(*map(event, pieces), event(usage(4, 3)), DONE, chat=True)
    assert parser.chunk_times.tolist() == [2.0, 3.0, 4.0]
    assert parser.fault(3) is None


def test_a_role_with_text_is_a_token() -> None:
    parser = read(event(delta(role="assistant", content="hi")), event(usage(4, 1)), DONE, chat=True)
    assert parser.chunk_times.tolist() == [1.0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"error": {"message": "EngineCore encountered an issue", "code": 500}}, "EngineCore encountered an issue"),
        ({"error": "EngineCore encountered an issue"}, "EngineCore encountered an issue"),
        ({"object": "error", "message": "engine is dead", "code": 400}, "engine is dead"),
        ({"error": {"code": 3}}, "{'code': 3}"),
    ],
)
def test_an_error_event_inside_a_good_stream_is_a_fault_in_the_services_words(
    error: dict[str, Any], words: str
) -> None:
    parser = read(event(token()), event(error), event(usage(1, 1)), DONE)
    assert parser.fault(1) == words


def test_a_null_error_is_none() -> None:
    assert read(event(token() | {"error": None}), event(usage(1, 1)), DONE).fault(1) is None


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_aborted_answer_is_a_fault(reason: str) -> None:
    parser = read(event(token()), event(token(finish=reason)), event(usage(1, 2)), DONE)
    assert parser.fault(None) == f"finish_reason {reason}"


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([event(token()), event(usage(1, 1))], "the stream ended without [DONE]"),
        ([event(token()), event(usage(1, 1)), b"data: [DONE]"], "the stream ended without [DONE]"),
        ([event(usage(1, 1)), DONE], "the stream held no token"),
        ([event(token()), DONE], "the stream held no usage with completion_tokens"),
        ([event(token()), event(usage(1, 0)), DONE], "the stream held no usage with completion_tokens"),
        ([event(token()), event(usage(1, 31)), DONE], "31 tokens instead of 32"),
        ([event(token()), b"data: {broken\n\n", event(usage(1, 32)), DONE], "unreadable event: {broken"),
        ([event(token()), b"data: 5\n\n", event(usage(1, 32)), DONE], "unreadable event: 5"),
        ([], "the stream ended without [DONE]"),
    ],
)
def test_faults(pieces: list[bytes], words: str) -> None:
    assert read(*pieces).fault(32) == words


def test_without_ignore_eos_any_length_is_right() -> None:
    assert read(event(token()), event(usage(1, 31)), DONE).fault(None) is None


def test_the_first_fault_is_kept() -> None:
    parser = read(event({"error": "first"}), event({"error": "second"}))
    assert parser.error == "first"


TOKEN = event(token()).strip()


@pytest.mark.parametrize(
    "written",
    [
        b': a comment with "choices":[{\n' + TOKEN + b"\n\n",
        TOKEN + b"\n: and one behind it\n\n",
        b"event: message\nid: 7\nretry: 100\n" + TOKEN + b"\n\n",
        b"id\n" + TOKEN + b"\n\n",
        TOKEN.replace(b"data: ", b"data:") + b"\n\n",
        TOKEN.replace(b',"usage"', b'\ndata: ,"usage"') + b"\n\n",
        b"\n\n\n" + TOKEN + b"\n\n\n",
        b": ping\n\ndata\n\ndata:\n\nevent: ping\ndata: still here\n\n" + TOKEN + b"\n\n",
    ],
)
def test_an_event_may_be_written_as_the_standard_allows(written: bytes) -> None:
    parser = read(event(token()), written, event(usage(1, 2)), DONE)
    assert parser.chunk_times.tolist() == [1.0, 2.0]
    assert parser.fault(2) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"error": {"message": "overloaded"}}', "overloaded"),
        (b'{"message": "gone"}', "gone"),
        (b"no words of JSON", "no words of JSON"),
    ],
)
def test_an_event_that_is_named_error_is_one(data: bytes, words: str) -> None:
    assert read(event(token()), b"event: error\ndata: " + data + b"\n\n", event(usage(1, 1)), DONE).fault(1) == words


def test_nothing_counts_after_the_end() -> None:
    parser = read(event(token()), event(usage(1, 1)), DONE, event(token()) + event(usage(9, 9)), event({"error": "x"}))
    assert parser.chunk_times.tolist() == [1.0]
    assert parser.fault(1) is None
    assert read(DONE, event(token()), event(usage(1, 1))).fault(1) == "the stream held no token"


@pytest.mark.parametrize("empty", [token(""), token("", finish="length"), token() | {"choices": [{"text": None}]}])
def test_a_chunk_without_a_word_is_neither_the_first_nor_the_last_token(empty: dict[str, Any]) -> None:
    pieces = [event(m) for m in (empty, empty, token(), token(""), token(), empty)]
    parser = read(*pieces, event(usage(1, 4)), DONE)
    assert parser.chunk_times.tolist() == [3.0, 4.0, 5.0]
    assert parser.fault(4) is None


def test_as_many_chunks_as_tokens_are_tokens_with_words_or_without() -> None:
    """Half a character, or an end of text that is hidden, is a token of which there is nothing to see."""
    pieces = [event(m) for m in (token(""), token(), token("", finish="stop"))]
    assert read(*pieces, event(usage(1, 3)), DONE).chunk_times.tolist() == [1.0, 2.0, 3.0]
    hidden = [event(token("")), event(token(""))]
    assert read(*hidden, event(usage(1, 4)), DONE).chunk_times.tolist() == [1.0, 2.0]


def test_signs_of_life_between_the_tokens_are_none() -> None:
    pieces = [event(m) for m in (token(), token(""), token(), token(""), token())]
    assert read(*pieces, event(usage(1, 3)), DONE).chunk_times.tolist() == [1.0, 3.0, 5.0]
    assert len(read(*pieces, event(usage(1, 6)), DONE).chunk_times) == 5, "some are tokens that nobody sees"


@pytest.mark.parametrize("odd", [{"usage": [1]}, {"choices": "x"}, {"choices": [None]}, {"choices": [{"delta": [1]}]}])
def test_an_event_of_another_form_is_said_and_ends_no_measurement(odd: dict[str, Any]) -> None:
    assert str(read(event(token()), event(odd), event(usage(1, 1)), DONE).fault(1)).startswith("unreadable event: ")


@pytest.mark.parametrize(
    ("written", "read_as"), [("16.0", 16), ('"16"', None), ("NaN", None), ("true", None), ("1.5", None)]
)
def test_a_length_is_a_whole_number(written: str, read_as: int | None) -> None:
    told = f'data: {{"choices":[],"usage":{{"prompt_tokens":{written},"completion_tokens":{written}}}}}\n\n'
    parser = read(event(token()), told.encode(), DONE)
    assert (parser.prompt_tokens, parser.output_tokens) == (read_as, read_as)
    assert (parser.fault(16) is None) is (read_as == 16)


def test_an_event_that_the_stream_cuts_off_is_none() -> None:
    assert len(read(event(token()), event(token()).rstrip(b"\n")).chunk_times) == 1


@pytest.mark.parametrize(("after_s", "counts"), [(1.0, True), (0.1, False), (4.0, False)])
def test_the_end_of_a_sequence_is_a_token_where_it_came_in_step(after_s: float, counts: bool) -> None:
    """Two tokens a chunk; the last step gave but a hidden one. Else a gateway has ended the answer at once, or late."""
    parser = StreamParser(chat=False)
    for number in range(4):
        parser.feed(event(token()), float(number))
    parser.feed(event(token("", finish="stop")) + event(usage(1, 9)) + DONE, 3.0 + after_s)
    assert parser.chunk_times.tolist() == [0.0, 1.0, 2.0, 3.0, *([3.0 + after_s] if counts else [])]
