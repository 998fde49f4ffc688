"""Biases shifted by score histograms: what is counted, what is left out, and which shifts are best, by brute force."""

import itertools
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import f1_score
from transformers import BertConfig, BertForSequenceClassification

from gramfuse.evaluating.calibration import collect_calibration, count_scores, scores_of
from gramfuse_shared.contract.calibration import BINS, CalibrationHistograms, ClassHistogram, bin_edge
from gramfuse_shared.errors import ArchitectureMismatchError, ConfigurationError
from gramfuse_shared.fusion.calibration import add_histograms, choose_shifts
from support.tiny_models import tiny_bert, tiny_model
from support.tokenizing import WORDS
from support.tokenizing import word_tokenizer as tokenizer

EDGES = [bin_edge(number) for number in range(BINS + 1)]


def counted(logits: torch.Tensor, true: torch.Tensor, *, kind: Any = "logit", least: int = 1) -> CalibrationHistograms:
    """Histograms of texts with one row each, all distinct."""
    hashes = [number.to_bytes(4, "big") for number in range(len(logits))]
    scored = list(zip(logits[:, None], true[:, None], strict=True))
    return count_scores(scored, hashes, kind=kind, labels=logits.shape[1], minimum_examples=least)


def examples(seed: int, rows: int, labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that lie too low, and labels that they tell a little of."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.rand(rows, labels, generator=generator) < 0.35
    return true * 1.5 + 1.5 * torch.randn(rows, labels, generator=generator) - 2.5, true


def f1_of(true: torch.Tensor, predicted: torch.Tensor) -> float:
    """F1 by its definition, which is a hundred times as fast as scikit-learn's for a few texts."""
    right = int((true & predicted).sum())
    return 2 * right / max(int(true.sum()) + int(predicted.sum()), 1)


def test_bins_are_symmetric_finer_around_zero_and_zero_is_an_edge():
    assert (EDGES[0], EDGES[BINS // 2], EDGES[BINS]) == (pytest.approx(-16), 0.0, pytest.approx(16))
    widths = [above - below for below, above in itertools.pairwise(EDGES)]
    assert widths[BINS // 2] == pytest.approx(0.054, abs=1e-3) == min(widths)
    assert all(-edge == pytest.approx(EDGES[BINS - number]) for number, edge in enumerate(EDGES))


def test_a_score_on_an_edge_counts_as_one_that_is_not_predicted_there():
    (one,) = counted(
        torch.tensor([[0.0], [1e-6], [-1e6], [1e6]]), torch.tensor([[True], [False], [True], [False]])
    ).classes
    assert {number for number, count in enumerate(one.labelled) if count} == {0, BINS // 2 - 1}
    assert {number for number, count in enumerate(one.others) if count} == {BINS // 2, BINS - 1}


def test_a_margin_is_the_distance_to_the_largest_other_logit():
    logits = torch.tensor([[3.0, 1.0, 2.5], [2.0, 2.0, -1.0]])
    assert scores_of(logits, "margin").tolist() == [[0.5, -2.0, -0.5], [0.0, 0.0, -3.0]]
    assert scores_of(logits, "logit") is logits


def test_every_row_that_was_predicted_is_counted_once_for_every_class():
    logits, true = examples(1, 40, 3)
    logits[:5] = torch.nan
    found = counted(logits, true)
    for one in found.classes:
        assert sum(one.labelled) == int(true[5:, one.label].sum())
        assert sum(one.labelled) + sum(one.others) == 35


def test_a_class_that_too_few_distinct_texts_bear_or_lack_is_left_out():
    logits = torch.zeros(10, 3)
    true = torch.tensor([[row < 3, row < 5, row < 8] for row in range(10)])
    assert [one.label for one in counted(logits, true, least=4).classes] == [1]
    assert [one.label for one in counted(logits, true, least=2).classes] == [0, 1, 2]
    # the same text ten times is one text
    scored = list(zip(logits[:, None], true[:, None], strict=True))
    assert count_scores(scored, [b""] * 10, kind="logit", labels=3, minimum_examples=2).classes == ()
    # nor does a minimum of none let an empty histogram through
    assert count_scores(scored[:1], [b""], kind="logit", labels=3, minimum_examples=0).classes == ()


@given(st.integers(0, 1000), st.integers(2, 30))
def test_histograms_of_parts_add_up_to_those_of_the_whole(seed, rows):
    logits, true = examples(seed, rows, 2)
    parts = [counted(logits[:1], true[:1], least=0), counted(logits[1:], true[1:], least=0)]
    # a part leaves classes out that nobody bears or lacks, so what is added is compared where both have all
    whole = counted(logits, true, least=0)
    if all(len(part.classes) == len(whole.classes) == 2 for part in parts):
        assert add_histograms(parts) == add_histograms(parts[::-1]) == whole
    assert add_histograms([whole]) == whole


def test_histograms_of_other_labels_or_scores_do_not_add():
    one = counted(*examples(1, 20, 2))
    for other in (counted(*examples(1, 20, 3)), counted(*examples(1, 20, 2), kind="margin")):
        with pytest.raises(ArchitectureMismatchError, match="same labels and score"):
            add_histograms([one, other])
    with pytest.raises(ArchitectureMismatchError, match="at least one"):
        add_histograms([])


@pytest.mark.parametrize("seed", range(4))
def test_shifts_of_logits_are_the_best_of_all_edges_and_of_equals_the_smallest(seed):
    logits, true = examples(seed, 60, 3)
    shifts = choose_shifts(counted(logits, true))
    for label, shift in enumerate(shifts.tolist()):
        scores = {-edge: f1_of(true[:, label], logits[:, label].double() > edge) for edge in EDGES[1:-1]}
        best = max(scores.values())
        assert scores[shift] == pytest.approx(best, abs=1e-12)
        assert abs(shift) == min(abs(other) for other, score in scores.items() if score > best - 1e-12)


@given(st.integers(0, 10_000), st.integers(3, 40))
def test_no_class_becomes_worse_on_what_was_counted(seed, rows):
    logits, true = examples(seed, rows, 2)
    moved = logits.double() + choose_shifts(counted(logits, true))
    for label in range(2):
        before, after = (f1_score(true[:, label], side[:, label] > 0, zero_division=0) for side in (logits, moved))
        assert after >= before - 1e-12


def test_a_class_that_is_right_already_or_unknown_is_not_shifted():
    logits = torch.tensor([[3.0, 1.0], [2.0, -4.0], [-3.0, 1.0], [-0.2, 2.0]])
    true = torch.tensor([[True, True], [True, True], [False, True], [False, True]])
    found = counted(logits, true)
    assert [one.label for one in found.classes] == [0]
    assert choose_shifts(found).tolist() == [0.0, 0.0]


def test_a_class_that_no_shift_can_help_is_not_shifted():
    empty = ClassHistogram(label=0, labelled=(0,) * BINS, others=(1,) * BINS)
    lowest = ClassHistogram(label=1, labelled=(1,) + (0,) * (BINS - 1), others=(0,) * BINS)
    histograms = CalibrationHistograms(score="logit", labels=2, classes=(empty, lowest))
    assert choose_shifts(histograms).tolist() == [0.0, 0.0]


def test_two_classes_of_margins_are_shifted_by_half_of_what_one_alone_would_be():
    # right if and only if 2 is taken from the first logit, or one from it and one given to the other
    gap = torch.tensor([2.6, 2.4, 2.2, 1.8, 1.6, 1.4])  # logit 0 less logit 1
    logits = torch.stack([gap, torch.zeros(6)], dim=1)
    true = torch.tensor([[row < 3, row >= 3] for row in range(6)])
    shifts = choose_shifts(counted(logits, true, kind="margin"))
    assert shifts[0] == pytest.approx(-float(shifts[1]))
    assert 1.8 <= float(shifts[1] - shifts[0]) < 2.2
    assert torch.equal((logits + shifts).argmax(dim=1), true.int().argmax(dim=1))


def test_shifts_of_margins_undo_a_bias_that_a_merge_took_away():
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 4, (4000,), generator=generator)
    true = torch.nn.functional.one_hot(ids, 4).bool()
    good = 3.0 * true + torch.randn(4000, 4, generator=generator)
    spoilt = good + torch.tensor([0.0, -3.0, 0.0, 1.5])
    shifts = choose_shifts(counted(spoilt, true, kind="margin"))
    before, after, best = (
        f1_score(ids, logits.argmax(dim=1), average="macro") for logits in (spoilt, spoilt + shifts, good)
    )
    assert before < best - 0.15
    assert after > best - 0.03


def margins(labelled: dict[int, int], others: dict[int, int]) -> CalibrationHistograms:
    """A lone class of margins, counts by bin."""
    counts = [tuple(side.get(number, 0) for number in range(BINS)) for side in (labelled, others)]
    one = ClassHistogram(label=0, labelled=counts[0], others=counts[1])
    return CalibrationHistograms(score="margin", labels=2, classes=(one,))


@pytest.mark.parametrize("times", [1, 10])
def test_margins_are_shifted_once_their_f1_grows_by_more_than_two_standard_errors(times):
    # right above zero 6 of 10; one bin below are 3 more, and 2 that do not bear the label
    middle = BINS // 2
    found = margins(
        {middle + 5: 6 * times, middle - 1: 3 * times, 0: times}, {middle + 5: 2 * times, middle - 1: 2 * times}
    )
    before, after = 2 * 6 / (6 + 12), 2 * 9 / (9 + 14)  # F1 = 2 TP / (TP + TP + FP + FN)
    # plus one right and one wrong row
    share = (9 * times + 1) / (14 * times + 2)
    error = 2 / (1 + share) ** 2 * (share * (1 - share) / (14 * times + 2)) ** 0.5
    sure = after - before > 2 * error
    assert sure == (times == 10)
    assert float(choose_shifts(found)[0]) == (pytest.approx(-EDGES[middle - 1]) if sure else 0.0)


def test_logits_are_shifted_to_their_best_edge_however_few_there_are():
    found = margins({BINS // 2 - 1: 1}, {0: 1}).model_copy(update={"score": "logit"})
    assert float(choose_shifts(found)[0]) == pytest.approx(-EDGES[BINS // 2 - 1])


def test_a_lone_class_of_margins_gets_its_own_shift_and_right_predictions_none():
    gap = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    logits = torch.stack([gap, torch.zeros(4)], dim=1)
    true = torch.tensor([[True, False], [True, False], [False, True], [False, True]])
    both = counted(logits, true, kind="margin")
    lone = both.model_copy(update={"classes": both.classes[:1]})
    assert 2.0 < float(choose_shifts(lone)[0]) <= 3.0
    assert float(choose_shifts(lone)[1]) == 0.0
    right = counted(4.0 * true, true, kind="margin")
    assert choose_shifts(right).tolist() == [0.0, 0.0]


# --- of a model ------------------------------------------------------------------------------------------------------

TEXTS = ["a b c", "d e", "f g h i", "j", "k l m", "a b c"]


def alone(model: Any, text: str | list[str]) -> torch.Tensor:
    encoded = tokenizer()(text, is_split_into_words=isinstance(text, list), return_tensors="pt")
    with torch.no_grad():
        return model(**encoded).logits[0]


def classifier(**options: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(WORDS), num_labels=3, initializer_range=0.5, **small, **options)
    return BertForSequenceClassification(config).eval()


def test_a_multi_label_model_is_counted_by_its_logits():
    model = classifier(problem_type="multi_label_classification")
    labels = [[0], [0, 1], [], [2], [1], [0]]
    found = collect_calibration(model, TEXTS, labels, minimum_examples=1, tokenizer=tokenizer())
    true = torch.tensor([[label in row for label in range(3)] for row in labels])
    assert (found.score, found.labels) == ("logit", 3)
    assert found == counted(torch.stack([alone(model, text) for text in TEXTS]), true)
    # two of the texts are the same, so label 0 is borne by two distinct ones
    left = collect_calibration(model, TEXTS, labels, minimum_examples=3, tokenizer=tokenizer())
    assert left.classes == ()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_single_label_model_is_counted_by_its_margins(batch_size):
    model, labels = classifier(), [0, 1, 2, 0, 1, 0]
    found = collect_calibration(model, TEXTS, labels, minimum_examples=1, tokenizer=tokenizer(), batch_size=batch_size)
    true = torch.nn.functional.one_hot(torch.tensor(labels), 3).bool()
    assert found == counted(torch.stack([alone(model, text) for text in TEXTS]), true, kind="margin")


def test_a_token_classifier_is_counted_by_words_and_its_minimum_by_texts():
    model = tiny_bert(initializer_range=0.5)
    texts = [text.split() for text in TEXTS]
    labels = [[number % 3 for number, _ in enumerate(text)] for text in texts]
    found = collect_calibration(model, texts, labels, minimum_examples=2, tokenizer=tokenizer())
    words = sum(len(text) for text in texts)
    assert found.score == "margin"
    assert [sum(one.labelled) + sum(one.others) for one in found.classes] == [words] * len(found.classes)
    logits = torch.cat([alone(model, text)[1:-1] for text in texts])
    true = torch.nn.functional.one_hot(torch.tensor([tag for tags in labels for tag in tags]), 3).bool()
    assert found.classes == counted(logits, true, kind="margin").classes
    # label 2 is borne by three distinct texts, by five words
    few = collect_calibration(model, texts, labels, minimum_examples=4, tokenizer=tokenizer())
    assert 2 not in [one.label for one in few.classes]


def test_words_that_were_cut_off_are_not_counted():
    found = collect_calibration(
        tiny_bert(), [["a", "b", "c"]] * 1, [[0, 1, 2]], minimum_examples=0, tokenizer=tokenizer(), max_length=4
    )
    assert {one.label: sum(one.labelled) + sum(one.others) for one in found.classes} == {0: 2, 1: 2}


def test_what_has_no_labelled_classes_is_refused():
    with pytest.raises(ConfigurationError, match="2 texts and 1 labels"):
        collect_calibration(classifier(), ["a", "b"], [0], minimum_examples=1, tokenizer=tokenizer())
    with pytest.raises(ConfigurationError, match="writes text"):
        collect_calibration(tiny_model("gpt2"), ["a"], [0], minimum_examples=1, tokenizer=tokenizer())
    with pytest.raises(ConfigurationError, match="no label 7"):
        collect_calibration(classifier(), ["a"], [7], minimum_examples=1, tokenizer=tokenizer())


# --- the document ----------------------------------------------------------------------------------------------------


def test_the_document_keeps_its_canonical_bytes():
    zeros = ",".join(["0"] * (BINS - 1))
    one = ClassHistogram(label=2, labelled=(3,) + (0,) * (BINS - 1), others=(0,) * (BINS - 1) + (4,))
    document = CalibrationHistograms(score="margin", labels=3, classes=(one,))
    raw = (
        f'{{"classes":[{{"label":2,"labelled":[3,{zeros}],"others":[{zeros},4]}}],'
        '"format":"gramfuse/calibration/1","labels":3,"score":"margin"}'
    )
    assert document.canonical().decode() == raw
    assert CalibrationHistograms.parse(raw) == document


@pytest.mark.parametrize(
    "change",
    [
        {"labels": 1},
        {"labels": 0},
        {"labels": 1001},
        {"score": "logits"},
        {"text": "free"},
        {"classes": "twice"},
        {"classes": [{"label": 0, "labelled": [0] * 127, "others": [0] * 128}]},
        {"classes": [{"label": 0, "labelled": [-1] * 128, "others": [0] * 128}]},
        {"classes": [{"label": 0, "labelled": [0.5] * 128, "others": [0] * 128}]},
    ],
)
def test_what_no_histograms_can_be_is_refused(change):
    described = json.loads(counted(*examples(1, 20, 2)).canonical())
    if change.get("classes") == "twice":
        change = {"classes": described["classes"] * 2}
    with pytest.raises(ValidationError):
        CalibrationHistograms.model_validate(described | change)


def test_histograms_fit_into_a_request_up_to_the_labels_of_a_usual_classifier():
    most = ClassHistogram(label=0, labelled=(99_999,) * BINS, others=(99_999,) * BINS)
    document = CalibrationHistograms(
        score="logit", labels=100, classes=tuple(most.model_copy(update={"label": label}) for label in range(100))
    )
    assert len(document.canonical()) < 256 * 1024
    assert math.isfinite(float(choose_shifts(document).sum()))
