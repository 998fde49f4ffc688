"""What a member requires of a session before it says anything in it."""

from dataclasses import replace

import pytest

from gramfuse.securing.kept import Completed, KeptSessions
from gramfuse.securing.rules import require_session, require_survivors
from gramfuse_shared.contract.calibration import CalibrationHistograms
from gramfuse_shared.contract.manifest import CollectorSettings, PolicyReference, TrainedLabels
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import Conditional, Recipe
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.contract.secure_session import SessionManifest, SummedTensor
from gramfuse_shared.errors import FileUnreadableError, RecipeInvalidError, SecureSessionRefusedError
from gramfuse_shared.secure.answer_planning import plan_answer_session
from gramfuse_shared.secure.planning import plan_session
from support.merging_cases import random_models, recipe_of
from support.secure_models import POLICY, base_manifest, contribution_of, session_of_models
from support.secure_sessions import DIGEST, ORGANIZATIONS, public_identity

BASE, MODELS = random_models(members=4)
SESSION = session_of_models(BASE, MODELS, recipe_of())
OWN = contribution_of(MODELS[0], "acme", base_manifest(BASE))
PINNED = {name: public_identity(name) for name in ORGANIZATIONS}


def require(session: SessionManifest = SESSION, own=OWN, pinned=PINNED, completed=(), policy=POLICY) -> None:
    require_session(session, "acme", own, policy, pinned, completed)


def changed(**fields: object) -> SessionManifest:
    return SESSION.model_copy(update=fields)


def completed(session: SessionManifest = SESSION) -> Completed:
    return Completed(
        session=session.digest,
        weights={member.organization: member.weight for member in session.members},
        method=session.recipe.merge_method,
        parameters=session.recipe.parameters,
    )


def test_a_session_of_what_was_contributed_under_what_was_accepted_is_joined():
    require()
    require(completed=[completed()])


@pytest.mark.parametrize(
    ("session", "fault"),
    [
        (changed(members=SESSION.members[1:]), "does not sum acme's contribution"),
        (changed(base="0" * 64), "another project or base"),
        (changed(project="acme.other"), "another project or base"),
        (changed(policy=SESSION.policy.model_copy(update={"digest": "0" * 64})), "not both under the policy"),
        (changed(scales="0" * 64), "scales by another file"),
    ],
)
def test_a_session_of_something_else_is_refused(session, fault):
    with pytest.raises(SecureSessionRefusedError, match=fault):
        require(session)


def test_a_contribution_that_was_replaced_is_not_summed():
    with pytest.raises(SecureSessionRefusedError, match="does not sum"):
        require(own=OWN.model_copy(update={"generation": 2}))


def test_a_key_that_is_not_the_one_that_people_compared_is_refused():
    with pytest.raises(
        SecureSessionRefusedError, match=r"brick has another identity key .* `gramfuse roster verify acme.tweets`"
    ):
        require(pinned=PINNED | {"brick": public_identity("mallory")})
    with pytest.raises(SecureSessionRefusedError, match="brick has no identity key pinned"):
        require(pinned={name: key for name, key in PINNED.items() if name != "brick"})


@pytest.mark.parametrize("weight", [0.0, 101.0, (Conditional(filter="q", value=1e-3), Conditional(value=1.0))])
def test_weights_that_single_a_member_out_are_refused(weight):
    members = [member.model_copy(update={"weight": 1.0}) for member in SESSION.members]
    with pytest.raises(SecureSessionRefusedError, match="the weights run from"):
        require(changed(members=(*members[:3], members[3].model_copy(update={"weight": weight}))))


def test_what_was_not_contributed_is_not_summed():
    """A server that asks for the embeddings which a policy keeps at home finds them in no contribution."""
    spare = SummedTensor(name="weighted.embeddings.weight", shape=(3,), fraction_bits=40, bound=16.0)
    with pytest.raises(SecureSessionRefusedError, match=r"sums weighted\.embeddings\.weight"):
        require(changed(sums=(*SESSION.sums, spare)))
    withheld = OWN.model_copy(update={"statistics": None})
    members = (SESSION.members[0].model_copy(update={"contribution": withheld.content_digest()}), *SESSION.members[1:])
    with pytest.raises(SecureSessionRefusedError, match="no such statistics"):
        require(changed(members=members), own=withheld)
    reshaped = SESSION.sums[-1].model_copy(update={"shape": (1, *SESSION.sums[-1].shape)})
    with pytest.raises(SecureSessionRefusedError, match="holds no such thing"):
        require(changed(sums=(*SESSION.sums[:-1], reshaped)))


