"""No byte stays that nothing names, and none goes that is about to be named: crashes, and sweeps that meet writers."""

import random
import threading
import time
from contextlib import contextmanager, suppress
from datetime import timedelta

import pytest

from gramfuse_server import keeping, sweeping
from gramfuse_server.blobs import Blobs, blob_key
from gramfuse_server.clock import system_clock
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake.inspection import Inspector
from gramfuse_server.keeping import CONDEMNATION_HOLDS, CONDEMNATION_LAPSES, keep
from gramfuse_server.merging import attempts, publication
from gramfuse_server.sweeping import adopt_strays, delete_spent_bytes
from gramfuse_server.tables import BlobRow, ModelFileRow, TaskRow, UploadFileRow, UploadRow
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import UnavailableError
from support.worker_world import contribute

PROJECT = "acme.tweets"
JOB = f"/v1/projects/{PROJECT}/jobs/first"
CONTENT = b"bytes that somebody writes"
DIGEST = sha256_hex(CONTENT)


class KilledError(BaseException):
    """The process ends here: nothing that follows happens, as little is caught."""


@contextmanager
def killed_at(monkeypatch, place, step):
    """Let the process end where it would take a step."""

    def end(*_arguments, **_keywords):
        raise KilledError

    with monkeypatch.context() as crash:
        crash.setattr(place, step, end)
        with pytest.raises(KilledError):
            yield


def submit(world):
    answer = world.coordinator("acme").put(JOB, json={"recipe": {"merge_method": "regmean"}})
    assert answer.status_code == 201, answer.text


def cancel(world):
    assert world.coordinator("acme").post(f"{JOB}/cancel").json()["state"] == "cancelled"


def complete(world) -> set[str]:
    return {key.removeprefix("sha256/") for key in world.services.blobs.keys("sha256/")}


def account(world) -> set[str]:
    with reading(world.services.database) as session:
        return {row.sha256 for row in session.query(BlobRow)}


def sweep(world, **later) -> int:
    world.clock.advance(**later)
    return delete_spent_bytes(world.services.database, world.services.blobs, world.clock())


def keep_here(world, **changes):
    keep(world.services.database, world.services.blobs, {DIGEST: CONTENT}, clock=world.clock, **changes)


@pytest.fixture
def merging(ready):
    """A job whose shard is to be computed, and what the store held before."""
    world, worker = ready
    submit(world)
    attempt = worker.attempt(PROJECT, "first")
    worker.merger.plan(attempt, shard_bytes=worker.shard_bytes)
    return world, worker, attempt, complete(world)


def test_a_shard_whose_worker_was_killed_before_it_was_noted_goes_after_the_grace_period(merging, monkeypatch):
    world, worker, attempt, before = merging
    with killed_at(monkeypatch, attempts, "finish_task"):
        worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    cancel(world)
    assert len(complete(world) - before) == 1
    assert sweep(world, hours=23) == 0
    assert len(complete(world) - before) == 1
    assert sweep(world, hours=2) == 1
    assert complete(world) == account(world) == before


def test_the_small_files_of_a_model_that_was_never_published_go_after_the_grace_period(merging, monkeypatch):
    world, worker, attempt, before = merging
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    with killed_at(monkeypatch, publication, "publish"):
        worker.merger.publish(attempt, shard_bytes=worker.shard_bytes)
    cancel(world)
    small = complete(world) - before
    assert len(small) > 3
    assert sweep(world) == 1  # the shard, which nobody claims any more
    sweep(world, hours=25)
    assert complete(world) == account(world) == before


def test_files_of_an_inspection_that_was_given_up_go_after_the_grace_period(ready, monkeypatch):
    world, worker = ready
    before = complete(world)
    contribute(world, world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json(), "acme", 7)
    with killed_at(monkeypatch, Inspector, "_decide"):
        worker.inspect_all()
    with reading(world.services.database) as session:
        (upload,) = session.query(UploadRow.id).filter_by(state="sealed").one()
    worker.inspector.abandon(upload, "given up")
    assert len(complete(world) - before) == 2
    sweep(world, hours=25)
    assert complete(world) == account(world) == before


def test_shards_of_a_job_that_ended_without_a_model_go_at_once(merging):
    world, worker, attempt, before = merging
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    assert sweep(world) == 0  # an unfinished job names them
    assert len(complete(world) - before) == 1
    cancel(world)
    assert sweep(world) == 1
    assert complete(world) == account(world) == before


