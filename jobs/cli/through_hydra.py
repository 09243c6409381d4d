"""What launch.py leaves to Hydra's own program: --help, --cfg, --info; sweepers that learn, and other `hydra.` keys."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from jobs.cli import errors
from jobs.core import schema
from jobs.core.errors import ConfigError, RunError
from jobs.sweep import compose, grammar

SHOWS = ("help", "hydra_help", "cfg", "info", "shell_completion", "version")
"""Options with which Hydra shows something and runs nothing."""

OTHERS = ("resolve", "package", "config_path", "config_name", "config_dir", "experimental_rerun")


class Ended(Exception):
    """A launcher's word through Hydra to `main`: what was asked for has ended, with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


FLAGS = (("-m", "--multirun"), ("-r", "--run"), ("-h", "--help"), ("--hydra-help",), ("--version",), ("--resolve",),
         ("-sc", "--shell-completion"))  # fmt: skip
VALUES = (("-c", "--cfg"), ("-p", "--package"), ("-cp", "--config-path"), ("-cn", "--config-name"),
          ("-cd", "--config-dir"), ("--experimental-rerun",))  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """Return a parser of launch.py's command line, which is that of every Hydra program."""
    found = argparse.ArgumentParser(prog="launch.py", add_help=False)
    found.add_argument("overrides", nargs="*")
    for names in FLAGS:
        found.add_argument(*names, action="store_true")
    for names in VALUES:
        found.add_argument(*names)
    found.add_argument("-i", "--info", nargs="?", const="all")
    return found


def is_asked(options: argparse.Namespace) -> bool:
    """Return whether this call needs Hydra's own program."""
    own = any(getattr(options, name) for name in (*SHOWS, *OTHERS))
    return own or len(grammar.ours(options.overrides)) < len(options.overrides)


def main(options: argparse.Namespace, arguments: Sequence[str] | None) -> int:
    """Let Hydra do it; where that runs points, our launcher does (hydra_plugins/). Returns the exit code.

    Raises:
        UserError: it cannot be asked, or a run failed.
    """
    shown = [name for name in SHOWS if getattr(options, name)]
    # Hydra reads the command line itself; a value as it is typed may need quotes for its grammar.
    overrides = [grammar.quoted(text) for text in options.overrides]
    given = [word for word in (sys.argv[1:] if arguments is None else arguments) if word not in options.overrides]
    if shown and (options.multirun or options.run):
        raise ConfigError(f"--{shown[0]}", "--multirun", "one of them shows, the other runs", "Give one of them.")
    if not shown:
        grammar.check(options.overrides)
        # Without -m the same path is taken with one point; a comma is then an error, as in Hydra.
        one = grammar.first_point(options.overrides) if options.multirun else options.overrides
        compose.configs([grammar.ours(one)])
        given = [word for word in given if word not in ("-r", "--run", "-m", "--multirun")] + ["--multirun"]
    schema.register()
    # Hydra would print its own errors, some with a traceback; with this it raises them, and we print one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.raiseExceptions = not shown  # --info logs to an output that may be closed
    sys.argv[1:] = [*overrides, *given]
    try:
        hydra.main(config_path=str(schema.CONF), config_name="config", version_base="1.3")(_never)()
    except Ended as ended:
        return ended.code
    except compose.COMPOSITION_ERRORS as error:
        return errors.show(compose.composition_error(error, overrides))
    except BrokenPipeError:
        raise
    except OSError as error:
        # Before the launcher is asked, Hydra writes its own record under results.root.
        remedy = "Choose a directory that you can write and all nodes see."
        raise RunError("results.root", error.filename, f"it cannot be written: {error.strerror}", remedy) from None
    return 0


def _never(_: DictConfig) -> None:
    """Hydra's task function: the launcher does the work, so this is never called."""
