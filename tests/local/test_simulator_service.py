"""Two ranks of the rehearsal engine as real processes: what they serve and how they fail, as vLLM 0.9.1 does."""

import asyncio
import json
import signal
import socket

import aiohttp
import pytest
import pytest_asyncio
from simulator_help import LIMIT_S, READY, Client, Service, client, run_rank, service

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared():
    """One healthy service with an API key."""
    async with service(env={"VLLM_API_KEY": "secret"}) as made:
        await made.both()
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def api(shared):
    async with client(shared, "secret") as made:
        yield made


def answers(api: Client, rank: int):
    """A request that must not be answered: wait a little and see."""
    return asyncio.wait_for(api.ask(rank), 0.5)


async def refused(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def test_small_answers(api: Client, shared: Service):
    assert (await api.json("/v1/models"))["data"][0]["id"] == "tiny"
    assert (await api.json("/version")) == {"version": "0.9.1"}
    assert await api.status("/health") == 200
    assert await api.status("/nothing") == 404
    async with client(shared) as stranger:
        assert await stranger.status("/health") == 200 and await stranger.status("/metrics") == 200
        assert await stranger.ask() == (401, {"error": "Unauthorized"})


async def test_log_lines_that_tools_read(shared: Service):
    for rank in shared.ranks:
        assert "tokens" in await rank.says("GPU KV cache size: ")
        assert "x" in await rank.says("Maximum concurrency for 4,096 tokens per request: ")
        await rank.says("Loading model weights took 0.0100 GB")
    head = shared.ranks[0]
    line = await head.says(f"Starting vLLM API server 0 on http://127.0.0.1:{shared.port}")
    assert line.split(" [")[0].startswith("INFO ") and "[api_server.py:" in line


@pytest.mark.parametrize("rank", [0, 1])
async def test_streams_of_both_ranks(api: Client, rank: int):
    before = await api.metric("generation_tokens_total", rank)
    events = await api.events(rank, max_tokens=5, stream_options={"include_usage": True})
    assert events[-1] == "[DONE]" and len(events) == 7
    assert [e["usage"] for e in events[:5]] == [None] * 5 and events[5]["usage"]["completion_tokens"] == 5
    assert [e["choices"][0]["finish_reason"] for e in events[:5]] == [None] * 4 + ["length"]
    assert events[5]["choices"] == [] and events[5]["usage"]["prompt_tokens"] == 3
    after = await api.metric("generation_tokens_total", rank)
    assert before is not None and after == before + 5


async def test_chat_and_whole_answers(api: Client):
    message = {"messages": [{"role": "user", "content": "hello"}], "prompt": None}
    events = await api.events(path="/v1/chat/completions", **message)
    assert [set(e["choices"][0]["delta"]) for e in events[:-1]] == [{"role", "content"}] + [{"content"}] * 4
    status, body = await api.ask(path="/v1/chat/completions", **message)
    assert status == 200 and body["choices"][0]["message"]["content"]
    status, body = await api.ask(prompt=[1, 2, 3, 4, 5], max_tokens=3)
    assert status == 200 and [c["index"] for c in body["choices"]] == [0]
    assert body["usage"] == {
        "prompt_tokens": 5, "total_tokens": 8, "completion_tokens": 3, "prompt_tokens_details": None,
    }  # fmt: skip


async def test_refusals_over_http(api: Client):
    status, body = await api.ask(max_tokens=4096)
    assert status == 400 and body["type"] == "BadRequestError"
    assert "However, you requested 4099 tokens (3 in the messages, 4096 in the completion)" in body["message"]
    assert (await api.ask(rank=2)) == (
        400,
        {"object": "error", "message": "data_parallel_rank 2 is out of range [0, 2).", "type": "BadRequestError",
         "param": None, "code": 400},
    )  # fmt: skip
    assert (await api.ask(model="other"))[0] == 404
    async with api.session.post("/v1/completions", data="{", headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 400
    async with api.session.post("/v1/completions", data="{}", headers={"Content-Type": "text/plain"}) as answer:
        assert answer.status == 400


async def test_unpinned_requests_go_to_both_engines(api: Client):
    before = [await api.metric("generation_tokens_total", rank) for rank in (0, 1)]
    results = await asyncio.gather(*(api.events(max_tokens=30) for _ in range(8)))
    assert all(len(events) == 31 for events in results)
    after = [await api.metric("generation_tokens_total", rank) for rank in (0, 1)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [120, 120]


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_client_that_leaves_ends_its_request(api: Client, rank: int):
    body = {"model": "tiny", "prompt": [1], "max_tokens": 4000, "ignore_eos": True, "stream": True}
    headers = {"X-data-parallel-rank": str(rank)}
    async with api.session.post("/v1/completions", json=body, headers=headers) as response:
        await response.content.readline()
        assert await api.metric("num_requests_running", rank) == 1
    async with asyncio.timeout(LIMIT_S):
        await api.ask(rank)  # the next step's figures
        while await api.metric("num_requests_running", rank):
            await api.ask(rank)


async def test_the_head_is_not_there_before_every_rank_is():
    async with service() as made:
        head = await made.start(0, level="WARNING")
        async with asyncio.timeout(LIMIT_S):
            while await refused(made.rpc_port):
                await asyncio.sleep(0.05)
        assert await refused(made.port)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", made.port))  # but the port is taken already
        await made.start(1)
        await head.says(READY)
        async with client(made) as api:
            assert await api.status("/health") == 200
        assert "GPU KV cache size" not in head.output  # WARNING hides vLLM's lines, not uvicorn's


async def test_stopped_and_killed_headless_ranks_are_not_noticed():
    async with service() as made:
        head, second = await made.both()
        async with client(made) as api:
            second.process.send_signal(signal.SIGSTOP)
            waiting = asyncio.ensure_future(api.ask(1))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), 0.5)
            assert await api.status("/health") == 200
            second.process.send_signal(signal.SIGCONT)
            assert (await waiting)[0] == 200  # full recovery

            hanging = asyncio.ensure_future(api.events(1, max_tokens=4000))
            async with asyncio.timeout(LIMIT_S):
                while await api.metric("num_requests_running", 1) != 1:
                    await api.ask(0)
            await second.kill()
            with pytest.raises(TimeoutError):
                await answers(api, 1)
            assert not hanging.done()
            assert (await api.ask(0))[0] == 200 and await api.status("/health") == 200
            assert await api.metric("num_requests_running", 1) == 1  # stale
            hanging.cancel()
            head.process.send_signal(signal.SIGTERM)
            assert await head.ends() == 0


async def test_headless_rank_lives_on_without_its_head():
    async with service() as made:
        head, second = await made.both()
        async with client(made) as api:
            streaming = asyncio.ensure_future(api.events(1, max_tokens=4000))
            await api.ask(0)
            head.process.send_signal(signal.SIGTERM)
            assert await head.ends() == 0
            with pytest.raises(aiohttp.ClientError):
                await streaming
        assert "Traceback" not in head.output
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.process.wait(), 0.5)
        second.process.send_signal(signal.SIGTERM)
        assert await second.ends() == 0
        assert "Traceback" not in second.output


