"""What the ranks tell each other, written on a line and read back; what is no message of ours is refused."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from jobs.allocation.messages import (
    Beat,
    Bye,
    Ended,
    EngineStart,
    Inspect,
    Inspected,
    Listens,
    Lost,
    Message,
    Phase,
    Prepare,
    Prepared,
    Progress,
    Signalled,
    Stop,
    Stopped,
    decode,
    encode,
)
from jobs.allocation.node.audit import Difference
from jobs.allocation.preflight.facts import Facts, Holder, Host, Interface, Npus, Ping, Problem, Reached, Space
from jobs.allocation.preflight.questions import AskClock, AskFacts, AskReach, Clock, EndChecks, FactsFound, ReachFound

START = EngineStart("s", "p", 2, 1, "10.0.0.1", "8000", "13389")
HOST = Host(versions={"vllm": "0.9.1"}, shm=Space(1, 0.5), disks={"TMPDIR /tmp": Space(3.5, 2)}, reserved_ports=(1, 2))
FACTS = Facts(
    *(1, "node1", "eth0", "10.0.0.2", 24, HOST),
    interfaces={"eth0": Interface(True, (("10.0.0.2", 24),))},
    busy={8000: Holder("process 7")},
    listening=(60000, 60001),
    npus=Npus(problem=Problem("no npu-smi")),
)

MESSAGES: list[Message] = [
    *(Beat(), Bye(), Inspect(), EndChecks(), Listens()),
    *(START, Prepare(START), Stop(), Stop(3.0), Stop(3), Phase("measuring", {"point": "ü\n", "n": 1})),
    *(Lost("gone"), Ended("it ended", 1.5), Signalled("SIGTERM", 2), Progress(), Prepared({"sizes": "ab12"})),
    *(Inspected(), Inspected((Difference("argv", "a", None, error=True),)), Stopped(), Stopped(("pid 7 python",))),
    *(AskClock(1), Clock(1, 1e9), AskFacts(2, 30.0), FactsFound(2, FACTS)),
    AskReach(3, "token", ((0, "10.0.0.1", (8000, 60000)),), ((0, "10.20.0.1", 1, 7),)),
    ReachFound(3, (Reached(0, 1, 8000, None),), (Ping(0, 1, 1, 7, 3, 3),)),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_every_message_is_read_back_as_it_was_written(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    found = decode(line)
    assert found == message
    assert type(found) is type(message)


def test_every_kind_is_tried_here() -> None:
    """Kinds that are only the base of others are never sent."""
    bases = {"Gone", "Question", "Answer"}
    assert {type(one).__name__ for one in MESSAGES} == Message.kinds.keys() - bases


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"GET / HTTP/1.1", "Expecting value"),
        (b"\xff\xfe", ""),
        (b"[1]", "there is no message of kind 'None'"),
        (b"{}", "there is no message of kind 'None'"),
        (b'{"type": ["Bye"]}', "there is no message of kind"),
        (b'{"type": "Message"}', "there is no message of kind 'Message'"),
        (b'{"type": "bye"}', "there is no message of kind 'bye'"),
        (b'{"type": "Bye", "n": 1}', "Bye: n: "),
        (b"[" * 100_000, "it is too deep"),
        (b'{"type": "Signalled", "reason": "x"}', "Signalled: time: Field required"),
        (b'{"type": "Clock", "n": "1", "time": 1.0}', "Clock: n: "),
        (b'{"type": "Clock", "n": true, "time": 1.0}', "Clock: n: "),
        (b'{"type": "Clock", "n": null, "time": 1.0}', "Clock: n: "),
        (b'{"type": "Progress", "age_s": "soon"}', "Progress: age_s: "),
        (b'{"type": "Prepared", "parts": ["a"]}', "Prepared: parts: "),
        (b'{"type": "Inspected", "differences": [{"key": "argv"}]}', "Inspected: differences.0."),
        (b'{"type": "Prepare", "start": {"service": "s"}}', "Prepare: start.point: Field required"),
        (b'{"type": "FactsFound", "n": 1, "facts": {"rank": 1}}', "FactsFound: facts.node: Field required"),
    ],
)
def test_what_is_no_message_of_ours_is_refused_in_one_line(line: bytes, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        decode(line)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("message", [one for one in MESSAGES if fields(one)], ids=lambda one: type(one).__name__)  # type: ignore[arg-type]
def test_a_field_of_the_wrong_type_is_refused(message: Message) -> None:
    data = json.loads(encode(message))
    for name in data.keys() - {"type"}:
        with pytest.raises(ValueError, match=f"{type(message).__name__}: {name}"):
            decode(json.dumps(data | {name: {"no": ["such", "type"]} if name != "details" else 5}).encode())
