"""Compose file, Dockerfile and the proxy's configuration: valid, and every reference exists. None is run here."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from gramfuse_shared import limits

compose_spec = pytest.importorskip("compose_spec")

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
OUTSIDE_STORE = ROOT / "deploy" / "compose.outside-store.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROXY = (ROOT / "deploy" / "proxy" / "nginx.conf").read_text()
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)$(.*?)(?=^FROM|\Z)", DOCKERFILE, flags=re.MULTILINE | re.DOTALL))
PASSWORD = {"GRAMFUSE_DB_PASSWORD": "of-a-test"}


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load(COMPOSE.read_text())


@pytest.fixture(scope="module")
def ours(compose) -> dict:
    """The services that run our images."""
    return {name: service for name, service in compose["services"].items() if "build" in service}


def interpolated(value: str, variables: dict[str, str] = PASSWORD) -> str:
    """What compose makes of ${NAME:-default} and ${NAME:?message}."""
    return re.sub(
        r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda found: variables.get(found[1]) or (found[2] or ""), str(value)
    )


def instructions(stage: str, name: str) -> list[str]:
    """The arguments of every such instruction of a stage."""
    text = STAGES[stage].replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", text, flags=re.MULTILINE)


# --- the specification ---------------------------------------------------------------------------------------------


def test_the_compose_file_follows_the_compose_specification(compose):
    """YAML merge keys are resolved first, as the compose engine does."""
    parsed = compose_spec.PyCompose.from_json(interpolated(json.dumps(compose)))
    parsed.validate()
    assert {"api", "migrate", "postgres", "worker-cpu", "worker-gpu-0"} <= set(parsed.service_names())


def test_the_schema_check_notices_a_misspelled_key(compose):
    broken = compose | {"services": {"api": compose["services"]["api"] | {"volums": []}}}
    with pytest.raises(Exception, match="volums"):
        compose_spec.PyCompose.from_json(interpolated(json.dumps(broken))).validate()


def test_a_security_linter_finds_nothing_severe():
    finished = subprocess.run(
        [sys.executable, "-m", "compose_lint", str(COMPOSE)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout[-2000:]


@pytest.mark.parametrize(
    ("words", "starts"),
    [(("someone", "something"), True), (("someone", ""), False), (("", "something"), False), (("", ""), False)],
)
def test_the_object_store_does_not_start_without_the_two_words_since_it_would_serve_everybody(compose, words, starts):
    store = compose["services"]["seaweedfs"]
    program = [word.replace("$$", "$").replace("/entrypoint.sh", "echo") for word in store["entrypoint"]]
    finished = subprocess.run(
        [*program, *store["command"]],
        env=dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), words, strict=True)) | {"PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (finished.returncode == 0, "set GRAMFUSE_S3_" in finished.stderr) == (starts, not starts)
    assert finished.stdout.split() == (store["command"] if starts else [])


def test_of_the_object_store_only_its_s3_is_reached_from_elsewhere_and_it_reports_to_nobody(compose):
    """`tests/support/s3.py` starts it by this command."""
    store = compose["services"]["seaweedfs"]
    addresses = {word for word in store["command"] if re.match(r"-(\w+\.)?ip", word)}
    assert addresses == {"-ip=127.0.0.1", "-s3.ip.bind=0.0.0.0"}
    assert "-master.telemetry=false" in store["command"]
    assert store["environment"]["WEED_JWT_FILER_SIGNING_KEY"] == store["environment"]["AWS_SECRET_ACCESS_KEY"]


def compose_command() -> list[str]:
    """Compose's own command line, which needs no engine to read a file; the old one where there is no other."""
    if (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


def test_compose_itself_reads_the_file_with_every_combination_of_profiles(compose, tmp_path):
    command = compose_command()
    if not command:
        pytest.skip(
            "compose's command line is not installed: apt-get install docker-compose (its engine is not needed)"
        )
    text = COMPOSE.read_text()
    workers = [[], ["cpu"], ["gpu"], ["gpus-2"], ["gpus-4"], ["gpus-8"]]
    others = sorted(
        {p for s in compose["services"].values() for p in s.get("profiles", [])} - set(itertools.chain(*workers))
    )
    combinations = [
        [*chosen, *more]
        for chosen in workers
        for count in range(len(others) + 1)
        for more in itertools.combinations(others, count)
    ]
    if command == ["docker-compose"]:
        text = re.sub(r"^name: .*$", "", text, flags=re.MULTILINE)  # version 1 knows no names of projects
        combinations = [["cpu", *others]]  # and reads every service whatever the profiles
    file = tmp_path / "docker-compose.yml"
    file.write_text(text)
    for profiles, second in [*((profiles, []) for profiles in combinations), (combinations[-1], [str(OUTSIDE_STORE)])]:
        finished = subprocess.run(
            [*command, "--project-directory", str(ROOT)]
            + [word for each in (str(file), *second) for word in ("--file", each)]
            + [word for profile in profiles for word in ("--profile", profile)]
            + ["config", "--quiet"],
            env=PASSWORD | {name: os.environ[name] for name in ("PATH", "HOME")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, (profiles, finished.stderr)


# --- references ----------------------------------------------------------------------------------------------------


def test_every_volume_network_service_and_build_target_that_is_named_exists(compose):
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        assert set(service["networks"]) <= set(compose["networks"]), name
        for volume in service.get("volumes", []):
            source = interpolated(volume).split(":")[0]
            given = "${" in volume  # a folder of the operator's
            assert source in compose["volumes"] or (source.startswith("./") and (given or (ROOT / source).exists())), (
                name
            )
        if "build" in service:
            assert service["build"]["target"] in STAGES, name
            assert set(service["build"].get("args", {})) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE)), (
                name
            )
    used = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert set(compose["volumes"]) <= used


def test_whoever_waits_for_a_healthy_service_waits_for_one_that_is_asked(compose):
    for name, service in compose["services"].items():
        for other, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                asked = compose["services"][other]
                image = asked.get("build", {}).get("target")
                assert "healthcheck" in asked or (image and instructions(image, "HEALTHCHECK")), (name, other)


def test_everything_that_the_dockerfile_copies_exists_and_is_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    for source in " ".join(sources).split():
        assert (ROOT / source).exists(), source
        assert source in kept, source
    for stage in re.findall(r"--from=(\S+)", DOCKERFILE):
        assert stage in STAGES


def test_every_image_of_others_is_pinned_to_a_version(compose):
    images = [service["image"] for service in compose["services"].values() if "build" not in service]
    assert images
    for image in images:
        assert re.search(r":v?\d+(\.\d+)+$", image) or "@sha256:" in image or re.search(r":\d+\.\d+", image), image
    (python,) = re.findall(r"^ARG PYTHON_VERSION=(.*)$", DOCKERFILE, flags=re.MULTILINE)
    assert re.fullmatch(r"3\.\d+", python)  # a minor version: rebuilding brings its security fixes
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)) <= {"python:${PYTHON_VERSION}-slim", *STAGES}


