"""Fisher information through the service: what intake refuses, what the worker finds, and the merge by it."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load

from gramfuse_shared.contract.fisher_file import METADATA_KEY, tensors_of_fisher
from gramfuse_shared.contract.safetensors_header import format_header
from support.server_world import BASE_TENSORS, BODY_TENSORS, OPEN_POLICY, make_contribution, make_information, problem
from support.server_world import safetensors as raw_file
from support.worker_world import MEMBERS, InProcessWorker, contribute, make_weights

POLICY = OPEN_POLICY.model_copy(update={"methods": ("linear", "regmean", "fisher")})
PROJECT = "acme.tweets"
GIVEN = {"collector_version": "0.1.0", "labels": "given"}


def values_of(seed):
    """Raw sums of squares of six decades."""
    chooser = torch.Generator().manual_seed(500 + seed)
    return {name: 10.0 ** (6 * torch.rand(shape, generator=chooser) - 3) for name, _, shape in BODY_TENSORS}


def make_fisher(project, values, *, examples=50, norms=None, **changes):
    """A file of Fisher information and what is told of it."""
    found = {name: float(value.double().norm()) for name, value in values.items()} | (norms or {})
    parameters = [
        {"name": name, "shape": tuple(value.shape), "norm": found[name], "source": "mixed"}
        for name, value in values.items()
    ]
    information = make_information(examples=examples, base=project["base"], parameters=parameters, **changes)
    header = format_header(tensors_of_fisher(information.parameters), {METADATA_KEY: information.model_dump_json()})
    return information, header + b"".join(value.numpy().tobytes() for value in values.values())


def put(world, project, contribution):
    path = f"/v1/projects/{project['id']}/contributions/{contribution.id}"
    return world.participant("globex").put_document(path, contribution.manifest)


def upload(world, project, contribution):
    answer = put(world, project, contribution)
    assert answer.status_code == 201, answer.text
    member, path = world.participant("globex"), f"/v1/projects/{project['id']}/contributions/{contribution.id}"
    member.put_files(path, answer.json(), contribution.files)
    return member.post(f"{path}/seal")


# --- at creation -----------------------------------------------------------------------------------------------------


def test_by_default_the_server_takes_none(world):
    project = world.project("acme", "globex", policy=OPEN_POLICY)
    answer = put(world, project, make_contribution(project, "globex", information=make_information()))
    document = problem(answer, 422, "policy-violation")
    assert "no method of the policy reads Fisher information" in document["detail"]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"source": "embeddings"}, "hangs on which tokens"),
        ({"collector": GIVEN}, "measured with the texts' own labels, and tells how the model does"),
        ({"source": "unknown"}, "what feeds it is not known"),
        ({"examples": 11}, "11 distinct examples, the policy wants 12"),
        ({"tensors": BASE_TENSORS[:1]}, "embeddings: base"),
        ({"tensors": BASE_TENSORS[-1:]}, "heads: private"),
    ],
)
def test_what_the_policy_keeps_is_refused_whatever_the_client_says(world, made, reason):
    project = world.project("acme", "globex", policy=POLICY)
    answer = put(world, project, make_contribution(project, "globex", information=make_information(**made)))
    assert reason in problem(answer, 422, "policy-violation")["detail"]


@pytest.mark.parametrize("shape", [(144,), (12, 13), ()])
def test_shapes_other_than_the_bases_are_refused(world, shape):
    project = world.project("acme", "globex", policy=POLICY)
    told = make_information(tensors=(("encoder.query.weight", "F32", shape),))
    answer = put(world, project, make_contribution(project, "globex", information=told))
    problem(answer, 422, "architecture-mismatch")


# --- at the seal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("announced", "code"),
    [
        (lambda _: {}, "statistics-malformed"),
        (lambda _: {METADATA_KEY: "{}"}, "statistics-malformed"),
        (
            lambda told: {METADATA_KEY: told.model_copy(update={"examples": 51}).model_dump_json()},
            "statistics-malformed",
        ),
        (lambda told: {METADATA_KEY: told.model_dump_json(), "note": "from Bob"}, "policy-violation"),
        (
            lambda told: {METADATA_KEY: told.model_copy(update={"base": "b" * 64}).model_dump_json()},
            "architecture-mismatch",
        ),
    ],
)
def test_a_file_that_says_something_else_than_the_manifest_is_rejected(world, announced, code):
    project = world.project("acme", "globex", policy=POLICY)
    told = make_information()
    content = raw_file(tuple(tensors_of_fisher(told.parameters)), metadata=announced(told))
    contribution = make_contribution(project, "globex", information=told, fisher=content)
    problem(upload(world, project, contribution), 422, code)


# --- the worker ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "norms", "reason"),
    [
        ("encoder.query.weight", float("nan"), {"encoder.query.weight": 1.0}, "no sum of squares"),
        ("encoder.query.bias", -1.0, {}, "no sum of squares"),
        ("encoder.query.bias", 1e31, {}, "no sum of squares"),
        ("encoder.query.bias", 1.0, {"encoder.output.weight": 1e-3}, "has the norm"),
    ],
)
def test_values_that_are_no_information_are_rejected_with_the_reason(world, settings, name, value, norms, reason):
    project = world.project(*MEMBERS, policy=POLICY)
    values = values_of(0)
    values[name].view(-1)[3] = value
    information, content = make_fisher(project, values, norms=norms)
    made = contribute(world, project, "globex", 0, information=information, fisher=content)
    assert InProcessWorker(world, settings).inspect_all() == ["rejected"]
    found = world.participant("globex").get(f"/v1/projects/{PROJECT}/contributions/{made.id}").json()
    assert found["reason"].startswith("statistics-invalid")
    assert reason in found["reason"]


def push_all(world, settings, *, without=(), policy=POLICY, **changes):
    project = world.project(*MEMBERS, policy=policy)
    for seed, member in enumerate(MEMBERS):
        information, content = make_fisher(project, values_of(seed), examples=50 * (seed + 1), **changes)
        fisher = {} if member in without else {"information": information, "fisher": content}
        contribute(world, project, member, seed, **fisher)
    worker = InProcessWorker(world, settings)
    assert worker.inspect_all() == ["accepted"] * len(MEMBERS)
    return worker


def submit(world, recipe, *, job="first"):
    answer = world.coordinator("acme").put(f"/v1/projects/{PROJECT}/jobs/{job}", json={"recipe": recipe})
    assert answer.status_code == 201, answer.text


def download(world, file, *, job="first"):
    answer = world.participant("globex").get(f"/v1/projects/{PROJECT}/models/{job}/files/{file}")
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.mark.parametrize("normalize", ["equal", "rows", "norm", "parameter_norm"])
def test_a_job_merges_by_fisher_information_as_the_definition_says(world, settings, normalize):
    worker = push_all(world, settings)
    submit(world, {"merge_method": "fisher", "parameters": {"normalize": normalize}})
    worker.run(PROJECT, "first")
    merged = load(download(world, "model.safetensors"))
    for name, _, _ in BODY_TENSORS:
        products = total = 0.0
        for seed in range(3):
            values = values_of(seed)
            norm = sum(float(value.double().square().sum()) for value in values.values()) ** 0.5
            own = float(values[name].double().norm())
            divisors = {"equal": 50 * (seed + 1), "rows": 1.0, "norm": norm, "parameter_norm": own}
            scaled = values[name].double() / divisors[normalize]
            products = products + scaled * load(make_weights(seed))[name].double()
            total = total + scaled
        assert float((merged[name].double() - products / total).norm() / (products / total).norm()) < 2e-7
    card = download(world, "README.md").decode()
    assert "`fisher` (fisher/1): Fisher-weighted averaging" in card
    assert f"normalisation: {normalize}" in card
    assert "labels of the Fisher information: drawn from each organization's own model" in card
    assert yaml.safe_load(download(world, "recipe.yaml"))["merge_method"] == "fisher"
    assert {entry["reason"] for entry in json.loads(download(world, "diagnostics.json"))} == {None}


def test_where_the_policy_lets_given_labels_leave_the_card_says_that_they_were(world, settings):
    worker = push_all(world, settings, policy=POLICY.model_copy(update={"given_labels": "send"}), collector=GIVEN)
    submit(world, {"merge_method": "fisher"})
    worker.run(PROJECT, "first")
    assert (
        "labels of the Fisher information: those of the organizations' texts" in download(world, "README.md").decode()
    )


def test_a_cohort_of_which_one_sent_none_fails_with_a_reason(world, settings):
    worker = push_all(world, settings, without=("globex",))
    submit(world, {"merge_method": "fisher"})
    with pytest.raises(Exception, match="none came from globex"):
        worker.run(PROJECT, "first")


def test_a_project_whose_policy_does_not_name_it_merges_none_by_it(ready):
    world, _ = ready
    answer = world.coordinator("acme").put(
        f"/v1/projects/{PROJECT}/jobs/first", json={"recipe": {"merge_method": "fisher"}}
    )
    problem(answer, 422, "policy-violation")
