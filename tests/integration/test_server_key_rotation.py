"""`gramfuse-server key …` on a server with a model, and what its clients make of it."""

import json
import re
import shutil
from datetime import timedelta

import pytest

from gramfuse import pinning
from gramfuse.verification import verify
from gramfuse_server import commands, database_key, heartbeats, receipt_key
from gramfuse_server.app import create_app
from gramfuse_server.clock import system_clock
from gramfuse_server.database import reading, transaction
from gramfuse_server.tables import AuditRow, ModelRow
from gramfuse_server.worker import run_worker
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.errors import ConfigurationError, NotConfirmedError, ReceiptInvalidError, StateError
from gramfuse_shared.shell import printing
from support.client_world import URL, Site
from support.server_world import World
from support.worker_world import InProcessWorker, be_ready

PROJECT = "acme.tweets"
pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")  # no query is its own


def begin_merged(world, settings):
    be_ready(world, settings)
    merge(world, settings, "old")


def merge(world, settings, job):
    body = {"recipe": {"merge_method": "linear"}}
    assert world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/{job}", json=body).status_code == 201
    InProcessWorker(world, settings).run(PROJECT, job)


class Operated:
    """A server that is stopped, changed at the shell, and started again."""

    def __init__(self, world, settings, portal, run) -> None:
        self.world, self.settings, self._portal, self.run = world, settings, portal, run

    def restart(self) -> None:
        self.world.services.database.close()
        app = create_app(self.settings, clock=self.world.clock)
        self.world = World(app, self.world.clock, self._portal, dict(self.world._tokens))

    def checks(self, command: str) -> list[dict[str, str]]:
        """What `doctor` or `verify` found."""
        return json.loads(self.run(command, "--format", "json"))["checks"]

    def site(self, name: str, folder) -> Site:
        return Site(self.world, name, "participant", folder)


@pytest.fixture
def server(begun, portal, monkeypatch, capsys):
    world, settings = begun(begin_merged)
    monkeypatch.setenv("GRAMFUSE_SERVER_HOME", str(settings.server_home))
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", settings.database_url.get_secret_value())

    def run(*arguments: str) -> str:
        capsys.readouterr()
        printing.reset_format()
        commands.command().main([*arguments], standalone_mode=False)
        return capsys.readouterr().out

    operated = Operated(world, settings, portal, run)
    yield operated
    operated.world.services.database.close()


def pull(site: Site, model: str, folder):
    with site.client() as client:
        return client.pull(PROJECT, model, folder / model)


def test_clients_follow_a_rotation_and_old_and_new_models_verify(server, tmp_path):
    globex = server.site("globex", tmp_path)
    before = pull(globex, "old", tmp_path)
    old = pinning.pinned_key(globex.home, URL)
    assert server.run("key", "show") == f"receipt key  {old}\n"
    printed = server.run("key", "rotate")
    server.restart()
    new = server.world.services.receipt_keys.present
    assert printed == f"receipt key  {new}\ntook over    {old}\n" == server.run("key", "show")
    merge(server.world, server.settings, "new")

    globex.wire.connect(server.world)
    after = pull(globex, "new", tmp_path)
    assert verify(before, home=globex.home).signer == verify(after, home=globex.home).signer == URL
    assert pinning.keys_of(globex.home, URL) == (new, old)
    newcomer = server.site("globex", tmp_path / "newcomer")
    verify(pull(newcomer, "old", tmp_path / "newcomer"), home=newcomer.home)

    printed = json.loads(server.run("verify", "--format", "json"))
    (told,) = [check for check in printed["checks"] if check["name"] == "receipts"]
    assert told["verdict"] == "ok"
    assert f"2 of 2 signed by {new} or one of the 1 before it" in told["found"]
    with reading(server.world.services.database) as session:
        (row,) = session.query(AuditRow).filter_by(action="receipt-key.rotate")
        assert json.loads(row.details) == {"former": old, "successor": new, "by": "shell"}
    server.run("audit", "verify")


