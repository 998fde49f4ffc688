"""The compose file and the Dockerfile: valid by the compose schema, and every reference exists. Neither is run here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

compose_spec = pytest.importorskip("compose_spec")

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load(COMPOSE.read_text())


def dockerfile_stages() -> set[str]:
    return set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE))


def test_the_compose_file_follows_the_compose_specification(compose: dict):
    """YAML merge keys are resolved first, as the compose engine does."""
    parsed = compose_spec.PyCompose.from_json(json.dumps(compose))
    parsed.validate()
    ours = ["api", "migrate", "worker-cpu", "worker-gpu"]
    assert sorted(parsed.service_names()) == sorted([*ours, "grafana", "postgres", "prometheus", "seaweedfs"])


def test_the_schema_check_notices_a_misspelled_key(compose: dict):
    broken = compose | {"services": {"api": compose["services"]["api"] | {"volums": []}}}
    with pytest.raises(Exception, match="volums"):
        compose_spec.PyCompose.from_json(json.dumps(broken)).validate()


def test_every_volume_network_service_and_build_target_that_is_named_exists(compose: dict):
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        assert set(service["networks"]) <= set(compose["networks"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (source.startswith("./") and (ROOT / source).exists()), name
        if "build" in service:
            assert service["build"]["target"] in dockerfile_stages(), name


def test_everything_that_the_dockerfile_copies_exists_and_is_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    for source in " ".join(sources).split():
        assert (ROOT / source).exists(), source
        assert source in kept, source
    for stage in re.findall(r"--from=(\S+)", DOCKERFILE):
        assert stage in dockerfile_stages()


def test_the_api_image_installs_no_torch_and_nothing_runs_as_root():
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)$(.*?)(?=^FROM|\Z)", DOCKERFILE, flags=re.MULTILINE | re.DOTALL))
    assert "torch" not in stages["api"].lower()
    assert '[server]"' in stages["api"]
    assert '[worker]"' in stages["worker"]
    assert all("USER gramfuse" in stages[stage] for stage in ("api", "worker"))


def test_every_setting_in_the_compose_file_is_one_that_the_server_reads(compose: dict):
    from gramfuse_server.settings import Settings  # noqa: PLC0415 - the light installation has no server

    known = {f"GRAMFUSE_{name.upper()}" for name in Settings.model_fields}
    for service in compose["services"].values():
        named = {key for key in service.get("environment", {}) if key.startswith("GRAMFUSE_")}
        assert named <= known, named - known


def test_a_security_linter_finds_nothing_severe():
    finished = subprocess.run(
        [sys.executable, "-m", "compose_lint", str(COMPOSE)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout[-2000:]
