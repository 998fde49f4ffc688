"""The light client stays light: no torch, no server, and no network library before it is needed."""

import os
import subprocess
import sys

import pytest

import gramfuse

NEVER = ("torch", "transformers", "safetensors", "numpy", "fastapi", "sqlalchemy", "dbos", "obstore", "uvicorn")


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV_")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return set(run.stdout.splitlines()[-1].split())


def test_importing_gramfuse_loads_neither_torch_nor_the_network_nor_the_command_line():
    loaded = loaded_after("import gramfuse")
    assert loaded.isdisjoint({*NEVER, "httpx", "typer", "rich", "pydantic", "cryptography", "platformdirs"})


def test_the_names_of_the_light_client_need_no_torch():
    names = ("Client", "ContributionPlan", "Policy", "Recipe", "build_base_manifest", "plan_contribution", "verify")
    statement = f"import gramfuse; [getattr(gramfuse, name) for name in {names!r}]"
    assert loaded_after(statement).isdisjoint(NEVER)


def test_planning_a_contribution_needs_no_network_library():
    assert "httpx" not in loaded_after("import gramfuse; gramfuse.plan_contribution")


def test_help_loads_no_torch_no_network_and_no_contract():
    loaded = loaded_after("from gramfuse.cli.main import main; main(['--help'])")
    assert loaded.isdisjoint({*NEVER, "httpx", "pydantic", "cryptography", "yaml"})


def test_the_commands_of_the_light_client_load_no_torch():
    commands = ("login", "whoami", "env", "project", "contribution", "job", "model", "request", "search")
    statement = f"from gramfuse.cli.main import main; [main([name, '--help']) for name in {commands!r}]"
    assert loaded_after(statement).isdisjoint(NEVER)


def test_every_public_name_resolves():
    for name in gramfuse.__all__:
        assert getattr(gramfuse, name) is not None
    assert set(gramfuse.__all__) <= set(dir(gramfuse))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = gramfuse.Nonsense


def test_without_torch_every_name_that_needs_it_says_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['torch'] = None  # as if it were not installed\n"
        "import gramfuse\n"
        "from gramfuse_shared.errors import ExtraMissingError\n"
        "for name in ('Collector', 'Statistics', 'collect', 'merge', 'audit'):\n"
        "    try:\n"
        "        getattr(gramfuse, name)\n"
        "    except ExtraMissingError as error:\n"
        "        print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 5
    assert all('pip install ".[collect]"' in line for line in lines)
