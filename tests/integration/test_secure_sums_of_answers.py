"""Refits by secure sums: heads and biases of a merged model, from answers that are announced and never sent."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file

import gramfuse
from gramfuse.answering.configuration import LocalTexts
from gramfuse.answering.kept import KeptAnswers
from gramfuse.evaluating.calibration import collect_calibration
from gramfuse.measuring.head import collect_head
from gramfuse.securing.stages import kept_sessions
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.errors import PolicyViolationError, SecureSessionRefusedError, StateError
from gramfuse_shared.fusion.calibration import add_histograms, choose_shifts
from gramfuse_shared.fusion.head import solve_head
from gramfuse_shared.fusion.products import ProductTerm
from gramfuse_shared.limits import KIB
from support.secret_cohort import POLICY, PROJECT, begin, texts_of
from support.server_world import problem
from support.worker_world import InProcessWorker

LINEAR = gramfuse.Recipe(merge_method="linear", dtype="float64")
HEAD = gramfuse.Recipe(merge_method="head", base_model="summed", request="head-1-answers")
CALIBRATION = gramfuse.Recipe(merge_method="calibration", base_model="summed", request="calibrated-answers")
WEIGHT, BIAS = "classifier.weight", "classifier.bias"

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")  # sums, no queries


@pytest.fixture
def part_bytes():
    return 64 * KIB  # masked words are many times as long as what others send: hundreds of small parts


@pytest.fixture
def worker(world, settings):
    return InProcessWorker(world, settings)


@pytest.fixture
def summed(world, worker, tmp_path):
    """Begins a project whose members have merged a model by a secure sum, and have labelled texts."""

    def start(**changes):
        policy = POLICY.model_copy(
            update={
                "methods": ("linear", "head", "calibration"),
                "requests": ("head", "calibration"),
                "minimum_evaluation_examples": 5,
                **changes,
            }
        )
        cohort = begin(world, worker, tmp_path, policy=type(policy).model_validate(policy.model_dump()))
        chance = random.Random(0)
        for name in cohort.machines:
            rows = [
                {"text": text, "label": chance.choice((0, 0, 1, 2))}
                for text in texts_of(cohort.place(name) / "texts.jsonl")
            ]
            lines = "\n".join(json.dumps(row) for row in rows)
            (cohort.place(name) / "labelled.jsonl").write_text(lines + "\n", encoding="utf-8")
        assert cohort.sum(LINEAR).state == "succeeded"
        return cohort

    return start


def answer_all(cohort):
    def answer(_):
        for name in cohort.machines:
            place = cohort.place(name)
            cohort.answer(
                name,
                measured=LocalTexts(texts=place / "texts.jsonl"),
                calibrated=LocalTexts(texts=place / "labelled.jsonl"),
            )

    return answer


def pulled(cohort, job):
    with cohort.coordinator.client() as client:
        return client.pull(PROJECT, job, cohort.folder / f"pulled-{job}")


def files_of(world):
    return {key for key in world.stored_keys() if key.startswith("sha256/")}


@pytest.mark.parametrize("heads", ["shared", "private"])
def test_a_head_is_refit_from_the_sum_of_what_everybody_measured_and_nobody_sent(world, worker, summed, heads):
    cohort = summed(heads=heads)
    merged = pulled(cohort, "summed")
    cohort.shown.clear()
    job = cohort.sum(HEAD, result="head-1", on_request=answer_all(cohort))
    assert [member.organization for member in job.cohort] == sorted(cohort.machines)
    # the same as of everybody's statistics in one place
    terms = []
    for name in cohort.machines:
        place = cohort.place(name)
        found = collect_head(merged, place / "tuned", texts_of(place / "texts.jsonl"))
        terms.append(ProductTerm(found.gram.float(), found.product.float(), 1.0 / found.rows))
    wanted = solve_head(terms, ridge=0.01)
    refit = load_file(pulled(cohort, "head-1") / "model.safetensors")
    before = load_file(merged / "model.safetensors")
    assert (wanted.weight - before[WEIGHT]).abs().max() > 1e-3
    torch.testing.assert_close(refit[WEIGHT].double(), wanted.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(refit[BIAS].double(), wanted.bias, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(refit[name], before[name]) for name in before if name not in {WEIGHT, BIAS})
    # what people were asked, in words
    first, joined = cohort.shown[0], cohort.shown[3]
    assert "The numbers stay here until you join a sum" in " ".join(str(first).split())
    assert "the Gram matrix of what the head of summed reads of your texts" in " ".join(str(joined).split())
    # the receipt names the answers and the session, and nothing of the answers is left anywhere
    with cohort.coordinator.client() as client:
        receipt = client.model(PROJECT, "head-1").receipt.receipt
        assert receipt.session == client.session(PROJECT, "head-1-keys").digest
        assert receipt.recipe.request == "head-1-answers"
        assert len(receipt.answers) == 3
        (told,) = [layer for layer in client.diagnostics(PROJECT, "head-1").layers if layer.method == "head"]
    assert told.parameters == (WEIGHT, BIAS)
    for name, machine in cohort.machines.items():
        with machine.client() as client:
            assert kept_sessions(client, PROJECT).unended() == {}
        assert KeptAnswers.of(cohort.participation(name)).announced() == []


def test_biases_are_shifted_by_sums_of_counts_of_labels_that_enough_members_counted(world, worker, summed):
    cohort = summed()
    merged = pulled(cohort, "summed")
    cohort.sum(CALIBRATION, result="calibrated", on_request=answer_all(cohort))
    counted = []
    for name in cohort.machines:
        rows = [json.loads(line) for line in (cohort.place(name) / "labelled.jsonl").read_text().splitlines()]
        texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
        counted.append(collect_calibration(merged, texts, labels, minimum_examples=5))
    shifts = choose_shifts(add_histograms(counted))
    before, after = (load_file(pulled(cohort, job) / "model.safetensors")[BIAS] for job in ("summed", "calibrated"))
    torch.testing.assert_close(after.double(), before.double() + shifts, rtol=1e-6, atol=1e-7)
    with cohort.coordinator.client() as client:
        (told,) = [layer for layer in client.diagnostics(PROJECT, "calibrated").layers if layer.method == "calibration"]
    assert "of 3 biases are shifted" in told.reason


def test_answers_are_announced_not_sent_and_each_is_summed_once(world, worker, summed):
    cohort = summed()
    before = files_of(world)
    tried = []

    def answer(request):
        if request.kind == "head":
            answer_all(cohort)(request)
            assert files_of(world) == before
            with (
                cohort.coordinator.client() as client,
                pytest.raises(PolicyViolationError, match="gramfuse request sum"),
            ):
                client.submit(PROJECT, HEAD, job="in-the-open")
        elif request.kind == "keys":
            # not by who lost what it announced
            kept = KeptAnswers.of(cohort.participation("globex"))
            place = kept.place("head-1-answers")
            place.rename(place.with_name("elsewhere"))
            with pytest.raises(SecureSessionRefusedError, match=r"is not in .* Have the coordinator ask anew"):
                cohort.answer("globex")
            place.with_name("elsewhere").rename(place)
            tried.append(request.kind)
            answer_all(cohort)(request)
        else:
            answer_all(cohort)(request)

    assert cohort.sum(HEAD, result="head-1", on_request=answer).state == "succeeded"
    assert tried == ["keys"]
    with cohort.coordinator.client() as client, pytest.raises(StateError, match=r"answer to head-1-answers of .* once"):
        client.sum(PROJECT, HEAD, result="again")
    # an answer that is sent all the same, or announces with numbers, is refused
    with cohort.coordinator.client() as client:
        client.ask(PROJECT, "head", ("summed",), request="another")
    given = (
        world.coordinator("acme").get(f"/v1/projects/{PROJECT}/requests/head-1-answers/answers/acme").json()["answer"]
    )
    bare = Answer.model_validate(given | {"request": "another", "announced": False})
    sent = world.coordinator("acme").put_document(f"/v1/projects/{PROJECT}/requests/another/answers/acme", bare)
    assert "announced" in problem(sent, 422, "policy-violation")["detail"]
