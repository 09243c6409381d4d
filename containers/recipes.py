"""Images that are known to fit: repository and tag, pinned. The registry is the site's, and stands in its config."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from containers.spec import Image, parse_image

FOLDER = Path(__file__).parent / "images"


@dataclass(frozen=True)
class Recipe:
    """One image: where it is in a registry, and what is in it."""

    repository: str
    tag: str
    release: str
    cann: str
    arch: tuple[str, ...]


@cache
def recipes() -> dict[str, Recipe]:
    """Return all recipes by their tag."""
    found = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.yaml"))]
    return {values["tag"]: Recipe(**values | {"arch": tuple(values["arch"])}) for values in found}


_RELEASE_TAG = re.compile(r"v(\d+\.\d+\.\d+)(?:rc\d+|-|\.|$)")


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