@pytest.mark.parametrize(
    "other",
    [
        session_of_models(BASE, MODELS[:3], recipe_of()),
        session_of_models(BASE, [*MODELS[:3], replace(MODELS[3], weight=2.0)], recipe_of()),
        session_of_models(BASE, MODELS, recipe_of(alpha=0.5)),
        session_of_models(BASE, MODELS, recipe_of(normalize="rows")),
    ],
    ids=["fewer members", "another weight", "another alpha", "another normalization"],
)
def test_a_sum_that_differs_from_one_before_by_a_member_or_a_number_is_refused_where_cohorts_are_frozen(other):
    with pytest.raises(SecureSessionRefusedError, match="before this one"):
        require(other, completed=[completed()])
    with pytest.raises(SecureSessionRefusedError, match="not both under the policy"):
        require(other, completed=[completed()], policy=POLICY.model_copy(update={"cohorts": "open"}))


def test_survivors_are_those_of_the_sums_before_where_cohorts_are_frozen():
    require_survivors(SESSION.organizations, POLICY, [completed()])
    with pytest.raises(SecureSessionRefusedError, match="differs by acme"):
        require_survivors(SESSION.organizations[1:], POLICY, [completed()])
    require_survivors(SESSION.organizations[1:], Policy(cohorts="open"), [completed()])


def test_survivors_are_as_many_as_the_policy_wants_of_a_cohort():
    with pytest.raises(SecureSessionRefusedError, match=r"3 members sent words, the policy wants 4"):
        require_survivors(SESSION.organizations[1:], Policy(minimum_cohort=4), [])


@pytest.mark.parametrize("other", [{"methods": ("linear",)}, {"minimum_cohort": 5}])
def test_a_session_that_the_policy_does_not_allow_is_refused(other):
    policy = POLICY.model_copy(update=other)
    reference = SESSION.policy.model_copy(update={"digest": policy.content_digest()})
    own = OWN.model_copy(update={"policy": reference})
    members = (SESSION.members[0].model_copy(update={"contribution": own.content_digest()}), *SESSION.members[1:])
    with pytest.raises(SecureSessionRefusedError, match="the policy allows"):
        require(changed(policy=reference, members=members), own=own, policy=policy)


def test_what_is_completed_is_kept_under_its_claim_once(tmp_path):
    kept = KeptSessions(tmp_path / "home")
    assert kept.completed() == ()
    first = completed()
    assert kept.complete("a" * 64, first) == first
    assert kept.complete("a" * 64, completed(changed(session="secure-2"))) == first
    assert kept.completed() == (first,)
    assert kept.completed_under("a" * 64) == first
    assert kept.completed_under("b" * 64) is None


def test_a_kept_file_that_cannot_be_read_is_an_error_and_no_new_secret(tmp_path):
    session = KeptSessions(tmp_path).session("a" * 64)
    session.secret(32)
    (session.folder / "root").unlink()
    (session.folder / "root").mkdir()
    with pytest.raises(FileUnreadableError, match="root cannot be read"):
        session.secret(32)


# --- the plan ------------------------------------------------------------------------------------------------------


def test_a_plan_sums_what_all_contributions_hold_and_a_taps_sums_stand_together():
    assert [tensor.name for tensor in SESSION.sums] == [
        "precision.attention", "product.q.weight", "product.k.weight",
        "precision.mlp", "product.conv.weight",
        "weighted.q.weight", "weighted.k.weight", "weighted.conv.weight", "weighted.norm.weight",
    ]  # fmt: skip
    shapes = {tensor.name: tensor.shape for tensor in SESSION.sums}
    assert shapes["product.conv.weight"] == (7, 24)  # stored [24, 7]
    assert (SESSION.scales, SESSION.threshold) == (DIGEST, 3)


