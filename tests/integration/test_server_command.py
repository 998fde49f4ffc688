"""The command `gramfuse-server`, as an administrator types it."""

import base64
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.request
from datetime import timedelta
from pathlib import Path
from unittest.mock import ANY

import pytest

from gramfuse_server import access_commands, commands, receipt_key
from gramfuse_server.cli import main
from gramfuse_server.clock import system_clock
from gramfuse_shared.errors import (
    AuditChainBrokenError,
    ConfigurationError,
    FileUnreadableError,
    GramfuseError,
    NotFoundError,
    RequestMalformedError,
)
from gramfuse_shared.shell import printing
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
        printing.reset_format()
        commands.command().main(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return run


@pytest.fixture
def in_json(home, capsys):
    """Runs a command as a program would, and returns what it printed."""

    def run(*arguments: str):
        capsys.readouterr()
        assert main([*arguments, "--format", "json"]) == 0
        return json.loads(capsys.readouterr().out)

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


def test_organizations_and_tokens_are_made_listed_and_revoked_at_the_shell(command, in_json):
    command("init")
    assert command("org", "create", "acme") == command("org", "create", "acme") == "acme\n"
    token = command("token", "create", "--org", "acme", "--role", "coordinator", "--days", "3").strip()
    identifier = TOKEN.fullmatch(token)[0].split("_")[1]
    (row,) = [row for row in in_json("token", "list") if row["id"] == identifier]
    assert (row["role"], row["organization"], row["revoked_at"]) == ("coordinator", "acme", None)
    assert row["state"] == "valid"
    assert token.split("_")[2] not in command("token", "list")
    assert in_json("org", "list") == [{"name": "acme", "created_at": ANY, "valid_tokens": 1}]
    assert in_json("token", "revoke", identifier)["state"] == "revoked"
    (row,) = [row for row in in_json("token", "list") if row["id"] == identifier]
    assert (row["state"], row["revoked_at"]) == ("revoked", ANY)
    assert in_json("org", "list")[0]["valid_tokens"] == 0


@pytest.mark.parametrize("form", ["{id}", "gf_{id}", "{token}", " {token}\n"])
def test_a_token_that_leaked_is_revoked_by_what_one_has_of_it_and_its_secret_is_not_told(
    command, in_json, capsys, form
):
    command("init")
    token = command("token", "create", "--operator").strip()
    _, identifier, secret = token.split("_")
    printed = command("token", "revoke", form.format(id=identifier, token=token))
    assert printed == f"{identifier} is revoked\n"
    (row,) = [row for row in in_json("token", "list") if row["id"] == identifier]
    assert row["state"] == "revoked"
    for unknown in (f"gf_{'0' * 16}_{secret}", f"gf_{secret}", secret):
        assert main(["token", "revoke", unknown]) == 1
        told = capsys.readouterr()
        assert secret not in told.out + told.err
        assert "token list" in told.err


def test_a_token_that_has_expired_is_not_listed_as_a_valid_one(command, in_json, monkeypatch):
    command("init")
    made = in_json("token", "create", "--operator", "--days", "1")
    assert TOKEN.fullmatch(made["token"])
    monkeypatch.setattr(access_commands, "system_clock", lambda: system_clock() + timedelta(days=2))
    states = {row["id"]: row["state"] for row in in_json("token", "list")}
    assert states.pop(made["id"]) == "expired"
    assert list(states.values()) == ["valid"]
    assert "expired" in command("token", "list")


def test_what_is_shown_once_says_so_on_standard_error(command, capsys):
    command("init")
    capsys.readouterr()
    assert main(["token", "create", "--operator"]) == 0
    printed = capsys.readouterr()
    assert TOKEN.fullmatch(printed.out.strip())
    assert "shown once" in printed.err


def test_an_error_is_one_line_with_its_code_in_front_or_one_json_value(command, capsys):
    command("init")
    assert main(["org", "create", "Ac Me"]) == 1
    assert capsys.readouterr().err.startswith(
        "error[request-malformed]: 'Ac Me' cannot be the name of an organization;"
    )
    assert main(["org", "create", "Ac Me", "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().err)["code"] == "request-malformed"


def test_every_command_that_makes_or_tells_something_does_so_in_json(in_json):
    first = in_json("init")
    assert TOKEN.fullmatch(first["operator_token"])
    assert in_json("init") == first | {"operator_token": None}
    assert in_json("db", "upgrade") == {"database": first["database"]}
    assert in_json("org", "create", "acme", "globex") == [{"name": name, "new": True} for name in ("acme", "globex")]
    assert in_json("org", "create", "acme") == [{"name": "acme", "new": False}]
    head = in_json("audit", "head")
    assert in_json("audit", "verify") == head | {"since": None}
    assert in_json("key", "show") == {"receipt_key": first["receipt_key"], "former": []}


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


def test_a_head_is_printed_kept_and_compared(command, tmp_path, monkeypatch):
    command("init")
    head = tmp_path / "head.txt"
    head.write_text(command("audit", "head"))
    command("org", "create", "acme")
    told = command("audit", "verify", "--head", str(head))
    assert told.startswith(f"3 rows, intact, and 2 of them are those of {head};")
    for content in ("", "2", "2 " + "0" * 65, "x " + "0" * 64, "2 abc", "-1 " + "0" * 64):
        head.write_text(content)
        with pytest.raises(FileUnreadableError, match="does not hold a head"):
            command("audit", "verify", "--head", str(head))
    head.unlink()
    with pytest.raises(FileUnreadableError, match=r"head.txt is not there.*standard input"):
        command("audit", "verify", "--head", str(head))
    with pytest.raises(FileUnreadableError, match="cannot be read: Is a directory"):
        command("audit", "verify", "--head", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO(command("audit", "head")))
    assert "of them are those of standard input;" in command("audit", "verify", "--head", "-")
    monkeypatch.setattr("sys.stdin", io.StringIO("nothing"))
    with pytest.raises(FileUnreadableError, match="standard input does not hold a head"):
        command("audit", "verify", "--head", "-")
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


def test_the_server_starts_on_a_free_port_answers_and_stops_on_a_signal(home, tmp_path, monkeypatch):
    program = Path(sys.executable).with_name("gramfuse-server")
    subprocess.run([program, "init"], check=True, capture_output=True)
    metrics_port = free_port()
    monkeypatch.setenv("GRAMFUSE_METRICS_PORT", str(metrics_port))
    port_file = tmp_path / "port"
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
    assert [path for path in (home, *home.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    assert {(span.service, span.name) for span in spans} == {("gramfuse-api", "GET /readyz")}


def test_a_receipt_key_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "key.pem"
    path.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        receipt_key.load_key(path)