async def test_window_that_does_not_fit():
    async with service("--gpu-memory-utilization", "0.0740") as made:  # about 1 MB is left for the KV cache
        head, second = await asyncio.gather(made.start(0), made.start(1))
        await head.says("To serve at least one request with the models's max seq len (4096)")
        await head.says("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): ")
        assert await head.ends() == 1
        assert await second.ends() == 0  # as vLLM 0.9.1: its main process only waits for the engine to end


async def test_no_head():
    async with service(handshake_s=0.3) as made:
        second = await made.start(1)
        assert await second.ends() == 0
        assert "RuntimeError: Did not receive response from front-end process within 5 minutes" in second.output


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        (0, "HELLO message from remote engine 0, expected it to be local"),
        (5, "Message from engine with unexpected data parallel rank: 5"),
    ],
)
async def test_wrong_start_rank_ends_the_head(rank: int, words: str):
    async with service() as made:
        head = await made.start(0)
        await made.start(rank, headless=True)
        assert await head.ends() == 1
        assert words in head.output


async def test_same_start_rank_twice_ends_the_head():
    async with service(faults=[{"rank": 1, "kind": "never_ready", "when": "load"}]) as made:
        head = await made.start(0)
        second = await made.start(1)
        await second.says("Starting to load model")
        await made.start(1)
        assert await head.ends() == 1
        assert "Unexpected HELLO message for remote engine 1 in CoreEngineState.CONNECTED state." in head.output


async def test_four_ranks_on_two_nodes():
    async with service("-dp", "4", "-dpl", "2") as made:
        head = await made.start(0)
        await made.start(2)
        await head.says(READY)
        async with client(made) as api:
            assert [(await api.ask(rank))[0] for rank in range(4)] == [200] * 4
            assert [await api.metric("generation_tokens_total", rank) for rank in range(4)] == [4.0] * 4