def test_after_a_replacement_clients_refuse_until_their_people_compared_the_key(server, tmp_path):
    globex = server.site("globex", tmp_path)
    before = pull(globex, "old", tmp_path)
    old = pinning.pinned_key(globex.home, URL)
    with reading(server.world.services.database) as session:
        kept = session.get_one(ModelRow, (PROJECT, "old")).receipt
    printed = server.run("key", "replace", "--yes")
    server.restart()
    new = server.world.services.receipt_keys.present
    assert printed.startswith(f"receipt key  {new}\nreceipts     1 signed anew")
    with reading(server.world.services.database) as session:
        anew = SignedReceipt.parse(session.get_one(ModelRow, (PROJECT, "old")).receipt)
    assert (anew.public_key, anew.receipt) == (new, SignedReceipt.parse(kept).receipt)

    globex.wire.connect(server.world)
    with pytest.raises(ReceiptInvalidError, match=r"gramfuse login .* --receipt-key KEY"):
        pull(globex, "old", tmp_path / "refused")
    with globex.client() as client, pytest.raises(ReceiptInvalidError, match="not the one that you gave"):
        client.server_info(receipt_key=old)
    assert pinning.keys_of(globex.home, URL) == (old,)
    with globex.client() as client:
        client.server_info(receipt_key=new)
    verify(pull(globex, "old", tmp_path / "anew"), home=globex.home)
    with pytest.raises(ReceiptInvalidError, match="not pinned"):
        verify(before, home=globex.home)  # it may be forged: pull it again
    assert json.loads(server.run("verify", "--format", "json"))["verdict"] in {"ok", "warning"}


def test_a_receipt_that_the_servers_keys_did_not_sign_is_not_signed_anew(server):
    with transaction(server.world.services.database) as session:
        row = session.get_one(ModelRow, (PROJECT, "old"))
        row.receipt = altered = row.receipt.replace('"attempt":1', '"attempt":2')
    assert "receipts     0 signed anew" in server.run("key", "replace", "--yes")
    with reading(server.world.services.database) as session:
        assert session.get_one(ModelRow, (PROJECT, "old")).receipt == altered


@pytest.mark.parametrize("command", [("key", "rotate"), ("key", "replace", "--yes")])
def test_no_key_is_exchanged_under_a_worker_that_would_go_on_with_the_old_one(server, command):
    before = server.settings.receipt_key.read_bytes()
    with transaction(server.world.services.database) as session:
        heartbeats.enter(
            session, "busy-1", heartbeats.Host("h", "cpu", 1, "0.1.0"), system_clock() + timedelta(minutes=1)
        )
    with pytest.raises(StateError, match="busy-1 is alive"):
        server.run(*command)
    assert server.settings.receipt_key.read_bytes() == before


def test_a_key_is_not_given_up_without_a_yes(server, monkeypatch):
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    before = server.settings.receipt_key.read_bytes()
    with pytest.raises(NotConfirmedError):
        server.run("key", "replace")
    assert server.settings.receipt_key.read_bytes() == before


# --- whose database it is -----------------------------------------------------------------------------------------


COPY = r"copy the key \(and its hand-overs\) .* if it is lost: `gramfuse-server key replace`"


def present(server) -> str:
    return receipt_key.load_public_keys(server.settings.receipt_key).present


def require_refused(server, because: str) -> None:
    """Neither `init` nor the API nor a worker goes on, and nothing is made."""
    before = sorted(server.settings.server_home.rglob("*"))
    for starts in (
        lambda: server.run("init"),
        lambda: server.run("serve", "--port", "0"),
        lambda: run_worker(server.settings),
    ):
        with pytest.raises(ConfigurationError, match=because):
            starts()
    assert sorted(server.settings.server_home.rglob("*")) == before


def doctor(server) -> tuple[str, str]:
    (told,) = [each for each in server.checks("doctor") if each["name"] == "receipt key"]
    return told["verdict"], told["advice"]


