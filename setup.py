"""Puts conf/ and sbatch/ into the wheel, beside the code that reads them. All else stands in pyproject.toml."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class WithPresets(build_py):
    """Copies the directories that are no packages."""

    def run(self) -> None:
        """Build, then copy; an editable install reads them where they are."""
        super().run()
        if not self.editable_mode:
            for name in ("conf", "sbatch"):
                copytree(ROOT / name, Path(self.build_lib) / "jobs" / name, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithPresets})
