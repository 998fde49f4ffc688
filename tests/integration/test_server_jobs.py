"""Jobs through the public API, carried out by a worker in this process."""

import json
import threading

import pytest
import torch

from gramfuse_server.app import create_app
from gramfuse_server.blobs import blob_key
from gramfuse_server.database import reading, transaction
from gramfuse_server.merging import attempts
from gramfuse_server.tables import AttemptRow, TaskRow
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import FileUnreadableError
from support.server_world import OPEN_POLICY, World, make_contribution, problem
from support.worker_world import MEMBERS, InProcessWorker, contribute, make_gram, make_statistics, make_weights

PROJECT = "acme.tweets"
JOBS = f"/v1/projects/{PROJECT}/jobs"
FROZEN = Policy(minimum_cohort=2, minimum_rows_per_dimension=1.0)


@pytest.fixture
def worker(world, settings):
    return InProcessWorker(world, settings)


def prepare(world, worker, *members, policy):
    """A project with an accepted contribution of each member."""
    project = world.project(*members, policy=policy)
    for seed, member in enumerate(members):
        contribute(world, project, member, seed)
    assert worker.inspect_all() == ["accepted"] * len(members)
    return project


def submit(world, job, recipe=None, *, by="acme", status=201):
    answer = world.coordinator(by).put(f"{JOBS}/{job}", json={"recipe": recipe or {"merge_method": "linear"}})
    assert answer.status_code == status, answer.text
    return answer.json()


def contribution_of(world, organization):
    found = world.participant(organization).get(f"/v1/projects/{PROJECT}/contributions?organization={organization}")
    return found.json()["items"][0]["id"]


def state_of(world, job):
    return world.coordinator("acme").get(f"{JOBS}/{job}").json()["state"]


def log_of(world, job):
    return [entry["message"] for entry in world.coordinator("acme").get(f"{JOBS}/{job}/log").json()["items"]]


def test_a_job_becomes_a_model(ready):
    world, worker = ready
    job = submit(world, "first", {"merge_method": "regmean"})
    assert (job["state"], job["attempt"], job["progress"]) == ("queued", 1, 0.0)
    assert [member["organization"] for member in job["cohort"]] == sorted(MEMBERS)
    worker.run(PROJECT, "first")
    job = world.participant("globex").get(f"{JOBS}/first").json()
    assert (job["state"], job["progress"], job["done_tasks"], job["error"]) == ("succeeded", 1.0, 1, None)
    assert job["total_tasks"] == 1
    assert log_of(world, "first")[0] == "submitted: linear of acme, globex, initech".replace("linear", "regmean")


def test_the_same_submission_twice_is_the_same_job_and_another_one_is_a_conflict(ready):
    world, _ = ready
    first = submit(world, "first")
    assert (first["new"], first["outdated"]) == (True, [])
    assert submit(world, "first", status=200) == first | {"new": False}
    answer = world.coordinator("acme").put(f"{JOBS}/first", json={"recipe": {"merge_method": "regmean"}})
    problem(answer, 409, "conflict")


def test_a_submission_under_an_old_id_says_whose_contributions_are_others_by_now(ready):
    world, worker = ready
    submit(world, "all")
    submit(world, "two", two := {"merge_method": "linear", "models": [{"model": "acme"}, {"model": "globex"}]})
    withdrawn = contribution_of(world, "globex")
    assert world.participant("globex").post(f"/v1/projects/{PROJECT}/contributions/{withdrawn}/withdraw").is_success
    project = world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json()
    contribute(world, project, "initech", 77)
    assert submit(world, "all", status=200)["outdated"] == ["globex"]  # not checked yet, so nothing is replaced
    worker.inspect_all()
    assert submit(world, "all", status=200)["outdated"] == ["globex", "initech"]
    assert submit(world, "two", two, status=200)["outdated"] == ["globex"]  # it names its members
    contribute(world, project, "globex", 78)
    worker.inspect_all()
    assert submit(world, "all", status=200)["outdated"] == ["globex", "initech"]
    assert submit(world, "now")["outdated"] == []
    assert submit(world, "now", status=200)["outdated"] == []


