"""What a job tells of its layers: by the definitions, to whom, while it runs, and after another attempt."""

import json

import torch
from safetensors.torch import load

from gramfuse_server.database import reading, transaction
from gramfuse_server.merging import publication
from gramfuse_server.merging.inputs import load_inputs
from gramfuse_server.tables import TaskRow
from support.server_world import problem
from support.worker_world import MEMBERS, InProcessWorker, make_gram, make_weights

PROJECT = "acme.tweets"
JOB = f"/v1/projects/{PROJECT}/jobs/first"
MODEL = f"/v1/projects/{PROJECT}/models/first"
LAYER = "encoder.query.weight"


def submit(world, recipe=None):
    answer = world.coordinator("acme").put(JOB, json={"recipe": recipe or {"merge_method": "regmean"}})
    assert answer.status_code == 201, answer.text


def diagnostics(world, organization):
    answer = world.participant(organization).get(f"{JOB}/diagnostics")
    assert answer.status_code == 200, answer.text
    return answer.json()


def layer_of(found, name=LAYER):
    (layer,) = [layer for layer in found["layers"] if name in layer["parameters"]]
    return layer


def test_figures_of_a_layer_are_the_definitions(ready):
    world, worker = ready
    submit(world)
    worker.run(PROJECT, "first")
    found = diagnostics(world, "globex")
    assert (found["project"], found["job"], found["attempt"], found["complete"]) == (PROJECT, "first", 1, True)
    layer = layer_of(found)
    merged = load(world.participant("globex").get(f"{MODEL}/files/model.safetensors").content)[LAYER].double()
    weights = [load(make_weights(seed))[LAYER].double() for seed in range(len(MEMBERS))]
    grams = [make_gram(seed).double() for seed in range(len(MEMBERS))]

    def objective(value):  # Σ tr((W − Wᵢ) Gᵢ (W − Wᵢ)ᵀ); all have as many rows
        pairs = zip(weights, grams, strict=True)
        return sum(float(((value - own) @ gram * (value - own)).sum()) for own, gram in pairs)

    mean = sum(weights) / len(weights)
    assert abs(layer["gained"] - (1 - objective(merged) / objective(mean))) < 2e-3
    distances = sorted(float((own - merged).norm() / merged.norm()) for own in weights)
    assert torch.allclose(torch.tensor(list(layer["spread"].values())), torch.tensor(distances), rtol=6e-3)
    total = sum(0.9 * gram + 0.1 * gram.diagonal().diag() for gram in grams)
    scale = total.diagonal().rsqrt()
    spectrum = torch.linalg.eigvalsh(total * scale * scale[:, None])
    assert 1 <= layer["condition"] <= float(spectrum[-1] / spectrum[0]) * 1.01


def test_each_organization_sees_its_own_distance_and_nobody_elses(ready):
    world, worker = ready
    submit(world)
    worker.run(PROJECT, "first")
    own = {member: layer_of(diagnostics(world, member))["own"] for member in MEMBERS}
    spread = layer_of(diagnostics(world, "acme"))["spread"]
    assert sorted(own.values()) == list(spread.values())
    assert len(set(own.values())) == len(MEMBERS)
    for member in MEMBERS:
        told = json.dumps(diagnostics(world, member)["layers"])
        assert not any(other in told for other in MEMBERS)


def test_published_files_name_nobody_beside_a_distance(ready):
    world, worker = ready
    submit(world)
    worker.run(PROJECT, "first")
    entries = json.loads(world.participant("globex").get(f"{MODEL}/files/diagnostics.json").content)
    (entry,) = [entry for entry in entries if LAYER in entry["parameters"]]
    assert entry["spread"] == layer_of(diagnostics(world, "acme"))["spread"]
    assert not any(member in json.dumps(entries) for member in MEMBERS)


