"""The operators' view as JSON."""

import pytest

from gramfuse_server import heartbeats
from gramfuse_server.database import transaction
from gramfuse_server.merging import attempts
from gramfuse_server.tables import ProjectRow
from gramfuse_shared.errors import FileUnreadableError
from support.server_world import problem
from support.worker_world import contribute

PROJECT = "acme.tweets"
PAGES = ("workers", "organizations", "projects", "contributions", "jobs", "audit-log")


@pytest.fixture
def world(ready):
    return ready[0]


@pytest.fixture
def worker(ready):
    return ready[1]


def submit(world, job):
    body = {"recipe": {"merge_method": "linear"}}
    assert world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/{job}", json=body).status_code == 201


def enter(world, name):
    host = heartbeats.Host(name="here", device="cpu (1 threads)", memory_bytes=10**9, version="0")
    with transaction(world.services.database) as session:
        heartbeats.enter(session, name, host, world.clock())


@pytest.mark.parametrize("path", ["overview", "storage", *PAGES])
def test_only_operators_have_it(world, path):
    assert world.operator.get(f"/v1/admin/{path}").status_code == 200
    problem(world.coordinator("acme").get(f"/v1/admin/{path}"), 403, "role-required")
    problem(world.client().get(f"/v1/admin/{path}"), 401, "unauthenticated")


def told_of_organizations(world):
    return {item["name"]: item for item in world.operator.get("/v1/admin/organizations").json()["items"]}


def test_of_every_organization_its_tokens_its_projects_and_its_last_act_are_told(world):
    assert world.operator.put("/v1/organizations/newcomer").status_code == 201
    before = told_of_organizations(world)
    assert list(before) == sorted(before)
    assert {before[name]["projects"] for name in ("acme", "globex", "initech")} == {1}
    newcomer = before["newcomer"]
    assert (newcomer["valid_tokens"], newcomer["tokens_end_at"]) == (0, None)
    assert (newcomer["projects"], newcomer["last_seen_at"]) == (0, None)
    world.clock.advance(hours=1)
    created = {"role": "participant", "organization": "globex", "days": 7}
    token = world.operator.post("/v1/tokens", json=created).json()
    more = told_of_organizations(world)["globex"]
    assert more["valid_tokens"] == before["globex"]["valid_tokens"] + 1
    assert more["last_seen_at"] == before["globex"]["last_seen_at"]  # the operator's act is none of theirs
    assert world.operator.post(f"/v1/tokens/{token['id']}/revoke").status_code == 200
    assert told_of_organizations(world)["globex"]["valid_tokens"] == before["globex"]["valid_tokens"]
    submit(world, "seen")
    assert told_of_organizations(world)["acme"]["last_seen_at"] > before["acme"]["last_seen_at"]


def test_a_deleted_project_counts_for_no_organization(world):
    with transaction(world.services.database) as session:
        session.get_one(ProjectRow, PROJECT).deleted_at = world.clock()
    assert {item["projects"] for item in told_of_organizations(world).values()} == {0}


def test_when_the_last_valid_token_ends_is_told(world):
    ends = []
    for days in (3, 1_000):
        created = {"role": "participant", "organization": "initech", "days": days}
        ends.append(world.operator.post("/v1/tokens", json=created).json()["expires_at"])
    assert told_of_organizations(world)["initech"]["tokens_end_at"] == max(ends)


def test_the_overview_counts_everything(world, worker):
    submit(world, "good")
    worker.run(PROJECT, "good")
    submit(world, "bad")
    worker.merger.fail(worker.attempt(PROJECT, "bad"), FileUnreadableError("the disk is gone"))
    contribute(world, world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json(), "acme", 7)
    enter(world, "w1")
    seen = world.operator.get("/v1/admin/overview").json()
    assert seen["workers_alive"] == 1
    assert (seen["organizations"], seen["projects"], seen["models"]) == (3, 1, 1)
    assert seen["contributions"] == {"accepted": 3, "sealed": 1}
    assert seen["jobs"] == {"succeeded": 1, "failed": 1}
    assert [job["error"]["message"] for job in seen["recent_failures"]] == ["the disk is gone"]
    assert seen["storage"] == world.operator.get("/v1/admin/storage").json()
    assert seen["storage"]["open_upload_bytes"] > 0


