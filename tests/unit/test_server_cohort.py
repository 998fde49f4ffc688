"""Which contributions a job merges, and whether it may: pure decisions."""

from dataclasses import replace

import pytest

from gramfuse_server.merging.cohort import (
    Candidate,
    CohortMember,
    Release,
    require_allowed,
    resolve_cohort,
)
from gramfuse_shared import limits
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import CohortFrozenError, PolicyViolationError, RecipeInvalidError

FROZEN = Policy(minimum_cohort=2)
OPEN = Policy(minimum_cohort=2, cohorts="open")
A, B, C = ("a" * 64, "b" * 64, "c" * 64)
CANDIDATES = [Candidate(A, "acme"), Candidate(B, "globex"), Candidate(C, "initech")]


def recipe(method="regmean", models=(), **parameters):
    entries = [model if isinstance(model, dict) else {"model": model} for model in models]
    return Recipe.model_validate({"merge_method": method, "models": entries, "parameters": parameters})


def weighing(model, weight):
    return {"model": model, "parameters": {"weight": weight}}


def released(made, job="earlier"):
    cohort = resolve_cohort(made, CANDIDATES)
    return Release(job, made, {member.organization: member.weight for member in cohort})


def submit(made, *releases, policy=FROZEN):
    require_allowed(made, resolve_cohort(made, CANDIDATES), policy, releases)


@pytest.mark.parametrize(("before", "now"), [(None, (0, 1)), ((0, 1), None), ((0, 1), (1,)), ((0,), ())])
def test_a_frozen_member_keeps_its_trained_labels_because_a_row_too_has_a_cohort(before, now):
    release = replace(released(recipe()), labels={"acme": before})
    cohort = [
        replace(member, labels=now if member.organization == "acme" else None)
        for member in resolve_cohort(recipe(), CANDIDATES)
    ]
    with pytest.raises(CohortFrozenError, match="acme with other trained labels"):
        require_allowed(recipe(), cohort, FROZEN, [release])
    require_allowed(recipe(), cohort, FROZEN, [replace(release, labels={"acme": now})])
    require_allowed(recipe(), cohort, OPEN, [release])


def holding(**tensors):
    """What each organization sent, one letter a parameter."""
    found = {organization: frozenset(names) for organization, names in tensors.items()}
    cohort = [replace(member, tensors=found[member.organization]) for member in resolve_cohort(recipe(), CANDIDATES)]
    return cohort, replace(released(recipe()), tensors=found)


def test_a_parameter_that_enough_members_sent_is_merged_of_the_same_members_only():
    everything = {"acme": "kv", "globex": "kv", "initech": "kv"}
    (_, before), (fewer, release) = holding(**everything), holding(**everything | {"initech": "k"})
    with pytest.raises(CohortFrozenError, match=r"v of acme, globex, initech; .* differs there by initech"):
        require_allowed(recipe(), fewer, FROZEN, [before])
    with pytest.raises(CohortFrozenError, match=r"v of acme, globex; .* differs there by initech"):
        require_allowed(recipe(), holding(**everything)[0], FROZEN, [release])
    require_allowed(recipe(), fewer, FROZEN, [release])
    require_allowed(recipe(), fewer, OPEN, [before])


@pytest.mark.parametrize("before", ["", "v"])
def test_one_that_fewer_than_the_minimum_sent_was_the_bases_and_may_come_or_go(before):
    _, release = holding(acme="k" + before, globex="k", initech="k")
    everybody, later = holding(acme="kv", globex="kv", initech="kv")
    require_allowed(recipe(), everybody, FROZEN, [release])
    require_allowed(recipe(), holding(acme="k" + before, globex="k", initech="k")[0], FROZEN, [later])


def test_no_models_mean_everybody():
    cohort = resolve_cohort(recipe(), CANDIDATES)
    assert cohort == (CohortMember(A, "acme", 1.0), CohortMember(B, "globex", 1.0), CohortMember(C, "initech", 1.0))


def test_a_model_names_an_organization_or_its_contribution():
    cohort = resolve_cohort(recipe(models=[weighing(A, 2.0), "globex"]), CANDIDATES)
    assert [(member.contribution, member.weight) for member in cohort] == [(A, 2.0), (B, 1.0)]


