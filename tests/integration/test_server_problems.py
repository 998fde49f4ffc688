"""Every error is a problem document, whoever raised it; health, readiness, the OpenAPI document."""

import threading

import pytest
from sqlalchemy import text

from gramfuse_server.database import transaction
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import error_class
from support.server_world import make_contribution, problem

PUBLIC = {"/healthz", "/readyz", "/v1/server"}


def test_a_path_that_is_not_there_and_a_method_that_is_not_are_told_apart(world):
    problem(world.client().get("/v1/nothing"), 404, "not-found")
    answer = world.client().delete("/v1/whoami")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET"


def test_a_malformed_request_names_the_place_and_does_not_repeat_the_value(world):
    answer = world.operator.post("/v1/tokens", json={"role": "participant", "days": "hunter2"})
    assert "days" in problem(answer, 422, "request-malformed")["detail"]
    assert "hunter2" not in answer.text


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_json_that_is_not_announced_as_json_is_told_which_header_it_lacks(world, kind):
    world.project("acme", ready=False)
    for ask, path in (
        (world.operator.post, "/v1/tokens"),
        (world.operator.put, "/v1/admin/projects/acme.tweets/quota"),
    ):
        answer = ask(path, content=b'{"bytes": null}', headers={"content-type": kind} if kind else {})
        assert "content-type: application/json" in problem(answer, 422, "request-malformed")["detail"]


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"", b'{"role": "\\ud800"}', b"[" * 100_000])
def test_a_body_that_is_not_json_is_refused(world, body):
    answer = world.operator.post("/v1/tokens", content=body, headers={"content-type": "application/json"})
    problem(answer, 422, "request-malformed")


def test_a_bug_is_answered_without_its_details(world, capsys):
    with transaction(world.services.database) as session:
        session.execute(text("DROP TABLE job_log"))
    world.project("acme", ready=False)
    with transaction(world.services.database) as session:
        session.execute(text("ALTER TABLE acceptances RENAME TO gone"))
    answer = world.coordinator("acme").get("/v1/projects/acme.tweets")
    detail = problem(answer, 500, "internal-error")["detail"]
    assert "acceptances" not in detail
    assert "request failed" in capsys.readouterr().out


def test_a_request_id_is_the_clients_where_it_has_a_plain_form(world):
    client = world.client()
    assert client.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for odd in ("x" * 65, "a b", 'a"b'):
        assert client.get("/healthz", headers={"x-request-id": odd}).headers["x-request-id"] != odd


def test_health_needs_nothing_and_readiness_names_what_is_missing(world):
    client, seconds = world.client(), 1.0
    world.services.readiness.monotonic = lambda: seconds
    assert client.get("/readyz").json() == {
        "status": "ok",
        "checks": {"database": "ok", "migrations": "ok", "blobs": "ok"},
    }
    with transaction(world.services.database) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    assert client.get("/readyz").status_code == 200  # it looks once a second at most, whoever asks
    seconds = 2.0
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert answer.json()["checks"]["migrations"].startswith("at 0000, this version needs ")
    assert client.get("/healthz").json()["status"] == "ok"


def test_anybody_may_know_the_version_and_the_receipt_key(world):
    answer = world.client().get("/v1/server").json()
    assert answer["service"] == "gramfuse"
    assert answer["receipt_key"] == world.services.receipt_keys.present


def test_the_api_shows_no_metrics(world):
    for client in (world.client(), world.operator):
        problem(client.get("/metrics"), 404, "not-found")


def operations(world):
    for path, methods in world.app.openapi()["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_operation_declares_its_problems_with_an_example_of_each(world):
    for path, method, operation in operations(world):
        declared = operation["responses"]
        assert {"413", "422", "500"} <= declared.keys(), (method, path)
        for status, response in declared.items():
            if int(status) >= 400 and path != "/readyz":
                for code, example in response["content"]["application/problem+json"]["examples"].items():
                    assert example["value"]["status"] == error_class(code).status == int(status), (method, path)


def test_every_operation_but_the_public_ones_asks_for_a_token(world):
    document = world.app.openapi()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, method, operation in operations(world):
        assert ("security" in operation) == (path not in PUBLIC), (method, path)
        assert ("401" in operation["responses"]) == (path not in PUBLIC), (method, path)


def test_of_many_different_bodies_for_one_part_exactly_one_is_kept(world):
    project = world.project("acme")
    contribution = make_contribution(project, "acme")
    path = f"/v1/projects/acme.tweets/contributions/{contribution.id}"
    member = world.participant("acme")
    (file, *_) = member.put_document(path, contribution.manifest).json()["files"]
    bodies = [bytes([number % 3]) * file["part_bytes"] for number in range(9)]
    answers = {}

    def send(number):
        client = world.participant("acme")
        answers[number] = client.put_part(f"{path}/files/{file['name']}", 0, bodies[number])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (kept,) = member.get(f"{path}/files/{file['name']}/parts").json()["parts"]
    for number, body in enumerate(bodies):
        expected = {200, 201} if sha256_hex(body) == kept["sha256"] else {409}
        assert answers[number].status_code in expected
    assert sorted(answer.status_code for answer in answers.values()).count(201) == 1
    assert [key for key in world.stored_keys() if f"/{file['name']}/0." in key and kept["sha256"] in key]
    assert len([key for key in world.stored_keys() if "uploads/" in key and f"/{file['name']}/0." in key]) == 1


def test_projects_created_at_the_same_moment_are_one_project(world):
    world.project("acme", ready=False)
    document = world.coordinator("acme").get("/v1/projects/acme.tweets/base").json()
    statuses = []

    def create():
        statuses.append(world.coordinator("acme").put("/v1/projects/acme.other", json={"base": document}).status_code)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 5 + [201]
