# ruff: noqa: F811
"""A rank that has brought another image than rank 0 takes that one by its digest, and the service starts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from container_fakes import DIGEST, REGISTRY, URI, Fakes
from test_runtimes import INHERITED, engine, fakes, until_says  # noqa: F401

from jobs.allocation import headless
from jobs.allocation.messages import Bye, Ended, EngineStart, Message, Prepare, Prepared, Stop, Stopped
from jobs.allocation.node import image, staging
from jobs.allocation.node.engine import Engine
from jobs.core.files import read_json
from jobs.core.registry import RUNTIMES

OTHER = "sha256:" + "cd" * 32
NAMED = f"docker://{REGISTRY}#test/image@{DIGEST}"
START = EngineStart("s", "p", 2, 1, "127.0.0.1", "0", "0")
MOVED = {URI: OTHER, NAMED: DIGEST}
"""What the registry has: the tag stands for another image by now, and the old one is there by its digest."""


class Line:
    """The channel of a headless rank: what it is told, and what it says."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[Message] = asyncio.Queue()
        self._said: asyncio.Queue[Message] = asyncio.Queue()

    async def tell(self, message: Message) -> Message:
        self._told.put_nowait(message)
        return await asyncio.wait_for(self._said.get(), 60)

    def order(self, message: Message) -> None:
        self._told.put_nowait(message)

    async def receive(self) -> Message | None:
        return await self._told.get()

    async def send(self, message: Message) -> None:
        self._said.put_nowait(message)

    def close(self) -> None:
        pass


@asynccontextmanager
async def headless_rank(one: Engine) -> AsyncIterator[Line]:
    """A rank that obeys; it has stopped, and left nothing, at the end."""
    line = Line()
    obeying = asyncio.create_task(headless.serve(line, lambda _: one, dict(os.environ) | INHERITED))  # type: ignore[arg-type]
    yield line
    while not isinstance(stopped := await line.tell(Stop(1.0)), Stopped):
        pass
    assert stopped.leftovers == ()
    line.order(Bye())
    assert await asyncio.wait_for(obeying, 60) is None


async def prepared(line: Line, **wanted: str) -> dict[str, str]:
    answer = await line.tell(Prepare(START, {image.PART + name: value for name, value in wanted.items()}))
    assert isinstance(answer, Prepared), answer
    return answer.parts


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES.own if name != "apptainer"])
async def test_a_rank_takes_the_image_of_rank_0_and_starts_it(tmp_path: Path, fakes: Fakes, runtime: str) -> None:
    first = {"image digest": DIGEST}
    fakes.tell(node="node1", images=MOVED)
    one = engine(tmp_path, runtime)
    async with headless_rank(one) as line:
        parts = await prepared(line)
        assert "its container image is not that of rank 0" in str(image.difference(first, parts))
        again = await prepared(line, digest=DIGEST)
        assert staging.difference({0: first, 1: staging.with_image(parts, again)}) is None
        line.order(START)
        await until_says(one, "up")
        assert [found for found in one.inspect() if found.error] == []
        record = read_json(one.folder.effective)["container"]
        assert DIGEST in record["image"].replace("sha256-", "sha256:"), "recorded as it was started"
        assert OTHER not in record["image_names"].values()
        if runtime in ("docker", "podman"):
            assert fakes.calls(runtime, "run")[-1][-2] == f"{REGISTRY}/test/image@{DIGEST}"


@pytest.mark.parametrize("runtime", ["docker", "podman", "enroot"])
async def test_a_rank_whose_tag_is_gone_takes_the_image_of_rank_0(tmp_path: Path, fakes: Fakes, runtime: str) -> None:
    fakes.tell(node="node1", images={NAMED: DIGEST})
    one = engine(tmp_path, runtime)
    one.place = replace(one.place, rank=1)
    async with headless_rank(one) as line:
        parts = await prepared(line)
        found = str(image.difference({"image digest": DIGEST}, parts))
        assert found.startswith("it has not the container image of rank 0: ")
        assert "no such image or tag" in found
        assert image.difference({}, parts), "where rank 0 does not know its digest that is an error too"
        again = await prepared(line, digest=DIGEST)
        assert again["image digest"] == DIGEST
        assert staging.difference({0: again, 1: staging.with_image(parts, again)}) is None
        line.order(START)
        await until_says(one, "up")


async def test_an_image_of_the_same_name_that_has_no_digest_here_is_replaced_too(tmp_path: Path, fakes: Fakes) -> None:
    (tmp_path / "first").mkdir()
    first = await staging.prepare(engine(tmp_path / "first", "docker"), dict(os.environ) | INHERITED)
    assert image.of_registry(first) == DIGEST
    fakes.tell(node="node1", images={URI: None, NAMED: DIGEST})  # built on the second node
    async with headless_rank(engine(tmp_path, "docker")) as line:
        parts = await prepared(line)
        assert parts.keys() == {"image id"}
        assert await prepared(line, digest=DIGEST, id=first["image id"]) == first


@pytest.mark.parametrize("runtime", ["docker", "enroot"])
async def test_what_no_registry_has_any_more_is_one_error_that_names_both(
    tmp_path: Path, fakes: Fakes, runtime: str
) -> None:
    fakes.tell(node="node1", images={URI: OTHER})
    async with headless_rank(engine(tmp_path, runtime)) as line:
        await prepared(line)
        answer = await line.tell(Prepare(START, {"image digest": DIGEST}))
        assert isinstance(answer, Ended)
        for words in (OTHER, DIGEST, "is not that of rank 0", "does not come", "no such image or tag"):
            assert words in answer.reason


def test_a_digest_of_a_file_is_none_of_a_registry() -> None:
    names = {"image digest": "sha256:ab", "image content": "ab"}
    assert image.of_registry(names) is None, "apptainer, or an enroot that cannot ask"
    assert image.of_registry(names | {"image content": "cd"}) == "sha256:ab"
    assert image.of_registry({"image id": "x"}) is None