async def test_what_the_release_lacks():
    async with service(faults=[{"rank": 0, "kind": "release_gaps", "when": "start"}]) as made:
        await made.both()
        async with client(made) as api:
            assert (await api.ask(rank=7))[0] == 200  # the header is not read
            assert await api.metric("generation_tokens_total", 0) is None
            assert await api.metric("generation_tokens_total", 1) is not None


async def test_taken_port_and_bad_command_lines():
    rank = await run_rank("m", "--nope")
    assert await rank.ends() == 2 and "unrecognized arguments: --nope" in rank.output
    rank = await run_rank("m", spec='{"faults": [{"rank": 0, "kind": "boom", "when": "start"}]}')
    assert await rank.ends() == 2 and "engine.rehearsal.faults[0].kind" in rank.output
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        rank = await run_rank("m", "--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))
        assert await rank.ends() == 1 and "OSError: [Errno 98] Address already in use" in rank.output


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ({"kind": "exit", "when": "start", "code": 0}, 0, ""),
        ({"kind": "crash", "when": "load"}, -9, ""),
        ({"kind": "exit", "when": "ready", "code": 3}, 3, READY),
        ({"kind": "error_text", "when": "load", "text": "EI0006: no\nlink", "code": 1}, 1, "] EI0006: no"),
    ],
)
async def test_faults_that_end_a_single_rank(fault: dict, code: int, words: str):
    spec = json.dumps({"load_s": 0.0, "faults": [{"rank": 0, **fault}]})
    async with service() as made:
        rank = await run_rank("m", "--port", str(made.port), spec=spec)
        assert await rank.ends() == code
        assert words in rank.output


async def test_hang_leaves_health_alone_and_the_window_spares_the_probe():
    hang = {"rank": 1, "kind": "hang", "when": "request"}
    async with service(faults=[hang, {"rank": 0, "kind": "exit", "when": "window", "code": 4}]) as made:
        head, _ = await made.both()
        async with client(made) as api:
            with pytest.raises(TimeoutError):
                await answers(api, 1)
            assert await api.status("/health") == 200
            assert (await api.ask(0, max_tokens=1))[0] == 200
            with pytest.raises(aiohttp.ClientError):
                await api.ask(0, max_tokens=2)
        assert await head.ends() == 4


async def test_stream_error_has_status_200_and_a_crash_waits_for_its_request():
    crash = {"rank": 1, "kind": "crash", "when": "request", "after_requests": 2}
    async with service(faults=[crash, {"rank": 0, "kind": "stream_error", "when": "ready"}]) as made:
        _, second = await made.both()
        async with client(made) as api:
            events = await api.events(0)
            assert events[-1] == "[DONE]" and "EngineCore encountered an issue" in events[0]["error"]["message"]
            assert (await api.ask(0))[0] == 500
            assert len(await api.events(1)) == 5
            with pytest.raises(TimeoutError):
                await answers(api, 1)
            assert await second.ends() == -9


@pytest.mark.parametrize("rank", [0, 1])
async def test_dead_engine_ends_the_service(rank: int):
    async with service(faults=[{"rank": rank, "kind": "engine_dead", "when": "window"}]) as made:
        head, second = await made.both()
        async with client(made) as api:
            events = await api.events(rank)
            assert "EngineCore encountered an issue" in events[0]["error"]["message"]
            assert await api.status("/health") == 500
        assert await head.ends() == 0 and "EngineDeadError" in head.output
        if rank == 1:
            assert await second.ends() == 0


async def test_never_ready_and_log_flood():
    faults = [
        {"rank": 1, "kind": "never_ready", "when": "load"},
        {"rank": 0, "kind": "log_flood", "when": "load", "mb_s": 2},
    ]
    async with service(faults=faults) as made:
        head, _ = await asyncio.gather(made.start(0), made.start(1))
        await head.says("x" * 1000)
        assert await refused(made.port)
        head.process.send_signal(signal.SIGTERM)
        assert await head.ends() == -2  # killed by the interrupt, as Python does on KeyboardInterrupt
        assert "KeyboardInterrupt: terminated" in head.output


async def test_slow_stretches_every_step():
    fault = {"rank": 1, "kind": "slow", "when": "ready", "factor": 10.0}
    async with service(faults=[fault], overhead_ms=4.0) as made:
        await made.both()
        async with client(made) as api:
            race = {rank: asyncio.ensure_future(api.events(rank, max_tokens=20)) for rank in (0, 1)}
            await asyncio.wait(race.values(), return_when=asyncio.FIRST_COMPLETED)
            assert race[0].done() and not race[1].done()
            await race[1]
