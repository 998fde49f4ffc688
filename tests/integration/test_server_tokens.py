"""Tokens and organizations: who may do what, and what does not exist for whom."""

import re

import pytest

from gramfuse_server.database import reading
from gramfuse_server.tables import TokenRow
from gramfuse_shared.digest import sha256_hex
from support.identities import signed_acceptance
from support.server_world import problem


def test_a_token_is_shown_once_and_only_the_digest_of_its_secret_is_stored(world):
    world.organization("acme")
    answer = world.operator.post("/v1/tokens", json={"role": "participant", "organization": "acme", "days": 3})
    assert answer.status_code == 201
    identifier, secret = re.fullmatch(r"gf_([0-9a-f]{16})_([0-9a-f]{64})", answer.json()["token"]).groups()
    assert identifier == answer.json()["id"]
    assert secret not in world.operator.get("/v1/tokens").text
    with reading(world.services.database) as session:
        assert session.get_one(TokenRow, identifier).secret_sha256 == sha256_hex(secret.encode())
    whoami = world.client(answer.json()["token"]).get("/v1/whoami").json()
    assert (whoami["organization"], whoami["role"], whoami["token"]) == ("acme", "participant", identifier)


@pytest.mark.parametrize(
    "field",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic Z2Y6eA==",
        "Bearer gf_0123456789abcdef_" + "0" * 64,
        "Bearer gf_0123456789ABCDEF_" + "0" * 64,
        "Bearer gf__" + "0" * 64,
        "Bearer " + "g" * 5_000,
    ],
)
def test_without_a_valid_token_the_answer_is_401_and_says_how_to_authenticate(world, field):
    headers = {} if field is None else {"authorization": field}
    answer = world.client().get("/v1/whoami", headers=headers)
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_the_right_id_with_a_wrong_secret_is_refused(world):
    token = world.token(None, "operator")
    wrong = token[:-1] + ("0" if token[-1] != "0" else "1")
    problem(world.client(wrong).get("/v1/whoami"), 401, "unauthenticated")


def test_a_token_expires(world):
    world.organization("acme")
    body = {"role": "coordinator", "organization": "acme", "days": 2}
    client = world.client(world.operator.post("/v1/tokens", json=body).json()["token"])
    world.clock.advance(days=1, hours=23)
    assert client.get("/v1/whoami").status_code == 200
    world.clock.advance(hours=1)
    problem(client.get("/v1/whoami"), 401, "unauthenticated")


def test_a_revoked_token_is_refused_at_once_and_revoking_twice_changes_nothing(world):
    world.organization("acme")
    made = world.operator.post("/v1/tokens", json={"role": "participant", "organization": "acme"}).json()
    first = world.operator.post(f"/v1/tokens/{made['id']}/revoke")
    world.clock.advance(hours=1)
    second = world.operator.post(f"/v1/tokens/{made['id']}/revoke")
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    problem(world.client(made["token"]).get("/v1/whoami"), 401, "unauthenticated")


def test_a_coordinator_revokes_its_own_organizations_tokens_and_knows_of_no_others(world):
    world.organization("acme")
    world.organization("globex")
    ours = world.operator.post("/v1/tokens", json={"role": "participant", "organization": "acme"}).json()["id"]
    theirs = world.operator.post("/v1/tokens", json={"role": "participant", "organization": "globex"}).json()["id"]
    operators = world.token(None, "operator").split("_")[1]
    coordinator = world.coordinator("acme")
    problem(world.participant("acme").post(f"/v1/tokens/{ours}/revoke"), 403, "role-required")
    assert coordinator.post(f"/v1/tokens/{ours}/revoke").status_code == 200
    for unknown in (theirs, operators, "0" * 16):
        problem(coordinator.post(f"/v1/tokens/{unknown}/revoke"), 404, "not-found")
    listed = {item["organization"] for item in coordinator.get("/v1/tokens").json()["items"]}
    assert listed == {"acme"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"role": "operator", "organization": "acme"}, 422, "request-malformed"),
        ({"role": "participant"}, 422, "request-malformed"),
        ({"role": "participant", "organization": "nobody"}, 404, "not-found"),
        ({"role": "king", "organization": "acme"}, 422, "request-malformed"),
        ({"role": "participant", "organization": "acme", "days": 0}, 422, "request-malformed"),
        ({"role": "participant", "organization": "../acme"}, 422, "request-malformed"),
        ({"role": "participant", "organization": "acme", "scope": "all"}, 422, "request-malformed"),
    ],
)
def test_tokens_that_mean_nothing_are_not_created(world, body, status, code):
    world.organization("acme")
    problem(world.operator.post("/v1/tokens", json=body), status, code)


