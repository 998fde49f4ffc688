"""What comes out of summed answers is what a refit of all single ones gives: a head to 1e-10, biases exactly."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gramfuse.measuring.head import HeadStatistics
from gramfuse.securing.words import words_of
from gramfuse_shared.contract.calibration import BINS, CalibrationHistograms, ClassHistogram
from gramfuse_shared.contract.manifest import FileEntry, PolicyReference, StatisticsSection, TrainedLabels
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.errors import RecipeInvalidError, ValueOutOfBoundsError
from gramfuse_shared.merging.execution import MemberReader, execute_task
from gramfuse_shared.merging.plan import Member
from gramfuse_shared.merging.refit_planning import plan_calibration, plan_head
from gramfuse_shared.merging.refit_steps import SummedHistograms
from gramfuse_shared.merging.streaming import LocalFile, TensorFile
from gramfuse_shared.merging.summed_refits import SummedAnswers, plan_summed_calibration, plan_summed_head
from gramfuse_shared.secure.answer_planning import plan_answer_session
from gramfuse_shared.secure.answer_summands import HistogramSummands, StatisticsSummands
from gramfuse_shared.secure.sums import write_sums
from gramfuse_shared.secure.words import require_words
from support.merging_cases import CPU, Model, infos
from support.secure_cohorts import Cohort
from support.secure_models import POLICY, base_manifest, contribution_of
from support.secure_sessions import DIGEST, ORGANIZATIONS, public_identity

LABELS, WIDTH = 4, 6
WEIGHT, BIAS = "classifier.weight", "classifier.bias"


def merged_model(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "encoder.weight": torch.randn(WIDTH, WIDTH, generator=generator),
        WEIGHT: torch.randn(LABELS, WIDTH, generator=generator).double(),
        BIAS: torch.randn(LABELS, generator=generator).double(),
    }


def head_statistics(seed, rows, scale):
    generator = torch.Generator().manual_seed(seed)
    features = scale * (torch.randn(rows, WIDTH, generator=generator) + 0.5)
    return HeadStatistics.of(WEIGHT, features, 3 * torch.randn(rows, LABELS, generator=generator), {})


def histograms(seed, labels, most):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, most, (len(labels), 2, BINS), generator=generator).tolist()
    classes = tuple(
        ClassHistogram(label=label, labelled=tuple(one[0]), others=tuple(one[1]))
        for label, one in zip(sorted(labels), counts, strict=True)
    )
    return CalibrationHistograms(score="logit", labels=LABELS, classes=classes)


def announcement(organization, **parts):
    policy = PolicyReference(version=1, digest=POLICY.content_digest())
    return Answer(
        project="acme.tweets", request="asked", organization=organization, policy=policy, announced=True, **parts
    )


def announced_head(organization, statistics):
    metadata = statistics.metadata
    file = FileEntry(name="statistics.safetensors", bytes=1, sha256=DIGEST)
    section = StatisticsSection(file=file, taps=metadata.taps, collector=metadata.collector, labels=metadata.labels)
    return announcement(organization, statistics=section)


def session_of(model, answers, recipe, weights, **contributed):
    base = base_manifest(model)
    members = [
        (
            contribution_of(Model(name, model), name, base).model_copy(update=contributed),
            public_identity(name),
            weight,
            answer,
        )
        for name, weight, answer in zip(ORGANIZATIONS, weights, answers, strict=False)
    ]
    return plan_answer_session("secure-1", recipe, members, base)


class Sums:
    """A folder in which a session of all five stages is run, and its sum merged."""

    def __init__(self, stack, folder, model):
        self.stack, self.folder, self.model = stack, folder, model
        self.base = self.saved("base", model)

    def opened(self, path):
        return TensorFile.open(self.stack.enter_context(LocalFile(path)))

    def saved(self, name, tensors):
        save_file(tensors, self.folder / name)
        return self.opened(self.folder / name)

    def of(self, session, values, dropped=()):
        cohort = Cohort.of(session, self.folder / "members", POLICY)
        for name, each in values.items():
            cohort.members[name].write = words_of(session, each)
        cohort.run(masked=[name for name in session.organizations if name not in dropped])
        words = {name: self.opened(path) for name, path in cohort.files.items()}
        for file in words.values():
            require_words(file, session)
        write_sums(self.folder / "sums", session, cohort.unmasking(), words, {})
        return self.opened(self.folder / "sums")

    def executed(self, plan, readers):
        (task,) = plan.tasks
        read = []
        execute_task(plan, 0, readers, self.base, self.folder / "merged", device=CPU, on_progress=read.append)
        assert sum(read) == task.input_bytes
        return load_file(self.folder / "merged")


@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**20),
    members=st.sampled_from([3, 4, 5]),
    drops=st.booleans(),
    normalize=st.sampled_from(["equal", "rows"]),
    ridge=st.sampled_from([1e-3, 0.01, 1.0]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    weight=st.sampled_from([1.0, 0.25, 7.0]),
)
def test_a_head_is_refit_from_a_sum_as_from_single_answers(seed, members, drops, normalize, ridge, scale, weight):
    model = merged_model(seed)
    recipe = Recipe(
        merge_method="head", base_model="m", request="asked", parameters={"ridge": ridge, "normalize": normalize}
    )
    names, weights = ORGANIZATIONS[:members], [weight, *[1.0] * (members - 1)]
    measured = {name: head_statistics(seed + n, 20 + 10 * n, scale) for n, name in enumerate(names)}
    answers = [announced_head(name, statistics) for name, statistics in measured.items()]
    session = session_of(model, answers, recipe, weights)
    dropped = names[1:2] if drops and members > 3 else ()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        sums, values, single, readers = Sums(stack, Path(place), model), {}, [], {}
        for name, answer, of_member in zip(names, answers, weights, strict=True):
            measured[name].save(sums.folder / f"{name}.statistics")
            file = sums.opened(sums.folder / f"{name}.statistics")
            values[name] = StatisticsSummands.of(session, name, answer.statistics, file)
            if name not in dropped:
                single.append(Member(name, name, of_member, {}, answer.statistics.taps))
                readers[name] = MemberReader(sums.base, file)
        found = sums.of(session, values, dropped)
        summed = SummedAnswers("sums", "the sum", len(single))
        tap = answers[0].statistics.taps[0]
        plan = plan_summed_head(tap, summed, infos(model), recipe)
        secret = sums.executed(plan, {"sums": MemberReader(found, found)})
        plain = sums.executed(plan_head(single, infos(model), recipe), readers)
    for name in (WEIGHT, BIAS):
        assert (secret[name] - plain[name]).norm() < 1e-10 * (plain[name] - model[name]).norm()
    assert torch.equal(secret["encoder.weight"], model["encoder.weight"])


@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**20),
    counted=st.lists(st.sets(st.integers(0, LABELS - 1), min_size=1), min_size=3, max_size=5),
    fewest=st.sampled_from([1, 2, 3]),
    most=st.sampled_from([2, 2**30]),
)
def test_biases_are_shifted_by_a_sum_as_by_single_histograms(seed, counted, fewest, most):
    model = merged_model(seed)
    recipe = Recipe(merge_method="calibration", base_model="m", request="asked")
    names = ORGANIZATIONS[: len(counted)]
    own = {
        name: histograms(seed + n, labels, most) for n, (name, labels) in enumerate(zip(names, counted, strict=True))
    }
    answers = [announcement(name, histograms=one.model_copy(update={"classes": ()})) for name, one in own.items()]
    session = session_of(model, answers, recipe, [1.0] * len(counted))
    members = [Member(name, name, 1.0, {}) for name in names]
    holders = [sum(label in labels for labels in counted) for label in range(LABELS)]
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        sums = Sums(stack, Path(place), model)
        found = sums.of(session, {name: HistogramSummands(one) for name, one in own.items()})
        summed = SummedHistograms("sums", "logit", LABELS, fewest)
        plan = plan_summed_calibration(summed, SummedAnswers("sums", "the sum", len(names)), BIAS, infos(model), recipe)
        secret = sums.executed(plan, {"sums": MemberReader(found, found)})
        if max(holders) < fewest:
            assert torch.equal(secret[BIAS], model[BIAS])
            return
        plain = sums.executed(
            plan_calibration(own, members, BIAS, infos(model), recipe, minimum_holders=fewest),
            {name: MemberReader(sums.base) for name in names},
        )
    assert torch.equal(secret[BIAS], plain[BIAS])


def test_answers_of_different_layers_or_scores_are_not_summed_nor_heads_of_which_somebody_trained_some_rows():
    model, recipe = merged_model(0), Recipe(merge_method="head", base_model="m", request="asked")
    answers = [announced_head(name, head_statistics(n, 20, 1.0)) for n, name in enumerate(ORGANIZATIONS[:3])]
    assert session_of(model, answers, recipe, [1.0] * 3).threshold == 3
    tap = answers[1].statistics.taps[0].model_copy(update={"name": "other"})
    section = answers[1].statistics.model_copy(update={"taps": (tap,)})
    odd = [answers[0], answers[1].model_copy(update={"statistics": section}), answers[2]]
    with pytest.raises(RecipeInvalidError, match="different layers, labels or scores"):
        session_of(model, odd, recipe, [1.0] * 3)
    scored = [announcement(name, histograms=histograms(0, (), 1)) for name in ORGANIZATIONS[:3]]
    scored[0] = announcement("acme", histograms=scored[0].histograms.model_copy(update={"score": "margin"}))
    with pytest.raises(RecipeInvalidError, match="different layers, labels or scores"):
        session_of(model, scored, Recipe(merge_method="calibration", base_model="m", request="asked"), [1.0] * 3)
    partly = {"labels": TrainedLabels(count=LABELS, trained=(0, 1))}
    with pytest.raises(RecipeInvalidError, match="trained some labels only"):
        session_of(model, answers, recipe, [1.0] * 3, **partly)


def test_features_beyond_the_bound_end_the_session_before_anything_is_masked(tmp_path):
    model, recipe = merged_model(0), Recipe(merge_method="head", base_model="m", request="asked")
    measured = [head_statistics(n, 20, 1000.0) for n in range(3)]
    answers = [announced_head(name, one) for name, one in zip(ORGANIZATIONS, measured, strict=False)]
    session = session_of(model, answers, recipe, [1.0] * 3)
    with ExitStack() as stack:
        sums, values = Sums(stack, tmp_path, model), {}
        for name, answer, one in zip(ORGANIZATIONS, answers, measured, strict=False):
            one.save(tmp_path / name)
            values[name] = StatisticsSummands.of(session, name, answer.statistics, sums.opened(tmp_path / name))
        with pytest.raises(ValueOutOfBoundsError, match="over the session's bound"):
            sums.of(session, values)
