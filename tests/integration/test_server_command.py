"""The command `gramfuse-server`, as an administrator types it."""

import base64
import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from gramfuse_server import commands, receipt_key
from gramfuse_shared.errors import (
    AuditChainBrokenError,
    ConfigurationError,
    FileUnreadableError,
    GramfuseError,
    NotFoundError,
    RequestMalformedError,
)
from support.collecting import collector
from support.scraping import free_port, scrape

TOKEN = re.compile(r"gf_[0-9a-f]{16}_[0-9a-f]{64}")


@pytest.fixture
def home(tmp_path, monkeypatch, new_empty_database_url) -> Path:
    monkeypatch.setenv("GRAMFUSE_SERVER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", new_empty_database_url().get_secret_value())
    return tmp_path / "home"


@pytest.fixture
def command(home, capsys):
    """Runs a command in this process and returns what it printed."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        commands.cli(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return run


def test_init_prints_the_first_operator_token_once_and_is_safe_to_repeat(command, home):
    first, second = command("init"), command("init")
    assert len(TOKEN.findall(first)) == 1
    assert TOKEN.findall(second) == []
    shown = base64.b64encode(receipt_key.load_key(home / "receipt-key.pem").public_key().public_bytes_raw()).decode()
    assert f"receipt key  {shown}\n" in first
    assert f"receipt key  {shown}\n" in second
    key = home / "receipt-key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert list(home.glob(".receipt-key*")) == []


def test_init_keeps_a_receipt_key_that_is_there(command, home):
    command("init")
    before = (home / "receipt-key.pem").read_bytes()
    command("init")
    assert (home / "receipt-key.pem").read_bytes() == before


def test_init_beside_an_unreadable_receipt_key_makes_no_token_that_nobody_saw(command, home):
    home.mkdir(exist_ok=True)
    (home / "receipt-key.pem").write_text("nonsense")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        command("init")
    (home / "receipt-key.pem").unlink()
    assert len(TOKEN.findall(command("init"))) == 1


def test_a_variable_that_its_setting_cannot_be_is_named(command, monkeypatch):
    monkeypatch.setenv("GRAMFUSE_PART_BYTES", "many")
    with pytest.raises(ConfigurationError, match="GRAMFUSE_PART_BYTES must be a whole number"):
        command("token", "list")


def test_a_lost_operator_token_is_recovered_at_the_shell(command):
    command("init")
    assert TOKEN.fullmatch(command("token", "create", "--operator").strip())


def test_organizations_and_tokens_are_made_listed_and_revoked_at_the_shell(command):
    command("init")
    assert command("org", "create", "acme") == command("org", "create", "acme") == "acme\n"
    token = command("token", "create", "--org", "acme", "--role", "coordinator", "--days", "3").strip()
    identifier = TOKEN.fullmatch(token)[0].split("_")[1]
    listed = [json.loads(line) for line in command("token", "list").splitlines()]
    (row,) = [row for row in listed if row["id"] == identifier]
    assert (row["role"], row["organization"], row["revoked_at"]) == ("coordinator", "acme", None)
    assert token.split("_")[2] not in command("token", "list")
    command("token", "revoke", identifier)
    listed = {row["id"]: row for row in map(json.loads, command("token", "list").splitlines())}
    assert listed[identifier]["revoked_at"] is not None


def test_organizations_are_created_together_or_not_at_all(command):
    command("init")
    with pytest.raises(GramfuseError):
        command("org", "create", "acme", "No Such Form")
    with pytest.raises(NotFoundError):
        command("token", "create", "--org", "acme")
    assert command("org", "create", "acme", "globex") == "acme\nglobex\n"
    assert TOKEN.fullmatch(command("token", "create", "--org", "globex").strip())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("token", "create"), RequestMalformedError),
        (("token", "create", "--operator", "--org", "acme"), RequestMalformedError),
        (("token", "create", "--org", "acme", "--role", "operator"), RequestMalformedError),
        (("token", "create", "--org", "nobody"), NotFoundError),
        (("token", "revoke", "0" * 16), NotFoundError),
        (("org", "create", "No Such Form"), GramfuseError),
    ],
)
def test_a_command_that_means_nothing_says_so(command, arguments, error):
    command("init")
    with pytest.raises(error):
        command(*arguments)


def test_the_audit_log_verifies_and_names_its_end(command):
    command("init")
    command("org", "create", "acme")
    assert re.match(r"3 rows, intact; the last digest is [0-9a-f]{64}\n", command("audit", "verify"))


def test_a_head_is_printed_kept_and_compared(command, tmp_path):
    command("init")
    head = tmp_path / "head.txt"
    head.write_text(command("audit", "head"))
    command("org", "create", "acme")
    told = command("audit", "verify", "--head", str(head))
    assert told.startswith(f"3 rows, intact, and 2 of them are those of {head};")
    for content in ("", "2", "x " + "0" * 64, "2 abc", "-1 " + "0" * 64):
        head.write_text(content)
        with pytest.raises(FileUnreadableError, match="does not hold a head"):
            command("audit", "verify", "--head", str(head))
    head.write_text("2 " + "0" * 64)
    with pytest.raises(AuditChainBrokenError, match="row 2"):
        command("audit", "verify", "--head", str(head))


def test_without_a_migrated_database_the_answer_names_the_command(command):
    with pytest.raises(ConfigurationError, match=r"gramfuse-server (init|db upgrade)"):
        command("token", "list")


def test_a_home_that_is_a_file_is_told(command, home, monkeypatch, tmp_path):
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", "")
    home.write_text("a file")
    with pytest.raises(ConfigurationError, match=r"home cannot be made: .*GRAMFUSE_SERVER_HOME"):
        command("init")


def test_a_receipt_key_whose_folder_cannot_be_made_is_told(command, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRAMFUSE_RECEIPT_KEY", str(tmp_path / "file" / "key.pem"))
    with pytest.raises(ConfigurationError, match=r"file cannot be made: .*GRAMFUSE_RECEIPT_KEY"):
        command("init")


def test_a_file_that_is_no_database_is_told(command, monkeypatch, tmp_path):
    (tmp_path / "novel.sqlite").write_text("It was a dark and stormy night. " * 100)
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", f"sqlite:///{tmp_path / 'novel.sqlite'}")
    for arguments in (("init",), ("token", "list")):
        with pytest.raises(ConfigurationError, match="does not answer: file is not a database"):
            command(*arguments)


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
def test_a_database_that_takes_any_bytes_for_letters_is_told_before_anything_is_made(
    command, monkeypatch, create_postgresql
):
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", create_postgresql(encoding="SQL_ASCII"))
    for arguments in (("init",), ("token", "list")):
        with pytest.raises(ConfigurationError, match=r"encoded in SQL_ASCII, and UTF8 is needed.*--encoding=UTF8"):
            command(*arguments)


def test_a_database_server_that_is_away_is_told_without_its_password(command, monkeypatch):
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", "postgresql://user:secret@127.0.0.1:1/x")
    with pytest.raises(ConfigurationError, match=r"does not answer: .*refused") as told:
        command("init")
    assert "secret" not in str(told.value)


def test_the_server_starts_on_a_free_port_answers_and_stops_on_a_signal(command, home, tmp_path, monkeypatch):
    command("init")
    metrics_port = free_port()
    monkeypatch.setenv("GRAMFUSE_METRICS_PORT", str(metrics_port))
    port_file = tmp_path / "port"
    program = Path(sys.executable).with_name("gramfuse-server")
    arguments = [str(program), "serve", "--port", "0", "--port-file", str(port_file)]
    with (
        collector() as (endpoint, spans),
        subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint},
        ) as process,
    ):
        url = process.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{port_file.read_text().strip()}"
        with urllib.request.urlopen(f"{url}/readyz") as answer:  # noqa: S310 - loopback
            assert json.load(answer)["checks"] == {"database": "ok", "migrations": "ok", "blobs": "ok"}
        told = scrape(metrics_port)
        assert 'gramfuse_http_requests_total{method="GET",route="/readyz",status="200"} 1.0' in told
        assert "gramfuse_database_up 1.0" in told
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        process.stderr.read()
        assert process.wait(timeout=20) in {0, -signal.SIGTERM}
    assert {(span.service, span.name) for span in spans} == {("gramfuse-api", "GET /readyz")}


def test_a_receipt_key_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "key.pem"
    path.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        receipt_key.load_key(path)
