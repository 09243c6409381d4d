"""What npu-smi and hccn_tool print, version strings, proxies, reserved ports."""

from __future__ import annotations

from pathlib import Path

import pytest
from core_help import ROOT, change, config

from jobs.allocation.preflight import hccn, look, pairing, tools
from jobs.allocation.preflight.facts import UNKNOWN
from jobs.engines.ascend.npu_smi import NpuProcess, parse_board, parse_info

FIXTURES = ROOT / "tests/fixtures/npu"


def text(name: str) -> str:
    return (FIXTURES / name).read_text()


def test_npu_smi_of_910b_with_sick_and_busy_npus() -> None:
    info = parse_info(text("info_910b2_busy.txt"))
    assert info.version == "24.1.0.3"
    assert [(n.index, n.name, n.health, n.used_mb, n.total_mb) for n in info.npus] == [
        (0, "910B2", "OK", 3397, 65536),
        (1, "910B2", "Alarm", 59891, 65536),
        (2, "910B4", "Warning", 26838, 32768),
    ]
    assert info.npus[0].processes == ()
    assert info.npus[1].processes == (NpuProcess(3325989, "", 50128), NpuProcess(3330598, "VLLMWorker_TP", 132))
    assert info.npus[2].processes == (NpuProcess(1333928, "python3.11", 23709),)


def test_npu_smi_of_an_a3_has_two_dies_a_device() -> None:
    info = parse_info(text("info_a3.txt"))
    assert [(n.index, n.name, n.used_mb) for n in info.npus] == [(0, "Ascend910", 3180), (0, "Ascend910", 2896)]


def test_npu_smi_26_has_wider_columns_and_one_more() -> None:
    info = parse_info(text("info_26.txt"))
    assert info.version == "26.0.rc2"
    [npu] = info.npus
    assert (npu.used_mb, npu.total_mb) == (31877, 65536)
    assert npu.processes == (NpuProcess(632268, "python3.1", 28197),)


def test_without_a_table_nothing_is_guessed() -> None:
    for said in ("", "dcmi module initialize failed. ret is -8005", text("info_26.txt").splitlines()[1]):
        with pytest.raises(ValueError, match="no table"):
            parse_info(said)


def test_without_a_process_table_the_processes_are_unknown() -> None:
    cut = text("info_910b2_busy.txt").partition("| NPU     Chip")[0]
    assert [npu.processes for npu in parse_info(cut).npus] == [None, None, None]


def test_board() -> None:
    assert parse_board(text("board.txt"))["Firmware Version"] == "7.1.0.7.220"
    assert parse_board("nothing") == {}


def test_hccn_tool() -> None:
    assert hccn.parse_link("link status: UP\n") == "UP"
    assert hccn.parse_link("link status: DOWN") == "DOWN"
    assert hccn.parse_link("Cmd execute failed!") is None
    assert hccn.parse_health("net health status: Success\n") == "Success"
    assert hccn.parse_health("net health status: Receive timeout \n") == "Receive timeout"
    assert hccn.parse_tls("dev_id:3, tls switch[1](0:disable, 1:enable), tls alarm time threshold[60]days") is True
    assert hccn.parse_tls("device 3, tls switch[0](0:disable, 1:enable), tls preconfigured[1]") is False
    assert hccn.parse_tls("no certificate found") is False
    assert hccn.parse_tls("Cmd execute failed!") is None
    assert hccn.parse_address("ipaddr:10.20.0.20\nnetmask:255.255.255.0\n") == ("10.20.0.20", "255.255.255.0")
    assert hccn.parse_address("Get ip failed, because no ip was preset there!") is None


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ("device 0 PING 10.0.0.1\nrecv seq=0,time=0.1ms\n3 packets transmitted, 3 received, 0.00% packet loss", (3, 3)),
        ("recv time out seq=0\n3 packets transmitted, 2 received, 33.33% packet loss", (3, 2)),
        ("recv time out seq=2\n3 packets transmitted, 0 received, 100.00% packet loss", (3, 0)),
        ("Cmd execute failed!", None),
    ],
)
def test_pings(said: str, counts: tuple[int, int] | None) -> None:
    assert hccn.parse_ping(said) == counts