def test_whoever_contributes_later_and_a_new_policy_make_a_job_outdated(world, worker):
    world.project("acme", "globex", "initech", policy=FROZEN.model_copy(update={"cohorts": "open"}))
    project = world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json()
    for seed, member in enumerate(("acme", "globex")):
        contribute(world, project, member, seed)
    worker.inspect_all()
    submit(world, "first")
    contribute(world, project, "initech", 5)
    worker.inspect_all()
    assert submit(world, "first", status=200)["outdated"] == ["initech"]


def test_only_the_coordinating_organization_submits_cancels_and_retries(ready):
    world, _ = ready
    submit(world, "first")
    body = {"recipe": {"merge_method": "linear"}}
    for other in (world.coordinator("globex"), world.participant("acme")):
        problem(other.put(f"{JOBS}/second", json=body), 403, "role-required")
        problem(other.post(f"{JOBS}/first/cancel"), 403, "role-required")
        problem(other.post(f"{JOBS}/first/retry"), 403, "role-required")
    world.organization("umbrella")
    stranger = world.coordinator("umbrella")
    problem(stranger.put(f"{JOBS}/second", json=body), 404, "not-found")
    for path in ("", "/first", "/first/log", "/first/events"):
        problem(stranger.get(f"{JOBS}{path}"), 404, "not-found")


def test_a_cohort_below_the_policys_minimum_is_refused(world, worker):
    prepare(world, worker, *MEMBERS, policy=Policy(minimum_cohort=3, minimum_rows_per_dimension=1.0))
    recipe = {"merge_method": "linear", "models": [{"model": "acme"}, {"model": "globex"}]}
    answer = world.coordinator("acme").put(f"{JOBS}/first", json={"recipe": recipe})
    assert problem(answer, 422, "policy-violation")["facts"] == {"cohort": 2, "minimum": 3}
    problem(world.coordinator("acme").get(f"{JOBS}/first"), 404, "not-found")


def test_after_a_release_only_the_same_cohort_is_merged(world, worker):
    prepare(world, worker, *MEMBERS, policy=FROZEN)
    submit(world, "first", {"merge_method": "regmean"})
    worker.run(PROJECT, "first")
    fewer = {"merge_method": "linear", "models": [{"model": "acme"}, {"model": "globex"}]}
    answer = world.coordinator("acme").put(f"{JOBS}/second", json={"recipe": fewer})
    assert problem(answer, 409, "cohort-frozen")["facts"] == {"job": "first", "differs": ["initech"]}
    submit(world, "third", {"merge_method": "linear"})


def test_a_deleted_model_was_released_all_the_same(world, worker):
    prepare(world, worker, *MEMBERS, policy=FROZEN)
    submit(world, "first")
    worker.run(PROJECT, "first")
    assert world.coordinator("acme").delete(f"/v1/projects/{PROJECT}/models/first").status_code == 200
    fewer = {"merge_method": "linear", "models": [{"model": "acme"}, {"model": "globex"}]}
    problem(world.coordinator("acme").put(f"{JOBS}/second", json={"recipe": fewer}), 409, "cohort-frozen")


def test_a_job_that_may_still_publish_freezes_too_and_a_cancelled_one_does_not(world, worker):
    prepare(world, worker, *MEMBERS, policy=FROZEN)
    submit(world, "first")
    fewer = {"merge_method": "linear", "models": [{"model": "acme"}, {"model": "globex"}]}
    problem(world.coordinator("acme").put(f"{JOBS}/second", json={"recipe": fewer}), 409, "cohort-frozen")
    assert world.coordinator("acme").post(f"{JOBS}/first/cancel").json()["state"] == "cancelled"
    submit(world, "second", fewer)
    problem(world.coordinator("acme").post(f"{JOBS}/first/retry"), 409, "cohort-frozen")


def test_a_new_policy_version_blocks_jobs_until_it_is_accepted_and_contributions_come_under_it(ready):
    world, _ = ready
    changed = OPEN_POLICY.model_copy(update={"minimum_cohort": 3})
    path = f"/v1/projects/{PROJECT}"
    world.coordinator("acme").put_document(f"{path}/policies/2", changed)
    body = {"recipe": {"merge_method": "linear"}}
    problem(world.coordinator("acme").put(f"{JOBS}/first", json=body), 409, "policy-not-accepted")
    assert world.accept_policy(PROJECT, "acme").status_code == 201
    problem(world.coordinator("acme").put(f"{JOBS}/first", json=body), 422, "policy-violation")


