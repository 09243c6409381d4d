"""Asks the real code of a release what it makes of command lines: run.py in the Python of `.engines/vllm_cpu`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.core import process
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import append_json, private_place, read_lines, write_json, write_text
from jobs.core.foreign import SMALL, load_text
from jobs.core.layout import planned
from jobs.engines.ascend import as_mapping
from jobs.engines.ascend.real import sources
from jobs.engines.base import engine_of
from jobs.engines.checkpoint import architecture

HERE = Path(__file__).parent
PYTHON = HERE.parents[3] / ".engines" / "vllm_cpu" / "bin" / "python"
"""It holds what vLLM needs beside itself; vLLM and the plugin come from the release's own packages."""

SECONDS = 60.0
"""For the imports, on a loaded machine."""

SECONDS_A_CASE = 12.0

DRAFT = "draft"
"""Folder of a draft model, in that of the model."""


@dataclass(frozen=True)
class Case:
    """One command line, from `serve` on, and the variables that it has."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """What the real code says: the finished configuration, or why it refuses (its last words)."""

    config: Mapping[str, Any] | None = None
    refused: str | None = None


def cases(config: Config, model: Path) -> tuple[Case, ...]:
    """Return what the ranks of a point would run; `model`: a folder in place of the checkpoint (`write_model`)."""
    engine = engine_of(config)
    found = []
    for place in planned(config):
        words = [_known(word, model, config) for word in engine.argv(config, place)]
        env = {name: _known(value, model, config) for name, value in engine.environment(config, place).items()}
        found.append(Case(tuple(words[words.index("serve") :]), env))
    return tuple(found)


def _known(text: str, model: Path, config: Config) -> str:
    """Put in what only a node knows, and the folder that stands for the checkpoint."""
    text = text.replace(config.model.path, str(model))
    for name in _drafters(config):
        text = text.replace(name, str(model / DRAFT))
    return re.sub(r"\{[a-z_]+\}", lambda name: "8000" if "port" in name[0] else "127.0.0.1", text)


def write_model(config: Config, folder: Path) -> None:
    """Write what the real code reads of a checkpoint before its weights: its sizes, and how it is quantized."""
    own = Path(config.model.path) / "config.json"
    packaged = Path(architecture.__file__).with_name("models") / f"{config.model.name}.json"
    write_text(folder / "config.json", load_text(own if own.exists() else packaged, SMALL))
    write_json(folder / "quant_model_description.json", {"model_quant_type": "W8A8_DYNAMIC"})
    for packaged in _drafters(config).values():
        (folder / DRAFT).mkdir(exist_ok=True)
        write_text(folder / DRAFT / "config.json", packaged.read_text("utf-8"))


def _drafters(config: Config) -> dict[str, Path]:
    """Return the draft model that a point names and whose sizes are packaged: it would come from a hub."""
    name = str(as_mapping(config.engine.args.get("speculative-config")).get("model") or "")
    packaged = Path(architecture.__file__).with_name("models") / f"{name.rpartition('/')[2]}.json"
    return {name: packaged} if name and packaged.exists() else {}


def ask(release: str, asked: Sequence[Case]) -> tuple[Answer, ...]:
    """Return the answers of a release, in the order of the cases.

    What was asked of the same packages before is not asked again: the answers are kept beside them.

    Raises:
        RunError: the packages, or the Python with vLLM's dependencies, are not to be had here; or run.py failed.
    """
    if not PYTHON.exists():
        raise RunError(str(PYTHON), "(program)", "it is not there", "Run `make setup`, which makes .engines/vllm_cpu.")
    place = sources.obtain(release)
    kept, keys = place / ANSWERS, [_key(place, one) for one in asked]
    known = {one[0]: one[1] for one in read_lines(kept) if _is_answer(one)} if kept.exists() else {}
    new = {key: one for key, one in zip(keys, asked, strict=True) if key not in known}
    if new:
        found = _run(release, place, tuple(new.values()))
        for at, key in enumerate(new):
            with contextlib.suppress(RunError):  # where it is not ours to write, it is asked again
                append_json(kept, [key, found[at]])
        known |= {key: found[at] for at, key in enumerate(new)}
    return tuple(Answer(known[key].get("config"), known[key].get("refused")) for key in keys)


ANSWERS = "answers.jsonl"


def _is_answer(line: Any) -> bool:
    return isinstance(line, list) and len(line) == 2 and isinstance(line[0], str) and isinstance(line[1], dict)


def _key(place: Path, case: Case) -> str:
    """Return what an answer depends on, as one digest: the packages, the program that asks and its stubs, the case."""
    stubs = sorted((HERE / "stubs").rglob("*.py"))
    texts = [file.read_bytes() for file in (place / sources.STAMP, HERE / "run.py", *stubs)]
    words = json.dumps([case.argv, dict(case.env)], sort_keys=True).encode()
    return hashlib.sha256(b"\0".join([*texts, words])).hexdigest()[:24]


def limit_s(asked: Sequence[Case]) -> float:
    """Return the seconds after which run.py, with these cases, hangs."""
    return SECONDS * 4 + SECONDS_A_CASE * len(asked)


def write_cases(file: Path, asked: Sequence[Case]) -> None:
    """Write the cases as run.py reads them."""
    write_text(file, "".join(json.dumps({"argv": one.argv, "env": dict(one.env)}) + "\n" for one in asked))


def read_answers(output: str) -> tuple[dict[str, str | None] | None, dict[int, dict[str, Any]]]:
    """Return the packages (None: it did not come so far) and the answers by case that run.py printed.

    What else an image prints, or prints in their form with other values, is no answer.
    """
    packages, found = None, {}
    for line in output.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            match json.loads(line):
                case {"packages": {"vllm": str() | None, "vllm_ascend": str() | None} as packages}:
                    pass
                case {"case": int(at), "refused": str()} | {"case": int(at), "config": dict()} as one:
                    found[at] = {name: one[name] for name in ("config", "refused") if name in one}
    return packages, found


def _run(release: str, place: Path, asked: Sequence[Case]) -> dict[int, dict[str, Any]]:
    """Return the answers of run.py by the number of their case."""
    with tempfile.TemporaryDirectory(dir=private_place(tempfile.gettempdir())) as name:
        file = Path(name) / "cases"
        write_cases(file, asked)
        env = {"PATH": "/usr/bin:/bin", "HOME": name, "PYTHONPATH": str(place)}
        done = process.run([str(PYTHON), str(HERE / "run.py"), str(file)], env=env, timeout_s=limit_s(asked))
    _, found = read_answers(done.stdout)
    if len(found) < len(asked):
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise RunError(f"vllm-ascend {release}", "(real code)", last, "Look into jobs/engines/ascend/real/run.py.")
    return found


def ask_points(
    release: str, configs: Iterable[Config] = (), heads: Iterable[Config] = ()
) -> tuple[tuple[Answer, ...], ...]:
    """Return, for each point, the answers of its ranks; then, for each of `heads`, that of its rank 0 alone."""
    models = sources.obtain(release) / "models"
    lines: list[tuple[Case, ...]] = []
    for config, ranks in (*((one, None) for one in configs), *((one, 1) for one in heads)):
        lines.append(cases(config, model_in(models, config))[:ranks])
    return by_point(lines, ask(release, [case for point in lines for case in point]))


def model_in(models: Path, config: Config) -> Path:
    """Write what stands for a point's checkpoint into a directory of its own there, and return that."""
    folder = models / folder_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_model(config, folder)
    return folder


def folder_of(config: Config) -> str:
    """Return the name of that directory: of a checkpoint that is here, which has sizes of its own, by its path too."""
    name = re.sub(r"[^\w.-]", "_", config.model.name).lstrip(".") or "model"
    here = Path(config.model.path, "config.json").exists()
    return f"{name}-{hashlib.sha256(config.model.path.encode()).hexdigest()[:8]}" if here else name


def by_point(lines: Sequence[Sequence[Case]], answers: Iterable[Answer]) -> tuple[tuple[Answer, ...], ...]:
    """Return the answers, which come in the order of the cases, for each point."""
    every = iter(answers)
    return tuple(tuple(next(every) for _ in point) for point in lines)
