"""Migrations travel in the wheel, and an editable installation uses the repository's."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gramfuse_server import schema

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The contents of a freshly built wheel, as an installation would lay them out."""
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "installed")
    return built / "installed"


def test_an_editable_installation_uses_the_repositorys_migrations():
    assert schema.migrations_folder() == REPOSITORY / "migrations"


def test_db_upgrade_works_from_the_wheel(installed, tmp_path):
    script = (
        "from gramfuse_server import commands, schema\n"
        "print(schema.migrations_folder())\n"
        "commands.cli(['db', 'upgrade'], standalone_mode=False)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRAMFUSE_")}
    environment |= {"PYTHONPATH": str(installed), "GRAMFUSE_SERVER_HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    folder, answer = ran.stdout.splitlines()
    assert folder == str(installed / "gramfuse_server" / "migrations")
    assert schema.head() in answer
    assert (tmp_path / "gramfuse.sqlite").is_file()