def test_the_order_of_the_candidates_does_not_matter():
    assert resolve_cohort(recipe(), CANDIDATES) == resolve_cohort(recipe(), CANDIDATES[::-1])


def test_a_name_without_an_accepted_contribution_is_refused():
    with pytest.raises(RecipeInvalidError, match="umbrella has no accepted contribution"):
        resolve_cohort(recipe(models=["umbrella"]), CANDIDATES)


def test_labels_are_the_contributions_not_a_jobs():
    with pytest.raises(RecipeInvalidError, match="names labels of globex"):
        resolve_cohort(recipe(models=["acme", {"model": "globex", "labels": [0]}]), CANDIDATES)


def test_an_organization_counts_once():
    with pytest.raises(RecipeInvalidError, match="two contributions of acme"):
        resolve_cohort(recipe(models=["acme", A]), CANDIDATES)


def test_a_method_that_the_policy_does_not_name_is_refused():
    with pytest.raises(PolicyViolationError, match="allows linear, not regmean"):
        submit(recipe(), policy=Policy(methods=("linear",), minimum_cohort=2))


def test_a_cohort_below_the_minimum_is_refused():
    with pytest.raises(
        PolicyViolationError, match=r"has 2 organizations \(acme, globex\), the policy wants at least 3"
    ):
        submit(recipe(models=["acme", "globex"]), policy=Policy(minimum_cohort=3))


def test_beside_wudi_no_other_merge_of_its_members_is_released():
    """It is a function of the weights alone: with the mean beside it, those of two members can be solved for."""
    policy = Policy(minimum_cohort=2, methods=("linear", "regmean", "wudi"))
    submit(recipe("wudi"), released(recipe("wudi")), policy=policy)
    for other in ("linear", "regmean"):
        for first, second in ((recipe("wudi"), recipe(other)), (recipe(other), recipe("wudi"))):
            with pytest.raises(CohortFrozenError, match="would show single members' values"):
                submit(second, released(first), policy=policy)
    with pytest.raises(PolicyViolationError, match="allows linear, regmean, not wudi"):
        submit(recipe("wudi"))
    with pytest.raises(CohortFrozenError, match="another ridge"):
        submit(recipe("wudi", ridge=0.1), released(recipe("wudi")), policy=policy)


@pytest.mark.parametrize("sparse", ["ties", "dare_linear", "dare_ties"])
def test_beside_a_method_that_drops_elements_no_other_merge_of_its_members_is_released(sparse):
    policy = Policy(
        minimum_cohort=2, methods=("linear", "regmean", "task_arithmetic", "ties", "dare_linear", "dare_ties")
    )
    submit(recipe(sparse), released(recipe(sparse)), policy=policy)
    submit(recipe(sparse, **{"lambda": 0.3}), released(recipe(sparse)), policy=policy)
    for other in (recipe("regmean"), recipe("linear"), recipe(sparse, density=0.1), recipe(sparse, seed=1)):
        for first, second in ((recipe(sparse), other), (other, recipe(sparse))):
            with pytest.raises(CohortFrozenError, match="would show single members' values"):
                submit(second, released(first), policy=policy)
    open_policy = policy.model_copy(update={"cohorts": "open"})
    submit(recipe(sparse, seed=1), released(recipe(sparse)), policy=open_policy)


def test_beside_a_merge_by_fisher_information_no_other_of_its_members_is_released():
    policy = Policy(minimum_cohort=2, methods=("linear", "regmean", "fisher"))
    submit(recipe("fisher"), released(recipe("fisher")), policy=policy)
    for other in (recipe("regmean"), recipe("linear")):
        for first, second in ((recipe("fisher"), other), (other, recipe("fisher"))):
            with pytest.raises(CohortFrozenError, match="would show single members' values"):
                submit(second, released(first), policy=policy)
    with pytest.raises(CohortFrozenError, match="with normalize equal; another normalize over the same members"):
        submit(recipe("fisher", normalize="norm"), released(recipe("fisher")), policy=policy)
    submit(recipe("fisher"), policy=policy)
    with pytest.raises(PolicyViolationError, match="not fisher"):
        submit(recipe("fisher"))


