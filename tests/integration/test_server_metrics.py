"""The API's metrics on a server that works: counts of what is there, and no word of whose it is."""

from prometheus_client import generate_latest

from gramfuse_server import heartbeats
from gramfuse_server.database import transaction
from gramfuse_shared.errors import FileUnreadableError
from support.server_world import make_contribution
from support.worker_world import MEMBERS, contribute

PROJECT = "acme.tweets"


def told(world):
    return generate_latest(world.app.state.registry).decode()


def value(world, name, **labels):
    return world.app.state.registry.get_sample_value(name, labels)


def submit(world, job):
    body = {"recipe": {"merge_method": "linear"}}
    assert world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/{job}", json=body).status_code == 201


def test_requests_are_counted_by_route_and_status_and_no_label_names_anybody(world):
    world.organization("acme")
    world.client().get("/v1/organizations")
    world.client().get("/acme-is-not-a-route")
    assert (
        value(
            world, "gramfuse_http_requests_total", method="PUT", route="/v1/organizations/{organization}", status="201"
        )
        == 1
    )
    assert value(world, "gramfuse_http_requests_total", method="GET", route="/v1/organizations", status="401") == 1
    assert value(world, "gramfuse_http_requests_total", method="GET", route="unmatched", status="404") == 1
    assert "acme" not in told(world)


def test_refusals_of_every_layer_are_counted(world):
    client = world.client()
    client.put("/v1/organizations/acme", content=b"x", headers={"content-length": str(10**12)})
    client.delete("/healthz")
    assert value(world, "gramfuse_http_requests_total", method="PUT", route="unmatched", status="413") or value(
        world, "gramfuse_http_requests_total", method="PUT", route="/v1/organizations/{organization}", status="413"
    )
    assert value(world, "gramfuse_http_requests_total", method="DELETE", route="/healthz", status="405") == 1


def test_parts_count_once_and_downloads_by_what_was_sent(world):
    project = world.project("acme", "globex")
    before = value(world, "gramfuse_upload_received_bytes_total")
    contribution = make_contribution(project, "acme")
    member = world.participant("acme")
    path = f"/v1/projects/{PROJECT}/contributions/{contribution.id}"
    answer = member.put_document(path, contribution.manifest)
    for _ in range(2):
        member.put_files(path, answer.json(), contribution.files)
    size = sum(map(len, contribution.files.values()))
    assert value(world, "gramfuse_upload_received_bytes_total") - before == size
    base = f"/v1/projects/{PROJECT}/base/files/config.json"
    whole = member.get(base).content
    member.get(base, headers={"range": "bytes=0-3"})
    member.head(base)
    assert value(world, "gramfuse_download_sent_bytes_total") == len(whole) + 4


def test_the_state_is_the_databases(ready):
    world, worker = ready
    submit(world, "good")
    submit(world, "bad")
    submit(world, "later")
    worker.run(PROJECT, "good")
    worker.merger.fail(worker.attempt(PROJECT, "bad"), FileUnreadableError("the disk is gone"))
    world.clock.advance(seconds=90)
    contribute(world, world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json(), "acme", 7)
    host = heartbeats.Host(name="here", device="cpu", memory_bytes=1, version="0")
    with transaction(world.services.database) as session:
        for name in ("w1", "w2", "w3"):
            heartbeats.enter(session, name, host, world.clock())
        heartbeats.leave(session, "w3", world.clock())
    world.clock.advance(seconds=1)
    jobs = {state: value(world, "gramfuse_jobs", state=state) for state in ("queued", "succeeded", "failed", "running")}
    assert jobs == {"queued": 1, "succeeded": 1, "failed": 1, "running": 0}
    assert value(world, "gramfuse_contributions", state="accepted") == len(MEMBERS)
    assert value(world, "gramfuse_queue_length", queue="inspections") == 1
    assert value(world, "gramfuse_queue_length", queue="merges") == 1
    assert 0 < value(world, "gramfuse_queue_oldest_age_seconds", queue="inspections") < 10
    assert 90 < value(world, "gramfuse_queue_oldest_age_seconds", queue="merges") < 100
    assert value(world, "gramfuse_workers_alive") == 2
    stored = world.operator.get("/v1/admin/storage").json()
    assert value(world, "gramfuse_storage_bytes", kind="files") == stored["blob_bytes"] > 0
    assert value(world, "gramfuse_storage_bytes", kind="open_uploads") == stored["open_upload_bytes"] > 0
    assert value(world, "gramfuse_blobs") == stored["blobs"]
    world.clock.advance(seconds=60)
    assert value(world, "gramfuse_workers_alive") == 0
    everything = told(world)
    assert not [word for word in (*MEMBERS, "tweets", "good", "w1") if word in everything]


def test_shards_that_wait_are_counted_while_their_job_runs(ready):
    world, worker = ready
    submit(world, "j")
    assert worker.merger.plan(worker.attempt(PROJECT, "j"), shard_bytes=1) > 1
    waiting = value(world, "gramfuse_queue_length", queue="shards")
    assert waiting > 1
    assert value(world, "gramfuse_queue_length", queue="merges") == 0
    assert world.coordinator("acme").post(f"/v1/projects/{PROJECT}/jobs/j/cancel").status_code == 200
    assert value(world, "gramfuse_queue_length", queue="shards") == 0


def test_a_worker_counts_its_shards_with_their_bytes_and_what_failed(ready):
    world, worker = ready

    def counted(name, **labels):
        return worker.registry.get_sample_value(f"gramfuse_worker_{name}", labels)

    submit(world, "good")
    worker.run(PROJECT, "good")
    model = world.coordinator("acme").get(f"/v1/projects/{PROJECT}/models/good").json()
    weights = sum(file["bytes"] for file in model["files"] if file["name"].endswith(".safetensors"))
    assert counted("shards_total", outcome="finished") >= 1
    assert counted("written_bytes_total") == weights
    assert counted("read_bytes_total") > weights
    assert counted("shard_duration_seconds_count") == counted("shards_total", outcome="finished")
    assert counted("models_published_total") == 1
    submit(world, "bad")
    worker.merger.fail(worker.attempt(PROJECT, "bad"), FileUnreadableError("the disk is gone"))
    assert counted("attempts_failed_total", code=FileUnreadableError.code) == 1
    contribute(world, world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json(), "acme", 7)
    assert worker.inspect_all() == ["accepted"]
    assert counted("inspections_total", outcome="accepted") == 1