def test_a_cancelled_job_publishes_nothing_and_stops_within_a_task(ready):
    world, worker = ready
    submit(world, "first")
    attempt = worker.attempt(PROJECT, "first")
    assert worker.merger.plan(attempt, shard_bytes=worker.shard_bytes) == 1
    assert state_of(world, "first") == "running"
    cancelled = world.coordinator("acme").post(f"{JOBS}/first/cancel").json()
    assert (cancelled["state"], cancelled["stage"]) == ("cancelled", "cancelled")
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    assert not worker.merger.publish(attempt, shard_bytes=worker.shard_bytes)
    assert worker.merger.is_complete(attempt) is None
    assert state_of(world, "first") == "cancelled"
    assert world.coordinator("acme").get(f"/v1/projects/{PROJECT}/models").json()["items"] == []
    assert world.coordinator("acme").post(f"{JOBS}/first/cancel").json() == cancelled


def test_progress_is_refused_to_a_worker_whose_job_was_cancelled(ready):
    world, worker = ready
    submit(world, "first")
    attempt = worker.attempt(PROJECT, "first")
    worker.merger.plan(attempt, shard_bytes=worker.shard_bytes)
    step = {"worker": "in-process", "now": world.clock()}
    with transaction(worker.database) as session:
        assert attempts.begin_task(session, attempt, 0, **step)
        assert attempts.progress_task(session, attempt, 0, done_bytes=100, **step)
        assert not attempts.progress_task(session, attempt, 0, done_bytes=100, worker="another", now=world.clock())
    shown = world.coordinator("acme").get(f"{JOBS}/first").json()
    assert 0 < shown["progress"] < 1
    assert shown["rate"] > 0
    assert shown["estimate_seconds"] > 0
    world.coordinator("acme").post(f"{JOBS}/first/cancel")
    with transaction(worker.database) as session:
        assert not attempts.progress_task(session, attempt, 0, done_bytes=200, **step)


def test_a_failed_attempt_tells_why_and_a_retry_is_a_new_attempt(ready):
    world, worker = ready
    submit(world, "first")
    worker.merger.fail(worker.attempt(PROJECT, "first"), FileUnreadableError("the disk is gone"))
    failed = world.coordinator("acme").get(f"{JOBS}/first").json()
    assert (failed["state"], failed["error"]) == (
        "failed",
        {"code": "file-unreadable", "message": "the disk is gone"},
    )
    problem(world.coordinator("acme").post(f"{JOBS}/first/cancel"), 409, "wrong-state")
    retried = world.coordinator("acme").post(f"{JOBS}/first/retry").json()
    assert (retried["state"], retried["attempt"], retried["error"]) == ("queued", 2, None)
    assert world.coordinator("acme").post(f"{JOBS}/first/retry").json() == retried
    worker.run(PROJECT, "first")
    assert state_of(world, "first") == "succeeded"
    problem(world.coordinator("acme").post(f"{JOBS}/first/retry"), 409, "wrong-state")
    with reading(worker.database) as session:
        states = {row.number: row.state for row in session.query(AttemptRow)}
    assert states == {1: "failed", 2: "succeeded"}
    receipt = world.coordinator("acme").get(f"/v1/projects/{PROJECT}/models/first").json()["receipt"]
    assert receipt["receipt"]["attempt"] == 2


def test_an_attempt_of_before_changes_nothing(ready):
    world, worker = ready
    submit(world, "first")
    before = worker.attempt(PROJECT, "first")
    assert worker.merger.plan(before, shard_bytes=worker.shard_bytes) == 1
    worker.merger.fail(before, FileUnreadableError("the disk is gone"))
    world.coordinator("acme").post(f"{JOBS}/first/retry")
    worker.merger.execute(before, 0, shard_bytes=worker.shard_bytes)
    worker.merger.fail(before, FileUnreadableError("late"))
    assert state_of(world, "first") == "queued"