def test_beside_a_database_with_receipts_no_other_key_is_made_and_none_is_started_with(server):
    own, key = re.escape(present(server)), server.settings.receipt_key
    kept = key.rename(key.with_name("kept"))
    require_refused(server, rf"signed by {own}, and {re.escape(str(key))} is not there: {COPY}")
    assert doctor(server)[0] == "failed"
    receipt_key.create_key(key)  # another machine's own
    require_refused(server, rf"signed by {own}, and {re.escape(str(key))} holds another key, .*: {COPY}")
    with pytest.raises(ConfigurationError, match=COPY):
        server.run("key", "rotate")
    assert doctor(server)[0] == "failed"
    assert not receipt_key.next_path(key).exists()
    kept.rename(key)
    assert f"{key} (kept)" in server.run("init")
    assert doctor(server) == ("ok", "")


def test_a_database_without_a_receipt_knows_its_key_from_the_start(server, new_database_url, monkeypatch):
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", new_database_url().get_secret_value())
    key = server.settings.receipt_key
    assert f"{key} (kept)" in server.run("init")
    key.unlink()
    with pytest.raises(ConfigurationError, match=COPY):
        server.run("init")
    assert not key.exists()


def test_after_a_rotation_the_key_of_before_is_refused_and_the_new_one_is_not_without_its_hand_overs(server):
    key = server.settings.receipt_key
    old = key.read_bytes()
    server.run("key", "rotate")
    assert "(kept)" in server.run("init")
    new, handovers = key.read_bytes(), receipt_key.handovers_path(key)
    saved = shutil.copy(handovers, handovers.with_name("saved"))
    handovers.unlink()
    key.write_bytes(old)  # from a backup of before the rotation
    require_refused(server, "holds another key")
    key.write_bytes(new)
    shutil.copy(saved, handovers)
    assert doctor(server) == ("ok", "")
    with transaction(server.world.services.database) as session:  # as in a database of before the rotation
        session.query(AuditRow).filter_by(action="receipt-key.rotate").delete()
    assert doctor(server) == ("ok", "")
    handovers.unlink()
    require_refused(server, "holds another key")


@pytest.mark.parametrize("command", [("key", "rotate"), ("key", "replace", "--yes")])
def test_an_exchange_that_was_killed_is_finished_before_anything_starts(server, command, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(receipt_key, command[1], lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            server.run(*command)
    require_refused(server, r"about to take the place .* again")
    assert "again" in doctor(server)[1]
    server.run(*command)
    assert "(kept)" in server.run("init")
    assert doctor(server) == ("ok", "")


@pytest.mark.parametrize("left", [None, b"half a ke"])
def test_a_key_that_is_lost_or_broken_is_replaced_as_the_guide_says(server, left, tmp_path):
    key, lost = server.settings.receipt_key, present(server)
    key.unlink()
    if left is not None:
        key.write_bytes(left)
        for command in (("init",), ("key", "rotate"), ("key", "show")):
            with pytest.raises(ConfigurationError, match=r"restore it from the backup.*`gramfuse-server key replace`"):
                server.run(*command)
    assert "receipts     0 signed anew" in server.run("key", "replace", "--yes")
    server.restart()
    assert "(kept)" in server.run("init")
    assert doctor(server) == ("ok", "")
    with reading(server.world.services.database) as session:
        (row,) = session.query(AuditRow).filter_by(action="receipt-key.replace")
        assert json.loads(row.details) == {"former": lost, "successor": present(server), "by": "shell"}
    (told,) = [each for each in server.checks("verify") if each["name"] == "receipts"]
    assert f"{PROJECT}/old is signed by another key, {lost}" in told["found"]
    merge(server.world, server.settings, "new")
    site = server.site("globex", tmp_path)
    verify(pull(site, "new", tmp_path), home=site.home)


def test_a_receipt_that_somebody_wrote_does_not_say_whose_the_database_is(server):
    own = present(server)
    with transaction(server.world.services.database) as session:
        row = session.get_one(ModelRow, (PROJECT, "old"))
        row.receipt = row.receipt.replace(own, "A" * 43 + "=")
    with reading(server.world.services.database) as session:
        assert database_key.find_key(session) is None