def test_what_one_of_them_lacks_is_not_summed():
    without_tap = replace(MODELS[1], taps={"mlp": MODELS[1].taps["mlp"]})
    session = session_of_models(BASE, [MODELS[0], without_tap, *MODELS[2:]], recipe_of())
    assert [tap.name for tap in session.taps] == ["mlp"]
    without_weight = {name: tensor for name, tensor in MODELS[1].weights.items() if name != "conv.weight"}
    session = session_of_models(
        BASE, [MODELS[0], replace(MODELS[1], weights=without_weight), *MODELS[2:]], recipe_of(exclude=["norm.*"])
    )
    names = {tensor.name for tensor in session.sums}
    assert "weighted.q.weight" in names
    assert not names & {"weighted.conv.weight", "product.conv.weight", "precision.mlp", "weighted.norm.weight"}


def test_linear_sums_weights_alone_and_names_no_scales():
    session = session_of_models(BASE, MODELS, recipe_of("linear"))
    assert session.taps == ()
    assert session.scales is None
    assert {tensor.name.partition(".")[0] for tensor in session.sums} == {"weighted"}


def test_by_rows_precisions_are_larger_and_have_fewer_bits():
    equal = {tensor.name: tensor for tensor in SESSION.sums}
    by_rows = {tensor.name: tensor for tensor in session_of_models(BASE, MODELS, recipe_of(normalize="rows")).sums}
    largest = max(len(tap.rows) for model in MODELS for tap in model.taps.values())
    assert by_rows["precision.mlp"].bound == largest * equal["precision.mlp"].bound
    assert by_rows["precision.mlp"].fraction_bits < equal["precision.mlp"].fraction_bits
    assert by_rows["weighted.norm.weight"] == equal["weighted.norm.weight"]


def test_linears_that_share_a_tap_have_one_alpha_and_one_weight():
    recipe = recipe_of(alpha=[{"filter": "q", "value": 0.5}, {"value": 0.9}])
    with pytest.raises(RecipeInvalidError, match=r"alpha differs between q\.weight, k\.weight"):
        session_of_models(BASE, MODELS, recipe)
    uneven = replace(MODELS[0], weight=(Conditional(filter="q", value=2.0), Conditional(value=1.0)))
    with pytest.raises(RecipeInvalidError, match="weight of acme differs"):
        session_of_models(BASE, [uneven, *MODELS[1:]], recipe_of())


def test_a_plan_of_nothing_is_refused():
    with pytest.raises(RecipeInvalidError, match="no parameter that every contribution holds"):
        session_of_models(BASE, MODELS, recipe_of(exclude=["*"]))


def planned(manifests, recipe, **options):
    contributions = [(manifest, public_identity(manifest.organization), 1.0) for manifest in manifests]
    return plan_session("acme.tweets", "secure-1", recipe, contributions, base_manifest(BASE), **options)


def test_a_head_of_which_somebody_did_not_train_every_row_is_not_summed():
    manifests = [contribution_of(m, name, base_manifest(BASE)) for name, m in zip(ORGANIZATIONS, MODELS, strict=False)]
    labels = TrainedLabels(count=5, trained=(0, 1))
    partly = [manifests[0].model_copy(update={"labels": labels}), *manifests[1:]]
    for found, expected in [(partly, False), (manifests, True)]:
        session = planned(found, recipe_of("linear"), scales=None, head_parameters=["k.*"])
        assert ("weighted.k.weight" in {tensor.name for tensor in session.sums}) is expected
        assert "weighted.q.weight" in {tensor.name for tensor in session.sums}


def test_statistics_that_are_weighted_in_different_ways_are_not_summed():
    manifests = [contribution_of(m, name, base_manifest(BASE)) for name, m in zip(ORGANIZATIONS, MODELS, strict=False)]
    settings = CollectorSettings(collector_version="0", weighting="output_gradient")
    other = manifests[0].statistics.model_copy(update={"collector": settings})
    manifests[0] = manifests[0].model_copy(update={"statistics": other})
    with pytest.raises(RecipeInvalidError, match="acme: output_gradient, brick: none"):
        planned(manifests, recipe_of(), scales=DIGEST, scaled_taps=["mlp"])
    assert planned(manifests, recipe_of("linear"), scales=None).taps == ()