def test_shards_of_an_earlier_attempt_go_and_those_of_the_present_one_stay(merging):
    world, worker, attempt, before = merging
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    cancel(world)
    assert world.coordinator("acme").post(f"{JOB}/retry").status_code == 200
    assert sweep(world) == 1
    worker.run(PROJECT, "first")
    sweep(world, hours=25)
    with reading(world.services.database) as session:
        named = {row.sha256 for row in session.query(ModelFileRow)}
    assert named
    assert named <= complete(world)
    assert complete(world) - before == named - before


def test_what_a_cancelled_jobs_worker_still_wrote_is_not_kept_for_the_grace_period(merging, monkeypatch):
    world, worker, attempt, before = merging

    def cancelled_meanwhile(*arguments, **keywords):
        keep(*arguments, **keywords)
        cancel(world)

    monkeypatch.setattr("gramfuse_server.merging.merger.keep", cancelled_meanwhile)
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    assert len(complete(world) - before) == 1
    assert sweep(world) == 1


def test_files_without_a_row_are_adopted_and_go_a_grace_period_later(world):
    blobs, database = world.services.blobs, world.services.database
    blobs.put(blob_key(DIGEST), CONTENT)
    blobs.put("sha256/no-digest", b"not ours")
    sweep(world, hours=25)
    assert DIGEST in complete(world)
    assert adopt_strays(database, blobs, world.clock()) == 1
    assert adopt_strays(database, blobs, world.clock()) == 0
    sweep(world, hours=23)
    assert DIGEST in complete(world)
    assert sweep(world, hours=2) == 1
    assert complete(world) == {"no-digest"}


def test_a_writer_who_finds_old_bytes_renews_their_age(world):
    keep_here(world)
    world.clock.advance(hours=23)
    keep_here(world)
    assert sweep(world, hours=23) == 0
    with transaction(world.services.database) as session:
        keeping.name(session, [DIGEST])
    assert world.services.blobs.size(blob_key(DIGEST)) == len(CONTENT)


def test_a_writer_who_meets_a_deletion_waits_for_it_and_writes_anew(world, monkeypatch):
    keep_here(world)
    world.clock.advance(hours=25)
    deleting, go_on = threading.Event(), threading.Event()
    delete = Blobs.delete

    def slowly(blobs, key):
        deleting.set()
        assert go_on.wait(30)
        delete(blobs, key)

    monkeypatch.setattr(Blobs, "delete", slowly)
    sweeper = threading.Thread(target=sweep, args=(world,))
    writer = threading.Thread(target=keep_here, args=(world,))
    sweeper.start()
    assert deleting.wait(30)
    writer.start()
    writer.join(0.5)
    assert writer.is_alive()  # the bytes lie there, and it does not trust them
    go_on.set()
    for thread in (sweeper, writer):
        thread.join(30)
    with transaction(world.services.database) as session:
        keeping.name(session, [DIGEST])
    assert world.services.blobs.size(blob_key(DIGEST)) == len(CONTENT)


def test_a_writer_who_slept_longer_than_the_grace_period_cannot_name_what_was_swept(world):
    keep_here(world)
    assert sweep(world, hours=25) == 1
    with pytest.raises(UnavailableError, match="deleted before"), transaction(world.services.database) as session:
        keeping.name(session, [DIGEST])
    keep_here(world)
    with transaction(world.services.database) as session:
        keeping.name(session, [DIGEST])


def test_an_inspection_that_slept_longer_than_the_grace_period_is_repeated_and_accepted(ready, monkeypatch):
    world, worker = ready
    contribution = contribute(world, world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json(), "acme", 7)

    def slept(*arguments, **keywords):
        keep(*arguments, **keywords)
        with transaction(world.services.database) as session:
            # sealed uploads name their files; only one that somebody gave up does not
            row = session.query(UploadRow).filter_by(state="sealed").one()
            row.deleted_at = world.clock()
        sweep(world, hours=25)
        with transaction(world.services.database) as session:
            session.query(UploadRow).filter_by(state="sealed").one().deleted_at = None

    with monkeypatch.context() as asleep:
        asleep.setattr(keeping, "keep", slept)
        with pytest.raises(UnavailableError):
            worker.inspect_all()
    assert worker.inspect_all() == ["accepted"]
    assert {file.sha256 for file in contribution.manifest.files} <= complete(world)


