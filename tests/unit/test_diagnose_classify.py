"""Which of many errors is the first: two ranks, follow-on errors, time-outs, the end of a task."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.diagnose.classify import classify
from jobs.diagnose.diagnosis import RankLog
from jobs.diagnose.signatures import signatures

LOGS = Path(__file__).parent.parent / "fixtures/logs"

VLLM = "(Worker_DP{rank}_TP0 pid=1189) ERROR {time} [multiproc_executor.py:671] {text}"
OOM = "RuntimeError: NPU out of memory. Tried to allocate 450.00 MiB (NPU 3; 60.96 GiB total capacity)"
ENGINE_INIT = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
EI0006 = (
    "[PID: 749] 2026-11-24-{clock} Get_Socket_Timeout(EI0006): Getting socket times out. Reason: 1. The remote does "
    "not initiate a connect request."
)


def log(rank: int | None, text: str, name: str | None = None) -> RankLog:
    return RankLog.of(rank, name or f"rank{rank}/server.log", text)


def vllm(rank: int, clock: str, text: str) -> str:
    return VLLM.format(rank=rank, time=f"11-24 {clock}", text=text)


def fixture(name: str, rank: int | None = None) -> RankLog:
    return RankLog.of(rank, name, (LOGS / name).read_text())


# ---- real logs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "signature", "words"),
    [
        ("unknown_flag.log", "unknown-flag", "unrecognized arguments: --no-such-flag 3"),
        ("model_length.log", "model-length", "User-specified max_model_len (999999)"),
        ("model_path.log", "model-path", "'/nosuch/model'"),
        ("offline.log", "model-offline", "LocalEntryNotFoundError"),
        ("port_taken.log", "port-taken", "[Errno 98] Address already in use"),
        ("interface.log", "gloo-interface", "Unable to find address for: nosuch9"),
    ],
)
def test_real_start_failures_of_vllm(name: str, signature: str, words: str) -> None:
    found = classify([fixture(name, 0)])
    assert (found.signature, found.rank) == (signature, 0)
    assert found.first is not None
    assert words in found.first.line
    assert words in (LOGS / name).read_text().splitlines()[found.first.number - 1]


def test_real_mixture_of_experts_that_dies_at_its_first_request() -> None:
    found = classify([fixture("moe-rank0.log", 0), fixture("moe-rank1.log", 1)])
    assert found.signature == "cpu-moe"
    assert found.phase == "serve"
    assert found.first is not None
    assert found.first.line == "NotImplementedError [base_device_communicator.py:296 in all_gatherv]"
    assert {item.rank for item in found.evidence} == {0, 1}


def test_the_rank_with_the_real_error_is_named_where_the_other_only_follows() -> None:
    head = [line for line in (LOGS / "moe-rank0.log").read_text().splitlines() if "(Worker" not in line]
    only_follow_on = [line for line in head if "EngineCore_DP0" not in line]
    found = classify([log(0, "\n".join(only_follow_on)), fixture("moe-rank1.log", 1)])
    assert (found.signature, found.rank) == ("cpu-moe", 1)


@pytest.mark.parametrize("names", [["healthy-rank0.log", "healthy-rank1.log"], ["healthy_0.9.1-rank0.log"]])
def test_healthy_logs_are_no_failure(names: list[str]) -> None:
    found = classify([fixture(name, rank) for rank, name in enumerate(names)])
    assert not found.found
    assert found.summary() == "no failure found"
    assert len(found.evidence) == len(names)


def test_what_an_engine_says_after_it_was_told_to_stop_is_no_failure() -> None:
    text = (LOGS / "shutdown-rank0.log").read_text()
    assert "EngineDeadError" in text
    assert not classify([log(0, text)]).found


# ---- first in time, over the ranks ---------------------------------------------------------------------------------


def test_the_true_cause_on_rank_1_wins_over_rank_0s_later_time_out() -> None:
    head = log(0, EI0006.format(clock="10:02:05.787.356"))
    other = log(1, vllm(1, "10:00:01", OOM))
    found = classify([head, other])
    assert (found.rank, found.signature, found.retryable) == (1, "npu-memory", False)
    assert found.first is not None
    assert found.first.place == "rank1/server.log:1"
    cause = "the NPU's memory is used up, before any line says that the service is ready"
    assert found.summary() == f"rank 1: {cause} (npu-memory, narrowed): {OOM}"
    assert [(item.rank, item.log) for item in found.evidence] == [(0, "rank0/server.log")]


def test_a_cause_that_comes_after_the_time_out_is_not_its_reason() -> None:
    head = log(0, EI0006.format(clock="10:02:05.787.356"))
    other = log(1, vllm(1, "10:05:00", OOM))
    found = classify([head, other])
    assert (found.rank, found.signature) == (0, "hccl-socket-timeout")


def test_an_unknown_error_on_a_rank_without_the_time_out_is_the_first_failure() -> None:
    words = "ValueError: 162 of 163 weight files are there"
    wrapped = "RuntimeError: something that only wraps the time-out"
    head = log(0, EI0006.format(clock="10:02:05.787.356") + "\n" + vllm(0, "10:02:05", wrapped))
    other = log(1, vllm(1, "10:00:01", words))
    found = classify([head, other])
    assert (found.rank, found.signature) == (1, None)
    assert found.summary() == f"rank 1: {words} (rank1/server.log:1)"
    assert "unknown error" not in found.text()


def test_an_unknown_error_that_comes_after_the_time_out_is_not_its_reason() -> None:
    head = log(0, EI0006.format(clock="10:02:05.787.356"))
    assert classify([head, log(1, vllm(1, "10:05:00", "ValueError: odd"))]).signature == "hccl-socket-timeout"


def test_the_time_out_itself_wins_over_errors_that_wrap_it_on_the_same_rank() -> None:
    lines = [
        vllm(0, "10:02:05", "RuntimeError: createHCCLComm: HCCL function error: code 9"),
        vllm(0, "10:02:05", "RuntimeError: a wrapper that no signature knows"),
        EI0006.format(clock="10:02:04.787.356"),
    ]
    found = classify([log(0, "\n".join(lines)), log(1, "INFO 11-24 10:00:00 [a.py:1] loading")])
    assert found.signature == "hccl-socket-timeout"
    assert found.suspects == (1,)
    assert "rank 1 first" in found.text()


def test_time_outs_on_all_ranks_leave_nobody_to_suspect() -> None:
    logs = [log(rank, EI0006.format(clock=f"10:02:0{rank}.787.356")) for rank in (0, 1)]
    found = classify(logs)
    assert (found.rank, found.signature, found.suspects) == (0, "hccl-socket-timeout", ())


def test_an_old_driver_is_named_although_its_wrapper_and_the_peers_time_out_are_there() -> None:
    other = "\n".join(
        (
            "[rank9]:[E1124 10:00:00.886041733 compiler_depend.ts:444] NPU function error: call "
            "aclnnMoeDistributeDispatchV3 failed, error code is 561000",
            "[ERROR] 2026-11-24-10:00:00 (PID:9208, Device:1, RankID:-1) ERR00100 PTA call acl api failed.",
            "[PID: 9208] 2026-11-24-10:00:00.055.233 Allocation_Failure(EI0007): Failed to allocate resource[qp] with "
            "info [aicpu rank:9,send_cq_depth:32768]. Reason: Memory resources are exhausted.",
        )
    )
    found = classify([log(0, EI0006.format(clock="10:02:05.787.356")), log(1, other)])
    assert (found.rank, found.signature) == (1, "hccl-qp-exhausted")
    assert "25.5.0" in found.remedy


def test_dispatch_failed_for_a_late_peer_is_the_time_out_not_the_driver() -> None:
    text = "\n".join(
        (
            EI0006.format(clock="10:02:05.787.356"),
            "        Nnopbase fails to invoke the HcclAllocComResourceByTiling function of the hccl module. ret = 9",
            "call aclnnMoeDistributeDispatchV4 failed, error code is 561000",
        )
    )
    assert classify([log(0, text)]).signature == "hccl-socket-timeout"


def test_a_tls_mismatch_explains_the_time_outs_of_all_ranks() -> None:
    plog = "[ERROR] HCCL(542,python3):2026-11-24-10:02:06.266.655 [topo.cc:10] Some ranks tlsStatus are inconsistent."
    logs = [log(rank, EI0006.format(clock="10:02:05.787.356")) for rank in (0, 1)]
    found = classify([*logs, log(1, plog, "rank1/plog.log")])
    assert (found.rank, found.signature) == (1, "hccl-tls")


# ---- layers on one rank --------------------------------------------------------------------------------------------


def test_follow_on_errors_never_win_even_where_they_come_first() -> None:
    text = "\n".join(
        (
            "[rank0]: RuntimeError: HCCL function error: HcclGetRootInfo(&hcclID), error code is 7",
            "[rank0]: [ERROR] 2026-11-24-10:00:00 (PID:159, Device:0, RankID:-1) ERR02200 DIST call hccl api failed.",
            "[rank0]: EJ0001: [PID: 159] 2026-11-24-10:00:01.816.428 Failed to initialize the HCCP process.",
            "(APIServer pid=145) ERROR 11-24 10:00:09 [a.py:1] " + ENGINE_INIT,
        )
    )
    found = classify([log(0, text)])
    assert (found.signature, found.retryable) == ("hccl-stale-process", True)


def test_a_workers_error_comes_before_the_api_servers_of_the_same_moment() -> None:
    text = "\n".join(
        (
            "(APIServer pid=1) ERROR 11-24 10:00:01 [api_server.py:1] ValueError: the request was lost",
            "(Worker_TP3 pid=2) ERROR 11-24 10:00:01 [worker.py:1] ValueError: weird weights",
        )
    )
    found = classify([log(0, text)])
    assert found.first is not None
    assert found.first.line == "ValueError: weird weights"


def test_of_one_moment_the_more_specific_cause_wins_and_else_the_earlier_one() -> None:
    taken = vllm(0, "10:00:01", "OSError: [Errno 98] Address already in use")
    hccl = vllm(0, "10:00:02", "EJ0003: Failed to bind the IP port.")
    assert classify([log(0, f"{taken}\n{hccl}")]).signature == "hccl-host-port"
    assert classify([log(0, f"{taken}\n{hccl.replace('10:00:02', '10:00:09')}")]).signature == "port-taken"


def test_only_follow_on_errors_say_where_to_look() -> None:
    found = classify([log(0, "(APIServer pid=145) " + ENGINE_INIT)])
    assert (found.signature, found.found) == ("remote-engine-failed", True)
    assert "headless" in found.remedy


def test_a_time_out_of_the_head_role_is_not_taken_from_a_headless_log() -> None:
    line = "RuntimeError: Did not receive response from front-end process within 5 minutes"
    assert classify([log(1, line)]).signature == "handshake-timeout"
    assert classify([log(0, line)]).signature is None


def test_out_of_memory_means_another_thing_after_the_service_was_ready() -> None:
    up = "INFO 11-24 10:00:00 [api_server.py:1] Started\nINFO:     Application startup complete."
    assert classify([log(0, up), log(1, vllm(1, "10:09:00", OOM))]).signature == "npu-memory-serve"
    assert classify([log(0, up), log(1, vllm(1, "09:59:00", OOM))]).signature == "npu-memory"


def test_what_the_service_got_over_is_forgotten() -> None:
    waiting = "DEBUG 11-24 09:59:00 [utils.py:482] Waiting for 0 local, 1 remote core engine proc(s) to connect."
    taken = "ERROR 11-24 09:59:10 [x.py:1] OSError: [Errno 98] Address already in use"
    up = "INFO 11-24 10:00:00 [api_server.py:1] Started\nINFO:     Application startup complete."
    later = "ERROR 11-24 10:07:00 [x.py:1] ValueError: broke in the middle"
    assert classify([log(0, waiting)]).signature == "waiting-for-engines"
    assert not classify([log(0, f"{waiting}\n{up}")]).found
    dead = "ERROR 11-24 10:07:00 [x.py:1] EngineCore encountered a fatal error."
    assert classify([log(0, f"{taken}\n{up}\n{dead}")]).signature == "port-taken"
    found = classify([log(0, f"{taken}\n{up}\n{later}")])
    assert found.first is not None
    assert found.first.line == "ValueError: broke in the middle"


# ---- how tasks end -------------------------------------------------------------------------------------------------


def test_a_killed_engine_is_known_from_our_own_words() -> None:
    last = "(EngineCore_0 pid=5388) INFO 11-24 22:28:25 [core.py:171] init engine took 0.51 seconds"
    words = f"rank 1 (headless): engine killed by SIGKILL: {last}"
    for text in (f"22:28:26 service 45fa: failed: {words}", words):
        found = classify([log(0, text, "stdout-0.log"), log(1, last)])
        assert (found.rank, found.signature) == (1, "engine-killed")
        assert found.first is not None
        assert found.first.line.startswith("engine killed by SIGKILL: (EngineCore_0")


def test_the_ranks_own_log_is_shown_and_not_what_rank_0_reports_of_it() -> None:
    report = f"10:00:01 service 45fa: failed: rank 1 (headless): engine exited with code 1: {OOM}"
    found = classify([log(0, report, "a/stdout-0.log"), log(1, vllm(1, "10:00:01", OOM))])
    assert (found.rank, found.signature) == (1, "npu-memory")
    assert found.first is not None
    assert found.first.log == "rank1/server.log"


def test_the_memory_killer_explains_every_killed_process_whoever_says_so_first() -> None:
    batch = "\n".join(
        (
            "22:28:26 service 45fa: failed: rank 1 (headless): engine killed by SIGKILL: (its log is empty)",
            "srun: error: npu-node2: task 1: Killed",
            "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have been OOM Killed.",
            "srun: error: npu-node2: task 1: Out Of Memory",
        )
    )
    found = classify([log(0, batch, "stdout-0.log")])
    assert (found.rank, found.signature) == (1, "slurm-memory")


def test_an_exit_without_words_is_named_by_its_rank_and_not_by_the_orphan() -> None:
    head = "\n".join(
        (
            vllm(0, "10:00:03", "RuntimeError: the other side is gone"),
            "10:00:02 service 45fa: failed: rank 1 (headless): engine exited with code 0: bye",
        )
    )
    found = classify([log(0, head), log(1, "INFO 11-24 10:00:00 [a.py:1] serving")])
    assert (found.rank, found.signature) == (1, "engine-ended")


def test_a_rank_that_ended_explains_the_broken_connection_that_the_other_saw_first() -> None:
    head = "\n".join(
        (
            vllm(
                0, "10:00:01", "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:1"
            ),
            "10:00:02 service 45fa: failed: rank 1 (headless): engine exited with code 0: bye",
        )
    )
    found = classify([log(0, head), log(1, "")])
    assert (found.rank, found.signature) == (1, "engine-ended")
    alone = classify([log(0, head.splitlines()[0]), log(1, "")])
    assert (alone.rank, alone.signature, alone.suspects) == (0, "peer-closed", (1,))


def test_an_exit_with_words_is_explained_by_them() -> None:
    head = "10:00:05 service 45fa: failed: rank 1 (headless): engine exited with code 1: ValueError: odd"
    other = vllm(1, "10:00:03", "ValueError: odd shapes in layer 7")
    found = classify([log(0, head, "stdout-0.log"), log(1, other)])
    assert (found.rank, found.signature) == (1, None)
    assert found.first is not None
    assert found.first.place == "rank1/server.log:1"


def test_the_time_limit_wins_over_what_the_end_breaks() -> None:
    batch = "\n".join(
        (
            "10:00:00 service 45fa: start, 2 points",
            "slurmstepd: error: *** STEP 9.0 ON npu-node1 CANCELLED AT 2026-11-24T18:00:00 DUE TO TIME LIMIT ***",
            "srun: error: npu-node2: task 1: Exited with exit code 1",
        )
    )
    other = vllm(1, "18:00:01", "RuntimeError: cancelled in the middle of a step")
    found = classify([log(0, batch, "stdout-0.log"), log(1, other)])
    assert (found.rank, found.signature) == (None, "slurm-time-limit")


def test_an_engine_that_was_told_to_stop_says_so_only_where_nothing_else_is_known() -> None:
    stopped = "Traceback (most recent call last):\nKeyboardInterrupt: terminated"
    assert classify([log(0, stopped)]).signature == "engine-stopped"
    limit = "slurmstepd: error: *** STEP 9.0 ON n1 CANCELLED AT 2026-11-24T18:00:00 DUE TO TIME LIMIT ***"
    assert classify([log(0, stopped), log(0, limit, "stdout-0.log")]).signature == "slurm-time-limit"


def test_a_step_that_was_only_cancelled_is_explained_by_the_error_before() -> None:
    batch = "slurmstepd: error: *** STEP 9.0 ON npu-node1 CANCELLED AT 2026-11-24T10:00:09 ***"
    other = vllm(1, "10:00:03", OOM)
    assert classify([log(0, batch), log(1, other)]).signature == "npu-memory"
    assert classify([log(0, batch), log(1, "")]).signature == "slurm-cancelled"


def test_an_error_without_any_time_counts_as_the_first_one_or_by_the_end_of_its_log() -> None:
    timed = log(0, vllm(0, "10:00:05", OOM))
    untimed = "vllm: error: unrecognized arguments: --no-such-flag"
    assert classify([timed, log(1, untimed)]).rank == 1
    late = RankLog.of(1, "rank1.log", untimed, end=datetime(2026, 11, 24, 11))
    assert classify([timed, late]).rank == 0


# ---- what comes out ------------------------------------------------------------------------------------------------


def test_unknown_failures_show_the_first_error_lines_of_each_rank() -> None:
    logs = [
        log(rank, "\n".join(vllm(rank, f"10:00:{n:02}", f"ValueError: odd thing {rank}.{n}") for n in range(rank, 9)))
        for rank in (0, 1)
    ]
    found = classify(logs)
    shown = [(item.rank, item.line) for item in (found.first, *found.evidence) if item]
    assert (found.rank, found.signature, found.found) == (0, None, True)
    assert shown.count((0, "ValueError: odd thing 0.0")) == 1
    assert [line for rank, line in shown if rank == 1] == [f"ValueError: odd thing 1.{n}" for n in (1, 2, 3)]
    assert "no signature knows" in found.text()


def test_no_logs_and_empty_logs_are_no_failure() -> None:
    assert not classify([]).found
    assert not classify([log(0, ""), log(None, "\n\n")]).found


def test_a_diagnosis_is_json() -> None:
    found = classify([log(0, EI0006.format(clock="10:02:05.787.356")), log(1, "")])
    data = json.loads(json.dumps(found.as_json()))
    assert data["summary"] == found.summary()
    assert data["first"]["time"] == "2026-11-24T10:02:05.787356"
    assert data["suspects"] == [1]


def test_long_lines_are_cut_in_the_summary_only() -> None:
    found = classify([log(0, "ValueError: " + "x" * 900)])
    assert found.first is not None
    assert len(found.first.line) == 400
    assert len(found.summary()) < 300


def test_the_order_of_healthy_files_does_not_matter_either() -> None:
    pressure = "INFO 11-24 10:00:{0} [l.py:1] Engine 00{0}: 9.0 tokens/s, Running: 3 reqs, GPU KV cache usage: 99.0%"
    logs = [log(rank, pressure.format(rank)) for rank in (0, 1)]
    found = classify(logs)
    assert found == classify(logs[::-1])
    assert [item.rank for item in found.evidence] == [0, 1]
    assert len(found.notes) == 2


LINES = st.sampled_from(
    [signature.example for signature in signatures()]
    + ["INFO 11-24 10:00:00 [a.py:1] fine", "ValueError: odd", "Traceback (most recent call last):", ""]
)
CLOCKS = st.integers(0, 86399).map(lambda s: f"{s // 3600:02}:{s // 60 % 60:02}:{s % 60:02}")
STAMPED = st.tuples(CLOCKS, LINES).map(lambda pair: f"ERROR 11-24 {pair[0]} [a.py:1] {pair[1]}")
TEXTS = st.lists(LINES | STAMPED, max_size=8).map("\n".join)
SETS = st.lists(st.tuples(st.sampled_from([0, 0, 1, 1, None]), TEXTS), max_size=5)


@settings(max_examples=50, deadline=None)
@given(SETS.flatmap(lambda logs: st.tuples(st.just(list(enumerate(logs))), st.permutations(list(enumerate(logs))))))
def test_the_order_of_the_files_does_not_matter(
    both: tuple[list[tuple[int, tuple[int | None, str]]], list[tuple[int, tuple[int | None, str]]]],
) -> None:
    first, second = ([RankLog.of(rank, f"log{n}", text) for n, (rank, text) in logs] for logs in both)
    assert classify(first) == classify(second)


@settings(max_examples=40, deadline=None)
@given(TEXTS, TEXTS)
def test_follow_on_errors_change_nothing_where_there_is_anything_else(one: str, two: str) -> None:
    # A symptom after which programs went on is over once something ends them.
    causes = {signature.id for signature in signatures() if signature.kind == "cause"}
    wrapper = ENGINE_INIT  # without a time: a date could move the other log's clock to another day
    before, after = (classify([log(0, text), log(1, two)]) for text in (one, f"{one}\n{wrapper}"))
    if before.found and before.signature in causes:
        assert (after.signature, after.first) == (before.signature, before.first)


HANG = (
    "10:00:20 service 45fa: failed: rank 1 (headless): data-parallel rank 1 gave no sign of life: no answer within 10 s"
)
TRACKER = (
    "Traceback (most recent call last):\n"
    '  File "/usr/lib/python3.11/multiprocessing/resource_tracker.py", line 239, in main\n'
    "    cache[rtype].remove(name)\n"
    "{words}"
)


@pytest.mark.parametrize(
    "words",
    [
        "FileNotFoundError: [Errno 2] No such file or directory: '/psm_f8ea4e2d'",
        "KeyError: '/mp-12ab'",
        "OSError: something else that is said without a time",
    ],
)
def test_an_error_without_a_time_does_not_beat_the_hang_that_we_found_on_the_other_rank(words: str) -> None:
    head = log(0, TRACKER.format(words=words))
    found = classify([head, log(0, HANG, "stdout-0.log"), log(1, "INFO 11-24 10:00:00 [a.py:1] serving")])
    assert (found.rank, found.signature) == (1, "engine-hangs")


def test_shared_memory_that_is_gone_at_the_end_is_no_failure() -> None:
    words = "FileNotFoundError: [Errno 2] No such file or directory: '/psm_f8ea4e2d'"
    found = classify([log(0, TRACKER.format(words=words))])
    assert not found.found
    assert len(found.notes) == 1


def test_a_rank_that_says_that_rank_0_is_gone_blames_rank_0() -> None:
    found = classify([log(0, "INFO 11-24 10:00:00 [a.py:1] serving"), log(1, "10:00:20 ended: rank 0 is gone")])
    assert (found.rank, found.signature) == (0, "rank-lost")


def test_what_is_not_read_in_time_is_no_good_news() -> None:
    fine = "INFO 11-24 10:00:00 [a.py:1] Application startup complete."
    assert classify([log(0, fine)]).cause == "no failure found"
    found = classify([replace(log(0, fine), cut=True)])
    assert not found.found
    assert "neither success nor failure" in found.text()
    assert "rank0/server.log was not read" in found.text()
    found = classify([replace(log(0, vllm(0, "10:00:01", OOM)), cut=True)])
    assert found.signature == "npu-memory"
    assert "was not read" in found.text()


def test_a_log_that_tells_neither_failure_nor_success_is_no_good_news() -> None:
    found = classify([log(0, "10:00:00 odd begins\nWARNING: the odd thing could not be had\n10:00:01 next step")])
    assert not found.found
    assert "neither failure nor success" in found.cause
    assert [item.line for item in found.evidence] == ["WARNING: the odd thing could not be had", "10:00:01 next step"]


def test_an_orderly_end_of_a_service_that_was_up_is_a_note() -> None:
    up = "INFO:     Application startup complete.\nINFO 12-18 18:27:36 [x.py:79] Shutting down FastAPI HTTP server."
    found = classify([log(0, up)])
    assert (found.found, found.cause) == (False, "no failure found")
    assert "shut down in good order" in found.notes[0]
    assert not classify([replace(log(0, up), own=True)]).notes


def test_how_far_a_log_came_is_no_answer_beside_other_words() -> None:
    loading = log(0, "INFO 04-13 09:00:01 [loader.py:384] Loading weights took 168.20 seconds")
    assert classify([loading]).signature == "stopped-profiling"
    assert not classify([loading], alone=False).found


def frames(*where: str) -> str:
    """The lines of a traceback through `directory/file.py:function`."""
    lines = (f'  File "/x/{at.partition(":")[0]}", line 7, in {at.partition(":")[2]}' for at in where)
    return "\n".join(vllm(0, "10:00:01", line) for line in lines) + "\n"


def test_of_the_features_that_frames_name_the_innermost_come_first_and_only_two() -> None:
    passed = frames("worker/w.py:execute_model", "lora/a.py:add", "kv_offload/b.py:put", "eplb/c.py:step")
    causes = classify([log(0, passed + vllm(0, "10:00:01", "ValueError: odd"))]).causes
    assert [words in cause for words, cause in zip(("experts", "host"), causes, strict=False)] == [True, True]
    assert not any("LoRA" in cause for cause in causes)


@pytest.mark.parametrize("words", ["odd (the error may come up asynchronously)", "error code is 507035"])
def test_frames_of_an_error_that_began_elsewhere_name_no_feature(words: str) -> None:
    passed = frames("worker/w.py:execute_model", "lora/a.py:add")
    for said, named in ((words, False), ("odd", True)):
        found = classify([log(0, passed + vllm(0, "10:00:01", f"RuntimeError: {said}"))])
        assert any("LoRA" in cause for cause in found.causes) is named


def test_settings_that_are_read_within_a_step_are_the_steps() -> None:
    settings_ = "config/vllm.py:create_engine_config"
    words = vllm(0, "10:00:01", "RuntimeError: odd")
    assert classify([log(0, frames(settings_) + words)]).signature == "at-settings"
    assert classify([log(0, frames("w.py:execute_model", settings_) + words)]).signature == "at-step"


def test_every_narrowed_answer_of_a_line_says_how_to_go_on_without_its_causes() -> None:
    refused = classify([log(0, "ValueError: odd must be even")])
    assert refused.certainty == "narrowed"
    assert refused.causes[-1].startswith("none of these: ")


def test_an_exception_of_any_name_ends_a_traceback() -> None:
    words = 'Traceback (most recent call last):\n  File "/x/odd.py", line 3, in <module>\n    main()\n'
    found = classify([log(0, words + "odd.errors.OddTrouble: odd words")])
    assert found.certainty == "not known"
    assert found.first is not None
    assert found.first.line == "odd.errors.OddTrouble: odd words"


def test_what_srun_said_before_it_got_its_nodes_is_over() -> None:
    waits = "srun: Requested partition configuration not available now\n"
    assert classify([log(0, waits)]).signature == "slurm-says"
    assert not classify([log(0, waits + "srun: job 7 has been allocated resources\nodd words")]).found


@pytest.mark.parametrize(
    ("end", "line"),
    [
        ("rank table has 15 devices, 16 expected\nnot started", "rank table has 15 devices, 16 expected"),
        ("node n2 did not answer\nleaving", "node n2 did not answer"),
        ("giving up", "giving up"),
    ],
)
def test_last_words_say_more_than_that_a_program_ends(end: str, line: str) -> None:
    found = classify([log(0, f"step 1\n{end}")])
    assert found.first is not None
    assert (found.found, found.certainty, found.first.line) == (True, "not known", line)
    assert not classify([log(0, f"{end}\nINFO:     Application startup complete.")]).found


def test_last_words_before_a_task_ended_are_its_answer() -> None:
    found = classify([log(0, "license: no seat left, not started\nsrun: error: n1: task 0: Exited with exit code 3")])
    assert found.first is not None
    assert (found.certainty, found.first.line) == ("not known", "license: no seat left, not started")


def test_a_time_limit_during_the_start_is_narrowed_by_how_far_it_had_come() -> None:
    limit = "slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2026-11-24T22:51:48 DUE TO TIME LIMIT ***"
    early = classify([log(0, f"INFO 04-13 09:00:01 [loader.py:384] Loading weights took 168.20 seconds\n{limit}")])
    assert (early.signature, early.certainty) == ("slurm-time-limit", "narrowed")
    assert "the time is too short" in early.causes[0]
    late = classify([log(0, f"INFO:     Application startup complete.\n{limit}")])
    assert (late.signature, late.certainty, late.causes) == ("slurm-time-limit", "named", ())


def test_a_traceback_without_a_file_of_an_engine_is_at_no_place_of_one() -> None:
    words = (
        'Traceback (most recent call last):\n  File "/opt/{}/models/load.py", line 3, in load_weights\nOddError: odd'
    )
    assert classify([log(0, words.format("vllm/model_executor"))]).phase == "load"
    assert classify([log(0, words.format("tool/data"))]).phase != "load"


def test_what_is_lost_after_an_orderly_stop_is_no_failure() -> None:
    up = "INFO:     Application startup complete."
    stop = "INFO 12-18 18:27:36 [x.py:79] Shutting down FastAPI HTTP server."
    lost = "ERROR 12-18 18:27:37 [x.py:80] zmq.error.ZMQError: Context was terminated"
    assert not classify([log(0, f"{up}\n{stop}\n{lost}")]).found
    assert classify([log(0, f"{up}\n{lost}\n{stop}")]).found


def test_an_error_that_python_passes_over_is_no_failure() -> None:
    words = "Error in sitecustomize; set PYTHONVERBOSE for traceback:\nModuleNotFoundError: No module named 'odd'"
    assert not classify([log(0, f"{words}\nINFO:     Application startup complete.")]).found
