"""What a container is asked to be: image, mounts, variables. Pure, and the same for every runtime.

The grammar of images and mounts is pyxis' public one (pyxis, README and args.c): other runtimes get it translated.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jobs.core.errors import ConfigError
from jobs.core.fields import ROOT
from jobs.core.foreign import from_yaml

IMAGE_FORMS = "Write docker://registry#image:tag, registry#image:tag, or a .sqsh path that starts with / or ./."

MOUNT_FORMS = "Write SRC:DST[:FLAGS]: SRC starts with / or . or is tmpfs or umount, DST starts with / or ., flags a+b."

_REGISTRY = re.compile(r"[A-Za-z0-9.-]+(?::\d+)?")
_REFERENCE = re.compile(
    r"(?:(?P<user>[^@#/]+)@(?!sha256:))?"
    rf"(?:(?P<registry>{_REGISTRY.pattern})#)?"
    r"(?P<repository>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
_HOST = re.compile(r"[A-Za-z0-9-]+(?:[.:][A-Za-z0-9.:-]+)|localhost")
REGISTRY = "docker"
"""Scheme of an image in a registry; the others stand for a store of the node."""

_SCHEMES = (REGISTRY, "dockerd", "podman")
_RELEASE_TAG = re.compile(r"v(\d+\.\d+\.\d+)(?:rc\d+|-|\.|$)")


@dataclass(frozen=True)
class Image:
    """An image: a squashfs file on the node, or a name in a registry or in a daemon of the node."""

    path: str | None = None
    scheme: str = REGISTRY
    user: str | None = None
    registry: str | None = None
    repository: str = ""
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        return self.path or self.enroot()

    @property
    def remote(self) -> bool:
        """Whether it comes from a registry."""
        return self.path is None and self.scheme == REGISTRY

    @property
    def _name(self) -> str:
        """IMAGE:TAG; a digest stands alone, since enroot takes it in the place of the tag (4.0 and newer)."""
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag or 'latest'}"

    def enroot(self) -> str:
        """Return enroot's URI. The form REGISTRY#IMAGE:TAG is read by every release; 3.x misreads REGISTRY/IMAGE."""
        user = f"{self.user}@" if self.user else ""
        registry = f"{self.registry}#" if self.registry else ""
        return f"{self.scheme}://{user}{registry}{self._name}"

    def pyxis(self) -> str:
        """Return the value of --container-image: a path that starts with / or ., or an enroot URI."""
        return self.path or self.enroot().removeprefix("docker://")

    def docker(self) -> str:
        """Return docker's reference."""
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.docker_repository()}{tag}" + (f"@{self.digest}" if self.digest else "")

    def docker_repository(self) -> str:
        """Return the name under which docker keeps the digests of a registry."""
        return f"{self.registry}/{self.repository}" if self.registry else self.repository


def parse_image(text: str, registry: str | None = None) -> Image:
    """Return an image from its reference.

    Args:
        text: as `container.image` has it.
        registry: host that is put before a name without one (`container.registry`).

    Raises:
        ConfigError: it is neither a reference nor a path that every runtime takes for one; the registry is no host.
    """
    if registry is not None and not _REGISTRY.fullmatch(registry):
        reason, remedy = "it is no HOST or HOST:PORT", "Leave https:// out, and write a path into container.image."
        raise ConfigError("container.registry", registry, reason, remedy)
    if text.startswith(("/", ".")):
        return Image(path=text if text.startswith("/") else str(ROOT / text))
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = REGISTRY, text
    if rest.endswith(".sqsh"):
        reason = "without / or ./ in front it would be taken for an image of a registry"
        raise ConfigError("container.image", text, reason, f"Write /path/{rest} or ./{rest}.")
    match = _REFERENCE.fullmatch(_with_hash(rest.replace("\\#", "#")))
    if match is None or scheme not in _SCHEMES:
        raise ConfigError("container.image", text, "it is no image reference", IMAGE_FORMS)
    found = match.groupdict()
    if scheme == REGISTRY:
        found["registry"] = found["registry"] or registry
    elif found["registry"] or found["user"]:
        raise ConfigError("container.image", text, f"an image of {scheme} is named without a registry", IMAGE_FORMS)
    return Image(scheme=scheme, **found)


def _with_hash(text: str) -> str:
    """Return docker's form REGISTRY/IMAGE as REGISTRY#IMAGE, where its first part is a host name."""
    first, slash, rest = text.partition("/")
    user, at, host = first.rpartition("@")
    return f"{user}{at}{host}#{rest}" if slash and "#" not in first and _HOST.fullmatch(host) else text


@dataclass(frozen=True)
class Recipe:
    """An image that is known to fit, pinned: where it is in a registry, which is the site's, and what is in it."""

    repository: str
    tag: str
    release: str
    cann: str
    arch: tuple[str, ...]


