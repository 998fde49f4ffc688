"""Signed addresses of an S3 store: whom they name, what they promise, when there are none."""

import base64
import builtins
import hashlib
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest

from gramfuse_server.blobs import open_blobs
from gramfuse_server.direct import DirectTransfers, open_direct
from gramfuse_server.settings import Settings, load_settings
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import ConfigurationError, ExtraMissingError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CONTENT = b"weights"


@pytest.fixture(autouse=True)
def _credentials(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def direct_to(blobs: str = "s3://bucket/prefix", **settings) -> DirectTransfers:
    made = open_direct(Settings(blobs=blobs, direct_transfers=True, **settings), open_blobs(blobs))
    assert made is not None
    return made


def address_of(direct: DirectTransfers, key: str = "sha256/ab") -> str:
    return direct.get(key, now=NOW).url.get_secret_value().partition("?")[0]


@pytest.mark.parametrize(
    ("variables", "settings", "address"),
    [
        ({}, {}, "https://s3.eu-west-1.amazonaws.com/bucket/prefix/sha256/ab"),
        ({}, {"blobs": "s3://bucket"}, "https://s3.eu-west-1.amazonaws.com/bucket/sha256/ab"),
        ({}, {"blobs": "s3://bucket/a b/c"}, "https://s3.eu-west-1.amazonaws.com/bucket/a%20b/c/sha256/ab"),
        (
            {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"},
            {},
            "https://bucket.s3.eu-west-1.amazonaws.com/prefix/sha256/ab",
        ),
        ({"AWS_ENDPOINT": "http://seaweedfs:8333"}, {}, "http://seaweedfs:8333/bucket/prefix/sha256/ab"),
        (
            {"AWS_ENDPOINT": "http://seaweedfs:8333"},
            {"direct_endpoint": "https://store.example.org/"},
            "https://store.example.org/bucket/prefix/sha256/ab",
        ),
    ],
)
def test_an_address_is_where_clients_reach_the_key(monkeypatch, variables, settings, address):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert address_of(direct_to(**settings)) == address


def test_length_digest_and_novelty_are_signed_and_so_is_the_time():
    request = direct_to(direct_lifetime=timedelta(minutes=5)).put(
        "uploads/u/f/0.ab", length=len(CONTENT), sha256=sha256_hex(CONTENT), now=NOW
    )
    query = parse_qs(urlsplit(request.url.get_secret_value()).query)
    assert query["X-Amz-SignedHeaders"] == ["content-length;host;if-none-match;x-amz-checksum-sha256"]
    assert query["X-Amz-Expires"] == ["300"]
    assert query["X-Amz-Credential"][0].startswith("AKIA/")
    assert request.headers == {
        "content-length": "7",
        "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(CONTENT).digest()).decode(),
        "if-none-match": "*",
    }
    assert request.expires_at == NOW + timedelta(minutes=5)


def test_a_roles_token_is_part_of_the_address(monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a/role's")
    assert "&X-Amz-Security-Token=a%2Frole%27s" in direct_to().get("k", now=NOW).url.get_secret_value()


def test_no_repr_shows_an_address_or_a_secret():
    direct = direct_to()
    shown = f"{direct.get('k', now=NOW)!r} {direct!r}"
    assert "Signature" not in shown
    assert "secret'" not in shown


def test_without_the_setting_nothing_is_made_nor_imported(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **named):
        assert not name.startswith("botocore")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert open_direct(Settings(blobs="s3://bucket"), open_blobs("s3://bucket")) is None


def test_a_folder_has_no_signed_addresses(monkeypatch):
    monkeypatch.setenv("GRAMFUSE_DIRECT_TRANSFERS", "on")
    monkeypatch.setenv("GRAMFUSE_BLOBS", "file:///srv/blobs")
    with pytest.raises(ConfigurationError, match=r"GRAMFUSE_BLOBS=s3://bucket/prefix: a folder has no signed URLs"):
        load_settings()


def test_without_credentials_the_server_does_not_start(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigurationError, match="signs with AWS_ACCESS_KEY_ID"):
        direct_to()


def test_an_endpoint_that_is_none_is_told(monkeypatch):
    with pytest.raises(ConfigurationError, match="the store's address cannot be told"):
        direct_to(direct_endpoint="not a url")


def test_without_botocore_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "botocore.session", None)
    with pytest.raises(ExtraMissingError, match=r'pip install "\.\[direct\]"'):
        direct_to()