def test_a_worker_that_lost_its_task_cannot_fail_the_job(ready):
    world, worker = ready
    submit(world, "first")
    attempt = worker.attempt(PROJECT, "first")
    worker.merger.plan(attempt, shard_bytes=worker.shard_bytes)
    with transaction(worker.database) as session:
        assert attempts.begin_task(session, attempt, 0, worker="another", now=world.clock())
    worker.merger.fail(attempt, FileUnreadableError("my disk is gone"), task=0)
    assert state_of(world, "first") == "running"


def test_a_finished_task_is_never_computed_again(ready):
    world, worker = ready
    submit(world, "first")
    attempt = worker.attempt(PROJECT, "first")
    worker.merger.plan(attempt, shard_bytes=worker.shard_bytes)
    for _ in range(3):
        worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    with reading(worker.database) as session:
        task = session.query(TaskRow).one()
    assert (task.state, task.executions) == ("succeeded", 1)


def test_publishing_twice_is_publishing_once(ready):
    world, worker = ready
    submit(world, "first")
    worker.run(PROJECT, "first")
    assert not worker.merger.publish(worker.attempt(PROJECT, "first"), shard_bytes=worker.shard_bytes)
    assert len(world.coordinator("acme").get(f"/v1/projects/{PROJECT}/models").json()["items"]) == 1


def test_withdrawal_cancels_the_job_and_a_retry_says_who_is_gone(ready):
    world, _ = ready
    submit(world, "first")
    mine = next(
        item["id"]
        for item in world.participant("globex").get(f"/v1/projects/{PROJECT}/contributions").json()["items"]
        if item["organization"] == "globex"
    )
    withdrawn = world.participant("globex").post(f"/v1/projects/{PROJECT}/contributions/{mine}/withdraw")
    assert withdrawn.json()["state"] == "withdrawn"
    assert state_of(world, "first") == "cancelled"
    assert log_of(world, "first")[-1] == f"cancelled: contribution {mine} was withdrawn"
    answer = world.coordinator("acme").post(f"{JOBS}/first/retry")
    assert problem(answer, 409, "wrong-state")["facts"]["organizations"] == ["globex"]


def test_no_job_takes_a_replaced_contribution_neither_by_its_id_nor_after_the_newer_one_was_withdrawn(ready):
    world, worker = ready
    coordinator, member = world.coordinator("acme"), world.participant("globex")
    path = f"/v1/projects/{PROJECT}"
    (older,) = coordinator.get(f"{path}/contributions", params={"organization": "globex"}).json()["items"]
    newer = contribute(world, coordinator.get(path).json(), "globex", 7)
    assert worker.inspect_all() == ["accepted"]
    by_id = {"merge_method": "linear", "models": [{"model": "acme"}, {"model": older["id"]}]}
    problem(coordinator.put(f"{JOBS}/first", json={"recipe": by_id}), 422, "recipe-invalid")
    assert newer.id in {taken["contribution"] for taken in submit(world, "second")["cohort"]}
    assert member.post(f"{path}/contributions/{newer.id}/withdraw").json()["counts"] is False
    taken = submit(world, "third")["cohort"]
    assert sorted(one["organization"] for one in taken) == sorted({*MEMBERS} - {"globex"})


def test_bad_numbers_are_rejected_with_the_reason(world, worker):
    project = world.project(*MEMBERS)
    weights = make_weights(1, **{"encoder.query.weight": torch.full((12, 12), torch.nan)})
    asymmetric, indefinite = make_gram(1), make_gram(2)
    asymmetric[0, 1] += 40
    indefinite[0, 1] = indefinite[1, 0] = 3 * indefinite.diagonal().max()
    contribute(world, project, "acme", 1, weights=weights)
    contribute(world, project, "globex", 2, statistics=make_statistics(project, asymmetric))
    contribute(world, project, "initech", 3, statistics=make_statistics(project, indefinite))
    assert worker.inspect_all() == ["rejected"] * 3
    for member, reason in (
        ("acme", "weights-invalid: tensor encoder.query.weight holds NaN"),
        ("globex", "statistics-invalid: "),
        ("initech", "statistics-invalid: "),
    ):
        items = world.participant(member).get(f"/v1/projects/{PROJECT}/contributions").json()["items"]
        own = next(item for item in items if item["organization"] == member)
        assert (own["state"], own["reason"][: len(reason)]) == ("rejected", reason)
    base = world.participant("acme").get(f"/v1/projects/{PROJECT}/base").json()
    complete = {key for key in world.stored_keys() if key.startswith("sha256/")}
    assert complete == {blob_key(file["sha256"]) for file in base["files"]}


