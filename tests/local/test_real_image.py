"""`check --real` in an image, by a real docker and podman: the vendor's code, and images that have none of it.

An image with vLLM has gigabytes. Here its /usr, vLLM's dependencies and the release's packages are mounts of the point,
which are mounted into the closed container too; the images themselves are made here.
"""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_runtimes import OS, Real, started
from test_rehearsal import until

from jobs.__main__ import main
from jobs.core import process
from jobs.core.errors import RunError
from jobs.engines.ascend import ADVISED, releases
from jobs.engines.ascend.real import ask, image, sources

POINT = ("engine=vllm_ascend", f"engine.release={ADVISED}")
EMPTY = "localhost/empty:v1"
SCRIPTS = {
    "junk": '#!/bin/sh\necho \'{"case": 0}\'\necho "[1, 2"\necho \'{"packages": [1]}\'\n',
    "endless": "#!/bin/sh\nexec yes serving\n",
    "silent": "#!/bin/sh\nexec sleep 600\n",
    "crash": "#!/bin/sh\necho broken >&2\nexit 3\n",
}


@pytest.fixture(scope="module", params=("docker", "podman"))
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with started(request.param, EMPTY, tmp_path_factory) as one:
        yield one


@pytest.fixture
def real(runtime: Real, monkeypatch: pytest.MonkeyPatch) -> Iterator[Real]:
    for name, value in runtime.env.items():
        monkeypatch.setenv(name, value)
    yield runtime
    left = runtime.containers()
    runtime.clear()
    assert left == []


def overrides(real: Real, image: str, *mounts: Path, release: str = ADVISED) -> list[str]:
    given = ",".join(f"{one}:{one}" for one in (Path("/usr"), *mounts))
    return [POINT[0], f"engine.release={release}", f"container={real.program}", f"container.image={image}",
            "container.registry=null", f"container.mounts=[{given}]"]  # fmt: skip


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["check", *words])
    said = capsys.readouterr()
    return code or 0, said.out, said.err


def test_the_code_in_an_image_accepts_and_refuses(real: Real, capsys: pytest.CaptureFixture[str]) -> None:
    """Two points of one image, which is of another release than one of them."""
    if not ask.PYTHON.exists():
        pytest.skip(f"{ask.PYTHON} is not there: run `make setup`")
    try:
        packages = sources.obtain(ADVISED).resolve()
    except RunError as error:
        pytest.skip(str(error))
    venv = ask.PYTHON.parents[1].resolve()
    paths = f"{packages}:{next(venv.glob('lib/python3*/site-packages'))}"
    name = "localhost/vllm-ascend:v1"
    # Of a user's image: an ENTRYPOINT, another USER than root, and what would be seen if it were not told otherwise.
    real.make(name, OS, f"ENV PYTHONPATH={paths}", 'ENTRYPOINT ["/bin/false"]', "USER 1000:1000")
    given = overrides(real, name, packages, venv, Path("/no/models"), release=releases()[-1])
    code, out, err = check(capsys, "--real", *given, "+engine.args.max-num-queued-reqs=null,4")  # newer than the image
    assert (code, err) == (2, "")
    _, accepted, refused = out.split(POINT[0])
    where = (
        f"    asked in the image {name} ({real.program}): vllm {sources.engine_version(ADVISED)}, vllm-ascend {ADVISED}"
    )
    differs = f"    warning: that is not engine.release={releases()[-1]}, for which the command line is made"
    for said in (accepted, refused):
        without = "    without these mounts, which are not here: /no/models:/no/models"
        assert said.splitlines()[1:4] == [where, without, differs]
    assert accepted.splitlines()[4:] == [f"    rank {rank}: the real code accepts it" for rank in (0, 1)]
    assert [line.startswith(f"    rank {rank}: the real code refuses it: ") for rank, line in
            enumerate(refused.splitlines()[4:])] == [True, True]  # fmt: skip
    assert refused.count("--max-num-queued-reqs") == 2