def test_only_operators_create_organizations_and_tokens(world):
    world.organization("acme")
    for client in (world.coordinator("acme"), world.participant("acme")):
        problem(client.put("/v1/organizations/initech"), 403, "role-required")
        problem(client.get("/v1/organizations"), 403, "role-required")
        problem(client.post("/v1/tokens", json={"role": "operator"}), 403, "role-required")


def test_an_organization_twice_is_the_same_organization(world):
    first, second = (world.operator.put("/v1/organizations/acme") for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()


@pytest.mark.parametrize("name", ["Acme", "a_b", "-a", "a" * 41, "a.b"])
def test_an_organization_with_another_form_of_name_is_refused(world, name):
    problem(world.operator.put(f"/v1/organizations/{name}"), 422, "request-malformed")


def test_organizations_are_listed_in_pages_by_name(world):
    names = [f"org-{number}" for number in range(7)]
    for name in reversed(names):
        world.operator.put(f"/v1/organizations/{name}")
    listed, cursor = [], None
    while True:
        query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = world.operator.get("/v1/organizations", params=query).json()
        listed += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert listed == names


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/base"),
        ("GET", "/base/files/config.json"),
        ("HEAD", "/base/files/config.json"),
        ("GET", "/base/files/config.json/parts"),
        ("POST", "/base/seal"),
        ("GET", "/policies/1"),
        ("PUT", "/participants/globex"),
        ("PUT", "/acceptances/" + "0" * 64),
        ("GET", "/contributions"),
        ("GET", "/contributions/{contribution}"),
        ("GET", "/contributions/{contribution}/files/weights.safetensors/parts"),
        ("POST", "/contributions/{contribution}/seal"),
        ("POST", "/contributions/{contribution}/withdraw"),
    ],
)
def test_what_an_organization_may_not_know_of_answers_404_like_what_does_not_exist(world, method, path):
    project = world.project("acme", "globex")
    contribution = world.contribute(project, "globex").id
    world.organization("initech")
    path = path.format(contribution=contribution)
    body = signed_acceptance("acme.tweets", "initech", "0" * 64).model_dump(mode="json") if method == "PUT" else None
    for client in (world.coordinator("initech"), world.participant("initech"), world.operator):
        hidden = client.request(method, f"/v1/projects/acme.tweets{path}", json=body)
        missing = client.request(method, f"/v1/projects/acme.nothing{path}", json=body)
        assert hidden.status_code == missing.status_code == 404
        if method != "HEAD":
            assert problem(hidden, 404, "not-found")["detail"] == problem(missing, 404, "not-found")["detail"].replace(
                "acme.nothing", "acme.tweets"
            )
    assert "acme.tweets" not in world.participant("initech").get("/v1/projects").text


def test_a_project_can_only_be_created_under_the_callers_own_name_whether_it_exists_or_not(world):
    world.project("acme")
    world.organization("initech")
    document = {"base": {"files": []}, "policy": {}}
    base = world.coordinator("acme").get("/v1/projects/acme.tweets/base").json()
    for name in ("acme.tweets", "acme.other"):
        answer = world.coordinator("initech").put(f"/v1/projects/{name}", json={"base": base})
        problem(answer, 403, "role-required")
    problem(world.participant("acme").put("/v1/projects/acme.tweets", json={"base": base}), 403, "role-required")
    problem(world.client().put("/v1/projects/acme.tweets", json=document), 401, "unauthenticated")
