"""A whole service on each of several nodes: command lines, the spread of requests, and what a row of both asks for."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from core_help import checked, config
from test_measure_wire import OK, Server, says

from jobs.allocation import serving
from jobs.allocation.context import RankContext
from jobs.allocation.walltime import Walltime
from jobs.cluster.nodelist import Task
from jobs.cluster.ports import derive_ports
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.files import write_json
from jobs.core.layout import Placement, local_sizes, planned
from jobs.core.rundir import AllocationDir
from jobs.core.tasks import AllocationTask
from jobs.engines.ascend.memory import predict_config
from jobs.engines.base import engine_of
from jobs.engines.prediction import Layout
from jobs.engines.steptime import StepTime
from jobs.forecast.demand import demand_of, hardware_constants, sizes_of
from jobs.forecast.figures import figures
from jobs.measure.gate.counters import balance
from jobs.measure.metrics import GENERATED, engine_counters, joined
from jobs.measure.records import Target
from jobs.measure.wire import Connections

W4A8 = ("model=deepseek_v3_1_w4a8", "engine.release=0.23.0.post1")
TWO = config(*W4A8, "parallel=replicas2_tp8", "cluster=slurm")
FOUR = config(*W4A8, "parallel=replicas2_tp8", "parallel.data_parallel_size=2", "parallel.tensor_parallel_size=4",
              "parallel.data_parallel_size_local=[2,2]")  # fmt: skip


def test_all_ranks_on_each_of_several_nodes_are_replicas() -> None:
    assert (TWO.parallel.replicas, TWO.parallel.engines, TWO.parallel.sequences) == (2, 2, 512)
    assert (FOUR.parallel.replicas, FOUR.parallel.engines, local_sizes(FOUR)) == (2, 4, (2, 2))
    for usual in ("dp2_tp8", "dp4_tp4", "dp1_tp16", "pp2_tp8"):
        parallel = config(f"parallel={usual}").parallel
        assert (parallel.replicas, parallel.engines) == (1, parallel.data_parallel_size)
    uneven = config("parallel.data_parallel_size=3", "parallel.data_parallel_size_local=[1,2]").parallel
    assert uneven.replicas == 1


@pytest.mark.parametrize("sizes", ["[1,1,2]", "[2,1]", "[1]"])
def test_what_adds_up_to_nothing_is_still_refused(sizes: str) -> None:
    with pytest.raises(ConfigError, match="a whole service on each node"):
        checked(config("parallel.data_parallel_size=2", f"parallel.data_parallel_size_local={sizes}"))


def test_each_rank_is_a_head_that_knows_no_other_node() -> None:
    checked(TWO)
    head, other = (engine_of(TWO).argv(TWO, place) for place in planned(TWO))
    assert [word.replace("{master_address}", "{address}") for word in head] == other
    assert "--headless" not in other and "--data-parallel-start-rank" not in other
    assert other[other.index("--data-parallel-address") + 1] == "{address}"
    assert all("VLLM_API_KEY" in engine_of(TWO).environment(TWO, place) for place in planned(TWO))


def test_on_one_host_each_has_a_loopback_address_of_its_own() -> None:
    here = config("parallel=replicas2_tp8", "cluster=local", "engine=simulator")
    hosts = [argv[argv.index("--host") + 1] for argv in (engine_of(here).argv(here, one) for one in planned(here))]
    assert hosts == [one.local for one in planned(here)] == ["127.0.0.1", "127.0.0.2"]
    assert {one.local for one in planned(TWO)} == {"127.0.0.1"}, "on nodes of their own"


def test_the_experts_of_a_replica_stay_on_its_node() -> None:
    both = config(*W4A8, "parallel=dp2_tp8")
    assert predict_config(TWO).weights_bytes > 1.6 * predict_config(both).weights_bytes
    assert predict_config(TWO).kv_tokens_per_rank > 0


def test_an_external_client_knows_one_address_only() -> None:
    with pytest.raises(ConfigError, match="knows one address"):
        checked(config(*W4A8, "parallel=replicas2_tp8", "bench.client=vllm_bench"))


def test_every_rank_of_an_allocation_tells_the_same_key(tmp_path) -> None:
    folder = AllocationDir(tmp_path)
    folder.new_key()
    ranks = [
        RankContext(Task(rank, 2, 7, ("a", "b"), "ab"[rank]), "lo", "127.0.0.1", derive_ports(7), folder,
                    AllocationTask(1, ()), {}, Walltime(None))
        for rank in range(2)
    ]  # fmt: skip
    assert ranks[0].api_key("s", 1) == ranks[1].api_key("s", 1)
    assert len({ranks[0].api_key(*asked) for asked in (("s", 1), ("s", 2), ("t", 1))}) == 3, "each service its own"
    assert len(ranks[0].api_key("s", 1)) == 32 and folder.key.read_text() not in ranks[0].api_key("s", 1)


# --- the client


@pytest.mark.parametrize(("engines", "places"), [(1, [(0, 0), (1, 0)]), (2, [(0, 0), (0, 1), (1, 0), (1, 1)])])
def test_engines_are_numbered_through(engines: int, places: list[tuple[int, int]]) -> None:
    target = Target("http://a", "m", None, ("http://b",), engines)
    assert [target.place(engine) for engine in range(2 * engines)] == places
    assert [Target("http://a", "m").place(engine) for engine in range(3)] == [(0, 0), (0, 1), (0, 2)]
    page = "\n".join(f'{GENERATED}{{engine="{one}",model_name="m"}} {10 + one}' for one in range(engines))
    found = engine_counters(joined([page, page], engines), GENERATED)
    assert found == {str(one): 10.0 + one % engines for one in range(2 * engines)}


async def test_requests_go_where_fewest_are_in_flight_and_else_by_turns() -> None:
    held = asyncio.Event()

    async def holds(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await held.wait()
        writer.write(OK + b"Content-Length: 0\r\n\r\n")

    servers = [Server(holds), Server(says(OK + b"Content-Length: 0\r\n\r\n"))]
    listeners = [await asyncio.start_server(one.handle, "127.0.0.1", 0) for one in servers]
    urls = [f"http://127.0.0.1:{one.sockets[0].getsockname()[1]}" for one in listeners]
    with closing(Connections(urls[0], {}, urls[1:])) as connections:

        async def ask(at: int | None = None) -> None:
            await connections.request("GET", "/", b"", lambda *_: None, at)

        waiting = asyncio.create_task(ask())
        while not servers[0].bodies:
            await asyncio.sleep(0)
        for _ in range(3):  # the first one is still busy
            await ask()
        assert [len(one.bodies) for one in servers] == [1, 3]
        held.set()
        await waiting
        for _ in range(4):
            await ask()
        assert [len(one.bodies) for one in servers] == [3, 5]
        await ask(0)
        assert len(servers[0].bodies) == 4
    for one in listeners:
        one.close()


def silent(served: dict[str, int], in_flight: float, of: Config = TWO) -> list[tuple[str, bool]]:
    return [(one.words, one.invalid) for one in balance(of, served, 3, in_flight)]


def test_a_row_of_replicas_needs_tokens_of_every_node() -> None:
    assert silent({"0": 900, "1": 880}, 16.0) == []
    assert silent({"0": 900, "1": 0}, 1.0) == [("data-parallel rank 1 served no token in the window", True)], (
        "our own client spreads them: even one at a time reaches both"
    )
    [(_, invalid)] = silent({"0": 900, "1": 0}, 1.0, config("parallel=dp2_tp8"))
    assert not invalid


def test_figures_of_replicas_are_those_of_one_at_its_share_of_the_load() -> None:
    one = config(*W4A8, "parallel=replicas2_tp8", "parallel.data_parallel_size_local=1", "bench.concurrency=8")
    two = replace(TWO, bench=replace(TWO.bench, concurrency=16))
    alone, both = (
        figures(StepTime(sizes_of(c), hardware_constants(c), Layout.of(c)), demand_of(c)) for c in (one, two)
    )
    assert (both.ttft_s, both.tpot_s) == pytest.approx((alone.ttft_s, alone.tpot_s))
    assert both.output_per_s == pytest.approx(2 * alone.output_per_s)


def test_how_to_reach_two_replicas_names_both(tmp_path: Path) -> None:
    folder = AllocationDir(tmp_path / "sweep/allocations/0/1")
    folder.serving.parent.mkdir(parents=True)
    place = Placement(0, 2, "10.0.0.1", "eth0", "10.0.0.1", "8000", "9000")
    how = serving.describe(TWO, folder, place, "node1", "login1", ["http://10.0.0.2:8000"])
    write_json(folder.serving, how)
    assert (how["base_url"], how["replicas"]) == ("http://10.0.0.1:8000/v1", ["http://10.0.0.2:8000/v1"])
    assert "-L 8000:10.0.0.1:8000 -L 8001:10.0.0.2:8000 " in how["tunnel"] and how["tunnel"].endswith("@login1")
    told = serving.text(folder)
    assert (
        "replica   http://10.0.0.2:8000/v1" in told
        and "http://127.0.0.1:8000/v1 and http://127.0.0.1:8001/v1 on your" in told
    )
    write_json(folder.serving, serving.describe(TWO, folder, place, "node1", "login1"))
    assert "replica  " not in serving.text(folder) and "then http://127.0.0.1:8000/v1 on your" in serving.text(folder)
