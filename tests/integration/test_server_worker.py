"""Workers as processes: from sealed uploads to a published model, killed and taken over, drained."""

import dataclasses
import signal
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy
from dbos import DBOS

from gramfuse_server.database import reading, transaction
from gramfuse_server.heartbeats import Host, Watch, enter, leave
from gramfuse_server.jobs import MAX_RECOVERY_ATTEMPTS, shard_workflow, worker_configuration
from gramfuse_server.merging import attempts
from gramfuse_server.merging.workflows import _bounded
from gramfuse_server.supervision import Supervisor
from gramfuse_server.tables import AttemptRow, ModelRow, TaskRow, UploadRow, WorkerRow
from gramfuse_shared.errors import FileUnreadableError
from support.collecting import collector
from support.log_lines import parsed
from support.scraping import free_port, scrape
from support.worker_world import MEMBERS, InProcessWorker, contribute, wait_for, worker_process

PROJECT = "acme.tweets"
JOB = f"/v1/projects/{PROJECT}/jobs/first"


@pytest.fixture
def settings(settings):
    """One task per group of parameters, so that a worker can be stopped between two."""
    return settings.model_copy(update={"shard_bytes": 1})


@pytest.fixture
def ready_settings(ready_settings):
    """The same over the ready server."""
    return ready_settings.model_copy(update={"shard_bytes": 1})


def sealed(world):
    """A project whose base is ready and whose members' contributions are sealed."""
    project = world.project(*MEMBERS)
    for seed, member in enumerate(MEMBERS):
        contribute(world, project, member, seed)


def submit(world, job="first"):
    path = f"/v1/projects/{PROJECT}/jobs/{job}"
    answer = world.coordinator("acme").put(path, json={"recipe": {"merge_method": "regmean"}})
    assert answer.status_code == 201, answer.text


def job_state(world):
    return world.coordinator("acme").get(JOB).json()["state"]


def rows(world, kind):
    with reading(world.services.database) as session:
        return session.query(kind).all()


def finished(world):
    return {task.number: task.worker for task in rows(world, TaskRow) if task.state == "succeeded"}


def workers_alive(world):
    return sum(row.stopped_at is None for row in rows(world, WorkerRow))


def test_a_killed_workers_merge_is_finished_by_another_whose_clock_is_two_hours_off(ready, ready_settings, tmp_path):
    world, _ = ready
    with (
        worker_process(ready_settings, tmp_path / "a.log", skew_hours=1) as first,
        worker_process(ready_settings, tmp_path / "b.log", skew_hours=-1) as second,
    ):
        wait_for(lambda: workers_alive(world) == 2, what="two workers")
        submit(world)
        wait_for(lambda: bool(finished(world)), what="a finished shard", every=0.01)
        (attempt,) = rows(world, AttemptRow)
        victim = next(row for row in rows(world, WorkerRow) if row.id == attempt.worker)
        process = {name_in(tmp_path / "a.log"): first, name_in(tmp_path / "b.log"): second}[victim.id]
        process.kill()
        process.wait()
        killed = time.monotonic()
        outlive_workers(world, "merge:", 20)  # who waited beside what ended them is not to blame
        before = finished(world)
        assert rows(world, ModelRow) == []
        wait_for(lambda: job_state(world) == "succeeded", what="the take-over")
        print(f"\ntake-over: {time.monotonic() - killed:.1f} s")
    tasks = {task.number: task for task in rows(world, TaskRow)}
    assert 0 < len(before) < len(tasks)
    assert {number: (tasks[number].executions, tasks[number].worker) for number in before} == {
        number: (1, worker) for number, worker in before.items()
    }
    assert len(rows(world, ModelRow)) == 1
    # sweeps by clocks that are off took nothing that was in use, and nobody who lived was taken for dead
    assert {upload.state for upload in rows(world, UploadRow)} == {"accepted"}
    assert [row.deleted_at for row in rows(world, UploadRow)] == [None] * 4
    assert not any(
        f"dead=['{row.id}']" in (tmp_path / f"{log}.log").read_text()
        for row in rows(world, WorkerRow)
        if row.id != victim.id
        for log in "ab"
    )
    with reading(world.services.database) as session:
        table = workflow_table(session)
        assert set(session.scalars(sqlalchemy.select(table.c.serialization))) == {"portable_json"}  # never pickle


