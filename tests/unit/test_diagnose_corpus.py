"""Small logs in the form that these programs write, with what the diagnosis must say of them: tests/corpus/*.yaml.

Keys of a case: `is` the id of a signature, FAMILY-CODE of a code, `unknown` (not known) or `none` (no failure); `log`
or `ranks` (rank: log); `line` words of the line that is shown first; `says` words of cause, remedy, causes or meanings;
`certainty`, `rank`, `retryable`, `suspects` as in a diagnosis; `not` ids that must not be named.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jobs.core.foreign import from_yaml
from jobs.diagnose.classify import classify
from jobs.diagnose.diagnosis import Diagnosis, RankLog
from jobs.diagnose.sift import sift
from jobs.diagnose.signatures import families, signatures

CASES = [
    pytest.param(case, id=f"{path.stem}-{number}-{case['is']}")
    for path in sorted((Path(__file__).parent.parent / "corpus").glob("*.yaml"))
    for number, case in enumerate(from_yaml(path.read_text(encoding="utf-8")))
]
KEYS = {"is", "log", "ranks", "line", "says", "certainty", "rank", "retryable", "suspects", "not"}


def case_of(param: Any) -> dict[str, Any]:
    return dict(param.values[0])


def logs(case: dict[str, Any]) -> list[RankLog]:
    ranks = case.get("ranks") or {None: case["log"]}
    return [RankLog.of(rank, f"rank{rank}.log", text) for rank, text in ranks.items()]


def name(found: Diagnosis) -> str:
    return (found.signature or "unknown") if found.found else "none"


@pytest.mark.parametrize("case", CASES)
def test_a_case_is_read_as_it_says(case: dict[str, Any]) -> None:
    assert not case.keys() - KEYS
    found = classify(logs(case))
    assert name(found) == case["is"], found.text()
    assert found.signature not in case.get("not", ())
    if "line" in case:
        assert found.first is not None
        assert case["line"] in found.first.line
    told = "\n".join((found.cause, found.remedy, *found.causes, *found.means))
    assert case.get("says", "") in told
    for key in ("certainty", "rank", "retryable"):
        assert getattr(found, key) == case.get(key, getattr(found, key)), key
    assert list(found.suspects) == case.get("suspects", list(found.suspects))


def of_its_end(case: dict[str, Any]) -> bool:
    """Whether the answer follows from where the log ends (a traceback is cut off), or from lines that are not kept."""
    texts = [*(case.get("ranks") or {None: case["log"]}).values()]
    ends = case["is"].startswith(("stopped-", "unknown"))
    return ends or any('", line ' in text.splitlines()[-1] or "POST /" in text for text in texts)


@pytest.mark.parametrize("case", [param for param in CASES if not of_its_end(case_of(param))])
def test_a_long_log_is_read_like_a_short_one(case: dict[str, Any]) -> None:
    texts = case.get("ranks") or {None: case["log"]}
    quiet = "quiet\n" * 9
    found = classify(
        [
            RankLog(rank, f"rank{rank}.log", sift(BytesIO(f"{quiet}{text.rstrip()}\n{quiet}".encode())))
            for rank, text in texts.items()
        ]
    )
    assert name(found) == case["is"], found.text()


def test_the_corpus_has_every_kind_and_near_misses() -> None:
    named = [case_of(param)["is"] for param in CASES]
    assert len(named) >= 190
    assert named.count("none") >= 15
    assert named.count("unknown") >= 12
    lists = {family.id for family in families()}
    met = {family for family in lists for one in named if f"{one}-".startswith(f"{family}-")}
    assert met >= lists - {"torch-npu"}
    assert len({one for one in named if one in {signature.id for signature in signatures()}}) >= 90


# ---- forms: what stands around a line changes nothing ---------------------------------------------------------------

PREFIXES = (
    "Nov 28 10:00:00 n1 slurmd[123]: ",
    "2027-11-28T10:00:00.123456789Z ",
    "2027-11-28T10:00:00.123456789Z stderr F ",
    "[pod/vllm-0/engine] ",
    "[2027-11-28 10:00:00.427][node-0001-1] ",
    "engine-1  | ",
    "server.log:154:",
    "3: ",
    "\x1b[36m",
    "  |   | 2027-11-28 10:00:00.491 | ",
)
FORMS = [param for param in CASES if "log" in case_of(param) and "rank" not in case_of(param)]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMS), st.sampled_from(PREFIXES))
def test_what_others_put_before_every_line_changes_nothing(param: Any, prefix: str) -> None:
    case = case_of(param)
    text = "\n".join(prefix + line for line in case["log"].splitlines())
    found = classify([RankLog.of(None, "x.log", text)])
    bare = classify(logs(case))
    assert (name(found), found.certainty) == (name(bare), bare.certainty), found.text()
    if ":00" not in prefix:  # another clock than the line's own may part what belongs together
        assert (found.first and found.first.number) == (bare.first and bare.first.number)


FAILED = [param for param in FORMS if not case_of(param)["is"].startswith("stopped-")]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(FAILED), st.lists(st.booleans(), min_size=40, max_size=40))
def test_the_lines_of_a_healthy_process_between_them_change_nothing(param: Any, where: list[bool]) -> None:
    case, healthy = case_of(param), '(APIServer pid=4711) INFO:     192.0.2.1:5 - "GET /health HTTP/1.1" 200 OK'
    overcome = classify([RankLog.of(None, "x.log", "\n".join((case["log"].rstrip("\n"), healthy)))])
    assume(name(overcome) == case["is"])  # a line that is an error by its words alone, before a service that answers
    mixed = zip(case["log"].splitlines(), where, strict=False)
    lines = [one for line, also in mixed for one in ([healthy, line] if also else [line])]
    found = classify([RankLog.of(None, "x.log", "\n".join(lines))])
    assert name(found) == case["is"], found.text()


STARTS = (
    "/x/torch_npu/utils/x.py:59: UserWarning: Warning: the owner of /usr/local/Ascend does not match.",
    'WARNING 01-01 00:00:03 [x.py:20] Failed to import from vllm._C with ModuleNotFoundError("No module named x")',
    "cat: /proc/sys/kernel/odd: No such file or directory",
    "INFO 01-01 00:00:06 [api_server.py:1896] vLLM API server version 0.11.0",
)
ENDS = (
    "/x/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 2 leaked shared_memory objects",
    "srun: error: n1: task 0: Exited with exit code 1",
)
DECIDED = [param for param in FORMS if (case_of(param).get("certainty") or "named") == "named"]
DECIDED = [param for param in DECIDED if case_of(param)["is"] not in ("none", "unknown")]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(DECIDED))
def test_what_a_start_and_an_end_say_always_does_not_hide_a_named_cause(param: Any) -> None:
    case = case_of(param)
    if classify(logs(case)).certainty == "named":
        text = "\n".join((*STARTS, case["log"].rstrip("\n"), *ENDS))
        found = classify([RankLog.of(None, "x.log", text)])
        assert name(found) == case["is"], found.text()


BLOCKS = [param for param in FORMS if case_of(param)["is"] != "none" and case_of(param)["log"].count("\n") > 1]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(BLOCKS), st.data())
def test_a_cut_never_makes_a_failure_healthy_or_another_one_certain(param: Any, data: Any) -> None:
    case = case_of(param)
    lines = case["log"].splitlines()
    begin = data.draw(st.integers(0, len(lines) - 1))
    end = data.draw(st.integers(begin + 1, len(lines)))
    part = lines[begin:end]
    found = classify([RankLog.of(None, "x.log", "\n".join(part))])
    whole = classify(logs(case))
    assert whole.first is not None
    if begin < whole.first.number <= end:
        assert found.found
    if found.certainty == "named" and found.signature and whole.certainty == "named":
        assert found.signature in (case["is"], *SAME.get(case["is"], ()))


SAME = {
    "pyxis-disk-full": ("disk-full",),
    "slurm-launch": ("slurm-node-silent",),
    "container-runtime-path": ("slurm-launch",),
    "hccl-buffer-too-small": ("cann-EZ1009",),
    "npu-memory-serve": ("npu-memory",),
    "cann-EZ1001": ("aclnn-161002",),
    "operator-compile": ("cann-E90003",),
}
"""What a part of a log, or one that is mixed with another, may name in the place of the whole."""

FOLLOWERS = {"none", *(one.id for one in signatures() if one.kind == "follow_on")}
CAUSES = [param for param in FORMS if case_of(param)["is"] not in FOLLOWERS]
"""Of two followers a third may be the answer, and what one process overcame counts again where another one failed."""


def of_process(param: Any, number: int) -> list[str]:
    return [
        f"(Worker_TP{number} pid={number + 10}) {line}"
        for line in case_of(param)["log"].splitlines()
        if line[:1] != "("
    ]


def is_of_one(one: list[str], two: list[str], random: Random) -> bool:
    turns = [0] * len(one) + [1] * len(two)
    random.shuffle(turns)
    left, right = iter(one), iter(two)
    mixed = [next(right if turn else left) for turn in turns]
    alone = {name(classify([RankLog.of(0, "a", "\n".join(lines))])) for lines in (one, two)}
    alone |= {other for one_of in alone for other in SAME.get(one_of, ())}
    return name(classify([RankLog.of(0, "a", "\n".join(mixed))])) in alone


def test_interleaved_processes_give_an_answer_that_one_of_them_gives() -> None:
    """Nearly always: what only followed or was overcome in each log may decide where two fail line by line."""
    random, others = Random(4), list[list[str | None]]()
    for _ in range(600):
        pair = random.choices(CAUSES, k=2)
        if not is_of_one(*(of_process(param, number) for number, param in enumerate(pair)), random):
            others.append([param.id for param in pair])
    assert len(others) <= 9, others
