"""Policies: versions, acceptances, and what they keep at home, enforced by the server whatever the client did."""

import pytest

from gramfuse_shared.contract.policy import Policy
from support.server_world import BODY_TENSORS, OPEN_POLICY, WIDTH, make_contribution, make_tap, problem

EMBEDDING = ("embeddings.word_embeddings.weight", "F32", (31, WIDTH))
HEAD = ("classifier.weight", "F32", (3, WIDTH))


def create(world, project, contribution):
    path = f"/v1/projects/{project['id']}/contributions/{contribution.id}"
    return world.participant(contribution.manifest.organization).put_document(path, contribution.manifest)


def refused(world, project, **made):
    return problem(create(world, project, make_contribution(project, "globex", **made)), 422, "policy-violation")


def test_embeddings_stay_at_home_by_default_and_leave_where_the_policy_says_so(world):
    project = world.project("acme", "globex")
    found = refused(world, project, tensors=(EMBEDDING, *BODY_TENSORS))
    assert found["facts"]["refused"] == ["embeddings.word_embeddings.weight"]
    average = world.project("initech", "globex", policy=OPEN_POLICY.model_copy(update={"embeddings": "average"}))
    allowed = make_contribution(average, "globex", tensors=(EMBEDDING, *BODY_TENSORS))
    assert create(world, average, allowed).status_code == 201


def test_heads_stay_at_home_by_default_and_leave_where_the_policy_says_so(world):
    project = world.project("acme", "globex")
    assert refused(world, project, tensors=(*BODY_TENSORS, HEAD))["facts"]["refused"] == ["classifier.weight"]
    shared = world.project("initech", "globex", policy=OPEN_POLICY.model_copy(update={"heads": "shared"}))
    allowed = make_contribution(shared, "globex", tensors=(*BODY_TENSORS, HEAD))
    assert create(world, shared, allowed).status_code == 201


@pytest.mark.parametrize("source", ["embeddings", "unknown"])
def test_taps_that_embeddings_feed_stay_at_home(world, source):
    project = world.project("acme", "globex")
    assert refused(world, project, taps=(make_tap(source=source),))["facts"]["refused"] == ["tap encoder.query"]


def test_taps_with_too_few_distinct_rows_stay_at_home(world):
    project = world.project("acme", "globex")
    minimum = OPEN_POLICY.minimum_rows(WIDTH)
    refused(world, project, taps=(make_tap(distinct_rows=minimum - 1),))
    enough = make_contribution(project, "globex", taps=(make_tap(distinct_rows=minimum),))
    assert create(world, project, enough).status_code == 201


def test_a_tap_that_no_contributed_weight_reads_stays_at_home(world):
    project = world.project("acme", "globex")
    refused(world, project, taps=(make_tap(name="pooled", layers=({"weight": "classifier.weight"},)),))


def test_nothing_can_be_pushed_before_the_policy_is_accepted(world):
    project = world.project("acme", "globex")
    world.organization("initech")
    world.coordinator("acme").put("/v1/projects/acme.tweets/participants/initech")
    contribution = make_contribution(project, "initech")
    problem(create(world, project, contribution), 409, "policy-not-accepted")


def test_a_new_version_blocks_pushes_until_it_is_accepted(world):
    project = world.project("acme", "globex")
    coordinator, member = world.coordinator("acme"), world.participant("globex")
    newer = OPEN_POLICY.model_copy(update={"minimum_rows_per_dimension": 2.0})
    path = "/v1/projects/acme.tweets"
    published = coordinator.put_document(f"{path}/policies/2", newer)
    assert (published.status_code, coordinator.put_document(f"{path}/policies/2", newer).status_code) == (201, 200)
    problem(create(world, project, make_contribution(project, "globex")), 409, "policy-not-accepted")
    digest = published.json()["digest"]
    accepted = world.accept_policy(project["id"], "globex")
    assert accepted.status_code == 201
    assert accepted.json()["policy"] == {"version": 2, "digest": digest}
    assert accepted.json()["token"] == world.token("globex", "participant").split("_")[1]
    again = world.accept_policy(project["id"], "globex")
    assert (again.status_code, again.json()) == (200, accepted.json())
    # made under the old version: refused although the new one is accepted
    problem(create(world, project, make_contribution(project, "globex")), 409, "policy-not-accepted")
    current = member.get(path).json()
    assert create(world, current, make_contribution(current, "globex")).status_code == 201


def test_only_the_current_version_can_be_accepted(world):
    project = world.project("acme", "globex")
    path = f"/v1/projects/{project['id']}"
    old = project["policy"]["digest"]
    world.coordinator("acme").put_document(f"{path}/policies/2", Policy())
    problem(world.accept_policy(project["id"], "globex", digest=old), 409, "conflict")
    problem(world.accept_policy(project["id"], "globex", digest="0" * 64), 409, "conflict")


def test_policy_versions_are_consecutive_and_never_change(world):
    world.project("acme")
    coordinator, path = world.coordinator("acme"), "/v1/projects/acme.tweets/policies"
    problem(coordinator.put_document(f"{path}/3", Policy()), 409, "conflict")
    problem(coordinator.put_document(f"{path}/1", Policy()), 409, "conflict")
    assert coordinator.put_document(f"{path}/1", OPEN_POLICY).status_code == 200
    assert coordinator.get(f"{path}/1").json()["policy"] == OPEN_POLICY.model_dump(mode="json")
    problem(coordinator.get(f"{path}/2"), 404, "not-found")


def test_a_participant_cannot_publish_a_policy_or_invite(world):
    world.project("acme", "globex")
    path = "/v1/projects/acme.tweets"
    for client in (world.participant("acme"), world.participant("globex"), world.coordinator("globex")):
        problem(client.put_document(f"{path}/policies/2", Policy()), 403, "role-required")
        problem(client.put(f"{path}/participants/globex"), 403, "role-required")


def test_a_contribution_for_another_base_is_refused(world):
    project = world.project("acme", "globex")
    problem(
        create(world, project, make_contribution(project | {"base": "0" * 64}, "globex")), 422, "architecture-mismatch"
    )


def test_a_contribution_in_anothers_name_is_refused(world):
    project = world.project("acme", "globex")
    contribution = make_contribution(project, "acme")
    path = f"/v1/projects/{project['id']}/contributions/{contribution.id}"
    problem(world.participant("globex").put_document(path, contribution.manifest), 422, "request-malformed")


def test_a_contribution_to_a_project_that_is_not_ready_is_refused(world):
    project = world.project("acme", "globex", ready=False)
    problem(create(world, project, make_contribution(project, "globex")), 409, "wrong-state")
