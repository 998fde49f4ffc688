"""Fact 5 through the whole server: merges that differ by one member reveal it, and which ways to such are refused."""

import pytest
import torch
from safetensors.torch import load

from gramfuse_shared.contract.policy import Policy
from support.server_world import BODY_TENSORS, make_base, problem
from support.worker_world import MEMBERS, InProcessWorker, contribute, make_gram, make_statistics, make_weights

FROZEN = Policy(minimum_cohort=2, minimum_rows_per_dimension=1.0)
WEIGHT = "encoder.query.weight"
ALL = [{"model": member} for member in MEMBERS]


def begin(world, settings):
    """A frozen project whose three members were merged once, by their mean."""
    worker = InProcessWorker(world, settings)
    project = world.project(*MEMBERS, policy=FROZEN)
    for seed, member in enumerate(MEMBERS):
        contribute(world, project, member, seed)
    assert worker.inspect_all() == ["accepted"] * len(MEMBERS)
    merge(world, worker, "first", {"merge_method": "linear"})


@pytest.fixture
def released(begun):
    world, settings = begun(begin)
    return world, InProcessWorker(world, settings)


def submit(world, job, recipe, project="acme.tweets"):
    coordinator = world.coordinator(project.partition(".")[0])
    return coordinator.put(f"/v1/projects/{project}/jobs/{job}", json={"recipe": recipe})


def merge(world, worker, job, recipe, project="acme.tweets"):
    submitted = submit(world, job, recipe, project)
    assert submitted.status_code == 201, submitted.text
    worker.run(project, job)


def pulled(world, job, project="acme.tweets", by="globex"):
    """The merged layer, as any member pulls it."""
    model = world.participant(by).get(f"/v1/projects/{project}/models/{job}/files/model.safetensors")
    return load(model.content)[WEIGHT].double()


def own(member):
    return load(make_weights(MEMBERS.index(member)))[WEIGHT].double()


def push_again(world, worker, member, seed, **changes):
    world.clock.advance(hours=1)
    project = world.coordinator("acme").get("/v1/projects/acme.tweets").json()
    contribute(world, project, member, seed, **changes)
    assert worker.inspect_all() == ["accepted"]


def assert_same(found, truth):
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)


def test_where_cohorts_are_open_two_merges_that_differ_by_a_member_reveal_it_to_who_pulls_both(ready):
    world, worker = ready
    merge(world, worker, "all", {"merge_method": "linear"})
    merge(world, worker, "fewer", {"merge_method": "linear", "models": ALL[:2]})
    assert_same(3 * pulled(world, "all") - 2 * pulled(world, "fewer"), own("initech"))


@pytest.mark.parametrize(
    "recipe",
    [
        {"models": ALL[:2]},
        {"merge_method": "regmean", "models": ALL[1:]},
        {"models": [*ALL[:2], {"model": "initech", "parameters": {"weight": 0.5}}]},
        {"models": [*ALL[:2], {"model": "initech", "parameters": {"weight": [{"filter": "query", "value": 0.5}]}}]},
    ],
)
def test_where_they_are_frozen_no_other_set_and_no_other_weight_is_merged(released, recipe):
    world, _ = released
    problem(submit(world, "second", {"merge_method": "linear"} | recipe), 409, "cohort-frozen")


def test_nor_another_shrinking_normalization_or_ridge_beside_one_by_regmean(released):
    world, worker = released
    merge(world, worker, "second", {"merge_method": "regmean"})
    for parameters in ({"alpha": 0.8}, {"normalize": "rows"}, {"ridge": 0.1}):
        tried = submit(world, "third", {"merge_method": "regmean", "parameters": parameters})
        problem(tried, 409, "cohort-frozen")


def test_nor_the_rest_after_a_member_withdrew_by_a_new_job_or_by_trying_an_old_one_again(released):
    world, _ = released
    assert submit(world, "second", {"merge_method": "linear"}).status_code == 201
    path = "/v1/projects/acme.tweets"
    member = world.participant("initech")
    mine = member.get(f"{path}/contributions", params={"organization": "initech"}).json()["items"]
    assert member.post(f"{path}/contributions/{mine[0]['id']}/withdraw").status_code == 200
    for recipe in ({"merge_method": "linear"}, {"merge_method": "linear", "models": ALL[:2]}):
        problem(submit(world, "third", recipe), 409, "cohort-frozen")
    problem(world.coordinator("acme").post(f"{path}/jobs/second/retry"), 409, "wrong-state")


def test_nor_a_layer_of_other_members_after_one_pushed_again_without_it(released):
    """Its own upload, but what it reveals is what it sent before."""
    world, worker = released
    kept = tuple(tensor for tensor in BODY_TENSORS if tensor[0] != WEIGHT)
    push_again(world, worker, "initech", 2, weights=None, statistics=None, tensors=kept, taps=())
    refused = problem(submit(world, "second", {"merge_method": "linear"}), 409, "cohort-frozen")
    assert refused["facts"]["differs"] == ["initech"]
    push_again(world, worker, "initech", 12)
    assert submit(world, "second", {"merge_method": "linear"}).status_code == 201


def test_a_limit_who_pushes_again_reveals_the_change_and_with_the_bases_weights_all_that_was_sent_before(released):
    """The set is the same, so this is merged: the docs say so, and the organization alone can avoid it."""
    world, worker = released
    changed = own("initech").float() + 0.01
    push_again(world, worker, "initech", 2, weights=make_weights(2, **{WEIGHT: changed}))
    merge(world, worker, "second", {"merge_method": "linear"})
    assert_same(3 * (pulled(world, "second") - pulled(world, "first")), changed.double() - own("initech"))
    base = load(make_base().files["model.safetensors"])[WEIGHT]
    push_again(world, worker, "initech", 2, weights=make_weights(2, **{WEIGHT: base}))
    merge(world, worker, "third", {"merge_method": "linear"})
    assert_same(3 * (pulled(world, "first") - pulled(world, "third")) + base.double(), own("initech"))


def test_a_limit_another_project_is_counted_apart_so_the_same_contributions_there_reveal_who_is_missing(released):
    world, worker = released
    other = world.project("globex", "acme", policy=FROZEN)
    for member in ("acme", "globex"):
        seed = MEMBERS.index(member)
        statistics = make_statistics(other, make_gram(seed))
        contribute(world, other, member, seed, statistics=statistics)
    assert worker.inspect_all() == ["accepted"] * 2
    merge(world, worker, "fewer", {"merge_method": "linear"}, other["id"])
    without = pulled(world, "fewer", other["id"])
    assert_same(3 * pulled(world, "first") - 2 * without, own("initech"))