@pytest.mark.parametrize(
    ("name", "reason", "remedy"),
    [
        ("none", "there is no python3 in it", "Take an image of vllm-ascend."),
        ("bare", "there is no vllm in it", "Take an image of vllm-ascend."),
        ("other", "it is for another processor", f"Take the image for {platform.machine()}."),
        ("junk", 'what it printed is no answer (exit code 0): {"packages": [1]}', "--real-packages"),
        ("crash", "what it printed is no answer (exit code 3): broken", "--real-packages"),
        ("endless", "its own code: it wrote more than 1 MiB", "--real-packages"),
        ("silent", "its own code: no answer within 3 s", "--real-packages"),
    ],
)
def test_what_an_image_can_have_instead(
    real: Real, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, reason: str, remedy: str
) -> None:
    monkeypatch.setattr(image, "MOST", 1 << 20)
    if name == "silent":
        monkeypatch.setattr(ask, "limit_s", lambda _: 3.0)
    tag, words = f"localhost/{name}:v1", overrides(real, f"localhost/{name}:v1")
    if name == "none":
        real.make(tag)
        words[-1] = "container.mounts=[]"
    elif name == "bare":
        real.make(tag)
    else:
        other = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\xf7\0" + bytes(100)  # of BPF: no machine is one
        text = other if name == "other" else SCRIPTS[name].encode()
        real.make(tag, OS, "ENV PATH=/opt:/usr/bin", programs={"opt/python3": text})
    code, out, err = check(capsys, "--real", *words)
    assert code == 1
    assert out.splitlines()[-1].startswith("1 point: 0 errors")
    assert err.startswith("error: container.image = ")
    assert len(err.splitlines()) == 1
    assert reason in err and remedy in err


def test_an_image_that_is_not_here_is_not_brought(real: Real, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = check(capsys, "--real", *overrides(real, "registry.example/team/absent:v1"))
    assert code == 1
    assert f"`{real.program} pull registry.example/team/absent:v1`" in err
    assert "a check brings no image" in err


def test_it_sees_no_network_no_device_and_writes_nothing(
    real: Real, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What our program would do there, another python3 does: it says what it sees on its errors."""
    (tmp_path / "mine").mkdir()
    script = f"""#!/bin/sh
exec >&2
set -- $(ls /sys/class/net) "$(id -u)" "$(grep CapEff /proc/self/status | cut -f2)" "$(ls /dev | grep -c davinci)"
for place in /opt /serving-sweep/cases /serving-sweep/real/run.py {tmp_path}/mine /usr; do
    touch $place/x $place 2>/dev/null && set -- "$@" "wrote $place"
done
touch /tmp/x && set -- "$@" tmp
echo "saw $@ $(ls /serving-sweep /serving-sweep/real | tr '\\n' ' ')"
"""
    real.make("localhost/nosy:v1", OS, "ENV PATH=/opt:/usr/bin", programs={"opt/python3": script.encode()})
    words = overrides(real, "localhost/nosy:v1", tmp_path / "mine", tmp_path / "not-here")
    code, _, err = check(capsys, "--real", *words, "container.args={privileged: true, publish: '8000:8000'}")
    assert code == 1
    assert "saw lo 0 0000000000000002 0 tmp /serving-sweep: cases models real" in err
    assert not (tmp_path / "not-here").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_check_ends_the_container(real: Real, number: signal.Signals) -> None:
    real.make("localhost/waits:v1", OS, "ENV PATH=/opt:/usr/bin", programs={"opt/python3": SCRIPTS["silent"].encode()})
    words = overrides(real, "localhost/waits:v1")
    argv = [sys.executable, "-m", "jobs", "check", "--real", *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        while "Up" not in real.run("ps", "--format", "{{.Status}}"):
            assert started.poll() is None, started.communicate()
        started.send_signal(number)
        _, err = started.communicate(timeout=60)
    assert "Traceback" not in err
    if number == signal.SIGKILL:  # nobody was left to end it: the next one does
        until(lambda: not [tag for tag in process.tags() if tag.startswith("check/")], "the end of what it started")
        assert main(["check", "--real", *overrides(real, EMPTY)]) == 1
    assert real.containers() == []
