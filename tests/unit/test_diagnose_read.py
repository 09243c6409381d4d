"""From files to a diagnosis: which logs, of which rank, and floods of them."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from core_help import change, config

from jobs.__main__ import main
from jobs.allocation.node import oom
from jobs.core.errors import RunError
from jobs.core.rundir import SweepDir
from jobs.core.tasks import write_config
from jobs.diagnose import diagnose, diagnose_each, explain
from jobs.diagnose.diagnosis import RankLog
from jobs.diagnose.read import Source, cases, read
from jobs.diagnose.sift import sift

OOM = "RuntimeError: NPU out of memory. Tried to allocate 450.00 MiB (NPU 3; 60.96 GiB total capacity)"
FLOOD = b"(EngineCore_0 pid=24960) ERROR 11-24 10:00:00 [flood.py:1] " + b"x" * 1000 + b"\n"
ACCESS = b'INFO:     127.0.0.1:36668 - "POST /v1/completions HTTP/1.1" 200 OK\n'


def lines(data: bytes) -> list[tuple[int, str]]:
    return list(sift(io.BytesIO(data)))


def reason_of(*args: Any, **more: Any) -> str:
    return explain(*args, **more)[1]


# ---- sift ----------------------------------------------------------------------------------------------------------


def test_a_line_without_a_time_comes_with_the_next_one_that_has_one() -> None:
    later = b"INFO 10-05 08:00:01 [x.py:1] went on\n"
    data = b"cat: /x: No such file or directory\nplain\n" + later + b"plain\n" * 9
    assert [number for number, _ in lines(data)][:2] == [1, 3]


def test_a_refused_field_comes_with_its_name() -> None:
    data = b"words\ndcp_size\n  Input should be 1 [type=literal_error, input_value=2]\n" + b"plain\n" * 9
    assert [text for _, text in lines(data)][:1] == ["dcp_size"]


def test_a_line_in_the_middle_of_much_noise_is_found_with_its_number() -> None:
    cause = f"(Worker_TP3 pid=1) ERROR 11-24 10:00:01 [w.py:1] {OOM}\n".encode()
    found = lines(ACCESS * 15_000 + cause + ACCESS * 15_000)
    assert (15_001, cause.decode().rstrip()) in found
    assert len(found) == 4  # it and the last three lines


def test_a_flood_of_one_message_leaves_its_first_three_and_its_last_line() -> None:
    found = lines(FLOOD * 2000)
    assert [number for number, _ in found] == [1, 2, 3, 1998, 1999, 2000]


def test_workers_that_fail_alike_keep_each_the_frames_of_their_own_traceback() -> None:
    frame = '  File "/x/odd.py", line {}, in odd'
    said = [f"(Worker_TP{rank} pid={900 + rank}) ERROR {frame.format(at)}" for at in (7, 8) for rank in range(16)]
    assert [line for _, line in lines("\n".join(said).encode())] == said


def test_a_flood_does_not_hide_an_error_in_its_middle_and_needs_little_memory() -> None:
    cause = f"(Worker_TP3 pid=1) ERROR 11-24 10:00:01 [w.py:1] {OOM}\n".encode()
    data = b"".join(b"ERROR 11-24 10:00:00 [f.py:%d] error %032x\n" % (n % 99, n**5) for n in range(20_000))
    stream = io.BytesIO(data + cause + data)
    tracemalloc.start()
    found = sift(stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert any(number == 20_001 and OOM in text for number, text in found)
    assert peak < 5 << 20


def test_more_distinct_messages_than_are_kept_leave_the_first_and_the_last() -> None:
    words = ["".join(chr(103 + (n // 18**k) % 18) for k in range(4)) for n in range(9000)]
    found = lines("".join(f"error {word}\n" for word in words).encode())
    numbers = [number for number, _ in found]
    assert numbers == [*range(1, 4001), *range(8001, 9001)]


@pytest.mark.parametrize("size", [100, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_lines_of_any_length_and_blocks_of_any_cut(size: int) -> None:
    found = lines(b"y" * size + b"\n" + b"ValueError: after it")
    assert found[-1] == (2, "ValueError: after it")
    assert all(len(text) <= 2000 for _, text in found)


def test_an_error_after_a_progress_bar_on_the_same_line_is_seen() -> None:
    bar = b"\rLoading safetensors checkpoint shards:  12% Completed | 1/163" * 400
    assert lines(bar + b"\rValueError: odd\n")[0] == (1, "ValueError: odd")
    assert lines(b"z" * 5000 + b" ValueError: odd\n")[0][1].endswith("ValueError: odd")


def test_a_line_without_a_time_brings_the_line_that_has_one() -> None:
    text = b"INFO 11-24 10:00:00 [a.py:1] quiet\n" + b"  some code\n" * 20 + b"ValueError: odd\n" + b"quiet\n" * 9
    assert [number for number, _ in lines(text)] == [1, 22, 29, 30, 31]


def test_it_does_so_over_the_border_of_a_block() -> None:
    filler = b"quiet\n" * ((1 << 20) // 6 - 20)
    data = filler + b"INFO 11-24 10:00:00 [a.py:1] quiet\n" + b"q\n" * 40 + b"ValueError: odd\n"
    assert len(data) > 1 << 20
    assert any(text.startswith("INFO 11-24") for _, text in lines(data))


def test_colours_and_broken_bytes_are_no_obstacle() -> None:
    found = lines(b"\x1b[1;36m(EngineCore_0 pid=1)\x1b[0;0m ERROR 11-24 10:00:00 [a.py:1] Value\xff\r\n")
    assert found == [(1, "(EngineCore_0 pid=1) ERROR 11-24 10:00:00 [a.py:1] Value�")]


def test_nothing_comes_of_nothing() -> None:
    assert lines(b"") == []
    assert lines(b"\n\n") == [(1, ""), (2, "")]


# ---- logs of other tools -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "ranks"),
    [
        (["rank0.log", "rank1.log"], [0, 1]),
        (["serve-rank_1.out", "serve-rank_0.out"], [0, 1]),
        (["rank0/server.log", "rank1/server.log"], [0, 1]),
        (["stdout-0.log", "stdout-1.log"], [0, 1]),
        (["123_0_log.out", "123_1_log.out", "123_1_log.err"], [0, 1, 1]),
        (["node1.log", "node2.log"], [0, 1]),
        (["node0.log", "node1.log"], [0, 1]),
        (["slurm-12.out", "vllm.log", "plog-4711_2026.log"], [None, None, None]),
    ],
)
def test_names_tell_the_rank(tmp_path: Path, names: list[str], ranks: list[int | None]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("ValueError: x\n")
    (case,) = cases([tmp_path])
    assert sorted(str(source.rank) for source in case.sources) == sorted(map(str, ranks))
    assert {source.name for source in case.sources} == set(names)


def test_named_files_are_read_whatever_they_are_called_and_each_once(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(f"{OOM}\n")
    (tmp_path / "rank1.log").symlink_to(tmp_path / "trace")
    found = diagnose([tmp_path / "rank1.log", tmp_path / "trace"])
    assert (found.rank, found.signature) == (1, "npu-memory")
    assert len(cases([tmp_path / "rank1.log", tmp_path / "trace"])[0].sources) == 1


def test_logs_of_two_nodes_are_one_failure(tmp_path: Path) -> None:
    (tmp_path / "node1.log").write_text("[PID: 7] 2026-11-24-10:02:05.787.356 Get_Socket_Timeout(EI0006): timeout\n")
    (tmp_path / "node2.log").write_text(f"ERROR 11-24 10:00:01 [w.py:1] {OOM}\n")
    found = diagnose([tmp_path / "node1.log", tmp_path / "node2.log"])
    assert (found.rank, found.signature) == (1, "npu-memory")


def test_a_log_without_times_is_placed_by_its_modification(tmp_path: Path) -> None:
    (tmp_path / "rank0.log").write_text(f"[2026-11-24T10:00:00] ERROR x\nERROR 11-24 10:00:01 [w.py:1] {OOM}\n")
    (tmp_path / "rank1.log").write_text("vllm: error: unrecognized arguments: --x\n")
    for hour, rank in ((9, 1), (11, 0)):
        moment = datetime(2026, 11, 24, hour).timestamp()
        os.utime(tmp_path / "rank1.log", (moment, moment))
        assert diagnose([tmp_path]).rank == rank


def test_paths_that_are_not_there_or_have_no_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no such file or directory"):
        diagnose([tmp_path / "nothing"])
    with pytest.raises(RunError, match="there is no log in it"):
        diagnose([tmp_path])


def test_a_log_that_cannot_be_read_is_empty_and_says_why(tmp_path: Path) -> None:
    log = read(Source(tmp_path / "gone.log", 1, "gone.log"))
    assert log == RankLog(1, "gone.log", (), unread="No such file or directory")


# ---- run directories -----------------------------------------------------------------------------------------------


def sweep_dir(root: Path, services: dict[str, tuple[str, str]], stdout: str) -> SweepDir:
    """Make a sweep with one allocation of two ranks; `services` gives the server.log of rank 0 and rank 1."""
    sweep = SweepDir(root / "sweep")
    allocation = sweep.allocation(0, 1)
    allocation.path.mkdir(parents=True)
    task = {"services": [{"service": name, "points": []} for name in services], "attempt": 1, "local": True}
    allocation.task.write_text(json.dumps(task))
    allocation.stdout(0).write_text(stdout)
    allocation.stdout(1).write_text("10:00:00 rank 1 of 2 on n2\n")
    for name, texts in services.items():
        for rank, text in enumerate(texts):
            folder = sweep.service(name, 1).rank(rank)
            folder.path.mkdir(parents=True)
            folder.log.write_text(text)
    return sweep


FINE = "INFO 11-24 10:00:05 [a.py:1] serving\n"
STDOUT = """submitit INFO (2026-11-24 10:00:00,000) - Starting
10:00:01 service aaaa: start, 1 points
10:00:09 service aaaa: failed: rank 1 (headless): engine exited with code 1: last words
10:00:10 service aaaa: stopped after 1.0 s
10:00:11 service bbbb: start, 1 points
10:00:20 service bbbb: ready after 9.0 s
"""


def test_each_service_of_a_run_has_its_own_diagnosis(tmp_path: Path) -> None:
    broken = f"ERROR 11-24 10:00:08 [w.py:1] {OOM}\n"
    sweep = sweep_dir(tmp_path, {"aaaa": (FINE, broken), "bbbb": (FINE, FINE)}, STDOUT)
    found = dict(diagnose_each([sweep.path]))
    assert list(found) == ["service aaaa", "service bbbb"]
    assert (found["service aaaa"].rank, found["service aaaa"].signature) == (1, "npu-memory")
    assert found["service aaaa"].first is not None
    assert found["service aaaa"].first.place == "services/aaaa/1/rank1/server.log:1"
    assert not found["service bbbb"].found
    assert diagnose([sweep.path]) == found["service aaaa"]


def test_a_row_that_is_not_valid_is_told_where_no_log_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_dir(tmp_path, {"aaaa": (FINE, FINE), "bbbb": (FINE, FINE)}, STDOUT)
    for point, valid in (("p1", False), ("p2", False), ("p3", True)):
        sweep.point(point).path.mkdir(parents=True)
        told = {"service": "bbbb", "valid": valid, "invalid_reason": "the client stood still"}
        sweep.point(point).row.write_text(json.dumps(told))
    assert main(["diagnose", str(sweep.path)]) == 0
    one, other = capsys.readouterr().out.split("\n\n")
    assert "not valid" not in one and other.endswith("  not valid: p1, p2: the client stood still\n")
    assert main(["diagnose", str(sweep.path), "--json"]) == 0
    assert [sorted(found["rows"]) for found in json.loads(capsys.readouterr().out)] == [[], ["p1", "p2"]]


def test_the_end_of_an_allocation_belongs_to_its_last_service(tmp_path: Path) -> None:
    killed = "slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-24T18:00:00 DUE TO TIME LIMIT ***\n"
    sweep = sweep_dir(tmp_path, {"aaaa": (FINE, FINE), "bbbb": (FINE, FINE)}, STDOUT + killed)
    found = dict(diagnose_each([sweep.path]))
    assert found["service aaaa"].signature == "engine-ended"
    assert found["service bbbb"].signature == "slurm-time-limit"


def test_an_allocation_that_started_no_service_is_diagnosed_by_its_output(tmp_path: Path) -> None:
    words = "error: limits.rendezvous_s = 300.0: rank 1 did not reach rank 0 in time. See stdout of that rank\n"
    sweep = sweep_dir(tmp_path, {}, words)
    ((name, found),) = diagnose_each([sweep.path])
    assert (name, found.rank, found.signature) == ("allocation 0", 1, "rendezvous-timeout")


def test_only_the_last_attempt_counts(tmp_path: Path) -> None:
    sweep = sweep_dir(tmp_path, {"aaaa": (FINE, f"{OOM}\n")}, STDOUT)
    again = sweep.allocation(0, 2)
    again.path.mkdir()
    again.task.write_text(json.dumps({"services": [{"service": "aaaa", "points": []}], "attempt": 2, "local": True}))
    again.stdout(0).write_text("10:30:00 service aaaa: start\n10:31:00 service aaaa: ready after 60 s\n")
    folder = sweep.service("aaaa", 2).rank(0)
    folder.path.mkdir(parents=True)
    folder.log.write_text(FINE)
    assert not diagnose([sweep.path]).found


# ---- the row's reason ----------------------------------------------------------------------------------------------


def test_the_reason_of_a_row_is_the_diagnosis_in_one_line(tmp_path: Path) -> None:
    sweep = sweep_dir(tmp_path, {"aaaa": (FINE, f"ERROR 11-24 10:00:08 [w.py:1] {OOM}\n")}, STDOUT)
    own = "rank 1 (headless): engine exited with code 1: RuntimeError: Engine core initialization failed."
    reason = reason_of(sweep.service("aaaa", 1), own)
    cause = "the NPU's memory is used up, before any line says that the service is ready"
    assert reason == f"rank 1: {cause} (npu-memory, narrowed): {OOM}"
    assert "\n" not in reason


def test_what_rank_0_can_say_itself_counts_too(tmp_path: Path) -> None:
    sweep = sweep_dir(tmp_path, {"aaaa": (FINE, FINE)}, STDOUT)
    killed = "rank 1 (headless): engine killed by SIGKILL: serving"
    assert reason_of(sweep.service("aaaa", 1), killed).startswith("rank 1: the engine was killed from outside")
    assert reason_of(sweep.service("aaaa", 1), "a reason of its own") == "a reason of its own"


@pytest.mark.parametrize(
    ("how", "last"),
    [("killed by SIGKILL (exit code 137)", "serving"), ("exited with code 1", "RuntimeError: Engine core died")],
)
def test_what_the_kernel_killed_for_lack_of_memory_is_that_whoever_of_the_engine_it_was(
    tmp_path: Path, how: str, last: str
) -> None:
    sweep = sweep_dir(tmp_path, {"aaaa": (FINE, FINE)}, STDOUT)
    reason = reason_of(sweep.service("aaaa", 1), f"rank 1 (headless): engine {how} ({oom.told(0, 1)}): {last}")
    assert reason.startswith("rank 1: the kernel, or a guard of the memory, killed a process because")


STEP = """(EngineCore_0 pid=7) INFO 11-24 10:00:07 [a.py:1] serving
srun: error: npu-node2: task 0: {how}
"""
OF_RANK_1 = "rank 1 (headless): engine killed by SIGKILL (exit code 137): serving"


def test_the_task_of_a_step_inside_a_rank_is_that_rank_whatever_its_number(tmp_path: Path) -> None:
    """pyxis: the engine is a step of one task, which is task 0 on every node."""
    sweep = sweep_dir(tmp_path, {"aaaa": (FINE, STEP.format(how="Killed"))}, "")
    reason = reason_of(sweep.service("aaaa", 1), OF_RANK_1)
    assert reason.startswith("rank 1: the engine was killed from outside")
    assert "exit code 137" in reason
    (found,) = (found for _, found in diagnose_each([sweep.service("aaaa", 1).path]))
    assert (found.rank, found.signature) == (1, "slurm-task-killed"), "the logs alone say this much"


def test_memory_that_slurm_ended_a_step_for_is_that_of_its_rank(tmp_path: Path) -> None:
    sweep = sweep_dir(tmp_path, {"aaaa": (FINE, STEP.format(how="Out Of Memory"))}, "")
    assert reason_of(sweep.service("aaaa", 1), OF_RANK_1).startswith("rank 1: ")
    assert "slurm-memory" in reason_of(sweep.service("aaaa", 1), OF_RANK_1)


def test_a_task_of_the_allocation_itself_is_the_rank_of_its_number(tmp_path: Path) -> None:
    killed = STDOUT + "srun: error: npu-node2: task 1: Killed\n"
    (tmp_path / "slurm-7.out").write_text(killed)
    assert diagnose([tmp_path / "slurm-7.out"]).rank == 1


OWN = (
    "rank 1 (headless): container.image = docker://r#a/b:v1: `enroot import` on n2 ended with code 1: enroot's own"
    " programs lack their capabilities (enroot-aufs2ovlfs: failed to set capabilities: Operation not permitted). Ask"
)


@pytest.mark.parametrize("own", [OWN, f"rank 0 (head): engine exited with code 1: error: {OWN.partition(': ')[2]}"])
def test_no_signature_overrules_an_error_that_says_itself_what_it_is(tmp_path: Path, own: str) -> None:
    sweep = sweep_dir(tmp_path, {"aaaa": (FINE, FINE)}, "")
    assert reason_of(sweep.service("aaaa", 1), own) == own


def test_a_data_parallel_rank_is_named_by_the_node_that_runs_it(tmp_path: Path) -> None:
    own = "data-parallel rank 2 = HTTP 500: boom: it did not answer a one-token request. See its log."
    sweep = sweep_dir(
        tmp_path, {"aaaa": (FINE, FINE)}, STDOUT.replace("rank 1 (headless): engine exited with code 1", own)
    )
    service = sweep.service("aaaa", 1)
    assert reason_of(service, own, sizes=(2, 2)).startswith("rank 1: /health was good")
    assert reason_of(service, own, sizes=(3, 1)).startswith("rank 0: /health was good")
    # Without the config nobody knows how many engines a node has: the line itself names the engine.
    assert reason_of(service, own).startswith("/health was good")
    assert diagnose([sweep.path]).rank is None
    four = change(
        config(), parallel__data_parallel_size=4, parallel__data_parallel_size_local=2, parallel__tensor_parallel_size=4
    )
    write_config(sweep, "pppp", four)
    task = json.loads(sweep.allocation(0, 1).task.read_text())
    task["services"][0]["points"] = ["pppp"]
    sweep.allocation(0, 1).task.write_text(json.dumps(task))
    assert diagnose([sweep.path]).rank == 1


def test_the_diagnosis_beside_the_reason_is_of_the_logs_alone(tmp_path: Path) -> None:
    sweep = sweep_dir(tmp_path, {"aaaa": (FINE, f"ERROR 11-24 10:00:08 [w.py:1] {OOM}\n")}, STDOUT)
    found, reason = explain(sweep.service("aaaa", 1), "rank 0 (head): the API server is gone")
    assert found == diagnose([sweep.service("aaaa", 1).path])
    assert (found.rank, found.signature) == (1, "npu-memory")
    assert reason == found.summary()
    fine = sweep_dir(tmp_path / "fine", {"aaaa": (FINE, FINE)}, STDOUT)
    found, reason = explain(fine.service("aaaa", 1), "rank 1 (headless): engine killed by SIGKILL: serving")
    assert not found.found
    assert reason.startswith("rank 1: the engine was killed from outside")


def test_an_unknown_error_keeps_our_own_words_and_adds_the_first_error(tmp_path: Path) -> None:
    sweep = sweep_dir(tmp_path, {"aaaa": (FINE, "ERROR 11-24 10:00:08 [w.py:1] ValueError: odd\n")}, STDOUT)
    own = "rank 1 (headless): engine exited with code 1: (its log is empty)"
    assert reason_of(sweep.service("aaaa", 1), own) == (
        f"{own}; first error: rank 1: ValueError: odd (rank1/server.log:1)"
    )


def test_logs_of_any_suffix_are_found_where_there_are_no_others(tmp_path: Path) -> None:
    (tmp_path / "rank1.txt").write_text(f"ERROR 11-24 10:00:00 [a.py:1] {OOM}\n")
    (tmp_path / "diagnosis.txt").write_text("error: another one\n")
    found = diagnose([tmp_path])
    assert (found.rank, found.found) == (1, True)
    (tmp_path / "rank0.log").write_text("INFO 11-24 10:00:00 [a.py:1] serving\n")
    assert not diagnose([tmp_path]).found, "beside logs a text is something else"


def test_a_directory_without_logs_says_which_names_count(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(RunError, match=r"\*\.err, \*\.log, \*\.out or \*\.txt"):
        diagnose([tmp_path])


@pytest.mark.parametrize(("names", "words"), [(["a.log"], "the log is empty"), (["a.log", "b.log"], "all logs are")])
def test_an_empty_log_is_no_good_news(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).write_text("\n")
    found = diagnose([tmp_path])
    assert not found.found
    assert words in found.summary()
    assert "no failure found" not in found.text()