def test_every_command_of_our_images_is_one_of_the_server(ours):
    from gramfuse_server.commands import cli  # noqa: PLC0415 - the light installation has no server

    known = {command.name or command.callback.__name__.replace("_", "-") for command in cli.registered_commands}
    commands = [service["command"] for service in ours.values() if "command" in service]
    for stage in ("api", "worker"):
        commands += [json.loads(found) for found in instructions(stage, "CMD")]
        commands += [json.loads(found.partition("CMD ")[2]) for found in instructions(stage, "HEALTHCHECK")]
    servers = [command for command in commands if command[0] == "gramfuse-server"]
    assert {command[1] for command in servers} >= {"init", "serve", "worker", "worker-health"}
    assert {command[1] for command in servers} <= known
    assert {command[0] for command in commands} == {"gramfuse-server", "python"}


def test_every_setting_in_the_compose_file_is_one_that_the_server_reads_and_takes(ours, monkeypatch):
    from gramfuse_server.settings import Settings  # noqa: PLC0415 - the light installation has no server

    known = {f"GRAMFUSE_{name.upper()}" for name in Settings.model_fields}
    for name, service in ours.items():
        with monkeypatch.context() as patch:
            for key, value in service.get("environment", {}).items():
                assert not key.startswith("GRAMFUSE_") or key in known, (name, key)
                patch.setenv(key, interpolated(value))
            Settings()


def test_every_variable_that_the_operator_sets_is_told_in_the_operators_guide():
    guide = (ROOT / "docs" / "deployment.md").read_text()
    for variable in set(re.findall(r"\$\{(\w+)", COMPOSE.read_text())):
        assert variable in guide, variable


# --- what the containers may do ------------------------------------------------------------------------------------


