"""Settings, database URLs, blob keys and parts: what can be said without a server."""

import asyncio
import hashlib
import os
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from gramfuse_server.blobs import blob_key, open_blobs, part_key
from gramfuse_server.database import database_url, open_database, reading, transaction
from gramfuse_server.intake.parts import PartBuffers, PartedFile, Slot, receive
from gramfuse_server.intake.uploads import part_length
from gramfuse_server.settings import Settings, load_settings
from gramfuse_shared import limits
from gramfuse_shared.errors import (
    ConfigurationError,
    DigestMismatchError,
    PartOutOfRangeError,
    TooLargeError,
    UnavailableError,
)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in [name for name in os.environ if name.startswith("GRAMFUSE_")]:
        monkeypatch.delenv(name)


def test_everything_lies_in_the_home_folder_unless_set_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAMFUSE_SERVER_HOME", str(tmp_path))
    settings = Settings()
    assert settings.database_url.get_secret_value() == f"sqlite:///{tmp_path}/gramfuse.sqlite"
    assert settings.blobs == f"file://{tmp_path}/blobs"
    assert settings.receipt_key == tmp_path / "receipt-key.pem"


def test_the_clients_home_is_not_the_servers(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAMFUSE_HOME", str(tmp_path / "client"))
    monkeypatch.chdir(tmp_path)
    assert Settings().server_home == tmp_path / ".gramfuse-server"


def test_opening_a_database_that_is_not_there_makes_none_and_says_where_it_would_be(tmp_path):
    path = tmp_path / "home" / "gramfuse.sqlite"
    with pytest.raises(ConfigurationError, match=r"gramfuse-server init.*GRAMFUSE_SERVER_HOME") as refused:
        open_database(SecretStr(f"sqlite:///{path}"))
    assert str(path) in refused.value.message
    assert list(tmp_path.iterdir()) == []


def test_the_environment_overrides_and_an_empty_variable_means_unset(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAMFUSE_SERVER_HOME", str(tmp_path))
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", "postgresql://u:secret@db/x")
    monkeypatch.setenv("GRAMFUSE_BLOBS", "")
    settings = Settings()
    assert settings.database_url.get_secret_value() == "postgresql://u:secret@db/x"
    assert settings.blobs == f"file://{tmp_path}/blobs"


def test_a_password_in_the_database_url_is_never_shown():
    settings = Settings(server_home=Path("/x"), database_url=SecretStr("postgresql://u:hunter2@db/x"))
    assert "hunter2" not in repr(settings) + str(settings) + str(settings.model_dump())
    assert "hunter2" not in repr(database_url(settings.database_url))


@pytest.mark.parametrize(
    "place", ["u:hun@qzq/2@host/x", "u:hun@qzq@host/x", "u:hun@qzq:2@host/x", "u:hun@qzq?2@host/x", "u:p@host:qzq/x"]
)
def test_a_password_that_was_not_percent_encoded_is_refused_without_a_part_of_it(place):
    with pytest.raises(ConfigurationError, match=r"password holds @, / .*%40.*%2F") as refused:
        database_url(SecretStr(f"postgresql://{place}"))
    assert "qzq" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_url_whose_parts_can_be_told_apart_is_taken():
    for place in ("u:a%40b%2Fc@host:5432/x", "u:a/b?c@host/x", "u@/x?host=/run/postgresql&user=u@server", "/x"):
        assert database_url(SecretStr(f"postgresql://{place}")).database == "x"
    assert database_url(SecretStr("postgresql://u:a%40b%2Fc@host/x")).password == "a@b/c"
    assert database_url(SecretStr("sqlite:////srv/a@b@c/x.sqlite")).database == "/srv/a@b@c/x.sqlite"


@pytest.mark.parametrize("url", ["", "mysql://x/y", "sqlite://", "sqlite:///:memory:", "no url"])
def test_a_database_that_cannot_be_used_is_refused_with_an_example(url):
    with pytest.raises(ConfigurationError, match="GRAMFUSE_DATABASE_URL"):
        database_url(SecretStr(url))


@pytest.mark.parametrize("url", ["nowhere://x", "no url", "file://host/x y"])
def test_a_blob_store_that_cannot_be_used_is_refused_with_an_example(url):
    with pytest.raises(ConfigurationError, match="GRAMFUSE_BLOBS"):
        open_blobs(url)


def test_a_reading_session_cannot_write_over_sqlite_writers(tmp_path):
    database = open_database(SecretStr(f"sqlite:///{tmp_path}/x.sqlite"), create=True)
    with transaction(database) as session:
        session.connection().exec_driver_sql("CREATE TABLE t (x INTEGER)")
    with transaction(database) as session, reading(database) as reader:
        session.connection().exec_driver_sql("INSERT INTO t VALUES (1)")
        # a writer holds its lock; a reader neither waits for it nor sees what is not committed
        assert reader.connection().exec_driver_sql("SELECT count(*) FROM t").scalar() == 0
    database.close()


# --- blobs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def blobs(tmp_path):
    return open_blobs((tmp_path / "blobs").as_uri())


def test_bytes_under_a_key_are_never_overwritten(blobs):
    assert blobs.put(blob_key("a"), b"first")
    assert not blobs.put(blob_key("a"), b"other")
    assert blobs.read(blob_key("a"), 0, 5) == b"first"


def test_a_key_that_is_not_there_has_no_size_and_deletes_quietly(blobs):
    assert blobs.size(blob_key("a")) is None
    blobs.delete(blob_key("a"))


def test_a_prefix_is_deleted_with_all_its_keys_and_no_other(blobs):
    for upload in ("u1", "u10"):
        blobs.put(part_key(upload, "f", 0, "d"), b"x")
    assert blobs.delete_prefix("uploads/u1/") == 1
    assert list(blobs.keys("")) == [part_key("u10", "f", 0, "d")]


def test_the_probe_leaves_nothing_behind_and_fails_where_nothing_can_be_written(blobs, tmp_path):
    blobs.probe("host")
    assert list(blobs.keys("")) == []
    (tmp_path / "blobs" / "probes").rmdir()
    (tmp_path / "blobs" / "probes").write_text("in the way")
    with pytest.raises(OSError, match="probes"):
        blobs.probe("host")


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "preferred"),
    [(1, 1024), (1024 * limits.MAX_PARTS_PER_FILE, 1024), (limits.TIB, 16 * limits.MIB), (2 * limits.TIB, 1)],
)
def test_parts_are_as_preferred_unless_there_would_be_too_many(size, preferred):
    length = part_length(size, preferred)
    assert -(-size // length) <= limits.MAX_PARTS_PER_FILE
    assert preferred <= length <= limits.MAX_PART_BYTES
    assert length == preferred or -(-size // preferred) > limits.MAX_PARTS_PER_FILE


def test_a_file_that_no_parts_can_carry_is_refused():
    with pytest.raises(TooLargeError, match="smaller shards"):
        part_length(limits.MAX_FILE_BYTES, 16 * limits.MIB)


def slot_for(content):
    return Slot(upload="u", file="f", number=0, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


async def body_of(*chunks, pause=0.0):
    for chunk in chunks:
        await asyncio.sleep(pause)
        yield chunk


def receive_now(slot, *chunks, within=5.0, pause=0.0):
    content = bytearray(slot.bytes)
    body = body_of(*chunks, pause=pause)
    asyncio.run(receive(body, slot, memoryview(content), within=timedelta(seconds=within)))
    return bytes(content)


def test_a_part_is_received_whatever_its_chunks():
    content = os.urandom(9 * limits.MIB + 17)
    for size in (len(content), 65_536, 999_983):
        chunks = [content[start : start + size] for start in range(0, len(content), size)]
        assert receive_now(slot_for(content), *chunks) == content


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        ((b"abc",), PartOutOfRangeError),
        ((b"abcd", b"e"), PartOutOfRangeError),
        ((b"abce",), DigestMismatchError),
        ((), PartOutOfRangeError),
    ],
)
def test_a_part_with_other_bytes_than_announced_is_refused(chunks, error):
    with pytest.raises(error):
        receive_now(slot_for(b"abcd"), *chunks)


def test_a_part_that_does_not_arrive_in_time_is_given_up_and_may_be_sent_again():
    with pytest.raises(UnavailableError) as caught:
        receive_now(slot_for(b"abcd"), b"ab", b"cd", within=0.05, pause=1.0)
    assert caught.value.retryable


def test_memory_for_parts_is_bounded_and_the_next_part_waits_for_it():
    async def play():
        buffers, order = PartBuffers(2, 2), []

        async def part(number, size):
            async with buffers.take(size, owner=f"org-{number % 4}") as content:
                assert len(content) == size
                order.append(f"+{number}")
                await asyncio.sleep(0.01)
                order.append(f"-{number}")

        await asyncio.gather(*(part(number, 10 * number + 1) for number in range(6)))
        return order

    order, held = asyncio.run(play()), 0
    for step in order:
        held += 1 if step.startswith("+") else -1
        assert held <= 2
    assert len(order) == 12


def test_an_organization_whose_parts_stand_still_leaves_memory_for_the_others():
    async def play():
        buffers, stands_still = PartBuffers(4, 3), asyncio.Event()

        async def slow():
            async with buffers.take(10, owner="acme"):
                await stands_still.wait()

        slow_ones = [asyncio.create_task(slow()) for _ in range(50)]
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            for _ in range(10):
                async with buffers.take(10, owner="globex"):
                    pass
        stands_still.set()
        await asyncio.gather(*slow_ones)
        assert not buffers._shares  # who sends nothing is forgotten

    asyncio.run(play())


def test_a_file_in_parts_reads_like_the_file(blobs):
    content = os.urandom(1000)
    for length in (1000, 333, 64):
        pieces = [content[start : start + length] for start in range(0, 1000, length)]
        keys = [part_key("u", f"f{length}", number, "d") for number in range(len(pieces))]
        for key, piece in zip(keys, pieces, strict=True):
            blobs.put(key, piece)
        file = PartedFile(blobs=blobs, size=1000, part_bytes=length, keys=tuple(keys))
        for start, end in ((0, 1000), (0, 0), (5, 6), (60, 700), (999, 5000)):
            assert file.read(start, end) == content[start:end]


def test_a_part_that_the_store_lost_is_unavailable_not_wrong(blobs):
    file = PartedFile(blobs=blobs, size=10, part_bytes=10, keys=(part_key("u", "f", 0, "d"),))
    with pytest.raises(UnavailableError):
        file.read(0, 10)


def test_trusted_proxies_are_addresses_and_networks_by_commas(monkeypatch):
    assert Settings().trusted_proxies == ("127.0.0.1", "::1")
    monkeypatch.setenv("GRAMFUSE_TRUSTED_PROXIES", "10.1.2.3, 172.16.0.0/12,fd00::/8")
    assert Settings().trusted_proxies == ("10.1.2.3", "172.16.0.0/12", "fd00::/8")
    monkeypatch.setenv("GRAMFUSE_TRUSTED_PROXIES", "")
    assert Settings().trusted_proxies == ("127.0.0.1", "::1")


@pytest.mark.parametrize("value", ["*", "proxy.example.org", "172.16.0.1/12", "127.0.0.1,"])
def test_everybody_a_name_or_half_a_network_is_no_trusted_proxy(monkeypatch, value):
    monkeypatch.setenv("GRAMFUSE_TRUSTED_PROXIES", value)
    with pytest.raises(ConfigurationError, match="GRAMFUSE_TRUSTED_PROXIES"):
        load_settings()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("90s", timedelta(seconds=90)),
        ("0.5s", timedelta(seconds=0.5)),
        ("5m", timedelta(minutes=5)),
        ("1.5 h", timedelta(minutes=90)),
        ("7d", timedelta(days=7)),
        ("PT5M", timedelta(minutes=5)),
        ("00:05:00", timedelta(minutes=5)),
    ],
)
def test_durations_are_written_as_people_write_them(monkeypatch, written, meant):
    monkeypatch.setenv("GRAMFUSE_PART_TIMEOUT", written)
    assert load_settings().part_timeout == meant


