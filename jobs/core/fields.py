"""What sections of the schema are made of: fields with a help text, checked types, the strict base class."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from jobs.core import names

CODE = Path(__file__).resolve().parents[2]
"""Where this package lies: a checkout, or the packages of an environment."""

ROOT = CODE if (CODE / "launch.py").exists() else Path.cwd()
"""What relative paths (`model.path`, `engine.command`, images, mounts) begin at: the checkout; of an installed wheel
the directory that it is called in, which is also that of every job it submits."""


def from_root(text: str) -> str:
    """Return a relative path with a slash as an absolute one from the project's root; other text as it is."""
    return text if text.startswith(("/", "{")) or "/" not in text else str(ROOT / text)


def override_parts(text: str) -> tuple[str, str]:
    """Return key, or group, and value of an override in Hydra's grammar (`+key=value`, `~key`)."""
    key, _, value = text.lstrip("+~").partition("=")
    return key, value


def dotted(tree: Any, key: str) -> Any:
    """Return the value at a dotted key of sections or nested mappings; None where there is none."""
    for part in key.split("."):
        if isinstance(tree, Section):
            tree = getattr(tree, part, None)
        else:
            tree = tree.get(part) if isinstance(tree, Mapping) else None
    return dict(vars(tree)) if isinstance(tree, OneKey) else tree


def plain(value: Any) -> Any:
    """Return a copy of nested data with lists for tuples, as JSON and YAML have it."""
    if value is None or isinstance(value, str | int | float):  # most of it
        return value
    if isinstance(value, Mapping):
        return {key: plain(child) for key, child in value.items()}
    return [plain(child) for child in value] if isinstance(value, list | tuple) else value


class Names(Protocol):
    """A registry of back ends (jobs/core/registry.py)."""

    def names(self) -> tuple[str, ...]: ...  # noqa: D102
    def __contains__(self, name: object) -> bool: ...


@dataclass(frozen=True)
class OneOf:
    """The check of a text that must be one of these words or, where there is a registry, name a back end of it."""

    words: tuple[str, ...]
    registry: Names | None = None

    def names(self) -> tuple[str, ...]:
        """Return all that is valid."""
        return (*self.words, *(self.registry.names() if self.registry else ()))

    def __call__(self, value: str) -> str:
        """Return the text. Raises ValueError where it is not valid."""
        if value not in self.words and (self.registry is None or value not in self.registry):
            raise ValueError(f"valid values are {', '.join(self.names())}")
        return value


def one_of(*words: str) -> AfterValidator:
    """Return the check of a text that must be one of these words."""
    return AfterValidator(OneOf(words))


def registered(registry: Names, *besides: str) -> AfterValidator:
    """Return the check of a text that must be one of the words `besides` or name a back end of this registry."""
    return AfterValidator(OneOf(besides, registry))


def setting(default: Any, text: str) -> Any:
    """Return a field with its default and its help text."""
    metadata = {"help": text}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type, text: str) -> Any:
    """Return a field that is a section of its own."""
    return field(default_factory=cls, metadata={"help": text})


def _number_as_text(value: Any) -> Any:
    """A number stands for its text where text is asked for (`cluster.mem=0`), as in Hydra."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True), BeforeValidator(_number_as_text)]


def _one_line(value: str) -> str:
    """Refuse what would leave the line of a batch script in which it stands: the rest would be options of its own."""
    if any(unicodedata.category(one) in ("Cc", "Zl", "Zp") for one in value):
        raise ValueError("it has a line break or another control character")
    return value


def _words_on_one_line(options: dict[str, Any]) -> dict[str, Any]:
    for key, value in options.items():
        _one_line(key)
        if isinstance(value, str):
            _one_line(value)
    return options


Line = Annotated[Text, AfterValidator(_one_line)]
"""Text that becomes a part of one line for Slurm."""


def _no_pattern(value: str) -> str:
    if "%" in value:
        raise ValueError("it has a %, which Slurm replaces in the name of a job's output")
    return value


def _of_files(value: str) -> str:
    if any(len(part.encode(errors="surrogateescape")) > names.LONGEST for part in value.split("/")):
        raise ValueError(f"a name in it has more than {names.LONGEST} bytes, which no file has")
    return value


def _directory(value: str) -> str:
    if not value.strip():
        raise ValueError("it is empty")
    return _of_files(_no_pattern(value))


def _own_name(value: str) -> str:
    if value == "latest":
        raise ValueError("this is the link to the newest sweep")
    return _no_pattern(names.file_name(value))


Place = Annotated[Text, AfterValidator(_of_files)]
"""Path of a file or directory."""

Directory = Annotated[Line, AfterValidator(_directory)]
"""Path of a directory in which Slurm writes output."""

Name = Annotated[Line, AfterValidator(_own_name)]
"""Name of a directory in one."""

Options = Annotated[dict[str, Any], AfterValidator(_words_on_one_line)]
"""Options by name, each of them on one line for Slurm."""


class Section:
    """Base of all sections: a key that is not a field is an error."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


class OneKey(Section):
    """Base of a section that is one key for people: a mapping with known names, its fields (`bench.slo`)."""