def test_a_deletion_whose_sweep_was_killed_is_finished_by_another_and_writers_wait_no_longer(world, monkeypatch):
    keep_here(world)
    world.clock.advance(hours=25)
    with killed_at(monkeypatch, Blobs, "delete"):
        sweep(world)
    with pytest.raises(UnavailableError, match="being deleted"):
        keep_here(world, patience=timedelta())
    assert sweep(world) == 0  # it may live, and be slow
    world.clock.advance(seconds=CONDEMNATION_LAPSES.total_seconds())
    assert sweep(world) == 1
    assert complete(world) == account(world) == set()
    keep_here(world)
    with transaction(world.services.database) as session:
        keeping.name(session, [DIGEST])


def test_a_sweep_that_was_suspended_behind_its_decision_deletes_nothing_more(world, monkeypatch):
    keep_here(world)
    world.clock.advance(hours=25)
    seconds = iter([0.0, CONDEMNATION_HOLDS.total_seconds() + 1])
    monkeypatch.setattr("gramfuse_server.sweeping.monotonic", lambda: next(seconds))
    assert sweep(world) == 0
    assert world.services.blobs.size(blob_key(DIGEST)) == len(CONTENT)


def test_a_file_that_was_named_after_the_sweep_had_chosen_it_stays(merging):
    world, worker, attempt, before = merging
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    (shard,) = complete(world) - before
    database, blobs, now = world.services.database, world.services.blobs, world.clock()
    spent = sweeping.is_spent(now, timedelta(hours=24))
    assert sweeping.delete_files(database, blobs, [shard], spent, now) == 0
    cancel(world)
    assert sweeping.delete_files(database, blobs, [shard], spent, now) == 1


def test_a_model_cannot_be_published_with_a_file_that_is_gone(merging):
    world, worker, attempt, _ = merging
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    with transaction(world.services.database) as session:
        shard = session.query(TaskRow).one().sha256
        session.delete(session.get_one(BlobRow, shard))
    with pytest.raises(UnavailableError):
        worker.merger.publish(attempt, shard_bytes=worker.shard_bytes)
    with reading(world.services.database) as session:
        assert session.query(ModelFileRow).count() == 0


def test_writers_and_sweeps_of_the_same_bytes_lose_nothing_and_do_not_block_each_other(world):
    database, blobs = world.services.database, world.services.blobs
    contents = {sha256_hex(content): content for content in (b"one", b"two", b"three", b"four")}
    until, named, errors = time.monotonic() + 2, [], []

    def write(seed):
        chooser = random.Random(seed)
        while time.monotonic() < until:
            chosen = chooser.sample(sorted(contents), 2)
            keep(database, blobs, {digest: contents[digest] for digest in chosen}, clock=system_clock)
            time.sleep(chooser.random() * 0.03)
            upload = f"{seed}-{len(named)}"
            with suppress(UnavailableError), transaction(database) as session:
                keeping.name(session, chosen)
                make_upload(session, upload, chosen)
                named.append(upload)
            if upload in named:
                time.sleep(0.02)
                assert all(blobs.size(blob_key(digest)) for digest in chosen)
                with transaction(database) as session:
                    session.get_one(UploadRow, upload).deleted_at = system_clock()

    def sweep_on(_):
        while time.monotonic() < until:
            delete_spent_bytes(database, blobs, system_clock(), grace=timedelta(milliseconds=10))

    def noted(work, seed):
        try:
            work(seed)
        except Exception as error:  # noqa: BLE001 - told below, in the test's own thread
            errors.append(error)

    jobs = [(write, 1), (write, 2), (write, 3), (sweep_on, 4), (sweep_on, 5)]
    threads = [threading.Thread(target=noted, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert named


def make_upload(session, name, digests):
    """An accepted upload of these files."""
    now = system_clock()
    times = {"created_at": now, "expires_at": now}
    session.add(UploadRow(id=name, kind="answer", project=PROJECT, state="accepted", bytes=1, **times))
    session.flush()
    for position, digest in enumerate(digests):
        parts = {"bytes": 1, "part_bytes": 1, "part_count": 1}
        session.add(UploadFileRow(upload=name, name=str(position), position=position, sha256=digest, **parts))
