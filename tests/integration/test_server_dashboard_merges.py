"""The dashboard's pages of jobs and models, and the same as JSON."""

import html
import json
import re

import pytest

from gramfuse_server.dashboard import sources
from gramfuse_server.database import transaction
from gramfuse_server.operations import merges
from gramfuse_server.tables import JobLogRow, ModelRow, TaskRow
from gramfuse_shared.contract.release_gate import ReleaseGate
from gramfuse_shared.errors import FileUnreadableError
from support.browsing import HTMX, links_of, require_well_made, sign_in
from support.server_world import OPEN_POLICY, problem
from support.worker_world import MEMBERS, merge_everybody

PROJECT = "acme.tweets"
JOB = f"/dashboard/jobs/{PROJECT}"
MODEL = f"/dashboard/models/{PROJECT}"
ADMIN = f"/v1/admin/projects/{PROJECT}"
LINEAR = {"recipe": {"merge_method": "linear"}}
HOSTILE = "<script>alert('ours')</script>\"><img src=x onerror=alert(1)>"
GATED = OPEN_POLICY.model_copy(update={"requests": ("evaluate",), "release": ReleaseGate(metric="f1", mean=0.9)})


def begin_merged(world, settings):
    merge_everybody(world, settings)


def begin_held_back(world, settings):
    merge_everybody(world, settings, policy=GATED)


@pytest.fixture
def merged(begun):
    """A world with the model `regmean-1`, and an operator's browser."""
    world = begun(begin_merged)[0]
    return world, sign_in(world)[0]


def submit(world, job):
    answer = world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/{job}", json=LINEAR)
    assert answer.status_code == 201, answer.text


def require_escaped(page):
    assert re.search(r"&lt;script&gt;alert\((&#39;|')ours(&#39;|')\)", page.text)
    assert "<script>alert" not in page.text
    assert "<img src=x" not in page.text


def test_a_running_jobs_page_asks_for_itself_until_the_job_has_ended(ready):
    world, worker = ready
    browser, _ = sign_in(world)
    submit(world, "first")
    worker.merger.plan(worker.attempt(PROJECT, "first"), shard_bytes=worker.shard_bytes)
    running = browser.get(f"{JOB}/first")
    require_well_made(running)
    assert re.search(r'hx-get="./first" hx-trigger="every 2s" hx-swap="outerHTML"', running.text)
    assert '<progress value="0.0" max="1"' in running.text
    assert "figures of layers come with the first shard" in running.text
    worker.run(PROJECT, "first")
    ended = browser.get(f"{JOB}/first", headers=HTMX)
    assert "hx-trigger" not in ended.text
    assert "<progress" not in ended.text
    assert 'state succeeded">succeeded' in ended.text
    assert f'href="../../models/{PROJECT}/first"' in ended.text


def test_a_jobs_page_has_cohort_recipe_attempts_and_log(merged):
    world, browser = merged
    page = html.unescape(browser.get(f"{JOB}/regmean-1").text)
    job = world.operator.get(f"{ADMIN}/jobs/regmean-1").json()
    assert [attempt["state"] for attempt in job["attempts"]] == ["succeeded"]
    assert {member["organization"] for member in job["cohort"]} == set(MEMBERS)
    for member in job["cohort"]:
        assert member["contribution"] in page
    assert "merge_method: regmean" in page
    assert job["attempts"][0]["worker"] in page
    for line in world.operator.get(f"{ADMIN}/jobs/regmean-1/log").json()["items"]:
        assert line["message"] in page


def test_a_jobs_layers_are_a_table_and_maps_without_anybodys_name(merged):
    world, browser = merged
    page = browser.get(f"{JOB}/regmean-1").text
    found = world.operator.get(f"{ADMIN}/jobs/regmean-1/diagnostics").json()
    assert any(layer["spread"] for layer in found["layers"])
    assert all(layer["own"] is None for layer in found["layers"])
    entries = page[page.index('id="entries"') : page.index('id="log"')]
    for layer in found["layers"]:
        assert layer["parameters"][0] in entries
    maps = page[page.index('id="layers"') : page.index('id="entries"')]
    assert set(re.findall(r'<td class="h\d', maps))
    for name in ("gained", "condition", "distance"):
        assert f'class="table heat {name}"' in maps
    assert not re.search("|".join(MEMBERS), entries + maps)


def test_a_failed_jobs_page_tells_every_attempts_error_escaped(ready):
    world, worker = ready
    browser, _ = sign_in(world)
    submit(world, "bad")
    worker.merger.fail(worker.attempt(PROJECT, "bad"), FileUnreadableError("the disk is gone"))
    world.coordinator("acme").post(f"/v1/projects/{PROJECT}/jobs/bad/retry")
    worker.merger.fail(worker.attempt(PROJECT, "bad"), FileUnreadableError(HOSTILE))
    page = browser.get(f"{JOB}/bad")
    require_escaped(page)
    assert "the disk is gone" in page.text
    assert "Attempt 2 failed" in page.text
    attempts = world.operator.get(f"{ADMIN}/jobs/bad").json()["attempts"]
    assert [attempt["error"]["message"] for attempt in attempts] == ["the disk is gone", HOSTILE]


