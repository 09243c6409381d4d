"""The rule book: every signature recognises its line, and nothing harmless is taken for a failure."""

from __future__ import annotations

import re

import pytest

from jobs.diagnose.classify import classify
from jobs.diagnose.diagnosis import Diagnosis, RankLog
from jobs.diagnose.events import forms
from jobs.diagnose.signatures import (
    Family,
    Signature,
    dubious,
    families,
    fill,
    fitting,
    load,
    meanings,
    of_code,
    signatures,
    vague,
)

CATALOGUE = {
    1: "hccl-socket-timeout",
    2: "hccl-tls",
    3: "hccl-qp-exhausted",
    4: "moe-dispatch",
    5: "hccl-stale-process",
    6: "hccl-host-port",
    7: "hccl-host-port-taken",
    8: "hccl-npu-port",
    9: "hccl-env",
    10: "hccl-rank-table hccl-version hccl-root-timeout",
    11: "hccl-transport",
    12: "torch-npu-wrapper",
    13: "hccl-init",
    14: "npu-memory-load npu-memory",
    15: "npu-memory-serve",
    16: "kv-cache-none",
    17: "kv-cache-length",
    18: "scheduler-batched-tokens",
    19: "acl-graph-deepseek",
    20: "mla-heads",
    21: "graph-batch-size",
    22: "torchair-cache",
    23: "hccl-buffer-too-small moe-kernel-overrun",
    24: "graph-streams",
    25: "engine-init remote-engine-failed",
    26: "handshake-timeout",
    27: "engine-ready-timeout",
    28: "waiting-for-engines",
    29: "port-taken",
    30: "config-mismatch",
    31: "npu-not-visible",
    32: "device-type library-missing",
    33: "invalid-version",
    34: "docker-shm image-damaged",
    35: "memory-profiling",
    36: "kv-cache-pressure",
    37: "npu-driver-old",
}
"""The 37 known failures of DeepSeek-R1 on two Atlas 800I A2, by the signatures that recognise them."""


def diagnosis_of(signature: Signature, line: str) -> Diagnosis:
    """Diagnose one line where it can occur: on the right rank, before or after the service was ready."""
    rank = {"head": 0, "headless": 1, None: None}[signature.role]
    ready = "INFO 01-01 00:00:00 [a.py:1] up\nINFO:     Application startup complete.\n" if signature.ready else ""
    return classify([RankLog.of(rank, "server.log", ready + line)])


@pytest.mark.parametrize("signature", signatures(), ids=lambda signature: signature.id)
def test_every_signature_wins_on_its_own_example(signature: Signature) -> None:
    found = diagnosis_of(signature, signature.example)
    cause = fill(signature.cause, signature.pattern.search(signature.example))
    assert "{" not in cause
    if signature.kind == "note":
        assert not found.found
        assert found.notes == (f"{cause} (server.log:1)",)
    else:
        assert (found.signature, found.cause, found.certainty) == (signature.id, cause, signature.certainty)
        assert signature.id in found.summary()


def test_the_37_known_failures_are_all_recognised() -> None:
    known = {signature.id for signature in signatures()}
    named = [name for names in CATALOGUE.values() for name in names.split()]
    assert sorted(CATALOGUE) == list(range(1, 38))
    assert not set(named) - known


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # other words for the same failures, from other releases
        ("HCCP SSL routines:ssl3_get_record, The possible cause is that the TLS switch is inconsistent", "hccl-tls"),
        ('EI0016: Value Disable for config "tls" is invalid. All ranks are consistent', "hccl-tls"),
        ("[HcclSocket] host nic listen start failed, port[60000], return[11]", "hccl-host-listen"),
        ("HcclGetRootInfo(&hcclID), error code is 11", "hccl-host-listen"),
        ("call aclnnMoeDistributeDispatchV3 failed, error code is 561000", "moe-dispatch"),
        ("invokes the HcclAllocComResourceByTiling function of the hccl module. ret = 4, comm = 0x1", "moe-dispatch"),
        ("AclmdlRICaptureBegin(capture_stream_, capture_mode), error code is 207005", "graph-streams"),
        ("EL0009: The stream resources are insufficient, error", "graph-streams"),
        (
            "ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can be "
            "stored in KV cache (86656).",
            "kv-cache-length",
        ),
        ("vllm: error: argument --max-num-seqs: invalid int value: 'x'", "unknown-flag"),
        ("zmq.error.ZMQError: Address already in use (addr='tcp://10.0.0.1:13389')", "port-taken"),
        ("ImportError: libascendcl.so: cannot open shared object file: No such file or directory", "library-missing"),
        ("bash: line 1: vllm: command not found", "program-missing"),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=191.batch cgroup.", "slurm-memory"),
        ("srun: error: sdumont6156: task 0: Out Of Memory", "slurm-memory"),
        ("12|sweep|OUT_OF_MEMORY|0:125", "slurm-memory"),
        ("State=NODE_FAIL", "slurm-node-failure"),
        ("JobState=PREEMPTED", "slurm-preempted"),
        ("JobState=TIMEOUT Reason=TimeLimit", "slurm-time-limit"),
        ("[ERROR] Invalid argument: /images/none.sqsh", "image-missing"),
        ("error: rank 1: engine killed by SIGSEGV", "crash"),
    ],
)
def test_other_words_for_the_same_failure(line: str, expected: str) -> None:
    assert classify([RankLog.of(None, "x.log", line)]).signature == expected