def test_a_worker_accepts_uploads_drains_on_sigterm_and_its_merge_goes_on_at_once(world, settings, tmp_path):
    metrics_port = free_port()
    sealed(world)
    items = "/v1/admin/contributions"
    observed = {"GRAMFUSE_METRICS_PORT": str(metrics_port), "GRAMFUSE_LOG_FORMAT": "json"}
    with (
        collector() as (endpoint, spans),
        worker_process(settings, tmp_path / "a.log", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **observed) as first,
    ):
        wait_for(lambda: {item["state"] for item in world.operator.get(items).json()["items"]} == {"accepted"})
        submit(world)
        wait_for(lambda: bool(finished(world)), what="a finished shard", every=0.01)
        told = scrape(metrics_port)
        assert f'gramfuse_worker_inspections_total{{outcome="accepted"}} {len(MEMBERS)}.0' in told
        assert 'gramfuse_worker_duty_last_success_timestamp_seconds{duty="beat"}' in told
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0
    (row,) = rows(world, WorkerRow)
    lines = parsed((tmp_path / "a.log").read_text())
    shards = [line for line in lines if line["event"] == "task finished"]
    sizes = {task.number: task.input_bytes for task in rows(world, TaskRow)}
    longest = sorted(sizes, key=lambda number: (-sizes[number], number))
    assert [line["task"] for line in shards] == longest[: len(shards)] != sorted(sizes)[: len(shards)]
    assert {(line["worker"], line["project"], line["job"], line["attempt"]) for line in shards} == {
        (row.id, PROJECT, "first", 1)
    }
    assert {line["task"] for line in shards} == set(finished(world))
    inspected = [line for line in lines if line["event"] == "inspected"]
    assert len({line["upload"] for line in inspected}) == len(MEMBERS)
    assert {line["worker"] for line in inspected} == {row.id}
    (merge,) = {span.trace for span in spans if span.name == "merge"}
    assert {span.trace for span in spans if span.name == "merge_shard"} == {merge}
    assert {span.service for span in spans} == {"gramfuse-worker"}
    assert row.stopped_at is not None
    assert row.device.startswith("cpu")
    assert len(finished(world)) < len(rows(world, TaskRow))
    assert job_state(world) == "running"
    # tasks of a later job that became urgent go before those that have waited for longer
    left = [task for task in rows(world, TaskRow) if task.state != "succeeded"]
    urgent = queue_tasks(world, settings, "urgent")
    priority = f"/v1/admin/projects/{PROJECT}/jobs/urgent/priority"
    assert world.operator.put(priority, json={"priority": "high"}).status_code == 200
    with worker_process(settings, tmp_path / "b.log", GRAMFUSE_WORKER_LEASE="PT60S", **observed):
        wait_for(lambda: job_state(world) == "succeeded", what="the end")
    assert {task.executions for task in rows(world, TaskRow)} == {1}
    ended = [line["job"] for line in parsed((tmp_path / "b.log").read_text()) if line["event"] == "task finished"]
    assert ended == ["urgent"] * urgent + ["first"] * len(left)


def queue_tasks(world, settings, job):
    """Submit a job, plan it and queue its tasks, as a worker would that ends then; return how many they are."""
    submit(world, job)
    worker = InProcessWorker(world, settings)
    count = worker.merger.plan(worker.attempt(PROJECT, job), shard_bytes=settings.shard_bytes)
    with transaction(world.services.database) as session:
        for task in range(count):
            workflow, cut = shard_workflow(PROJECT, job, 1, task), settings.shard_bytes
            world.services.jobs._enqueue(session, "shards", "merge_shard", workflow, PROJECT, job, 1, task, cut)
    return count


def put_in_queue(session, workflow, **columns):
    """Note a workflow that waits for a worker, or what else the columns say."""
    table = workflow_table(session)
    session.execute(sqlalchemy.insert(table).values({"workflow_uuid": workflow, "status": "ENQUEUED"} | columns))


