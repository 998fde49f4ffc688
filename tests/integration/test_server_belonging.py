"""A store that is not the one in which the database names its files: who works with it would destroy uploads."""

import json
import shutil

import pytest

from gramfuse_server.belonging import count_missing, require_own_store
from gramfuse_server.blobs import blob_key, open_blobs
from gramfuse_server.cli import main
from gramfuse_server.database import reading
from gramfuse_server.tables import BlobRow, UploadFileRow
from gramfuse_server.worker import run_worker
from gramfuse_shared.errors import ConfigurationError

one_database = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")  # not its queries


@pytest.fixture
def elsewhere(ready_settings, tmp_path):
    """Settings of the same server with an empty store."""
    return ready_settings.model_copy(update={"blobs": (tmp_path / "empty").as_uri()})


@pytest.fixture
def environment(elsewhere, monkeypatch):
    monkeypatch.setenv("GRAMFUSE_SERVER_HOME", str(elsewhere.server_home))
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", elsewhere.database_url.get_secret_value())
    monkeypatch.setenv("GRAMFUSE_SHARD_BYTES", "1")
    return monkeypatch


def test_a_store_without_any_file_that_the_database_names_is_refused_and_its_own_is_not(ready, elsewhere):
    world, _ = ready
    require_own_store(world.services.database, world.services.settings)
    asked = r"empty has none of the newest and oldest \d files that this database names: is GRAMFUSE_BLOBS what the API"
    with pytest.raises(ConfigurationError, match=asked):
        require_own_store(world.services.database, elsewhere)
    with pytest.raises(ConfigurationError, match="is the disk mounted"):
        run_worker(elsewhere)


@pytest.mark.parametrize("end", ["newest", "oldest"])
@one_database
def test_what_was_lost_of_a_store_stops_nobody(ready, end):
    """As after a restore of a store that is older than the database, or with one file that cannot be read."""
    world, _ = ready
    with reading(world.services.database) as session:
        kept = session.query(BlobRow.sha256).order_by(BlobRow.created_at, BlobRow.sha256).all()
    (sha256,) = kept[-1 if end == "newest" else 0]
    for key in list(world.services.blobs.keys("sha256/")):
        if key != blob_key(sha256):
            world.services.blobs.delete(key)
    assert count_missing(world.services.database, world.services.blobs) == 0


def test_a_new_server_and_one_that_was_sent_nothing_may_have_an_empty_store(world, tmp_path):
    assert count_missing(world.services.database, world.services.blobs) == 0
    world.project("acme", ready=False)
    assert count_missing(world.services.database, open_blobs((tmp_path / "empty").as_uri())) == 0


@one_database
def test_parts_that_wait_to_be_checked_are_looked_for_where_nothing_is_accepted_yet(world, tmp_path):
    project = world.project("acme")
    world.contribute(project, "acme")
    with reading(world.services.database) as session:
        assert session.query(UploadFileRow).count()
    empty = open_blobs((tmp_path / "empty").as_uri())
    shutil.rmtree(world.services.settings.server_home / "blobs" / "sha256")
    assert count_missing(world.services.database, empty) > 0
    assert count_missing(world.services.database, world.services.blobs) == 0  # its parts are there


@one_database
def test_a_server_under_which_the_disk_goes_is_not_ready(ready, ready_settings):
    world, _ = ready
    assert world.client().get("/readyz").status_code == 200
    world.services.readiness.monotonic = lambda: float("inf")  # as if later
    shutil.rmtree(ready_settings.server_home / "blobs")
    (ready_settings.server_home / "blobs").mkdir()
    answer = world.client().get("/readyz")
    assert answer.status_code == 503
    assert "has none of the files that the database names" in answer.text


@one_database
def test_a_store_that_does_not_answer_is_not_taken_for_another(ready, ready_settings, monkeypatch):
    world, _ = ready
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_REGION", "x")
    require_own_store(world.services.database, ready_settings.model_copy(update={"blobs": "s3://bucket/x"}))


@one_database
def test_the_api_does_not_start_and_the_doctor_says_why(environment, elsewhere, capsys):
    environment.setenv("GRAMFUSE_BLOBS", elsewhere.blobs)
    assert main(["doctor", "--format", "json"]) == 1  # before the folder is made
    printed = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "has none of the newest" in printed["blob store, files"]["found"]
    assert "is the disk mounted" in printed["blob store, files"]["advice"]
    assert main(["serve", "--port", "0"]) == 1
    assert "is GRAMFUSE_BLOBS what the API has" in capsys.readouterr().err
    assert main(["doctor", "--format", "json"]) == 1
    environment.delenv("GRAMFUSE_BLOBS")
    capsys.readouterr()
    main(["doctor", "--format", "json"])
    printed = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert printed["blob store, files"]["verdict"] == "ok"