def test_the_api_image_installs_no_torch_and_nothing_runs_as_root():
    assert "torch" not in STAGES["api"].lower()
    assert '[direct]"' in STAGES["api"]
    assert '[worker]"' in STAGES["worker"]
    assert all("USER gramfuse" in STAGES[stage] for stage in ("api", "worker"))


def test_our_services_and_the_proxy_have_a_read_only_root_and_no_privileges(compose, ours):
    for service in (*ours.values(), compose["services"]["proxy"]):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["tmpfs"] == ["/tmp"]  # noqa: S108 - the container's
        assert "privileged" not in service


def test_postgresql_has_a_read_only_root_and_only_what_it_takes_to_change_its_user(compose):
    database = compose["services"]["postgres"]
    assert database["read_only"] is True
    assert database["cap_drop"] == ["ALL"]
    assert set(database["cap_add"]) == {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}
    assert database["security_opt"] == ["no-new-privileges:true"]
    assert set(database["tmpfs"]) == {"/tmp", "/var/run/postgresql"}  # noqa: S108 - the container's


def test_the_database_is_asked_for_by_tcp_since_the_server_that_makes_the_volume_answers_at_the_socket(compose):
    (_, asked) = compose["services"]["postgres"]["healthcheck"]["test"]
    assert "--host 127.0.0.1" in asked


