"""`gramfuse-server key …` on a server with a model, and what its clients make of it."""

import json
from datetime import timedelta

import pytest

from gramfuse import pinning
from gramfuse.verification import verify
from gramfuse_server import commands, heartbeats
from gramfuse_server.app import create_app
from gramfuse_server.clock import system_clock
from gramfuse_server.database import reading, transaction
from gramfuse_server.tables import AuditRow, ModelRow
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.errors import NotConfirmedError, ReceiptInvalidError, StateError
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