def test_publishing_again_writes_the_same_bytes_picture_and_card_included(ready):
    world, worker = ready
    submit(world)
    attempt = worker.attempt(PROJECT, "first")
    worker.merger.plan(attempt, shard_bytes=worker.shard_bytes)
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    with reading(worker.database) as session:
        inputs = load_inputs(session, attempt, shard_bytes=worker.shard_bytes)
        tasks = publication.finished_tasks(session, attempt)
    merger, now = worker.merger, world.clock()
    one, other = (
        publication.prepare(inputs, attempt, tasks, blobs=merger.blobs, key=merger.key, now=now) for _ in range(2)
    )
    assert one.receipt == other.receipt
    assert {"README.md", "diagnostics.json", "diagnostics.svg"} <= {file.name for file in one.files}


def test_a_card_shows_the_picture_beside_it(ready):
    world, worker = ready
    submit(world)
    worker.run(PROJECT, "first")
    files = f"{MODEL}/files"
    card = world.participant("globex").get(f"{files}/README.md").text
    assert "](diagnostics.svg)" in card
    assert "### Gained least" in card
    picture = world.participant("globex").get(f"{files}/diagnostics.svg").text
    assert ">acme.tweets · first</text>" in picture
    assert ">encoder.query</text>" in picture
    assert not any(f">{member}" in picture for member in MEMBERS if member != "acme")


def test_strangers_and_operators_do_not_see_them(ready):
    world, worker = ready
    submit(world)
    worker.run(PROJECT, "first")
    world.organization("umbrella")
    problem(world.participant("umbrella").get(f"{JOB}/diagnostics"), 404, "not-found")
    problem(world.operator.get(f"{JOB}/diagnostics"), 404, "not-found")
    problem(world.participant("globex").get(f"{JOB}-2/diagnostics"), 404, "not-found")


def test_a_running_job_tells_of_the_tasks_that_are_done(ready, ready_settings):
    world, _ = ready
    worker = InProcessWorker(world, ready_settings.model_copy(update={"shard_bytes": 700}))
    submit(world)
    assert diagnostics(world, "acme") == {
        "project": PROJECT, "job": "first", "attempt": 1, "complete": False, "layers": [],
    }  # fmt: skip
    attempt = worker.attempt(PROJECT, "first")
    count = worker.merger.plan(attempt, shard_bytes=700)
    seen = []
    for number in range(count):
        worker.merger.execute(attempt, number, shard_bytes=700)
        found = diagnostics(world, "acme")
        assert found["complete"] == (number == count - 1)
        seen.append(len(found["layers"]))
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]


def test_a_task_that_another_worker_repeats_and_a_new_attempt_count_once(ready):
    world, worker = ready
    submit(world)
    attempt = worker.attempt(PROJECT, "first")
    worker.merger.plan(attempt, shard_bytes=worker.shard_bytes)
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    first = diagnostics(world, "acme")["layers"]
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)  # its worker died before it could tell
    assert diagnostics(world, "acme")["layers"] == first
    world.coordinator("acme").post(f"{JOB}/cancel")
    world.coordinator("acme").post(f"{JOB}/retry")
    again = diagnostics(world, "acme")
    assert (again["attempt"], again["layers"], again["complete"]) == (2, [], False)
    worker.run(PROJECT, "first")
    assert diagnostics(world, "acme")["layers"] == first


def test_the_rows_hold_what_the_api_keeps_back(ready):
    """What the operator can see, as the threat model says."""
    world, worker = ready
    submit(world)
    worker.run(PROJECT, "first")
    with reading(world.services.database) as session:
        (task,) = session.query(TaskRow).all()
        entries = json.loads(task.diagnostics)
    (entry,) = [entry for entry in entries if LAYER in entry["parameters"]]
    assert entry["distances"].keys() == set(MEMBERS)


def test_a_job_of_before_there_were_figures_is_read(ready):
    world, worker = ready
    submit(world)
    worker.run(PROJECT, "first")
    old = [{"parameters": [LAYER], "method": "regmean", "width": 8, "fallback": "none", "reason": None, "rows": 1500}]
    with transaction(world.services.database) as session:
        session.query(TaskRow).one().diagnostics = json.dumps(old)
    layer = layer_of(diagnostics(world, "acme"))
    assert (layer["rows"], layer["gained"], layer["spread"], layer["own"]) == (1500, None, None, None)