@pytest.mark.parametrize(
    "line",
    [
        "INFO 11-24 22:51:48 [config.py:12] Unable to find a generation config, using defaults",
        "Unable to open the optional tuning table, continuing without it",
        'INFO:     127.0.0.1:36668 - "GET /errors/fatal?timeout=timed+out HTTP/1.1" 200 OK',
        "(APIServer pid=7) INFO 11-24 22:51:48 [api_server.py:1] see https://docs.example/errors/address-already-in-use",
        "/opt/site-packages/x.py:138: FutureWarning: `torch.distributed.reduce_op` is deprecated, error in 3.0",
        "(MainProcess pid=1) WARNING 11-24 23:26:03 [system_utils.py:255] Found ulimit of 20000 and failed to "
        "automatically increase with error current limit exceeds maximum limit. This can cause fd limit errors like "
        "`OSError: [Errno 24] Too many open files`.",
        "WARNING 11-24 23:26:03 [parallel.py:746] Address already in use. Retrying with a new port.",
        "[W1124 23:26:10.236264913 socket.cpp:207] [c10d] The hostname of the client cannot be retrieved. err=-3",
        "UserWarning: resource_tracker: There appear to be 2 leaked shared_memory objects to clean up at shutdown",
        "(ApiServer_0 pid=3) INFO 11-24 23:27:29 [core_client.py:770] [shutdown] MPClient: start timeout=0s",
        "(Worker pid=3) INFO 11-24 23:27:29 [multiproc_executor.py:843] Parent process exited, ending worker queues",
        "slurmstepd: error: pyxis:     [INFO] Querying registry for permission grant",
        "22:51:48 service 45fa95853a: ready after 70.3 s",
        "22:51:48 point 12be9996e6: valid, 302.8 output tok/s",
        "(Worker pid=3) ERROR 11-24 10:00:00 [m.py:1] Traceback (most recent call last):\n(Worker pid=3) INFO on",
        "(Worker pid=3) ERROR 11-24 10:00:00 [m.py:1]                ^^^^^^^^^^^^^^^^^^^",
        "    raise ValueError('No available memory for the cache blocks')",
        '  File "/opt/site-packages/vllm/error.py", line 12, in failed\nMessage: words',
        "[ERROR] HCCL(1,python):2025-07-23-03:49:57.177.290 [x.cc:1]    5. The TLS switch is inconsistent, or the TLS "
        "certificate expires. EI0006",
    ],
)
def test_harmless_lines_are_no_failures(line: str) -> None:
    found = classify([RankLog.of(0, "server.log", line)])
    assert found.signature != "hccl-tls"
    assert not found.found or found.signature == "hccl-socket-timeout"


def broken(**changes: str) -> str:
    fields = {
        "id": "one",
        "regex": "boom error",
        "kind": "cause",
        "phase": "any",
        "cause": "c",
        "remedy": "r",
        "source": "s",
        "example": "boom error",
    }
    return "- " + "\n  ".join(f"{key}: {value!r}" for key, value in (fields | changes).items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (broken(regex="boom ("), "not a regular expression"),
        (broken(example="another error"), "does not match its example"),
        (broken(regex="(?:bang|boom) .", example="bang 1"), "without a word of three letters"),
        (broken(regex="boom .*"), ".*".removeprefix(".") + " has no upper end"),
        (broken(regex="boom .{3,}"), "{3,} has no upper end"),
        (broken(regex="boom (?:er){1,9}ror"), "){ has no upper end or repeats a group"),
        (broken(kind="guess"), "Input should be 'cause'"),
        (broken(colour="red"), "Unexpected keyword argument"),
        (broken(remedy=""), "at least 1 character"),
        (broken() + "\n" + broken(), "used twice: ['one']"),
        (broken() + "\n  over: [two]", "unknown ids in `over`: ['two']"),
    ],
)
def test_a_wrong_rule_book_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        load(text)


