"""Images that are known to fit: repository and tag, pinned. The registry is the site's, and stands in its config."""

from __future__ import annotations

from dataclasses import dataclass
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


def recipes() -> dict[str, Recipe]:
    """Return all recipes by their tag."""
    found = [yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))]
    return {values["tag"]: Recipe(**values | {"arch": tuple(values["arch"])}) for values in found}


def resolve(text: str, registry: str | None) -> Image:
    """Return the image that a person names: a recipe's tag, or a reference as `container.image` takes it.

    Raises:
        ConfigError: it is neither.
    """
    recipe = recipes().get(text)
    return parse_image(f"{recipe.repository}:{recipe.tag}" if recipe else text, registry)
