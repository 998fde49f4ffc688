"""The wheel in fresh environments: the light client brings no torch and no server, the server no torch."""

import os
import shlex
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.checkout import REPOSITORY
from support.deployment import clean_environment

HEAVY = ("torch", "transformers", "numpy", "fastapi", "sqlalchemy", "dbos", "uvicorn", "alembic", "obstore")


@dataclass(frozen=True)
class Installation:
    """A fresh environment into which parts of the wheel are installed one after the other."""

    folder: Path
    wheel: Path

    def install(self, extra: str) -> None:
        options = ["--quiet", "--disable-pip-version-check", "--constraint", str(REPOSITORY / "constraints.txt")]
        options += shlex.split(os.environ.get("PIP_ARGS", ""))  # as the Makefile passes them to pip
        self.run("python", "-m", "pip", "install", *options, f"{self.wheel}{extra}")

    def run(self, program: str, *arguments: str, exit_code: int = 0, **environment: str) -> str:
        finished = subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            cwd=self.folder, env=clean_environment(PYTHONPATH="", **environment),
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert finished.returncode == exit_code, finished.stdout + finished.stderr
        return finished.stdout + finished.stderr

    def modules(self, *names: str) -> set[str]:
        """Which of these modules the environment has."""
        code = f"import importlib.util as u; print(*[n for n in {names!r} if u.find_spec(n)])"
        return set(self.run("python", "-c", code).split())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target)],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    )  # fmt: skip
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def light(wheel, tmp_path_factory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("light") / "venv"
    venv.create(folder, with_pip=True)
    installation = Installation(folder, wheel)
    installation.install("")
    return installation


@pytest.fixture(scope="module")
def server(light) -> Installation:
    """The light client's environment, checked to be light, with the server added."""
    assert light.modules(*HEAVY) == set()
    said = light.run("gramfuse-server", "init", exit_code=1)
    assert 'pip install ".[server]"' in said
    assert "Traceback" not in said
    light.install("[server]")
    return light


def test_a_plain_install_is_the_light_client(server, light):
    # `server` has seen to it that nothing heavy was there before it was added
    assert "gramfuse" in light.run("gramfuse", "--version")
    code = "import gramfuse, sys; gramfuse.Client; gramfuse.verify; print('torch' in sys.modules)"
    assert light.run("python", "-c", code).strip() == "False"


def test_the_server_needs_no_torch_and_its_database_is_set_up_from_the_wheel(server, tmp_path):
    assert server.modules("torch", "transformers", "numpy") == set()
    home = {"GRAMFUSE_SERVER_HOME": str(tmp_path / "server")}
    (tmp_path / "server").mkdir()
    assert "up to date" in server.run("gramfuse-server", "db", "upgrade", **home)
    assert "up to date" in server.run("gramfuse-server", "db", "upgrade", **home)
    assert "operator" in server.run("gramfuse-server", "init", **home)
    assert (tmp_path / "server" / "gramfuse.sqlite").exists()


@pytest.mark.parametrize(
    ("program", "arguments", "extra"),
    [
        ("gramfuse", ["stats", "collect", "--model", "x", "--texts", "y"], ".[collect]"),
        ("gramfuse", ["merge", "recipe.yaml", "out"], ".[collect]"),
        ("gramfuse", ["audit", "--model", "x"], ".[collect]"),
        ("gramfuse-server", ["worker"], ".[worker]"),
    ],
)
def test_a_command_whose_extra_is_missing_says_what_to_install(server, tmp_path, program, arguments, extra):
    said = server.run(program, *arguments, exit_code=1, GRAMFUSE_SERVER_HOME=str(tmp_path))
    assert f"pip install '{extra}'" in said.replace('"', "'")
    assert "Traceback" not in said


def test_the_wheel_holds_the_migrations_and_nothing_of_the_tests(wheel):
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "--list", str(wheel)], check=True, capture_output=True, text=True
    ).stdout
    assert "gramfuse_server/migrations/" in names
    assert "gramfuse/py.typed" in names
    for stranger in ("tests/", "examples/", "benchmarks/"):
        assert stranger not in names
