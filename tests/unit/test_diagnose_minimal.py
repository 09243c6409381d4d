"""A minimal case gives the same answer and tells nothing of whose log it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from test_diagnose_corpus import CASES, logs

from jobs.__main__ import main
from jobs.diagnose.classify import classify
from jobs.diagnose.diagnosis import RankLog
from jobs.diagnose.minimal import as_case, redact

LOG = """\
(Worker_TP0 pid=3) INFO 11-28 10:00:00 [w.py:1] connect 10.21.3.4 as user=alice token=abcd1234efgh
(Worker_TP0 pid=3) INFO 11-28 10:00:00 [w.py:1] nothing to see
(Worker_TP0 pid=3) ERROR 11-28 10:00:01 [w.py:1] OSError: [Errno 28] No space left on device: '/big/secret/alice/a.bin'
srun: error: alpha-7: task 0: Exited with exit code 1
"""


def test_a_case_keeps_the_answer_and_little_else() -> None:
    case = as_case([RankLog.of(None, "x.log", LOG)])
    assert (case["is"], case["certainty"]) == ("disk-full", "named")
    assert case["log"].splitlines() == [
        "(Worker_TP0 pid=3) ERROR 11-28 10:00:01 [w.py:1] OSError: [Errno 28] No space left on device: "
        "'/d1/d2/d3/a.bin'",
        "srun: error: node1: task 0: Exited with exit code 1",
    ]
    assert classify([RankLog.of(None, "case", case["log"])]).signature == "disk-full"


def test_logs_of_several_ranks_stay_apart_and_healthy_ones_make_no_case() -> None:
    odd = "ERROR 11-28 10:00:0{0} [w.py:1] ValueError: odd {0}"
    case = as_case([RankLog.of(rank, f"r{rank}", odd.format(rank)) for rank in (0, 1)])
    assert case["is"] == "unknown"
    assert list(case["ranks"]) == [0, 1]
    assert as_case([RankLog.of(0, "r0", "INFO 11-28 10:00:00 [w.py:1] fine")])["is"] == "none"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("from 10.1.2.3 to 10.1.2.4 and 10.1.2.3", "from 192.0.2.1 to 192.0.2.2 and 192.0.2.1"),
        ("at 127.0.0.1:80, version 0.18.0, 10:00:01.123", "at 127.0.0.1:80, version 0.18.0, 10:00:01.123"),
        ("fe80::1a2b:3c4d:5e6f:1 said", "2001:db8::1 said"),
        ("2027-05-08 03:20:32:000", "2027-05-08 03:20:32:000"),
        ("mail bob@corp.example.net now", "mail user1@mail.example now"),
        ("Authorization: Bearer abcdefgh1234", "Authorization: Bearer SECRET"),
        ("api_key='sesame123'", "api_key='SECRET'"),
        ("sk-abcdefghijkl", "SECRET"),
        ("/home/alice/x.log", "/home/user1/x.log"),
        ("/data/project9/models/m.bin", "/d1/d2/models/m.bin"),
        ("/data/project9/vllm/v1/spec_decode/m.py", "/d1/d2/vllm/v1/spec_decode/m.py"),
        ("/usr/lib/python3.11/site-packages/vllm/x.py", "/usr/lib/python3.11/site-packages/vllm/x.py"),
        ("http://master.corp.internal:8080/v1", "http://host1.example:8080/v1"),
        ("https://huggingface.co/a", "https://huggingface.co/a"),
        ("Task launch for StepId=1.0 failed on node gpu-7: x", "Task launch for StepId=1.0 failed on node node1: x"),
        ("0123456789abcdef0123456789abcdef", "beef"),
        ("[pod/team-vllm-0/main] x", "[pod/pod1/c] x"),
    ],
)
def test_what_tells_whose_it_is_is_replaced(text: str, told: str) -> None:
    assert redact(text) == told
    assert redact(told) == told


@pytest.mark.parametrize("case", CASES)
def test_a_case_of_a_case_gives_the_same_answer(case: dict[str, object]) -> None:
    found = as_case(logs(case))
    again = [
        RankLog.of(rank, f"rank{rank}.log", text) for rank, text in found.get("ranks", {None: found.get("log")}).items()
    ]
    assert found["is"] == case["is"]
    assert case["is"] == "none" or (classify(again).signature or "unknown") == case["is"]


def test_a_case_has_no_secret_in_whatever_quotes_and_no_order_to_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What others read: the quotes of YAML must not hide the name of a secret, nor a line send an order."""
    hidden = ("wJalrXUtnFEMI/K7MDENG", "hf_ABCDEFGHIJKLMNOP", "glpat-ABCDEFGHIJKLMNOPQRST", "hunter2pw", "tok-123456")
    aws, token, lab, password, key = hidden
    line = (
        "(Worker_TP0 pid=3) ERROR 11-28 10:00:01 [w.py:1] torch.OutOfMemoryError: NPU out of memory. Tried to allocate "
        f'2.00 GiB {{"AWS_SECRET_ACCESS_KEY":"{aws}", "x": "{lab}"}} HF_TOKEN="{token}" '
        f"http://bob:{password}@proxy/ --api-key '{key}' \x1b]52;c;aGk=\x07\u202e"
    )
    (tmp_path / "server.log").write_text(line + "\n")
    assert main(["diagnose", str(tmp_path / "server.log"), "--as-case"]) == 0
    said = capsys.readouterr().out
    assert "npu-memory" in said and not any(one in said for one in hidden), said
    assert said.replace("\n", "").isprintable()
    assert yaml.safe_load(said)[0]["is"] == "npu-memory"