@pytest.mark.parametrize(
    ("driver", "release", "state"),
    [
        ("25.5.0", "0.13.0", "pass"),
        ("25.3.rc1", "0.13.0", "warn"),  # EI0007 in MC2
        ("24.1.0.3", "0.13.0", "fail"),  # CANN 8.5 does not know it
        ("24.1.rc3", "0.9.1", "warn"),
        ("25.0.rc1", "0.9.1", "pass"),
        ("25.5.2", "0.23.0", "warn"),
        ("26.1.0", "0.23.0", "pass"),
        ("(unknown)", "0.9.1", "warn"),
    ],
)
def test_drivers_and_releases(driver: str, release: str, state: str) -> None:
    assert pairing.driver_fits(driver, release)[0] == state


def test_spellings_of_cann() -> None:
    assert pairing.same_cann("8.2.RC1", "8.2.rc1")
    assert pairing.same_cann("8.2.RC1.alpha003", "8.2.RC1")
    assert not pairing.same_cann("8.3.RC2", "8.2.RC1")


def test_cann_lies_beside_the_file_that_the_engine_sources(tmp_path: Path) -> None:
    source = tmp_path / "ascend-toolkit/set_env.sh"
    assert tools.cann_version([str(source)]) is None
    record = source.parent / "latest/aarch64-linux/ascend_toolkit_install.info"
    record.parent.mkdir(parents=True)
    record.write_text("package_name=Ascend-cann-toolkit\nversion=8.2.RC1\ninnerversion=V100R001C22\n")
    assert tools.cann_version([str(source)]) == "8.2.RC1"


def test_a_proxy_that_spares_the_peers_is_none() -> None:
    env = {"https_proxy": "http://p:3128", "no_proxy": "localhost, .cluster"}
    assert look.proxies(env, ["node2.cluster"]) == {}
    assert look.proxies(env, ["node2.cluster", "10.0.0.2"]) == {"https_proxy": "http://p:3128"}
    assert look.proxies(env, []) == {}
    assert look.proxies(env | {"no_proxy": "*"}, ["10.0.0.2"]) == {}


def test_ports_that_the_kernel_gives_away() -> None:
    ports = range(60000, 60016)
    assert look.unreserved(ports, "32768\t60999\n", "") == tuple(ports)
    assert look.unreserved(ports, "32768\t60999\n", "60000-60007,60009\n") == (60008, *range(60010, 60016))
    assert look.unreserved(ports, "32768 59999", "") == ()
    assert look.unreserved(ports, "", "") == ()


def test_huge_pages_are_counted_in_gib() -> None:
    meminfo = "MemTotal:  8000 kB\nHugePages_Total:    1024\nHugePages_Free:     1024\nHugepagesize:       2048 kB\n"
    assert look.hugepages_gib(meminfo) == 2.0
    assert look.hugepages_gib("MemTotal: 1 kB\n") == 0.0


def test_versions_of_the_engine_are_those_beside_its_program(tmp_path: Path) -> None:
    program = tmp_path / "bin/vllm"
    for name in ("vllm-0.9.1", "vllm_ascend-0.9.1", "torch_npu-2.5.1.post1", "requests-2.0"):
        (tmp_path / f"lib/python3.11/site-packages/{name}.dist-info").mkdir(parents=True)
    found = look.versions(str(program))
    assert {name: found.get(name) for name in ("vllm", "vllm_ascend", "torch_npu")} == {
        "vllm": "0.9.1",
        "vllm_ascend": "0.9.1",
        "torch_npu": "2.5.1.post1",
    }
    assert "requests" not in found
    assert {"tool", "python", "kernel"} <= look.versions(None).keys()


def test_an_image_that_cannot_be_seen_from_here_is_unknown_and_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = config("cluster=slurm", f"results.root={tmp_path}")
    boxed = change(made, container__image="r.example#a/b:v1")
    seen = {
        runtime: look.host({}, {}, [], {}, change(boxed, container__runtime=runtime), []).versions.get("image")
        for runtime in ("none", "pyxis", "docker", "enroot")
    }
    assert seen == {"none": None, "pyxis": UNKNOWN, "docker": UNKNOWN, "enroot": UNKNOWN}
