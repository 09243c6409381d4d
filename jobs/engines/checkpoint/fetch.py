"""Fetch a checkpoint: by the `modelscope` client (the article's source), or from a mirror of the site. Resumable."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from socket import gethostname

from jobs.core import names, process
from jobs.core.errors import RunError
from jobs.core.lock import exclusive
from jobs.core.log import last_words
from jobs.engines.checkpoint.checkpoint import files
from jobs.engines.checkpoint.copying import Progress, check_space, copy_files, is_copied

CLIENT = "modelscope"
PARALLEL = 4

ANSWER_S = 120.0
"""The client imports for seconds before it says a word, on a file system of many for longer."""

LOCK = ".fetch.lock"
"""In the checkpoint's directory: of two fetches into it, one works, and the other then finds its files."""

Run = Callable[[list[str]], int]
"""Runs a program in the foreground, with its own output on the terminal; returns its exit code."""


def fetch(
    origin: str, name: str | None, target: Path, *, client: str = CLIENT, revision: str | None = None,
    parallel: int = PARALLEL, progress: Progress = lambda _: None, waiting: Callable[[str], None] = lambda _: None,
    run: Run = process.attend,
) -> None:  # fmt: skip
    """Fetch a checkpoint into a directory, which is made; what was fetched before is kept.

    Args:
        origin: `modelscope`, the directory of a mirror, or its http(s) base URL, which the user gives.
        name, revision: at ModelScope; for origin=modelscope only.
        client: the `modelscope` program, by name or path; it shows its own progress.
        parallel: files at a time.
        waiting: called once where another process fetches into the same directory, with who that is.

    Raises:
        RunError: it cannot be fetched; the same command again resumes.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError("--to", target, str(error), "Name a directory that you can write.") from None
    with exclusive(target / LOCK, waiting, required=False):
        if origin == CLIENT:
            _by_client(name, target, client, revision, parallel, run)
        elif origin.startswith(("http://", "https://")):
            try:
                names.url(origin)
            except ValueError as error:
                raise RunError("--from", origin, str(error), "Give the http(s) URL of a mirror.") from None
            from jobs.engines.checkpoint import mirror  # brings requests along, which no other command needs

            mirror.download(origin, target, parallel=parallel, progress=progress)
        else:
            _from_directory(Path(origin), target, parallel, progress)


def find_client(client: str) -> str:
    """Return the path of the `modelscope` program: on PATH, or beside this Python. RunError: there is none."""
    beside = Path(sys.executable).parent / client
    found = shutil.which(client) or (str(beside) if beside.is_file() else None)
    if not found:
        remedy = (
            "Install it in any environment (pip install modelscope) and name it by --client PATH,"
            " or copy from a mirror of your site: --from DIRECTORY_OR_URL."
        )
        raise RunError("--client", client, "there is no such program here", remedy)
    return found


def _by_client(name: str | None, target: Path, client: str, revision: str | None, parallel: int, run: Run) -> None:
    if not name:
        remedy = "Set model.source=ORGANISATION/NAME, or copy from a mirror: --from DIRECTORY_OR_URL."
        raise RunError("model.source", name, "the model has no name at ModelScope", remedy)
    program = find_client(client)
    command = [program, "download", *options(asked(program, "download", "--help"), name, target, parallel)]
    command += ["--revision", revision] if revision else []
    code = run(command)
    if code:
        remedy = "Its own output stands above. The same command again goes on where it stopped."
        which = version(asked(program, "--version")) or "it does not say its version"
        how = process.Ended(code)
        raise RunError(" ".join(command), "(command)", f"the client ({which}) on {gethostname()} {how}", remedy)


def asked(program: str, *words: str) -> str:
    """Return what a client says of itself. RunError: it cannot run at all."""
    done = process.run([program, *words], timeout_s=ANSWER_S)
    said = done.stdout + done.stderr
    if done.returncode != 0 and "--help" in words:
        reason = f"`{' '.join((program, *words))}` {process.Ended(done.returncode)}: {last_words(said)}"
        remedy = "Install it anew in an environment of its own: pip install modelscope."
        raise RunError("--client", program, reason, remedy)
    return said


def options(told: str, name: str, target: Path, parallel: int) -> list[str]:
    """Return the options of a download as this client's own help has them.

    Up to 1.21 there is no --max-workers; the newest hide --model and --local_dir, and take the name by its place.
    """
    known = set(re.findall(r"--[a-z][a-z_-]+", told))
    words = ["--model", name] if "--model" in known else [name]
    words += ["--local-dir" if "--local-dir" in known else "--local_dir", str(target)]
    return [*words, *(["--max-workers", str(parallel)] if "--max-workers" in known else [])]


def version(told: str) -> str | None:
    """Return the line in which a client says its version; None: it does not."""
    found = re.search(r"^modelscope\S* +v?\d+\.\d+\S*", told, re.MULTILINE | re.IGNORECASE)
    return found.group() if found else None


def _from_directory(origin: Path, target: Path, parallel: int, progress: Progress) -> None:
    if not origin.is_dir():
        remedy = "Give `modelscope`, the directory of a mirror, or its http(s) URL."
        raise RunError("--from", origin, "there is no such directory", remedy)
    if origin.resolve() == target.resolve():
        raise RunError("--to", target, "it is the mirror itself", "Name another directory, or set model.path.")
    sizes = files(origin)
    needed = sum(size for name, size in sizes.items() if not is_copied(origin / name, target / name))
    check_space("--to", target, needed, "Free space there, or name another file system.")
    copy_files(origin, target, sizes, parallel=parallel, progress=progress)