def test_task_arithmetic_says_no_more_than_a_mean_does():
    policy = Policy(minimum_cohort=2, methods=("linear", "task_arithmetic"))
    submit(recipe("task_arithmetic", **{"lambda": 0.3}), released(recipe("linear")), policy=policy)
    submit(recipe("task_arithmetic", **{"lambda": 0.3}), released(recipe("task_arithmetic")), policy=policy)


def test_the_same_cohort_again_is_allowed_by_either_method():
    submit(recipe(), released(recipe()))
    submit(recipe("linear"), released(recipe()))
    submit(recipe(), released(recipe("linear")), released(recipe()))


def test_a_newer_contribution_of_the_same_organizations_is_allowed():
    before = released(recipe(models=["acme", "globex", "initech"]))
    newer = [Candidate("d" * 64, "acme"), *CANDIDATES[1:]]
    require_allowed(recipe(), resolve_cohort(recipe(), newer), FROZEN, [before])


def test_cohorts_without_a_common_member_are_free():
    before = Release("other", recipe(), {"umbrella": 1.0, "hooli": 1.0})
    submit(recipe(), before)


@pytest.mark.parametrize("models", [("acme", "globex"), ("globex", "initech")])
def test_leaving_a_member_out_after_a_release_is_refused(models):
    with pytest.raises(CohortFrozenError, match="would reveal") as caught:
        submit(recipe(models=models), released(recipe()))
    assert caught.value.facts["job"] == "earlier"
    submit(recipe(models=models), released(recipe()), policy=OPEN)


def test_adding_a_member_after_a_release_is_refused():
    with pytest.raises(CohortFrozenError, match="differs by initech"):
        submit(recipe(), released(recipe(models=["acme", "globex"])))


def test_another_weight_after_a_release_is_refused():
    changed = recipe(models=[weighing("acme", 1.5), "globex", "initech"])
    with pytest.raises(CohortFrozenError, match="other weights of acme"):
        submit(changed, released(recipe()))
    submit(changed, released(recipe()), policy=OPEN)


@pytest.mark.parametrize(
    "parameters", [{"alpha": 0.5}, {"normalize": "rows"}, {"missing_statistics": "estimate"}, {"ridge": 0.1}]
)
def test_another_parameter_of_regmean_after_a_release_is_refused(parameters):
    policy = FROZEN.model_copy(update={"missing_statistics": "estimate"})
    for first, second in ((recipe(), recipe(**parameters)), (recipe(**parameters), recipe())):
        submit(second, policy=policy)
        with pytest.raises(CohortFrozenError, match=f"another .*{next(iter(parameters))}"):
            submit(second, released(first), policy=policy)
        submit(second, released(first), policy=policy.model_copy(update={"cohorts": "open"}))


@pytest.mark.parametrize("policy", [FROZEN, OPEN])
def test_missing_statistics_are_estimated_only_where_the_policy_says_so(policy):
    with pytest.raises(PolicyViolationError, match="leave out `missing_statistics`"):
        submit(recipe(missing_statistics="estimate"), policy=policy)
    submit(recipe(missing_statistics="estimate"), policy=policy.model_copy(update={"missing_statistics": "estimate"}))
    submit(recipe(missing_statistics="average"), policy=policy)
    submit(recipe("linear", missing_statistics="estimate"), policy=policy)  # which does not read it


def test_alpha_does_not_count_between_a_linear_and_a_regmean_merge():
    submit(recipe(alpha=0.5), released(recipe("linear", alpha=0.9)))
    submit(recipe("linear", alpha=0.5), released(recipe(alpha=0.9)))


@pytest.mark.parametrize(
    "weight", [0.0, limits.MAX_WEIGHT_RATIO * 1.01, [{"filter": "layer.0", "value": 0.0}, {"value": 1.0}]]
)
def test_a_weight_that_singles_a_member_out_is_refused_where_cohorts_are_frozen(weight):
    made = recipe(models=[weighing("acme", weight), "globex", "initech"])
    with pytest.raises(PolicyViolationError, match="one organization's own parameters"):
        submit(made)
    submit(made, policy=OPEN)