@pytest.mark.parametrize("normalize", ["equal", "rows"])
def test_fisher_information_is_summed_only_over_its_norm(normalize):
    with pytest.raises(RecipeInvalidError, match="divided by its norm"):
        session_of_models(BASE, MODELS, recipe_of("fisher", normalize=normalize))
    with pytest.raises(RecipeInvalidError, match="no parameter of which all contributions hold"):
        session_of_models(BASE, MODELS, recipe_of("fisher", normalize="norm"))


def test_fisher_information_that_was_not_contributed_is_not_summed():
    models = [replace(model, fisher={"q.weight": model.weights["q.weight"].square()}) for model in MODELS]
    session = session_of_models(BASE, models, recipe_of("fisher", normalize="norm"))
    own = contribution_of(models[0], "acme", base_manifest(BASE))
    assert session.elements == ("q.weight",)
    require(session, own=own)
    spare = session.sums[0].model_copy(update={"name": "precision.k.weight", "shape": (5, 24)})
    with pytest.raises(SecureSessionRefusedError, match=r"sums precision\.k\.weight"):
        require(session.model_copy(update={"sums": (*session.sums, spare)}), own=own)


def test_an_ended_session_keeps_what_was_said_and_nothing_else_and_draws_no_second_secret(tmp_path):
    session = KeptSessions(tmp_path).session("a" * 64)
    root = session.secret(32)
    assert session.secret(32) == root
    (session.folder / "keys.json").write_bytes(b"{}")
    (session.folder / "words-ab12").write_bytes(b"half")  # killed while writing words
    (session.folder / f"{'b' * 64}.safetensors").write_bytes(b"words")
    (session.folder / "tmpq").mkdir()
    (session.folder / "tmpq" / "model.safetensors").write_bytes(b"weights in the open")  # killed while reading
    assert list(KeptSessions(tmp_path).unended()) == ["a" * 64]
    for _ in range(2):
        session.forget_secrets()
        assert [path.name for path in session.folder.iterdir()] == ["keys.json"]
    assert KeptSessions(tmp_path).unended() == {}
    with pytest.raises(SecureSessionRefusedError, match="was removed"):
        session.secret(32)


# --- sums of announced answers ---------------------------------------------------------------------------------------


def announced(organization: str, **changes: object) -> Answer:
    counted = CalibrationHistograms(score="logit", labels=3, classes=())
    policy = PolicyReference(version=1, digest=POLICIES_OF_ANSWERS.content_digest())
    told = {"project": "acme.tweets", "request": "asked", "policy": policy, "histograms": counted, "announced": True}
    return Answer.model_validate({"organization": organization} | told | changes)


POLICIES_OF_ANSWERS = POLICY.model_copy(update={"methods": ("linear", "calibration")})
CALIBRATION = Recipe(merge_method="calibration", base_model="summed", request="asked")


def session_of_answers() -> SessionManifest:
    base, policy = base_manifest(BASE), announced("acme").policy
    members = [
        (
            contribution_of(model, name, base).model_copy(update={"policy": policy}),
            public_identity(name),
            1.0,
            announced(name),
        )
        for name, model in zip(ORGANIZATIONS, MODELS[:3], strict=False)
    ]
    return plan_answer_session("secure-1", CALIBRATION, members, base)


@pytest.mark.parametrize(
    ("change", "answer", "fault"),
    [
        ({}, {}, None),
        ({"recipe": CALIBRATION.model_copy(update={"request": "other"})}, {}, "does not sum what acme announced"),
        ({}, {"request": "other"}, "does not sum what acme announced"),
        (
            {"sums": (SummedTensor(name="labelled", shape=(3, 129), fraction_bits=1, bound=1.0),)},
            {},
            "sums other tensors than labelled, others, holders",
        ),
        ({"recipe": Recipe(merge_method="linear", request="asked")}, {}, "is merged by calibration"),
    ],
)
def test_a_session_of_answers_is_joined_where_it_sums_what_was_announced(change, answer, fault):
    session = session_of_answers().model_copy(update=change)
    own = OWN.model_copy(update={"policy": announced("acme").policy})

    def joined() -> None:
        require_session(session, "acme", own, POLICIES_OF_ANSWERS, PINNED, (), announced("acme", **answer))

    if fault is None:
        joined()
        return
    with pytest.raises(SecureSessionRefusedError, match=fault):
        joined()