def test_a_file_whose_parts_are_right_and_whose_digest_is_not_is_rejected(world, worker):
    project = world.project(*MEMBERS)
    contribution = make_contribution(project, "acme", weights=make_weights(5), taps=())
    lying = contribution.manifest.weights.file.model_copy(update={"sha256": "0" * 64})
    section = contribution.manifest.weights.model_copy(update={"file": lying})
    manifest = contribution.manifest.model_copy(update={"weights": section})
    path = f"/v1/projects/{PROJECT}/contributions/{manifest.content_digest()}"
    member = world.participant("acme")
    answer = member.put_document(path, manifest)
    member.put_files(path, answer.json(), contribution.files)
    assert member.post(f"{path}/seal").status_code == 200
    assert worker.inspect_all() == ["rejected"]
    assert member.get(path).json()["reason"].startswith("digest-mismatch: the parts of weights.safetensors make a file")


def test_a_job_streams_its_changes_and_the_stream_ends_with_it(ready):
    world, worker = ready
    submit(world, "first")
    runner = threading.Thread(target=worker.run, args=(PROJECT, "first"))
    runner.start()
    answer = world.participant("globex").get(f"{JOBS}/first/events")
    runner.join()
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block for block in answer.text.split("\n\n") if block]
    assert all(block.startswith("event: job\ndata: ") for block in blocks)
    states = [json.loads(block.partition("data: ")[2])["state"] for block in blocks]
    assert states[-1] == "succeeded"


def test_a_project_without_room_for_a_model_takes_no_job(ready, ready_settings, portal):
    world, _ = ready
    used = sum(item["bytes"] for item in world.operator.get("/v1/admin/contributions").json()["items"])
    narrow = World(
        create_app(ready_settings.model_copy(update={"project_quota_bytes": used + 100}), clock=world.clock),
        world.clock,
        portal,
        world._tokens,
    )
    answer = narrow.coordinator("acme").put(f"{JOBS}/first", json={"recipe": {"merge_method": "linear"}})
    problem(answer, 413, "quota-exceeded")
    problem(world.coordinator("acme").get(f"{JOBS}/first"), 404, "not-found")
    narrow.services.database.close()


def test_models_that_are_being_merged_count_and_what_fits_exactly_is_taken(ready, ready_settings, portal):
    world, worker = ready
    project = "/v1/admin/projects/acme.tweets"
    held = world.operator.get(project).json()["bytes"]
    uploads = world.operator.get("/v1/admin/contributions").json()["items"]
    base = held - sum(item["bytes"] for item in uploads)
    quota = held + base + 1  # of two models, which are a little larger than the base, one fits

    opened = []

    def at(quota):
        app = create_app(ready_settings.model_copy(update={"project_quota_bytes": quota}), clock=world.clock)
        opened.append(World(app, world.clock, portal, world._tokens))
        return opened[-1]

    linear = {"recipe": {"merge_method": "linear"}}
    narrow = at(quota)
    coordinator = narrow.coordinator("acme")
    problem(at(held + base - 1).coordinator("acme").put(f"{JOBS}/first", json=linear), 413, "quota-exceeded")
    assert at(held + base).coordinator("acme").put(f"{JOBS}/first", json=linear).status_code == 201
    told = narrow.operator.get(project).json()
    assert (told["bytes"], told["quota"]) == (held + base, quota)
    facts = problem(coordinator.put(f"{JOBS}/second", json=linear), 413, "quota-exceeded")["facts"]
    assert (facts["used"], facts["requested"]) == (held + base, base)
    assert coordinator.post(f"{JOBS}/first/cancel").status_code == 200
    assert narrow.operator.get(project).json()["bytes"] == held
    assert coordinator.put(f"{JOBS}/second", json=linear).status_code == 201
    problem(coordinator.post(f"{JOBS}/first/retry"), 413, "quota-exceeded")
    worker.run("acme.tweets", "second")
    model = coordinator.get("/v1/projects/acme.tweets/models/second").json()["bytes"]
    assert narrow.operator.get(project).json()["bytes"] == held + model
    for each in opened:
        each.services.database.close()
