"""Metrics of hand-made predictions, against their definitions and against the libraries' own entry points."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nervaluate import Evaluator
from pydantic import TypeAdapter, ValidationError
from sklearn.metrics import average_precision_score, f1_score, log_loss

from gramfuse.evaluating.language import TextLoss
from gramfuse.evaluating.scoring import names_entities, score_classes, score_label_sets, score_tags, score_texts
from gramfuse_shared.contract.metrics import Metrics, in_few_digits
from gramfuse_shared.errors import WeightsInvalidError

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
OUT, PER, PER_, LOC, LOC_ = range(5)


def certain(ids: list[int], labels: int) -> torch.Tensor:
    """Logits [rows, labels] that predict these ids."""
    return 4.0 * torch.nn.functional.one_hot(torch.tensor(ids), labels).float()


def test_an_entity_is_right_only_if_its_kind_and_both_ends_are():
    true = [[PER, PER_, OUT, LOC], [OUT, LOC, LOC_]]
    # of four predicted entities only the last text's is right: one too short, one of another kind, one from nothing
    predicted = [[PER, OUT, OUT, PER], [OUT, LOC, LOC_]]
    scores = score_tags([certain(tags, 5) for tags in predicted], true, TAGS)
    assert (scores["precision"], scores["recall"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert scores["f1"] == pytest.approx(1 / 3)
    assert scores["accuracy"] == pytest.approx(5 / 7)
    assert "average_precision" not in scores


def spans(tags: list[int]) -> set[tuple[int, int, str]]:
    """The definition of CoNLL: an entity begins at B-, or at I- of another kind than the word before."""
    found, begin = set(), None
    for at in range(len(tags) + 1):
        name = TAGS[tags[at]] if at < len(tags) else "O"
        before = TAGS[tags[at - 1]] if at else "O"
        if begin is not None and (name[:1] in "OB" or name[2:] != before[2:]):
            found.add((begin, at, before[2:]))
            begin = None
        if name != "O" and begin is None:
            begin = at
    return found


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8), min_size=1, max_size=4)
)
def test_entity_scores_are_those_of_the_sets_of_spans(texts):
    true, predicted = [[pair[0] for pair in text] for text in texts], [[pair[1] for pair in text] for text in texts]
    wanted = [(number, *span) for number, tags in enumerate(true) for span in spans(tags)]
    found = [(number, *span) for number, tags in enumerate(predicted) for span in spans(tags)]
    right = len(set(wanted) & set(found))
    scores = score_tags([certain(tags, 5) for tags in predicted], true, TAGS)
    assert scores["precision"] == pytest.approx(right / len(found) if found else 0.0)
    assert scores["recall"] == pytest.approx(right / len(wanted) if wanted else 0.0)
    assert scores["f1"] == pytest.approx(2 * right / (len(found) + len(wanted)) if found or wanted else 0.0)


def test_entity_scores_are_those_of_nervaluate_on_names():
    true, predicted = [[PER, OUT, LOC, LOC_, OUT]], [[PER, PER_, LOC, LOC_, LOC]]
    named = [[[TAGS[tag] for tag in tags] for tags in side] for side in (true, predicted)]
    strict = Evaluator(*named, tags=["PER", "LOC"], loader="list").evaluate()["overall"]["strict"]
    scores = score_tags([certain(predicted[0], 5)], true, TAGS)
    assert (scores["precision"], scores["recall"], scores["f1"]) == (strict.precision, strict.recall, strict.f1)


def test_tags_that_mark_the_last_and_the_only_word_of_an_entity_mean_the_same_entities():
    names = ("O", "B-PER", "I-PER", "E-PER", "S-PER")
    # PER(0–2), PER(3); predicted: PER(0–2), and 3 missed
    scores = score_tags([certain([1, 2, 3, 0], 5)], [[1, 2, 3, 4]], names)
    assert (scores["precision"], scores["recall"]) == (1.0, 0.5)
    # without the marks, 0–3 would have been one entity
    assert score_tags([certain([1, 3, 4], 5)], [[1, 3, 4]], names)["f1"] == 1.0
    assert score_tags([certain([1, 3, 3], 5)], [[1, 3, 4]], names)["f1"] == 0.0


def test_a_word_without_logits_is_outside_of_any_entity_and_has_no_loss():
    logits = certain([PER, OUT, LOC], 5)
    whole = score_tags([logits], [[PER, OUT, LOC]], TAGS)
    logits[2] = torch.nan
    cut = score_tags([logits], [[PER, OUT, LOC]], TAGS)
    assert (whole["recall"], cut["recall"], cut["precision"]) == (1.0, 0.5, 1.0)
    assert cut["loss"] == pytest.approx(whole["loss"])


def test_tags_that_name_no_entities_are_classes_of_words():
    assert names_entities(TAGS)
    assert not names_entities(("NOUN", "VERB", "O"))
    assert not names_entities(("O",))
    logits = [certain([0, 1], 2), certain([1], 2)]
    assert score_tags(logits, [[0, 0], [1]], ("NOUN", "VERB")) == score_classes(
        torch.cat(logits), torch.tensor([0, 0, 1])
    )


def test_scores_of_classes_are_the_means_over_the_classes_that_occur():
    # confusion: class 0: 2 of 3 right, class 1: 1 of 1 and one wrongly; class 2 is predicted but never true
    true, predicted = torch.tensor([0, 0, 0, 1, 1]), [0, 0, 1, 1, 2]
    scores = score_classes(certain(predicted, 4), true)
    assert scores["precision"] == pytest.approx((1.0 + 0.5) / 2)
    assert scores["recall"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["f1"] == pytest.approx((0.8 + 0.5) / 2)
    assert scores["accuracy"] == pytest.approx(3 / 5)


def test_scores_of_classes_are_those_of_sklearn():
    generator = torch.Generator().manual_seed(3)
    logits, true = torch.randn(60, 4, generator=generator), torch.arange(60) % 4
    scores = score_classes(logits, true)
    shares = logits.double().softmax(1).numpy()
    assert scores["f1"] == pytest.approx(f1_score(true, logits.argmax(1), average="macro"))
    assert scores["loss"] == pytest.approx(log_loss(true, shares))
    one_hot = torch.nn.functional.one_hot(true, 4)
    assert scores["average_precision"] == pytest.approx(average_precision_score(one_hot, shares, average="macro"))


def test_a_row_without_logits_is_a_wrong_one():
    logits, true = certain([0, 1, 1], 2), torch.tensor([0, 1, 1])
    logits[2] = torch.nan
    scores = score_classes(logits, true)
    assert (scores["accuracy"], scores["recall"]) == (pytest.approx(2 / 3), pytest.approx((1 + 1 / 2) / 2))
    sets = torch.nn.functional.one_hot(true, 2).bool()
    assert score_label_sets(8 * (logits - 2), sets)["recall"] == pytest.approx((1 + 1 / 2) / 2)


def test_scores_of_label_sets_are_those_of_sklearn_on_the_labels_that_occur():
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(50, 4, generator=generator)
    true = torch.rand(50, 4, generator=generator) < 0.4
    true[:, 3] = False
    scores = score_label_sets(logits, true)
    assert scores["f1"] == pytest.approx(f1_score(true[:, :3], (logits > 0)[:, :3], average="macro"))
    assert scores["average_precision"] == pytest.approx(
        average_precision_score(true[:, :3], logits[:, :3], average="macro")
    )
    assert scores["accuracy"] == pytest.approx(((logits > 0) == true).all(1).double().mean())
    losses = -torch.where(true, logits.double().sigmoid(), 1 - logits.double().sigmoid()).log()
    assert scores["loss"] == pytest.approx(float(losses.mean()))


def test_texts_without_any_label_leave_nothing_to_average_and_still_an_accuracy():
    scores = score_label_sets(torch.tensor([[-1.0, -2.0], [1.0, -1.0]]), torch.zeros(2, 2, dtype=torch.bool))
    assert (scores["f1"], scores["average_precision"], scores["accuracy"]) == (0.0, 0.0, 0.5)


def test_where_every_text_was_cut_off_there_is_no_loss():
    assert "loss" not in score_classes(torch.full((2, 3), torch.nan), torch.tensor([0, 1]))


def test_the_loss_of_a_language_model_is_the_mean_over_tokens_not_over_texts():
    scores = score_texts([TextLoss(6.0, 2, 1), TextLoss(2.0, 6, 3), TextLoss()])
    assert scores == {"loss": 1.0, "perplexity": math.e, "accuracy": 0.5}


def test_a_perplexity_beyond_doubles_is_left_out_and_a_loss_that_is_not_finite_is_refused():
    assert score_texts([TextLoss(9000.0, 1, 0)]) == {"loss": 9000.0, "accuracy": 0.0}
    with pytest.raises(WeightsInvalidError, match="NaN"):
        score_texts([TextLoss(math.nan, 1, 0)])


@pytest.mark.parametrize(
    ("name", "value", "leaving"),
    [
        ("f1", 2 / 3, 0.6667),
        ("accuracy", 0.99999, 1.0),
        ("loss", 0.000049, 0.0),
        ("loss", 12.345678, 12.3457),
        ("perplexity", 1.00004, 1.0),
        ("perplexity", 12345.678, 12350.0),
        ("perplexity", 1.23456e299, 1.235e299),
    ],
)
def test_what_leaves_of_a_metric_are_four_decimals_of_a_perplexity_four_digits(name, value, leaving):
    found = in_few_digits({name: value})
    assert found == {name: leaving}
    assert TypeAdapter(Metrics).validate_python(found) == found
    assert in_few_digits(found) == found


@pytest.mark.parametrize(
    "metrics", [{}, {"f2": 0.5}, {"f1": 1.1}, {"f1": math.nan}, {"loss": -0.1}, {"loss": math.inf}, {"perplexity": 0.9}]
)
def test_what_no_metric_can_be_is_no_metric(metrics):
    with pytest.raises(ValidationError):
        TypeAdapter(Metrics).validate_python(metrics)


def test_what_a_metric_can_be_is_one():
    metrics = {"f1": 1.0, "accuracy": 0.0, "loss": 12.5, "perplexity": 1.0}
    assert TypeAdapter(Metrics).validate_python(metrics) == metrics
