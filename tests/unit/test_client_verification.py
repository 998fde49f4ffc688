"""Offline verification finds every kind of tampering."""

import base64
import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gramfuse import pinning
from gramfuse.config import Home
from gramfuse.trust import Trust
from gramfuse.verification import verify
from gramfuse_shared.contract.identity import ContributionStatement
from gramfuse_shared.errors import DigestMismatchError, FileUnreadableError, ReceiptInvalidError
from gramfuse_shared.signatures import public_key, sign
from support.identities import keep_identity
from support.receipts import KEY, public, receipt_of, signed
from support.secure_sessions import identity_of

URL = "https://merge.example.org"
FILES = {"config.json": b'{"model_type": "bert"}', "model.safetensors": bytes(range(200))}
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "receipt.json").write_bytes(signed(receipt_of(FILES)).canonical())
    return folder


def check(folder: Path):
    return verify(folder, trusted_keys={public(KEY): URL})


def test_an_untouched_model_verifies_and_names_its_signer(model):
    found = check(model)
    assert (found.signer, found.files, found.bytes) == (URL, 2, sum(map(len, FILES.values())))
    assert found.receipt.model == "regmean-1"


def test_a_file_in_the_place_of_the_folder_is_called_so(model):
    with pytest.raises(FileUnreadableError, match=r"config.json is a file, and a folder is wanted: one that holds"):
        check(model / "config.json")


def test_by_default_the_keys_pinned_at_first_use_are_trusted(model, tmp_path):
    home = Home(tmp_path / "home")
    with pytest.raises(ReceiptInvalidError, match="not pinned"):
        verify(model, home=home)
    pinning.pin(home, URL, public(KEY))
    assert verify(model, home=home).signer == URL


def contributed(*, key=None, **changes):
    """The identity and signature that a receipt gives of globex's contribution."""
    key = key or identity_of("globex")
    told = {"project": "acme.tweets", "organization": "globex", "policy": {"version": 1, "digest": "cd" * 32}}
    statement = ContributionStatement.model_validate(
        told | {"manifest": "ef" * 32, "identity": public_key(key)} | changes
    )
    return {"identity": public_key(key), "signature": sign(statement, key)}


def verified(model, home, **contribution):
    (model / "receipt.json").write_bytes(signed(receipt_of(FILES, **contribution)).canonical())
    return verify(model, trusted_keys={public(KEY): URL}, home=home).contributions


def test_who_signed_a_contribution_is_told_and_whether_people_compared_the_key(model, tmp_path):
    home = Home(tmp_path / "home")
    assert verified(model, home) == {"globex": "not signed"}
    assert verified(model, home, **contributed()) == {"globex": "not compared"}
    keep_identity("globex", home.path)
    assert verified(model, home, **contributed()) == {"globex": "own"}
    other = Home(tmp_path / "other")
    Trust.of(other, URL, "acme.tweets").verify({"globex": public_key(identity_of("globex"))})
    assert verified(model, other, **contributed()) == {"globex": "verified"}


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest": "00" * 32},  # another contribution
        {"organization": "initech"},
        {"project": "acme.other"},
        {"policy": {"version": 2, "digest": "cd" * 32}},
    ],
)
def test_a_server_that_swaps_or_invents_a_contribution_is_found_out(model, tmp_path, changes):
    with pytest.raises(ReceiptInvalidError, match="contribution of globex in the receipt is not signed"):
        verified(model, Home(tmp_path / "home"), **contributed(**changes))


def test_a_server_that_signs_for_a_member_whose_key_people_compared_is_found_out(model, tmp_path):
    home = Home(tmp_path / "home")
    Trust.of(home, URL, "acme.tweets").verify({"globex": public_key(identity_of("globex"))})
    with pytest.raises(ReceiptInvalidError, match="another identity key than the one that you verified"):
        verified(model, home, **contributed(key=OTHER_KEY))


@pytest.mark.parametrize("position", [0, 77, 199])
def test_a_flipped_bit_is_found(model, position):
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestMismatchError, match=r"model\.safetensors was altered"):
        check(model)


@pytest.mark.parametrize("content", [b"", FILES["config.json"][:-1], FILES["config.json"] + b" "])
def test_a_shortened_or_lengthened_file_is_found(model, content):
    (model / "config.json").write_bytes(content)
    with pytest.raises(DigestMismatchError, match=r"config\.json"):
        check(model)


def test_a_missing_file_is_found(model):
    (model / "config.json").unlink()
    with pytest.raises(FileUnreadableError, match=r"config\.json is missing"):
        check(model)


def test_a_link_in_place_of_a_file_is_found(model, tmp_path):
    shutil.move(model / "config.json", tmp_path / "elsewhere.json")
    (model / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(FileUnreadableError, match="regular file"):
        check(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling.py", ".hidden"])
def test_a_spare_file_is_found(model, name):
    (model / name).write_bytes(b"x")
    with pytest.raises(ReceiptInvalidError, match="does not name"):
        check(model)


def test_a_missing_receipt_is_found(model):
    (model / "receipt.json").unlink()
    with pytest.raises(FileUnreadableError, match="not a folder that `gramfuse model pull` wrote"):
        check(model)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"receipt": {}}'])
def test_what_is_not_a_receipt_is_found(model, text):
    (model / "receipt.json").write_text(text)
    with pytest.raises(ReceiptInvalidError, match="not a signed receipt"):
        check(model)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model",), "regmean-2"),
        (("policy", "version"), 2),
        (("contributions", 0, "weight"), 0.5),
        (("recipe", "parameters", "alpha"), 0.8),
        (("created",), "2026-01-02T03:04:06Z"),
        (("outputs", 0, "sha256"), "00" * 32),
    ],
)
def test_a_receipt_with_any_altered_word_is_found(model, path, value):
    document = json.loads((model / "receipt.json").read_text())
    place = document["receipt"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (model / "receipt.json").write_text(json.dumps(document))
    with pytest.raises(ReceiptInvalidError, match="signature is wrong"):
        check(model)


def test_a_receipt_signed_by_another_key_is_found_even_if_it_names_the_trusted_one(model):
    forged = signed(receipt_of(FILES), OTHER_KEY)
    (model / "receipt.json").write_bytes(forged.canonical())
    with pytest.raises(ReceiptInvalidError, match="not pinned"):
        check(model)
    (model / "receipt.json").write_bytes(forged.model_copy(update={"public_key": public(KEY)}).canonical())
    with pytest.raises(ReceiptInvalidError, match="signature is wrong"):
        check(model)


@pytest.mark.parametrize("field", ["public_key", "signature"])
def test_keys_and_signatures_of_a_wrong_length_are_found(model, field):
    document = json.loads((model / "receipt.json").read_text())
    document[field] = base64.b64encode(b"short").decode()
    (model / "receipt.json").write_text(json.dumps(document))
    with pytest.raises(ReceiptInvalidError):
        verify(model, trusted_keys={document["public_key"]: URL})