@pytest.fixture
def supervisor(ready, ready_settings):
    """A worker's duties over the ready server, with DBOS in this process."""
    world, worker = ready
    DBOS(config=worker_configuration(ready_settings, world.services.database, "in-process"))
    DBOS.launch()
    yield Supervisor(
        database=world.services.database,
        blobs=world.services.blobs,
        inspector=worker.inspector,
        worker="in-process",
        watch=Watch(timedelta(seconds=1)),
        clock=world.clock,
    )
    DBOS.destroy(destroy_registry=True)


def workflow_table(session):
    """DBOS' own table of workflows."""
    names = ("workflow_uuid", "status", "executor_id", "serialization", "recovery_attempts")
    columns = [sqlalchemy.column(name) for name in names]
    schema = None if session.get_bind().dialect.name == "sqlite" else "dbos"
    return sqlalchemy.table("workflow_status", *columns, schema=schema)


def outlive_workers(world, prefix, count):
    """What DBOS notes about a workflow whose workers have ended so often."""
    with transaction(world.services.database) as session:
        table = workflow_table(session)
        chosen = table.c.workflow_uuid.startswith(prefix)
        changed = session.execute(sqlalchemy.update(table).where(chosen).values(recovery_attempts=count))
        assert changed.rowcount > 0


def give_up(world, prefix):
    """What DBOS notes about a workflow that has killed every worker that tried it."""
    with transaction(world.services.database) as session:
        table = workflow_table(session)
        changed = session.execute(
            sqlalchemy.update(table)
            .where(table.c.workflow_uuid.startswith(prefix))
            .values(status="MAX_RECOVERY_ATTEMPTS_EXCEEDED")
        )
        assert changed.rowcount > 0


def test_a_job_that_every_worker_gave_up_has_failed(ready, supervisor):
    world, _ = ready
    submit(world)
    supervisor.end_abandoned()
    assert job_state(world) == "queued"
    give_up(world, "merge:")
    supervisor.end_abandoned()
    job = world.coordinator("acme").get(JOB).json()
    assert (job["state"], job["error"]["code"]) == ("failed", "internal-error")
    assert "given up" in job["error"]["message"]


@pytest.mark.parametrize("step", ["plan", "publish"])
def test_a_job_whose_own_steps_end_every_worker_has_failed(ready, step):
    world, worker = ready
    submit(world)
    attempt, cut = worker.attempt(PROJECT, "first"), 10**9
    if step == "publish":
        for task in range(worker.merger.plan(attempt, shard_bytes=cut)):
            worker.merger.execute(attempt, task, shard_bytes=cut)
    for _ in range(MAX_RECOVERY_ATTEMPTS + 1):  # begun, and never done
        with transaction(world.services.database) as session:
            assert attempts.begin_step(session, attempt)
    _bounded(worker.merger, attempt, lambda: getattr(worker.merger, step)(attempt, shard_bytes=cut))
    job = world.coordinator("acme").get(JOB).json()
    assert (job["state"], job["error"]["code"]) == ("failed", "internal-error")
    assert "given up" in job["error"]["message"]
    assert rows(world, ModelRow) == []


def test_a_job_whose_shard_ended_without_a_result_has_failed(ready, supervisor):
    world, worker = ready
    submit(world)
    attempt = worker.attempt(PROJECT, "first")
    count = worker.merger.plan(attempt, shard_bytes=1)
    worker.merger.execute(attempt, 0, shard_bytes=1)
    with transaction(world.services.database) as session:
        for task in (0, count - 1):
            put_in_queue(session, f"merge_shard:{PROJECT}:first:1:{task}")
    supervisor.end_abandoned()
    assert job_state(world) == "running"
    give_up(world, f"merge_shard:{PROJECT}:first:1:0")
    supervisor.end_abandoned()
    assert job_state(world) == "running"  # that shard is there
    give_up(world, f"merge_shard:{PROJECT}:first:1:{count - 1}")
    supervisor.end_abandoned()
    assert job_state(world) == "failed"


