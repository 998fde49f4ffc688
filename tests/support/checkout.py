"""A fresh clone of this repository with the environment that is installed already."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def clone(target: Path) -> Path:
    """Clone what is committed; `.venv` is this Python's environment, so that make installs nothing."""
    subprocess.run(
        ["git", "-c", "safe.directory=*", "clone", "--quiet", str(REPOSITORY), str(target)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    environment = target / ".venv"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        (environment / entry.name).symlink_to(entry)
    stamp = environment / ".installed"
    stamp.unlink(missing_ok=True)
    stamp.touch()  # newer than everything that it was installed from
    return target


def make_environment(**additions: str) -> dict[str, str]:
    """An environment in which make decides by itself, whoever called this test."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("GRAMFUSE_", "MAKE", "MFLAGS"))
    }
    return inherited | additions
