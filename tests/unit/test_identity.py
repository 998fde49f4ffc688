"""The identity key: kept for its owner alone, made once, and shown by a fingerprint that people can compare."""

import base64
import hashlib
import json
import stat
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gramfuse.cli.main import main
from gramfuse.config import Home
from gramfuse.identity import create_identity, identity_path, load_identity
from gramfuse_shared.contract.identity import PolicyAcceptance, fingerprint_of
from gramfuse_shared.errors import ConfigurationError
from gramfuse_shared.signatures import is_signed
from support.identities import keep_identity, signed_acceptance
from support.secure_sessions import identity_of, public_identity


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home")


def test_a_key_is_made_once_and_only_its_owner_can_read_it(home):
    first, new = create_identity(home)
    again, newer = create_identity(home)
    assert (new, newer, again.public) == (True, False, first.public)
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.path.parent.stat().st_mode) == 0o700
    assert [path.name for path in first.path.parent.iterdir()] == ["ed25519.pem"]


def test_processes_that_make_the_key_at_once_agree_on_one(home):
    made = []
    threads = [threading.Thread(target=lambda: made.append(create_identity(home)[0].public)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(made) == {load_identity(home).public}


def test_a_fingerprint_is_ten_groups_of_the_public_keys_digest(home):
    identity, _ = create_identity(home)
    digest = hashlib.sha256(base64.b64decode(identity.public)).hexdigest()
    assert identity.fingerprint.replace(" ", "") == digest[:40]
    assert [len(group) for group in identity.fingerprint.split(" ")] == [4] * 10
    assert fingerprint_of(public_identity("acme")) != fingerprint_of(public_identity("globex"))


def test_nothing_that_shows_an_identity_shows_its_private_half(home, capsys, monkeypatch):
    identity, _ = create_identity(home)
    secret = identity.key.private_bytes_raw()
    monkeypatch.setenv("GRAMFUSE_HOME", str(home.path))
    assert main(["identity", "show", "--format", "json"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown)["fingerprint"] == identity.fingerprint
    for text in (repr(identity), shown):
        assert base64.b64encode(secret).decode() not in text
        assert secret.hex() not in text
        assert "_Ed25519PrivateKey" not in text


def test_a_key_that_others_can_read_is_refused(home):
    keep_identity("acme", home.path)
    assert load_identity(home).public == public_identity("acme")
    identity_path(home).chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_identity(home)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", None])
def test_a_file_that_holds_no_ed25519_key_is_refused(home, content):
    keep_identity("acme", home.path)
    other = Ed448PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    identity_path(home).write_bytes(other if content is None else content)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_identity(home)


def test_without_a_key_the_error_says_what_makes_one(home):
    with pytest.raises(ConfigurationError, match="gramfuse identity create"):
        load_identity(home)


def test_a_signature_is_of_one_document_and_one_key():
    signed = signed_acceptance("acme.tweets", "globex", "ab" * 32)
    acceptance, key = signed.acceptance, public_identity("globex")
    assert is_signed(acceptance, signed.signature, key)
    Ed25519PublicKey.from_public_bytes(base64.b64decode(key)).verify(
        base64.b64decode(signed.signature), acceptance.canonical()
    )
    assert not is_signed(acceptance, signed.signature, public_identity("acme"))
    for change in ({"organization": "acme"}, {"project": "acme.other"}, {"identity": public_identity("acme")}):
        other = PolicyAcceptance.model_validate(acceptance.model_dump() | change)
        assert not is_signed(other, signed.signature, key)
    assert not is_signed(acceptance, "not base64", key)
    assert not is_signed(acceptance, signed.signature, "AAAA")
    assert signed == signed_acceptance("acme.tweets", "globex", "ab" * 32, key=identity_of("globex"))
