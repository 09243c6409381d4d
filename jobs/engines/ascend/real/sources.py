"""The published packages of a release, as far as they are text: `.engines/ascend/RELEASE`, about 40 MB each.

Wheels where there are any, else the source archive. They come by `pip download`, from whatever index this machine's pip
asks; nothing of them is installed or built.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from jobs.core import process
from jobs.core.errors import RunError
from jobs.core.files import sha256, write_text
from jobs.core.lock import exclusive
from jobs.core.ways import is_anothers

ROOT = Path(__file__).parents[4] / ".engines" / "ascend"
"""Where releases are kept; SERVING_SWEEP_RELEASES names another place."""

PYTHON = "3.11"
PLATFORMS = (
    "manylinux1", "manylinux2014", *(f"manylinux_2_{minor}" for minor in (17, 24, 28, 31, 34, 35, 39)),
)  # fmt: skip
"""Tags of the wheels that releases were published with so far; the machine is always x86_64."""

DEVICE = "__device_type__ = 'A2'\n"
"""What the build of a wheel writes into `_build_info.py`; a source archive has no such file."""

SECONDS = 900.0
KEPT = (".py", "METADATA", "PKG-INFO", "entry_points.txt", "top_level.txt")
STAMP = "packages.txt"


def root() -> Path:
    """Return the folder that holds the releases."""
    return Path(os.environ.get("SERVING_SWEEP_RELEASES") or ROOT)


def engine_version(release: str) -> str:
    """Return the version of vLLM that a release of vllm-ascend needs: its own, without rcN and .postN."""
    return re.sub(r"(rc\d+|\.post\d+)+$", "", release)


def obtain(release: str) -> Path:
    """Return the folder with the packages of a release, downloaded if they are not there yet.

    Raises:
        RunError: the index cannot be reached, or does not have them.
    """
    place = root() / release
    if (place / STAMP).exists():
        return _trusted(place)
    with exclusive(place.parent / ".lock", required=False), tempfile.TemporaryDirectory(dir=place.parent) as name:
        if (place / STAMP).exists():
            return _trusted(place)  # another one had begun before us
        part, downloads = Path(name) / "part", Path(name) / "downloads"
        part.mkdir()
        downloads.mkdir()
        got = dict([_wheel("vllm", engine_version(release), downloads, part)])
        try:
            got |= dict([_wheel("vllm-ascend", release, downloads, part)])
        except RunError:
            got |= dict([_archive("vllm-ascend", release, downloads, part)])
        write_text(part / STAMP, "".join(f"{file} {digest}\n" for file, digest in got.items()))
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
    return _trusted(place)


def _trusted(place: Path) -> Path:
    """Return the folder of a release: its code will run as this user.

    Raises:
        RunError: it is another user's, and not that of whose checkout this is, or anybody may write into it, or put
            another one in its place.
    """
    for one in (place, *place.resolve().parents):
        info = one.stat()
        anybody = info.st_mode & stat.S_IWOTH and (one == place or not info.st_mode & stat.S_ISVTX)
        if anybody or (one == place and is_anothers(info) and info.st_uid != Path(__file__).stat().st_uid):
            reason = "anybody may write into it" if anybody else "it belongs to another user"
            remedy = "Set SERVING_SWEEP_RELEASES to a directory of yours."
            raise RunError("check --real", one, f"{reason}, and its code would run", remedy)
    return place


def packages(place: Path) -> Mapping[str, str]:
    """Return the files that a place was made of, by name, with their digests."""
    return dict(line.split(" ") for line in (place / STAMP).read_text("utf-8").splitlines())


def _pip(*words: str, env: Mapping[str, str] | None = None) -> str:
    """Run pip and return what it said; RunError: it failed."""
    command = process.python("pip", "download", "--quiet", "--no-deps", *words)
    done = process.run(command, timeout_s=SECONDS, env=env)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")
        raise RunError(words[-1], "(package)", f"pip cannot download it: {said}", "Mend pip's index, or try later.")
    return done.stderr


def _wheel(package: str, version: str, downloads: Path, part: Path) -> tuple[str, str]:
    """Unpack the text of a wheel, or of the newest patch release of this version; return its name and digest."""
    tags = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    words = ["--only-binary", ":all:", "--python-version", PYTHON, *tags, "--dest", str(downloads)]
    try:
        _pip(*words, f"{package}=={version}")
    except RunError:
        if not re.fullmatch(r"[\d.]+", version):
            raise
        _pip(*words, f"{package}=={version}.*")
    [wheel] = downloads.glob(f"{package.replace('-', '_')}-{version}*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(part, [name for name in archive.namelist() if name.endswith(KEPT)])
    digest = f"sha256:{sha256(wheel)}"
    wheel.unlink()  # some have 400 MB
    return wheel.name, digest


def _archive(package: str, version: str, downloads: Path, part: Path) -> tuple[str, str]:
    """Copy the text of a source archive.

    pip offers no download of one without a run of its build, which asks for CANN. It unpacks the archive first, though,
    and leaves it where it is told to: what is wanted is there whether the build then fails or not.
    """
    unpacked = downloads / "unpacked"
    unpacked.mkdir()
    words = ["--no-clean", "--no-build-isolation", "--no-binary", package, "--dest", str(downloads)]
    said = ""
    try:
        _pip(*words, f"{package}=={version}", env={**os.environ, "TMPDIR": str(unpacked)})
    except RunError as error:
        said = error.reason
    name = package.replace("-", "_")
    found = [file.parent for file in unpacked.glob(f"*/*/{name}/__init__.py")]
    if not found:
        raise RunError(f"{package}=={version}", "(package)", said, "Mend pip's index, or try later.")
    source = found[0].parent
    for folder in (found[0], source / f"{name}.egg-info"):
        for file in folder.rglob("*"):
            if file.name.endswith(KEPT) and file.is_file():
                target = part / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    build = part / name / "_build_info.py"
    if not build.exists():
        write_text(build, DEVICE)
    return f"{name}-{version}.tar.gz", _tree_digest(part / name)


def _tree_digest(folder: Path) -> str:
    """Return one digest of all files below a folder, by name and content."""
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        whole.update(f"{file.relative_to(folder)}\0{sha256(file)}\n".encode())
    return f"tree-sha256:{whole.hexdigest()}"