def test_names_of_parameters_and_lines_of_logs_are_escaped(merged):
    world, browser = merged
    with transaction(world.services.database) as session:
        entry = {"parameters": [f"encoder.3.{HOSTILE}.weight"], "method": HOSTILE, "fallback": "ridge"}
        entry |= {"reason": HOSTILE, "gained": 0.5, "condition": 9.0, "distances": {"acme": 0.1}}
        for task in session.query(TaskRow).filter_by(job="regmean-1"):
            task.diagnostics = json.dumps([entry])
        for line in session.query(JobLogRow).filter_by(job="regmean-1"):
            line.message = HOSTILE
    page = browser.get(f"{JOB}/regmean-1")
    require_escaped(page)
    assert page.text.count("<script") == 2


def test_a_jobs_log_goes_on_where_it_is_long(merged, monkeypatch):
    world, browser = merged
    monkeypatch.setattr(sources, "ROWS", 1)
    lines = world.operator.get(f"{ADMIN}/jobs/regmean-1/log").json()["items"]
    assert [line["sequence"] for line in lines] == sorted((line["sequence"] for line in lines), reverse=True)
    path, seen = f"{JOB}/regmean-1", []
    while path:
        page = browser.get(path)
        log = page.text[page.text.index('id="log"') :]
        seen += re.findall(r'<tr><td class="number">(\d+)</td>', log)
        path = next((link for link in links_of(page) if "cursor=" in link), None)
    assert [int(sequence) for sequence in seen] == [line["sequence"] for line in lines]
    assert len(seen) > 1


def test_a_models_page_has_card_files_receipt_and_signers(merged):
    world, browser = merged
    page = browser.get(f"{MODEL}/regmean-1")
    require_well_made(page)
    text = html.unescape(page.text)
    model = world.operator.get(f"{ADMIN}/models/regmean-1").json()
    card = world.participant("globex").get(f"/v1/projects/{PROJECT}/models/regmean-1/files/README.md").text
    assert model["card"] == card
    assert "No organization's text took part" in card
    assert "No organization's text took part" in text
    assert "library_name" not in text
    for file in model["files"]:
        assert f"{file['sha256']}" in text
    assert model["receipt"]["signature"] in text
    assert f'href="../../jobs/{PROJECT}/regmean-1"' in page.text


def test_an_operator_is_given_no_file_of_a_model(merged):
    world, browser = merged
    problem(world.operator.get(f"/v1/projects/{PROJECT}/models/regmean-1/files/model.safetensors"), 404, "not-found")
    assert not [link for link in links_of(browser.get(f"{MODEL}/regmean-1")) if "files" in link]


def test_the_card_of_a_deleted_model_is_gone_and_its_receipt_stays(merged):
    world, browser = merged
    assert world.coordinator("acme").delete(f"/v1/projects/{PROJECT}/models/regmean-1").status_code == 200
    page = browser.get(f"{MODEL}/regmean-1").text
    assert "It was deleted with the model" in page
    assert world.operator.get(f"{ADMIN}/models/regmean-1").json()["card"] is None
    assert world.operator.get(f"{ADMIN}/models/regmean-1").json()["receipt"]["signature"] in html.unescape(page)


def test_the_card_of_a_model_that_is_held_back_is_held_back(begun):
    world = begun(begin_held_back)[0]
    model = world.operator.get(f"{ADMIN}/models/regmean-1").json()
    assert (model["release"]["state"], model["card"]) == ("candidate", None)
    page = sign_in(world)[0].get(f"{MODEL}/regmean-1").text
    assert "It is held back" in page
    assert "# acme.tweets" not in page


def test_a_card_is_escaped_and_of_a_huge_one_only_the_beginning_is_read(merged, monkeypatch):
    world, browser = merged
    with transaction(world.services.database) as session:
        card = merges.find_card(
            session, merges.admin_models(session, [session.query(ModelRow).one()], world.clock())[0]
        )
        path = f"sha256/{card.sha256}"
        world.services.blobs.delete(path)
        world.services.blobs.put(path, (HOSTILE + "\xff" + "x" * 5000).encode("latin-1"))
    page = browser.get(f"{MODEL}/regmean-1")
    require_escaped(page)
    monkeypatch.setattr(merges, "MAX_CARD_BYTES", 100)
    assert len(world.operator.get(f"{ADMIN}/models/regmean-1").json()["card"]) == 100
    world.services.blobs.delete(path)
    assert world.operator.get(f"{ADMIN}/models/regmean-1").json()["card"] is None


@pytest.mark.parametrize("kind", ["jobs", "models"])
@pytest.mark.parametrize("name", [f"{PROJECT}/other", "acme.other/regmean-1", f"{PROJECT}/%00", "%3Cscript%3E/x"])
def test_what_is_not_there_is_told_so(merged, kind, name):
    assert merged[1].get(f"/dashboard/{kind}/{name}").status_code == 404