@cache
def recipes() -> dict[str, Recipe]:
    """Return all recipes by their tag."""
    found = [
        from_yaml(path.read_text(encoding="utf-8"))
        for path in sorted((Path(__file__).parent / "images").glob("*.yaml"))
    ]
    return {values["tag"]: Recipe(**values | {"arch": tuple(values["arch"])}) for values in found}


def release_of(image: Image) -> tuple[str, bool] | None:
    """Return the vllm-ascend release that an image's tag names, and whether it is pinned by a recipe.

    None: the tag says nothing, or the repository is not vllm-ascend's.
    """
    recipe = recipes().get(image.tag or "")
    if recipe and image.repository.rpartition("/")[2] == recipe.repository.rpartition("/")[2]:
        return recipe.release, True
    match = _RELEASE_TAG.match(image.tag or "")
    return (match[1], False) if match and "vllm-ascend" in image.repository else None


def resolve(text: str, registry: str | None) -> Image:
    """Return the image that a person names: a recipe's tag, or a reference as `container.image` takes it.

    Raises:
        ConfigError: it is neither.
    """
    recipe = recipes().get(text)
    return parse_image(f"{recipe.repository}:{recipe.tag}" if recipe else text, registry)


@dataclass(frozen=True)
class Mount:
    """One mount: an absolute path, "tmpfs" or "umount" as the source, an absolute path inside, and flags."""

    source: str
    target: str
    flags: tuple[str, ...] = ()

    @property
    def bind(self) -> bool:
        """Whether a path of the node is mounted."""
        return self.source.startswith("/")

    @property
    def read_only(self) -> bool:
        """Whether writing is forbidden."""
        return "ro" in self.flags

    def __str__(self) -> str:
        return ":".join((self.source, self.target, *(("+".join(self.flags),) if self.flags else ())))


def parse_mount(text: str, key: str = "container.mounts") -> Mount:
    """Return a mount from SRC[:DST[:FLAGS]]; SRC alone is the same path inside (pyxis, args.c).

    Raises:
        ConfigError: pyxis would refuse it, or read something else in it.
    """
    source, colon, rest = text.partition(":")
    target, _, flags = rest.partition(":")
    target = target if colon else source
    special = source in ("tmpfs", "umount")
    good = (special or source.startswith(("/", "."))) and target.startswith(("/", "."))
    if not good or any(char in text for char in ",\n\t") or ":" in flags:
        raise ConfigError(key, text, "it is no mount", MOUNT_FORMS)
    source = source if special else _clean(posixpath.join(str(ROOT), source))
    return Mount(source, _clean(posixpath.join("/", target)), tuple(flag for flag in flags.split("+") if flag))


def _clean(path: str) -> str:
    """Return an absolute path without . and .., with the slash at its end that it may have."""
    plain = "/" + posixpath.normpath(path).lstrip("/")
    return plain + "/" if path.endswith("/") and plain != "/" else plain


def host_path(mounts: tuple[Mount, ...], inside: str) -> str | None:
    """Return the path of the node that stands behind a path inside, or None: it belongs to the image."""
    behind = None
    for mount in mounts:
        target = mount.target.rstrip("/")
        if inside == target or inside.startswith(target + "/"):
            rest = inside[len(target) :]
            behind = mount.source.rstrip("/") + rest if mount.bind else None
    return behind


@dataclass(frozen=True)
class Spec:
    """One container of one rank.

    Attributes:
        runtime: name of the runtime.
        image: what it is made of.
        name: None leaves the naming to the runtime.
        mounts: in the order in which they are made.
        devices: character devices of the node.
        env: variables that must reach the inside; only their names stand on a command line.
        workdir: working directory inside; None: the image's.
        writable: whether the image's files may be changed; the changes are lost with the container.
        remap_root: whether the user is root inside.
        mount_home: whether the user's home directory is mounted.
        shm_size: size of /dev/shm, such as 1g; None: the runtime's default.
        args: further options of the runtime's command, by name.
        closed: whether its code is only asked something: no network, no device, nothing that can be written but /tmp.
    """

    runtime: str
    image: Image
    name: str | None = None
    mounts: tuple[Mount, ...] = ()
    devices: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    workdir: str | None = None
    writable: bool = True
    remap_root: bool = True
    mount_home: bool = False
    shm_size: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    closed: bool = False


def option_words(args: Mapping[str, Any]) -> list[str]:
    """Return options by name as words: true is the option alone, a list is one for each, null and false are none."""
    words = []
    for name, given in args.items():
        option = f"--{name}" if len(name) > 1 else f"-{name}"
        for value in given if isinstance(given, list | tuple) else [given]:
            words += [option] if value is True else [] if value in (None, False) else [option, str(value)]
    return words


_SIZE = re.compile(r"(\d+)([bkmg]?)", re.IGNORECASE)


def size_bytes(text: str) -> int:
    """Return a size such as 500g, 64m or 1048576 in bytes (docker run, --shm-size). ConfigError: it is none."""
    match = _SIZE.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise ConfigError("container.shm_size", text, "it is no size", "Write bytes, or a number with k, m or g.")
    return int(match[1]) << {"": 0, "b": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]