def test_looking_for_what_was_given_up_asks_as_often_for_many_jobs_as_for_one(ready, supervisor):
    """Each query of its own, a thousand queued jobs kept every worker busy with nothing else."""
    world, _ = ready
    asked: list[str] = []
    note: Callable[..., None] = lambda *said: asked.append(said[2])  # noqa: E731 - to be taken off again
    counts = []
    for jobs in (1, 9):
        for number in range(jobs):
            path = f"/v1/projects/{PROJECT}/jobs/job-{len(counts)}-{number}"
            assert world.coordinator("acme").put(path, json={"recipe": {"merge_method": "linear"}}).status_code == 201
        asked.clear()
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
        supervisor.end_abandoned()
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)
        counts.append(len([statement for statement in asked if statement.startswith("SELECT")]))
    assert counts[0] == counts[1] > 0


def test_an_upload_that_every_worker_gave_up_is_rejected(ready, supervisor):
    world, _ = ready
    project = world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json()
    contribution = contribute(world, project, "acme", 7)
    give_up(world, "inspect:")
    supervisor.end_abandoned()
    items = world.participant("acme").get(f"/v1/projects/{PROJECT}/contributions").json()["items"]
    assert {item["id"]: item["state"] for item in items}[contribution.id] == "rejected"
    assert sorted(item["state"] for item in items) == ["accepted", "accepted", "accepted", "rejected"]


def test_a_worker_that_stood_still_behind_its_claim_leaves_the_task_to_who_claimed_it_since(ready):
    world, worker = ready
    submit(world)
    attempt = worker.attempt(PROJECT, "first")
    worker.merger.plan(attempt, shard_bytes=1)
    with transaction(world.services.database) as session:
        put_in_queue(session, f"merge_shard:{PROJECT}:first:1:0", status="PENDING", executor_id="another")
        put_in_queue(session, f"merge_shard:{PROJECT}:first:1:1", status="PENDING", executor_id="in-process")
    for task in (0, 1):
        worker.merger.execute(attempt, task, shard_bytes=1)
    found = {task.number: (task.state, task.executions) for task in rows(world, TaskRow)}
    assert (found[0], found[1]) == (("queued", 0), ("succeeded", 1))
    # nor do its troubles with it count
    worker.merger.fail(attempt, FileUnreadableError("the store is gone"), task=0)
    assert job_state(world) == "running"


def test_a_workers_own_workflow_that_no_thread_carries_out_is_queued_again(ready, supervisor):
    world, _ = ready
    submit(world)
    present = [0.0]
    watching = dataclasses.replace(supervisor, monotonic=lambda: present[0])
    with transaction(world.services.database) as session:
        table = workflow_table(session)
        mine = table.c.workflow_uuid == f"merge:{PROJECT}:first:1"
        changes = {"status": "PENDING", "executor_id": "in-process"}
        assert session.execute(sqlalchemy.update(table).where(mine).values(changes)).rowcount == 1
    states = []
    for second in (0.0, 5.0, 10.0):
        present[0] = second
        watching.take_over()
        (found,) = DBOS.list_workflows(workflow_ids=[f"merge:{PROJECT}:first:1"])
        states.append((found.status, found.queue_name))
    assert states == [("PENDING", "merges"), ("PENDING", "merges"), ("ENQUEUED", "merges")]


def test_only_workflows_of_dead_workers_are_taken_over(ready, supervisor):
    world, _ = ready
    host = Host(name="h", device="cpu", memory_bytes=1, version="0")
    with transaction(world.services.database) as session:
        enter(session, "alive", host, world.clock())
        enter(session, "gone", host, world.clock())
        leave(session, "gone", world.clock())
        table = workflow_table(session)
        claimed = session.scalars(sqlalchemy.select(table.c.workflow_uuid).order_by(table.c.workflow_uuid)).all()[:2]
        for name, workflow in zip(("alive", "gone"), claimed, strict=True):
            session.execute(
                sqlalchemy.update(table)
                .where(table.c.workflow_uuid == workflow)
                .values(status="PENDING", executor_id=name)
            )
    assert supervisor.take_over() == ["gone"]
    states = {w.workflow_id: w.status for w in DBOS.list_workflows(workflow_ids=list(claimed))}
    assert states == {claimed[0]: "PENDING", claimed[1]: "ENQUEUED"}


def name_in(log):
    """The name under which a worker announced itself in its log."""
    text = log.read_text()
    return text.rpartition("worker started")[2].partition("worker=")[2].split()[0]
