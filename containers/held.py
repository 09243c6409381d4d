"""An image that docker or podman has on a node, as `image inspect` tells of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from containers.spec import Image
from jobs.core.errors import RunError


@dataclass(frozen=True)
class Held:
    """An image that a node has: id, its registry's digest, another registry's; whether it has ENTRYPOINT or USER."""

    id: str
    digest: str | None
    elsewhere: str | None
    entrypoint: bool
    user: bool = False

    @property
    def names(self) -> dict[str, str]:
        """By which it is told from others."""
        return {"id": self.id} | ({"digest": self.digest} if self.digest else {})


FORM = "{{.Id}} {{json .RepoDigests}} {{json .Config.Entrypoint}} {{json .Config.User}}"


def read_image(output: str, image: Image) -> Held:
    """Return the image that `image inspect --format FORM` tells of."""
    found, _, rest = output.strip().partition(" ")
    try:
        digests, entrypoint, user = _json(rest)
        by_name = dict(one.split("@", 1) for one in digests or [])
    except ValueError:
        reason = f"it says of an image: {output.strip()[:200]}"
        raise RunError("container.runtime", "image inspect", reason, "Try it by hand on that node.") from None
    root = not user or str(user).partition(":")[0] in ("0", "root")
    # podman forgets the digest by which it finds an image with the last name of that.
    digest = image.digest or by_name.get(image.docker_repository())
    return Held(found, digest, next(iter(by_name.values()), None), bool(entrypoint), not root)


def _json(text: str) -> Iterator[Any]:
    """Yield values of JSON that stand one after the other."""
    at, decoder = 0, json.JSONDecoder()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        yield value
        at += 1
