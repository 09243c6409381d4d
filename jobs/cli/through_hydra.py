"""What launch.py leaves to Hydra's own program: --help, --cfg, --info; sweepers that learn, and other `hydra.` keys."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from jobs.cli import output
from jobs.core import chinese, schema, ways
from jobs.core.config import Config
from jobs.core.errors import ConfigError, RunError
from jobs.core.files import own_folder
from jobs.core.rundir import NO_ROOT
from jobs.sweep import compose, grammar

SHOWS = ("-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")
"""Options with which Hydra shows something and runs nothing."""

MODES = ("-m", "--multirun", "-r", "--run")


class Ended(Exception):
    """A launcher's word through Hydra to `main`: what was asked for has ended, with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def is_asked(arguments: Sequence[str]) -> bool:
    """Return whether this call needs Hydra's own program."""
    own = any(word.startswith("-") and word not in MODES for word in arguments)
    return own or len(grammar.ours(arguments)) < len(arguments)


def main(arguments: Sequence[str]) -> int:
    """Let Hydra do it; where that runs points, our launcher does (hydra_plugins/). Returns the exit code.

    Raises:
        UserError: it cannot be asked, or a run failed.
    """
    # Hydra reads the command line itself; a value as it is typed may need quotes for its grammar.
    given = [word if word.startswith("-") else grammar.quoted(word) for word in arguments if word not in MODES]
    overrides = [word for word in given if "=" in word and not word.startswith("-")]
    (shows, configs), record = _checked(arguments, overrides), None
    if chinese.is_asked() and any(word in ("-h", "--help") for word in arguments):
        given.append("hydra/help=sweep_zh")
    if not shows:
        record = _own_record(configs, overrides)
        # Hydra's parser takes its overrides in one row.
        place = max((number for number, word in enumerate(given, 1) if word in overrides), default=len(given))
        given[place:place] = [f"hydra.sweep.dir={str(record)!r}"] if record else []
        given.append("--multirun")  # without it the same path is taken with one point
    schema.register()
    # Hydra would print its own errors, some with a traceback; with this it raises them, and we print one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.raiseExceptions = not shows  # --info logs to an output that may be closed
    sys.argv[1:] = given
    try:
        hydra.main(config_path=str(schema.CONF), config_name="config", version_base="1.3")(_never)()
    except Ended as ended:
        return ended.code
    except compose.COMPOSITION_ERRORS as error:
        return output.show(compose.composition_error(error, overrides))
    except BrokenPipeError:
        raise
    except OSError as error:
        # Before the launcher is asked, Hydra writes its own record under results.root.
        remedy = "Choose a directory that you can write and all nodes see."
        raise RunError("results.root", error.filename, f"it cannot be written: {error.strerror}", remedy) from None
    finally:
        if record:  # it holds the overrides as they were typed, with their secrets
            (record / "multirun.yaml").unlink(missing_ok=True)
    return 0


def _own_record(configs: Sequence[Config], overrides: Sequence[str]) -> Path | None:
    """Make the directory of Hydra's own record for this user alone; None: the user has named another."""
    if any(text.lstrip("+").startswith("hydra.sweep.dir=") for text in overrides):
        return None
    root = Path(configs[0].results.root).absolute()
    folder = own_folder(root, ".hydra")
    try:
        with ways.folder(folder):
            folder.chmod(0o700)
        for path in folder.iterdir():
            if path.is_symlink():
                path.unlink()
    except OSError as error:
        raise RunError("results.root", root, f"it cannot be written: {error.strerror}", NO_ROOT) from None
    return folder


def _checked(arguments: Sequence[str], overrides: Sequence[str]) -> tuple[bool, Sequence[Config]]:
    """Check what is typed before Hydra sees it. Returns whether it only shows something, and else the configs."""
    shown = [name for word in arguments if (name := word.partition("=")[0]) in SHOWS]
    modes = [word for word in arguments if word in MODES]
    if shown and modes:
        raise ConfigError(shown[0], "--multirun", "one of them shows, the other runs", "Give one of them.")
    made: Sequence[Config] = ()
    if not shown:
        grammar.check(overrides)
        if "-m" not in modes and "--multirun" not in modes:
            grammar.refuse_sweeps(overrides)
        made = compose.configs([[text for text in grammar.ours(overrides) if not grammar.is_sweep(text)]])
    return bool(shown), made


def _never(_: DictConfig) -> None:
    """Hydra's task function: the launcher does the work, so this is never called."""