@pytest.mark.parametrize("written", ["300", "five minutes", "5 min", "m", "99999999999999d", "-5m"])
def test_what_is_no_duration_is_refused_with_how_to_write_one(monkeypatch, written):
    monkeypatch.setenv("GRAMFUSE_PART_TIMEOUT", written)
    with pytest.raises(ConfigurationError, match=r"GRAMFUSE_PART_TIMEOUT: '.*' is no duration; write it as 30s, 5m"):
        load_settings()


@pytest.mark.parametrize(
    "name",
    ["PART_TIMEOUT", "HEAD_TIMEOUT", "UPLOAD_LIFETIME", "HEARTBEAT_INTERVAL", "WORKER_LEASE", "SWEEP_INTERVAL"],
)
def test_durations_that_nothing_could_meet_are_refused(monkeypatch, name):
    monkeypatch.setenv(f"GRAMFUSE_{name}", "0s")
    with pytest.raises(ConfigurationError, match=f"GRAMFUSE_{name}: must be at least 0.001s"):
        load_settings()


def test_a_duration_below_its_bound_is_told_the_bound(monkeypatch):
    monkeypatch.setenv("GRAMFUSE_BLOB_GRACE", "5m")
    with pytest.raises(ConfigurationError, match="GRAMFUSE_BLOB_GRACE: must be at least 3600s"):
        load_settings()


def test_a_lease_that_no_sign_of_life_renews_in_time_is_refused(monkeypatch):
    monkeypatch.setenv("GRAMFUSE_HEARTBEAT_INTERVAL", "5s")
    with pytest.raises(ConfigurationError, match="longer than GRAMFUSE_HEARTBEAT_INTERVAL"):
        load_settings()