FORMS = {
    "cann": "{}: [PID: 7] 2027-01-01-10:00:00.100.200 words",
    "aclnn": "RuntimeError: NPU function error: call aclnnAdd failed, error code is {}",
    "acl": "synchronize stream failed, runtime result = {}",
    "hccl": "HCCL function error: hcclAllReduce(a, b), error code is {}",
    "hixl": "E0608 14:45:44.404292 342420 transport.cpp:836] Transfer slice failed with status: {}",
    "torch-npu": "[ERROR] 2027-01-01-10:00:00 (PID:1, Device:0, RankID:-1) ERR{} words",
    "dcmi": "npu-smi failed. ret is -{}",
    "mindie-server": "[1] [server] [ERROR] [llm_daemon.cpp:218] : [MIE04E0101{}] [daemon] words",
    "mindie-llm": "[1] [server] [ERROR] [engine.cpp:1] : [MIE05E{}] words",
    "mindie-motor": "[1] [coordinator] [ERROR] [main.cpp:1] : [MIE03E2002{}] words",
    "slurm-says": "srun: error: {}",
    "slurm-reason": "JobState=FAILED Reason={} Dependency=(null)",
    "slurm-state": "12.batch  batch  me  2  {}  1:0",
    "errno": "OSError: [Errno {}] words",
    "errno-text": "ls: error: /x: {}",
    "signal": "killed by signal {}",
    "exit": "process exited with code {}",
    "ais-bench": "[ERROR] [{}] words",
    "curl": "curl: ({}) words",
    "docker-says": "Error response from daemon: {}: words",
    "http": "HTTP/1.1 {} words",
}
"""How a code of each list stands in a line."""

LITERAL = ("cann", "slurm-says", "ais-bench", "docker-says")
"""Lists whose codes mean the same wherever they stand."""


@pytest.mark.parametrize("family", families(), ids=lambda family: family.id)
def test_every_code_of_a_list_is_translated_where_it_stands_and_not_elsewhere(family: Family) -> None:
    for code in family.codes:
        line = FORMS[family.id].format(code)
        known = family.of(code)
        assert known is not None
        assert f"{code}: {known.says}" in meanings(line), line
        assert known.kind == "follow_on" or of_code(family.id, code) is not None
        assert family.id in LITERAL or not list(family.found(f"INFO 01-01 10:00:00 [a.py:1] {code} tokens"))
    assert family.source
    assert of_code(family.id, "no such code") is None


@pytest.mark.parametrize(
    "seed", ["a", " ", "/", "1", ": ", "[", "(", "error ", "E", "- ", "x/", "1.", "\t", "pid=1) ", '="', ":1"]
)
def test_a_hostile_line_is_read_to_its_end(seed: str) -> None:
    words = [word for signature in signatures() for word in signature.words]
    for text in (seed * 1000, "".join(word + seed for word in words)[:4000], seed.join(words)[:4000]):
        assert classify([RankLog.of(0, "x.log", text), RankLog.of(1, "y.log", f"ERROR 01-01 10:00:00 {text}")])


def test_every_pattern_of_the_grammar_has_an_upper_end() -> None:
    given = forms()
    lists = ("parts", "levels", "markers", "envelopes", "headers", "redact", "chinese")
    single = [given[key] for key in given if key not in lists]
    for pattern in (*given["envelopes"], *given["headers"], *single):
        bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern)
        assert not re.search(r"[*+]|\{\d*,\}", bare), pattern


def test_a_sound_rule_book_is_taken_in_the_order_of_trust() -> None:
    book = broken(id="wrapper", kind="follow_on") + "\n" + broken(id="reason", over="@").replace("'@'", "[wrapper]")
    assert [signature.id for signature in load(book)] == ["reason", "wrapper"]


LIST = tuple(f'a thing ("word{number}"): it is there.' for number in range(8))


def test_causes_that_quote_words_of_the_line_come_first_the_last_word_before_all() -> None:
    causes = ('one ("mount", "bind"): a.', "two: b.", 'three ("lock"): c.')
    assert list(fitting(causes, "could not lock the mount")) == [causes[0], causes[2], causes[1]]
    assert list(fitting(causes, "odd words")) == list(causes)


def test_of_a_long_list_only_causes_that_fit_are_left() -> None:
    plain = "what the line names."
    assert list(fitting((plain, *LIST), "word2, then word5")) == [LIST[5], LIST[2], plain]
    assert list(fitting((plain, *LIST), "odd words")) == [plain]
    assert vague(LIST, "odd words")
    assert not vague(LIST, "word2")
    assert not vague(LIST[:3], "odd words")


def test_words_after_the_colon_of_a_cause_ask_for_nothing() -> None:
    cause = 'a thing: the log says "word".'
    assert not dubious([cause], "odd line")
    assert dubious(['a thing ("word"): it is there.'], "odd line")


def test_a_quoted_directory_or_function_may_stand_in_the_frames() -> None:
    causes = ('one ("lock"): a.', 'two ("quantization/", ":load_weights"): b.')
    assert next(iter(fitting(causes, "odd words", frames="quantization/w8a8.py:apply "))) == causes[1]
    assert next(iter(fitting(causes, "odd words", frames="models/a.py:lock "))) == causes[0]
