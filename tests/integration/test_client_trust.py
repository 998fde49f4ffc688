"""A server that lies about policies and keys: the client sends nothing under what its own key did not sign."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import DigestMismatchError, IdentityChangedError, PolicyNotAcceptedError
from support.client_models import write_model
from support.client_world import Site, Wire
from support.identities import signed_acceptance
from support.secure_sessions import identity_of, public_identity
from support.shell import Shell

PROJECT = "acme.tweets"
STRICT = Policy(minimum_cohort=2)
LAX = Policy(minimum_cohort=2, heads="shared", embeddings="average", embedding_taps="send")


class LyingWire(Wire):
    """A server that answers the truth, but for what it changes in documents."""

    def __init__(self, world, lie: Callable[[str, Any], None]) -> None:
        super().__init__(world)
        self._lie = lie

    def send(self, request: httpx.Request) -> httpx.Response:
        answer = super().send(request)
        document = json.loads(answer.read())
        self._lie(request.url.path, document)
        return httpx.Response(answer.status_code, json=document)


@pytest.fixture
def globex(world, tmp_path) -> Site:
    """A member that has accepted the strict policy and pulled nothing yet."""
    base = write_model(tmp_path / "base")
    acme, globex = (Site(world, name, "coordinator", tmp_path) for name in ("acme", "globex"))
    with acme.client() as client:
        client.create_project("tweets", base=base, policy=STRICT)
        client.invite(PROJECT, "globex")
        client.accept_policy(PROJECT, STRICT.content_digest())
    with globex.client() as client:
        client.accept_policy(PROJECT, STRICT.content_digest())
    return globex


def push(site: Site, tmp_path, wire=None):
    with site.client(wire=wire) as client:
        return client.push(PROJECT, model=tmp_path / "base", confirm=lambda _: True)


def shows_lax(path: str, document: Any) -> None:
    """Say that another policy is the current one and that globex accepted it."""
    reference = {"version": 2, "digest": LAX.content_digest()}
    if path == f"/v1/projects/{PROJECT}":
        document["policy"] = reference
        for participant in document["participants"]:
            participant["accepted_policy"] = reference
    if "/policies/" in path:
        document |= {**reference, "policy": LAX.model_dump(mode="json")}


def test_a_server_that_says_another_policy_was_accepted_gets_nothing(world, globex, tmp_path):
    wire = LyingWire(world, shows_lax)
    with pytest.raises(PolicyNotAcceptedError, match="your identity key signed"):
        push(globex, tmp_path, wire)
    assert wire.writes() == []


def test_a_server_that_signs_the_acceptance_by_a_key_of_its_own_gets_nothing(world, globex, tmp_path):
    def lie(path: str, document: Any) -> None:
        shows_lax(path, document)
        if path == f"/v1/projects/{PROJECT}":
            forged = signed_acceptance(PROJECT, "globex", LAX.content_digest(), version=2, key=identity_of("server"))
            document["participants"][1] |= {
                "identity": forged.acceptance.identity,
                "signature": forged.signature,
            }

    wire = LyingWire(world, lie)
    with pytest.raises(PolicyNotAcceptedError, match="your identity key signed"):
        push(globex, tmp_path, wire)
    assert wire.writes() == []


def test_a_server_that_shows_another_policy_under_the_accepted_digest_gets_nothing(world, globex, tmp_path):
    def lie(path: str, document: Any) -> None:
        if "/policies/" in path:
            document["policy"] = LAX.model_dump(mode="json")

    wire = LyingWire(world, lie)
    with pytest.raises(DigestMismatchError, match="not its own"):
        push(globex, tmp_path, wire)
    assert wire.writes() == []


def test_a_server_that_goes_back_to_a_policy_that_was_replaced_gets_nothing(world, globex, tmp_path):
    with globex.client() as client:
        before = client.project(PROJECT).model_dump(mode="json")
    world.coordinator("acme").put_document(f"/v1/projects/{PROJECT}/policies/2", LAX)
    with globex.client() as client:
        client.accept_policy(PROJECT, LAX.content_digest())

    def lie(path: str, document: Any) -> None:
        if path == f"/v1/projects/{PROJECT}":
            document |= before

    wire = LyingWire(world, lie)
    with pytest.raises(PolicyNotAcceptedError, match="you accepted version 2 before"):
        push(globex, tmp_path, wire)
    assert wire.writes() == []


def test_an_honest_server_is_pushed_to(globex, tmp_path):
    assert push(globex, tmp_path).state == "accepted"


def test_a_verified_members_changed_key_is_an_error_until_it_is_verified_anew(world, globex, tmp_path):
    with globex.client() as client:
        entries = client.roster(PROJECT)
        assert [(entry.organization, entry.standing) for entry in entries] == [
            ("acme", "not verified"),
            ("globex", "own"),
        ]
        assert {entry.standing for entry in client.verify_roster(PROJECT, entries)} == {"verified"}
        assert push(globex, tmp_path).state == "accepted"
    world.coordinator("acme").delete(f"/v1/projects/{PROJECT}/participants/acme/identity")
    world.accept_policy(PROJECT, "acme", key=identity_of("acme's new one"))
    with globex.client() as client:
        changed = client.roster(PROJECT)
        assert [entry.standing for entry in changed] == ["changed", "verified"]
        with pytest.raises(IdentityChangedError, match="acme has another identity key"):
            push(globex, tmp_path)
        client.verify_roster(PROJECT, changed)
        assert push(globex, tmp_path).state == "accepted"


def test_the_roster_is_shown_verified_only_by_a_yes_and_reset_by_the_coordinator(
    world, globex, tmp_path, monkeypatch, capsys
):
    shell = Shell(globex, monkeypatch, capsys)
    code, _, err = shell("roster", "verify", PROJECT)
    assert (code, "no terminal to ask" in err) == (3, True)
    assert [entry["standing"] for entry in shell.json("roster", "show", PROJECT)] == ["not verified", "own"]
    kept = shell.json("roster", "verify", PROJECT, "--yes")
    assert {entry["organization"]: entry["identity"] for entry in kept} == {
        name: public_identity(name) for name in ("acme", "globex")
    }
    acme = Shell(Site(world, "acme", "coordinator", tmp_path), monkeypatch, capsys)
    standing = {entry["organization"]: entry["standing"] for entry in acme.json("roster", "reset", PROJECT, "globex")}
    assert standing["globex"] == "not joined"
