"""The doctor's checks of where bytes lie: the blob store, the database's file, free space."""

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from gramfuse_server.blobs import open_blobs
from gramfuse_server.clock import system_clock
from gramfuse_server.database import open_database
from gramfuse_server.doctor.database import check_database
from gramfuse_server.doctor.storage import Need, check_disk, check_round_trip, examine_disks, examine_store
from gramfuse_server.settings import Settings
from gramfuse_shared.limits import GIB
from support.nobody import AsNobody, nobody


@pytest.fixture
def as_nobody() -> Iterator[AsNobody]:
    with nobody() as acting:
        yield acting


def test_a_blob_store_takes_gives_and_deletes_and_nothing_is_left(tmp_path):
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    store, clock = check_round_trip(blobs, "here", tmp_path / "blobs", system_clock)
    assert (store.verdict, clock.verdict) == ("ok", "ok")
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_blob_folder_that_is_read_only_fails_and_says_what_is_needed(as_nobody):
    folder = as_nobody.folder / "blobs"
    folder.mkdir(mode=0o555)
    blobs = open_blobs(folder.as_uri())
    with as_nobody:
        (found,) = check_round_trip(blobs, "here", folder, system_clock)
    assert found.verdict == "failed"
    assert "cannot be written and read: " in found.found
    assert "owner and mode" in found.advice


def test_a_blob_folder_of_another_user_is_told_since_the_api_may_not_be_root(as_nobody):
    folder = as_nobody.folder / "blobs"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    blobs = open_blobs(folder.as_uri())
    with as_nobody:
        found, _ = check_round_trip(blobs, "here", folder, system_clock)
    assert found.verdict == ("warning" if as_nobody.was_root else "ok")
    assert ("run the doctor as that user" in found.advice) == as_nobody.was_root


def test_a_blob_folder_that_is_missing_is_not_made_by_the_doctor(tmp_path, as_nobody):
    settings = Settings(server_home=tmp_path)
    (found,) = examine_store(settings, system_clock)
    assert found.verdict == "warning"
    assert list(tmp_path.iterdir()) == []
    as_nobody.folder.chmod(0o555)
    with as_nobody:
        (found,) = examine_store(Settings(server_home=as_nobody.folder / "home"), system_clock)
    assert (found.verdict, "cannot be made" in found.found) == ("failed", True)
    (tmp_path / "blobs").touch()
    (found,) = examine_store(settings, system_clock)
    assert found.verdict == "failed"


def test_a_blob_store_of_no_kind_fails(tmp_path):
    (found,) = examine_store(Settings(server_home=tmp_path, blobs="nowhere://x"), system_clock)
    assert (found.verdict, "GRAMFUSE_BLOBS" in found.found) == ("failed", True)


def test_an_object_store_that_does_not_answer_fails_within_seconds(tmp_path, monkeypatch):
    for name, value in (("ENDPOINT", "http://127.0.0.1:1"), ("ALLOW_HTTP", "true"), ("REGION", "x")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    began = system_clock()
    findings = examine_store(Settings(server_home=tmp_path, blobs="s3://bucket/x"), system_clock)
    assert system_clock() - began < timedelta(seconds=10)
    assert [finding.verdict for finding in findings] == ["failed"]
    assert "builder" not in findings[0].found, "the variables count"
    assert "AWS_" in findings[0].advice


@pytest.mark.parametrize(("free", "verdict"), [(0, "failed"), (GIB - 1, "failed"), (GIB, "warning"), (2 * GIB, "ok")])
def test_a_disk_is_full_nearly_full_or_has_room(tmp_path, free, verdict):
    need = Need(GIB, 2 * GIB, "GRAMFUSE_SCRATCH")
    asked = []

    def usage(path):
        asked.append(path)
        return SimpleNamespace(total=10 * GIB, free=free)

    found = check_disk("disk", tmp_path / "not" / "there", need, usage)
    assert found.verdict == verdict
    assert asked == [tmp_path], "of the folder in which it would be made"
    assert ("GRAMFUSE_SCRATCH" in found.advice) == (verdict != "ok")


def test_a_full_disk_fails_for_everything_that_lies_on_this_machine_and_for_nothing_else(tmp_path):
    def full(_):
        return SimpleNamespace(total=GIB, free=0)

    here = examine_disks(Settings(server_home=tmp_path), full)
    assert {finding.name: finding.verdict for finding in here} == dict.fromkeys(
        ("disk, scratch", "disk, blobs", "disk, database"), "failed"
    )
    elsewhere = Settings(server_home=tmp_path, database_url=SecretStr("postgresql://db/x"), blobs="s3://b/x")
    assert [finding.name for finding in examine_disks(elsewhere, full)] == ["disk, scratch"]


def test_a_disk_that_cannot_be_asked_fails(tmp_path):
    def broken(_):
        raise OSError(5, "Input/output error")

    assert check_disk("disk", tmp_path, Need(1, 2, "X"), broken).verdict == "failed"


def test_a_database_file_that_is_read_only_is_told(as_nobody):
    url = SecretStr(f"sqlite:///{as_nobody.folder}/gramfuse.sqlite")
    made = open_database(url, create=True)
    assert check_database(made).verdict == "ok"
    made.close()
    (as_nobody.folder / "gramfuse.sqlite").chmod(0o444)
    as_nobody.folder.chmod(0o555)
    opened = open_database(url)
    with as_nobody:
        found = check_database(opened)
    opened.close()
    assert found.verdict == "failed"
    assert found.advice
