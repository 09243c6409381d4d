"""Images, mounts, and the commands of each runtime: pyxis' public grammar, golden command lines."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from core_help import GOLDEN, ROOT, composer, config
from hypothesis import given
from hypothesis import strategies as st

from containers import enroot, pyxis
from containers.base import Fetched, Local, Order
from containers.spec import Image, Mount, Spec, host_path, parse_image, parse_mount, size_bytes
from jobs.core.errors import ConfigError
from jobs.core.registry import RUNTIMES
from jobs.sweep import check, compose, grammar, road
from jobs.sweep.record import as_json

DIGEST = "sha256:" + "0f" * 32


@pytest.mark.parametrize(
    ("text", "for_enroot", "for_pyxis", "for_docker"),
    [
        ("docker://r.example#a/b:v1", "docker://r.example#a/b:v1", "r.example#a/b:v1", "r.example/a/b:v1"),
        ("r.example#a/b:v1", "docker://r.example#a/b:v1", "r.example#a/b:v1", "r.example/a/b:v1"),
        # enroot 3.x reads this form as an image of Docker Hub: it is never handed on
        ("r.example:5000/a/b:v1", "docker://r.example:5000#a/b:v1", "r.example:5000#a/b:v1", "r.example:5000/a/b:v1"),
        ("docker://localhost/b", "docker://localhost#b:latest", "localhost#b:latest", "localhost/b"),
        ("a/b:v1", "docker://a/b:v1", "a/b:v1", "a/b:v1"),
        ("$oauthtoken@r.example#a/b:v1", "docker://$oauthtoken@r.example#a/b:v1", "$oauthtoken@r.example#a/b:v1",
         "r.example/a/b:v1"),
        (f"r.example#a/b@{DIGEST}", f"docker://r.example#a/b@{DIGEST}", f"r.example#a/b@{DIGEST}",
         f"r.example/a/b@{DIGEST}"),
        ("r.example\\#a/b:v1", "docker://r.example#a/b:v1", "r.example#a/b:v1", "r.example/a/b:v1"),
        ("dockerd://a/b:v1", "dockerd://a/b:v1", "dockerd://a/b:v1", "a/b:v1"),
    ],
)  # fmt: skip
def test_an_image_is_named_as_each_runtime_reads_it(
    text: str, for_enroot: str, for_pyxis: str, for_docker: str
) -> None:
    image = parse_image(text)
    assert (image.enroot(), image.pyxis(), image.docker()) == (for_enroot, for_pyxis, for_docker)


def test_a_registry_is_put_before_a_name_without_one_only() -> None:
    assert parse_image("a/b:v1", "r.example").enroot() == "docker://r.example#a/b:v1"
    assert parse_image("s.example#a/b:v1", "r.example").enroot() == "docker://s.example#a/b:v1"


def test_a_path_stays_a_path_and_a_relative_one_is_from_the_project() -> None:
    assert parse_image("/x/m.sqsh").pyxis() == "/x/m.sqsh"
    assert parse_image("./m.sqsh").path == str(ROOT / "m.sqsh")


@pytest.mark.parametrize(
    "text", ["m.sqsh", "images/m.sqsh", "ftp://a/b", "a b", "", "A/B:v1", "r#a#b", "a/b:", "docker://", "podman://r#a"]
)
def test_what_a_runtime_would_take_for_something_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_image(text)
    assert caught.value.key == "container.image"


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/a:/b", Mount("/a", "/b")),
        ("/a", Mount("/a", "/a")),
        ("/a:/b:ro+rprivate", Mount("/a", "/b", ("ro", "rprivate"))),
        ("./a:/b", Mount(str(ROOT / "a"), "/b")),
        ("/a/:./b/", Mount("/a/", "/b/")),
        ("tmpfs:/dev/shm:size=64m+mode=1777", Mount("tmpfs", "/dev/shm", ("size=64m", "mode=1777"))),
        ("umount:/dev/shm", Mount("umount", "/dev/shm")),
    ],
)
def test_mounts_are_read_as_pyxis_reads_them(text: str, mount: Mount) -> None:
    assert parse_mount(text) == mount


@pytest.mark.parametrize("text", ["in:/mnt", "/a:b", ":/b", "/a:", "/a,/b", "", "tmpfs", "/a:/b:ro:rw", "proc:/x"])
def test_mounts_that_pyxis_refuses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mount(text)
    assert (caught.value.key, caught.value.value) == ("container.mounts", text)


@given(
    st.lists(st.text("abc./", min_size=1, max_size=6), min_size=1, max_size=2),
    st.lists(st.sampled_from(["ro", "rprivate", "nosuid"]), max_size=2, unique=True),
)
def test_a_mount_written_out_is_read_back(parts: list[str], flags: list[str]) -> None:
    text = ":".join("/" + part for part in parts) + (f":{'+'.join(flags)}" if flags and len(parts) == 2 else "")
    once = parse_mount(text)
    assert parse_mount(str(once)) == once
    assert str(once).startswith("/")


def test_the_last_mount_over_a_path_decides_what_is_behind_it() -> None:
    mounts = (Mount("/host/models", "/models"), Mount("/fast/r1", "/models/r1"), Mount("tmpfs", "/models/tmp"))
    assert host_path(mounts, "/models/v3/x") == "/host/models/v3/x"
    assert host_path(mounts, "/models/r1") == "/fast/r1"
    assert host_path(mounts, "/models/tmp/x") is None
    assert host_path(mounts, "/modelsX") is None


@pytest.mark.parametrize(("text", "size"), [("1g", 1 << 30), ("500G", 500 << 30), ("64m", 64 << 20), ("4096", 4096)])
def test_sizes_are_dockers(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "1t", "-1g", "g", "0", "1 g"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        size_bytes(text)


SPEC = Spec(
    runtime="enroot",
    image=parse_image("r.example#ascend/vllm-ascend:v0.9.1-openeuler"),
    name="deepseek",
    mounts=(
        Mount("/models", "/models", ("ro",)),
        Mount("/usr/local/dcmi", "/usr/local/dcmi"),
        Mount("tmpfs", "/dev/shm", ("size=64m", "mode=1777")),
    ),
    devices=("/dev/davinci0",),
    env={"HCCL_BUFFSIZE": "200", "VLLM_API_KEY": "secret", "TWO": "a\nb", "QUOTED": '"x"', "ENROOT_X": "1"},
)
COMMAND = ("bash", "/tmp/sv/enter.sh", "vllm", "serve", "/models/R1", "--additional-config", '{"a":{"b":true}}')


def test_the_start_of_enroot() -> None:
    argv = enroot.start_argv(SPEC, "deepseek", Path("/tmp/sv/rc"), COMMAND)
    # An option list replaces enroot's defaults: rbind stands in each; values that --env mangles are left to the entry.
    assert argv == shlex.split(
        "enroot start --root --rw --mount /models:/models:x-create=auto,rbind,ro"
        " --mount /usr/local/dcmi:/usr/local/dcmi:x-create=auto,rbind"
        " --mount tmpfs:/dev/shm:tmpfs:x-create=dir,size=64m,mode=1777"
        " --mount /dev/davinci0:/dev/davinci0:x-create=auto,rbind"
        " --env HCCL_BUFFSIZE --env VLLM_API_KEY --rc /tmp/sv/rc deepseek bash /tmp/sv/enter.sh vllm serve /models/R1"
        ' --additional-config \'{"a":{"b":true}}\''
    )
    plain = replace(SPEC, mounts=(), devices=(), env={}, remap_root=False, writable=False, args={"conf": "/site.conf"})
    assert enroot.start_argv(plain, "x", Path("/rc"), ("true",)) == shlex.split(
        "enroot start --conf /site.conf --rc /rc x true"
    )


def test_import_create_and_remove_of_enroot() -> None:
    assert enroot.import_argv(SPEC.image, Path("/s/.x.part"), "aarch64") == shlex.split(
        "enroot import --arch aarch64 --output /s/.x.part 'docker://r.example#ascend/vllm-ascend:v0.9.1-openeuler'"
    )
    assert enroot.remove_argv("n") == ["enroot", "remove", "--force", "n"]


def test_the_step_of_pyxis() -> None:
    spec = replace(SPEC, env={"HCCL_BUFFSIZE": "200", "VLLM_API_KEY": "secret"}, workdir="/workspace")
    order = Order(spec, "7/s/1", Local(Path("/local")), Path("/no/images"), "node1", Path("/tmp/sv"), COMMAND)
    assert RUNTIMES.get("pyxis").start(order).commands[-1] == shlex.split(
        "srun --jobid=7 --overlap --nodes=1 --ntasks=1 --nodelist=node1 --cpu-bind=none --mpi=none --input=none"
        " --export=ALL '--container-image=r.example#ascend/vllm-ascend:v0.9.1-openeuler'"
        " --container-mounts=/models:/models:ro,/usr/local/dcmi:/usr/local/dcmi,tmpfs:/dev/shm:size=64m+mode=1777,"
        "/dev/davinci0:/dev/davinci0"
        " --container-name=deepseek:create --container-writable --container-remap-root --no-container-mount-home"
        " --no-container-entrypoint --container-env=HCCL_BUFFSIZE,VLLM_API_KEY --container-workdir=/workspace"
        ' bash /tmp/sv/enter.sh vllm serve /models/R1 --additional-config \'{"a":{"b":true}}\''
    )
    other = replace(spec, image=Image(path="/s/x.sqsh"), mounts=(), devices=(), env={}, name=None, workdir=None)
    other = replace(other, writable=False, remap_root=False, mount_home=True)
    assert pyxis.options(other) == shlex.split(
        "--container-image=/s/x.sqsh --container-readonly --no-container-remap-root --container-mount-home"
        " --no-container-entrypoint"
    )


def test_no_secret_stands_on_a_command_line() -> None:
    lines = [
        enroot.start_argv(SPEC, "x", Path("/rc"), COMMAND),
        pyxis.options(SPEC),
        RUNTIMES.get("docker").run_argv(replace(SPEC, mounts=()), Fetched()),
    ]
    assert not any("secret" in word for line in lines for word in line)
    assert "secret" not in repr(SPEC)


def test_the_articles_docker_line_token_for_token() -> None:
    given = ["experiment=article", "container=docker", "container.registry=registry.example"]
    [service] = as_json(road.plan(compose.expand(given), composer))["services"]
    words = shlex.split((GOLDEN / "article_docker.txt").read_text().replace("\\\n", " "))
    words[-2] = words[-2].replace("REGISTRY", "registry.example")
    ours = [rank["container"] for rank in service["ranks"]]
    assert ours[0][0] == words
    assert ours[1][0] == [word.replace("node0", "node1") for word in words]
    # Then what the article types inside: the same line as without a container.
    for rank, (_, inside) in zip(service["ranks"], ours, strict=True):
        assert inside[:4] == ["docker", "exec", f"deepseek-node{rank['rank']}", "bash"]
        assert inside[5:] == rank["argv"]


def test_a_batch_job_has_no_terminal() -> None:
    spec = Spec("docker", parse_image("a/b:v1"), name="x", args={"p": ["1:2", "3:4"], "privileged": True, "cpus": None})
    order = Order(spec, "7/s/1", Local(Path("/local")), Path("/images"), "node1", Path("/tmp/sv"), ("bash", "enter.sh"))
    lines = [shlex.join(line) for line in RUNTIMES.get("docker").start(order).commands]
    assert lines == [
        f"docker run --detach --label serving-sweep={os.getuid()}:7/s/1 --name x --net=host -p 1:2 -p 3:4 --privileged"
        " -it a/b:v1 bash",
        "docker exec x mkdir -p /tmp",
        "docker cp /tmp/sv x:/tmp/sv",
        "docker exec x bash enter.sh",
    ]


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["container=enroot"], "container.image", "needs an image"),
        (["container=enroot", "container.image=m.sqsh"], "container.image", "image of a registry"),
        (["container=pyxis", "container.image=podman://a/b"], "container.image", "podman"),
        (["container=pyxis", "container.image=/m.sqsh", "cluster=local"], "container.runtime", "needs a job"),
        (["container=docker", "container.image=/m.sqsh"], "container.image", "squashfs"),
        (["container=docker", "container.image=a/b", "container.remap_root=false"], "container.remap_root", "daemon"),
        (
            ["container=docker", "container.image=a/b", "container.mounts=['/a:/b:nosuid']"],
            "container.mounts",
            "nosuid",
        ),
        (["container=enroot", "container.image=/m.sqsh", "container.mounts=['/a b:/b']"], "container.mounts", "blank"),
        (
            ["container=enroot", "container.image=/m.sqsh", "container.mounts=['in:/mnt']"],
            "container.mounts",
            "no mount",
        ),
        (["container=enroot", "container.image=/m.sqsh", "container.mounts=['/a:/b:r0']"], "container.mounts", "r0"),
        (["container=enroot", "container.image=/m.sqsh", "container.shm_size=big"], "container.shm_size", "no size"),
        (["container=enroot", "container.image=/m.sqsh", "container.name=a/b"], "container.name", "/"),
        (["container=docker", "container.image=a/b", "container.args={name: x}"], "container.args.name", "itself"),
        (["container=podman", "container.image=a/b", "container.args={user: 1000}"], "container.args.user", "itself"),
        (["container=enroot", "container.image=/m.sqsh", "container.args={rc: /x}"], "container.args.rc", "itself"),
        (["container=apptainer", "container.image=/m.sqsh"], "container.image", ".sif"),
        (["container=apptainer", "container.image=dockerd://a"], "container.image", "dockerd"),
        (["container=apptainer", "container.image=/m.sif", "container.name=x"], "container.name", "no names"),
        (
            ["container=apptainer", "container.image=/m.sif", "container.mounts=['/a:/b:nosuid']"],
            "container.mounts",
            "nosuid",
        ),
        (
            ["container=apptainer", "container.image=/m.sif", "container.mount_home=true"],
            "container.mount_home",
            "homes",
        ),
        (["container=docker", "container.image=podman://a/b"], "container.image", "Write dockerd://"),
        (["container=podman", "container.image=dockerd://a/b"], "container.image", "Write podman://"),
        (["container=docker", "container.image=a/b", "container.mounts=['umount:/b']"], "container.mounts", "Leave it"),
        (
            ["container=docker", "container.image=a/b", "container.registry='https://r.example'"],
            "container.registry",
            "Leave https:// out",
        ),
        (
            ["container=enroot", "container.image=a/b", "container.registry=r.example/team"],
            "container.registry",
            "write a path into container.image",
        ),
        (
            ["container=docker", "container.image=a/b", "container.args={--net: host}"],
            "container.args",
            "without dashes",
        ),
        (["container=docker", "container.image=a/b", "container.workdir=opt"], "container.workdir", "begins with /"),
        (["container.runtime=lxc"], "container.runtime", "none, enroot, pyxis, docker, podman, apptainer"),
        (["container=enrot"], "container", "no such option"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_submitted(overrides: list[str], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grammar.check(overrides)
        road.plan(compose.expand(["cluster=slurm", *overrides]), composer)
    assert caught.value.key == key
    assert words in str(caught.value)


def test_an_image_without_a_runtime_is_a_warning() -> None:
    image, own = "container.image=a/b", "parallel.max_model_len=8192"
    [found] = check.unused_image(config(image, own), (image, own))
    assert (found.rule, found.severity, found.key) == ("C4", "warning", "container.image")
    assert check.unused_image(config("experiment=article"), ("experiment=article",)) == (), (
        "a recipe's may wait for one"
    )
    assert check.unused_image(config(image, "container=docker"), (image, "container=docker")) == ()


def test_the_plan_shows_the_commands_of_each_runtime_and_none_has_none() -> None:
    image = ["container.image='r.example#a/b:v1'", "container.mounts=['/data/models:/models']"]

    def commands(*more: str) -> list[list[str]]:
        made = as_json(road.plan(compose.expand(["cluster=slurm", *image, *more]), composer))
        return made["services"][0]["ranks"][0].get("container", [])

    assert commands() == []
    assert [line[:2] for line in commands("container=enroot")] == [["enroot", w] for w in ("import", "create", "start")]
    [step] = commands("container=pyxis")
    assert step[0] == "srun"
    assert "--container-image=r.example#a/b:v1" in step
    serve = step.index("serve")
    assert step[serve - 1] == "vllm"
    assert config().container.runtime == "none"