def test_gramfuse_gets_a_role_that_owns_its_database_alone_and_the_superuser_no_password(ours):
    """As PostgreSQL's image runs it; `make containers` has the role, `test_server_doctor.py` tells a superuser."""
    from support.postgres import postgres  # noqa: PLC0415 - the light installation has no server

    psycopg = pytest.importorskip("psycopg")
    script = (ROOT / "deploy" / "postgres" / "role.sql").read_text()
    assert r"\getenv password POSTGRES_PASSWORD" in script
    statements = [
        statement.replace(":'password'", "'of-a-test'")
        for statement in re.sub(r"^(--|\\).*$", "", script, flags=re.MULTILINE).split(";")
        if statement.strip()
    ]
    (url,) = {interpolated(service["environment"]["GRAMFUSE_DATABASE_URL"]) for service in ours.values()}
    assert url.startswith("postgresql+psycopg://gramfuse:of-a-test@postgres:")
    with postgres() as server, psycopg.connect(server.server.get_uri(), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
        rights = "SELECT rolsuper, rolcreatedb, rolcreaterole, rolcanlogin FROM pg_roles WHERE rolname = 'gramfuse'"
        assert connection.execute(rights).fetchone() == (False, False, False, True)
        owner = (
            "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'gramfuse'"
        )
        assert connection.execute(owner).fetchone() == ("gramfuse", "UTF8")
        kept = "SELECT rolname FROM pg_authid WHERE rolsuper AND rolpassword IS NOT NULL"
        assert connection.execute(kept).fetchall() == []


def test_every_folder_that_a_volume_is_mounted_on_belongs_to_the_images_user(ours):
    """A new volume takes owner and mode from the folder in the image; where there is none, it is root's."""
    (made,) = re.findall(r"mkdir -p (.*?) (?:&&|$)", " ".join(instructions("runtime", "RUN")))
    assert "chown -R gramfuse:gramfuse /var/lib/gramfuse" in " ".join(instructions("runtime", "RUN"))
    for name, service in ours.items():
        targets = {volume.split(":")[1] for volume in service["volumes"]}
        assert targets <= set(made.split()), name
        places = [interpolated(value) for value in service["environment"].values() if "/var/lib/" in value]
        for place in places:
            assert any(target in place for target in targets), (name, place)


def test_a_store_elsewhere_is_reached_by_all_that_use_it_with_the_second_file(compose, ours):
    """The backend network leads nowhere else; the API is in the other one already."""
    added = yaml.safe_load(OUTSIDE_STORE.read_text())["services"]
    for name, service in ours.items():
        networks = {*service["networks"], *added.get(name, {}).get("networks", [])}
        assert {"backend", "frontend"} <= networks, name
    assert set(added) < set(ours)
    assert all(set(service) == {"networks"} for service in added.values())


def test_who_only_reads_the_receipt_key_cannot_write_it(ours):
    for name, service in ours.items():
        (keys,) = [volume for volume in service["volumes"] if volume.startswith("keys:")]
        assert keys.endswith(":ro") == (name != "migrate"), name


def test_nothing_but_the_proxy_is_reached_from_other_machines(compose):
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            assert name == "proxy" or port.startswith("127.0.0.1:"), name
    assert compose["networks"]["backend"]["internal"] is True


def test_containers_are_given_the_time_that_their_processes_take_to_end(compose):
    from gramfuse_server import serving  # noqa: PLC0415 - the light installation has no server

    def grace(name: str) -> timedelta:
        return TypeAdapter(timedelta).validate_python(f"PT{compose['services'][name]['stop_grace_period'].upper()}")

    (seconds,) = re.findall(r"timeout_graceful_shutdown=(\d+)", Path(serving.__file__).read_text())
    assert grace("api") > timedelta(seconds=int(seconds))
    worker = (ROOT / "server" / "gramfuse_server" / "worker.py").read_text()
    (hours,) = re.findall(r"^DRAIN_SECONDS: Final = (\d+) \* 3600$", worker, flags=re.MULTILINE)
    for name in compose["services"]:
        if name.startswith("worker"):
            # as long as a shard may take on a slow machine, and no longer than the worker itself waits
            assert timedelta(minutes=30) <= grace(name) <= timedelta(hours=int(hours))


@pytest.mark.parametrize(("profile", "count"), [("gpu", 1), ("gpus-2", 2), ("gpus-4", 4), ("gpus-8", 8)])
def test_a_profile_of_so_many_gpus_starts_a_worker_on_each_of_the_first(compose, profile, count):
    devices = [
        device
        for service in compose["services"].values()
        if profile in service.get("profiles", [])
        for device in service["deploy"]["resources"]["reservations"]["devices"]
    ]
    assert [device["device_ids"] for device in devices] == [[str(number)] for number in range(count)]
    assert all(device["capabilities"] == ["gpu"] and device["driver"] == "nvidia" for device in devices)


def test_a_worker_with_a_gpu_never_computes_on_the_cpu_by_itself_and_the_other_never_asks_for_a_gpu(ours):
    for name, service in ours.items():
        if name.startswith("worker"):
            assert service["environment"]["GRAMFUSE_DEVICE"] == ("cpu" if name == "worker-cpu" else "cuda")
            assert ("deploy" in service) == (name != "worker-cpu")


# --- the proxy -----------------------------------------------------------------------------------------------------


def test_the_proxy_finds_its_files_its_port_and_the_api(compose):
    proxy = compose["services"]["proxy"]
    mounts = {interpolated(volume).split(":")[1] for volume in proxy["volumes"]}
    assert "/etc/nginx/nginx.conf" in mounts
    for path in re.findall(r"ssl_certificate(?:_key)? (\S+);", PROXY):
        assert str(Path(path).parent) in mounts
    for path in re.findall(r"(?:_temp_path|pid) (\S+);", PROXY):
        assert path.startswith("/tmp/")  # noqa: S108 - the container's
    (listening,) = re.findall(r"listen (\d+) ssl;", PROXY)
    assert proxy["ports"] == [f"443:{listening}"]
    (host, port) = re.findall(r"set \$api (\w+):(\d+);", PROXY)[0]
    assert set(compose["services"][host]["networks"]) & set(proxy["networks"])
    (serve,) = [json.loads(found) for found in instructions("api", "CMD")]
    assert serve[-1] == port == compose["services"]["api"]["ports"][0].rpartition(":")[2]


def test_the_proxy_takes_the_largest_part_and_waits_as_long_as_a_part_may_take():
    from gramfuse_server.settings import Settings  # noqa: PLC0415 - the light installation has no server

    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", PROXY)
    assert int(megabytes) * limits.MIB > limits.MAX_PART_BYTES
    longest = Settings.model_fields["part_timeout"].default
    minutes = dict(re.findall(r"(\w+_timeout) (\d+)m;", PROXY))
    assert timedelta(minutes=int(minutes["proxy_read_timeout"])) > longest
    assert timedelta(minutes=int(minutes["client_body_timeout"])) >= longest


def test_the_header_of_the_compose_file_names_its_profiles_and_its_commands_parse(compose):
    header = COMPOSE.read_text().partition("name: gramfuse")[0]
    profiles = {profile for service in compose["services"].values() for profile in service.get("profiles", [])}
    told = header.replace(", gpus-2, -4, -8", ", gpus-2, gpus-4, gpus-8")
    for profile in profiles:
        assert re.search(rf"\b{profile}\b", told), profile
    for line in re.findall(r"^#   (docker .*?)(?: {2,}#.*)?$", header, flags=re.MULTILINE):
        words = shlex.split(line)
        assert words[:2] == ["docker", "compose"]
        assert {after for word, after in itertools.pairwise(words) if word == "--profile"} <= profiles