def test_storage_is_what_the_blob_store_holds(world, worker):
    storage = world.operator.get("/v1/admin/storage").json()
    keys = [key for key in world.stored_keys() if key.startswith("sha256/")]
    assert storage["blobs"] == len(keys)
    assert storage["blob_bytes"] == sum(world.services.blobs.size(key) for key in keys)


def test_a_worker_is_alive_while_its_heart_beats_and_shows_what_it_runs(world, worker, ready_settings):
    enter(world, "in-process")
    submit(world, "first")
    attempt = worker.attempt(PROJECT, "first")
    worker.merger.plan(attempt, shard_bytes=worker.shard_bytes)
    with transaction(worker.database) as session:
        attempts.begin_task(session, attempt, 0, worker="in-process", now=world.clock())
    seen = world.operator.get("/v1/admin/workers").json()["items"][0]
    assert seen["alive"]
    assert seen["running"] == [f"{PROJECT}/first: model.safetensors"]
    assert world.participant("globex").get("/v1/workers").json() == {"alive": True}  # and no more of it
    world.clock.advance(seconds=ready_settings.worker_lease.total_seconds() + 1)
    assert not world.operator.get("/v1/admin/workers").json()["items"][0]["alive"]
    assert world.participant("globex").get("/v1/workers").json() == {"alive": False}


def test_lists_can_be_narrowed_and_paged(world):
    submit(world, "one")
    submit(world, "two")
    admin = world.operator
    assert [job["id"] for job in admin.get("/v1/admin/jobs").json()["items"]] == ["two", "one"]
    first = admin.get("/v1/admin/jobs?limit=1").json()
    second = admin.get(f"/v1/admin/jobs?limit=1&cursor={first['next_cursor']}").json()
    assert [first["items"][0]["id"], second["items"][0]["id"], second["next_cursor"]] == ["two", "one", None]
    assert admin.get("/v1/admin/jobs?state=failed").json()["items"] == []
    assert len(admin.get(f"/v1/admin/jobs?state=queued&project={PROJECT}").json()["items"]) == 2
    assert admin.get("/v1/admin/contributions?state=open").json()["items"] == []
    assert len(admin.get("/v1/admin/contributions?state=accepted").json()["items"]) == 3
    assert admin.get("/v1/admin/projects").json()["items"][0]["id"] == PROJECT


def test_operators_see_no_reason_and_no_files_of_contributions(world):
    for item in world.operator.get("/v1/admin/contributions").json()["items"]:
        assert (item["reason"], item["files"], item["project"]) == (None, [], PROJECT)


def test_the_audit_log_tells_of_submission_and_publication(world, worker):
    submit(world, "first")
    worker.run(PROJECT, "first")
    entries = world.operator.get("/v1/admin/audit-log").json()["items"]
    assert [entry["action"] for entry in entries[:2]] == ["model.publish", "job.submit"]
    assert entries[0]["token"] is None
    assert entries[1]["organization"] == "acme"
    assert entries[0]["previous"] == entries[1]["digest"]


def test_operators_alone_let_a_job_go_before_others_and_members_read_it_in_its_log(world, worker):
    submit(world, "first")
    path = f"/v1/admin/projects/{PROJECT}/jobs/first"
    assert world.operator.get(path).json()["priority"] == "normal"
    problem(world.coordinator("acme").put(f"{path}/priority", json={"priority": "high"}), 403, "role-required")
    problem(world.operator.put(f"{path}/priority", json={"priority": "urgent"}), 422, "request-malformed")
    problem(world.operator.put(f"{path[:-5]}other/priority", json={"priority": "high"}), 404, "not-found")
    for _ in range(2):
        answer = world.operator.put(f"{path}/priority", json={"priority": "high"})
        assert (answer.status_code, answer.json()["priority"]) == (200, "high")
    log = world.coordinator("acme").get(f"/v1/projects/{PROJECT}/jobs/first/log").json()["items"]
    assert [line["message"] for line in log][1:] == ["priority: high, set by an operator"]
    entry = world.operator.get("/v1/admin/audit-log?action=job.prioritize").json()["items"]
    assert [(row["subject"], row["details"]) for row in entry] == [(f"{PROJECT}/first", {"priority": "high"})]
    worker.run(PROJECT, "first")
    problem(world.operator.put(f"{path}/priority", json={"priority": "low"}), 409, "wrong-state")
