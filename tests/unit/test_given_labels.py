"""The empirical Fisher information: squares of every example's gradient of its training loss, with given labels."""

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

import gramfuse
from gramfuse.measuring.example_gradients import ExampleGradients
from gramfuse.measuring.example_losses import IGNORED, GivenLabels
from gramfuse_shared.errors import ConfigurationError, StatisticsMalformedError
from support.tiny_models import VOCABULARY, tiny_bert, tiny_model

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh")]
NAMES = {0: "low", 1: "middle", 2: "high"}
TEXTS = ["a b c", "de f", "ghab c d", "b", "h g f e d"]
WORDS = [text.split() for text in TEXTS]


def tokenizer(*, special: bool = True) -> t.PreTrainedTokenizerFast:
    """Words of several letters are several tokens."""
    pieces = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        pieces.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return t.PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]")


def classifier(**options: Any) -> Any:
    torch.manual_seed(0)
    small = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = t.BertConfig(**small, intermediate_size=48, max_position_embeddings=40, id2label=NAMES, **options)
    return t.BertForSequenceClassification(config).eval()


@dataclass(frozen=True)
class Case:
    """A model, its texts and their labels as people give them, and as transformers' own training loss takes them.

    `targets` are tensors of one text, IGNORED where nothing counts. `means`: over how many numbers that loss is a mean.
    """

    model: Any
    texts: list[Any]
    labels: Any
    targets: list[torch.Tensor]
    special: bool = True

    def loss(self, number: int) -> torch.Tensor:
        source, _ = self.texts[number] if isinstance(self.texts[number], tuple) else (self.texts[number], None)
        read = tokenizer(special=self.special)
        encoded = read(source, is_split_into_words=isinstance(source, list), return_tensors="pt")
        encoded = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        target = self.targets[number][None]
        if target.is_floating_point():
            return self.model(**encoded, labels=target.double()).loss * target.numel()
        shifted = target[:, 1:] if isinstance(self.model, t.GPT2LMHeadModel) else target
        labels = target.flatten() if isinstance(self.model, t.BertForSequenceClassification) else target
        return self.model(**encoded, labels=labels).loss * (shifted != IGNORED).sum()


def tagged() -> Case:
    # "de" is two tokens and "ghab" four: a word's tag is its first token's
    given = [["low", "high", "middle"], ["high", 0], [1, 2, "low"], ["middle"], [0, 1, 2, 0, 1]]
    n = IGNORED
    targets = [[n, 0, 2, 1, n], [n, 2, n, 0, n], [n, 1, n, n, n, 2, 0, n], [n, 1, n], [n, 0, 1, 2, 0, 1, n]]
    model = tiny_bert(id2label=NAMES)
    return Case(model, WORDS, given, [torch.tensor(target) for target in targets])


def classified() -> Case:
    return Case(classifier(), TEXTS, ["low", 2, "middle", 1, "high"], [torch.tensor([n]) for n in (0, 2, 1, 1, 2)])


def of_several() -> Case:
    sets = [[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]]
    given = [["low", "high"], [], "middle", [0, 1, 2], [2]]
    model = classifier(problem_type="multi_label_classification")
    return Case(model, TEXTS, given, [torch.tensor(one, dtype=torch.float32) for one in sets])


def of_a_language_model(kind: str) -> Case:
    read = tokenizer(special=False)
    texts = ["a b c", "de f", "ghab c d", "b a", "h g f e d"]
    return Case(tiny_model(kind), texts, "given", [torch.tensor(read(x)["input_ids"]) for x in texts], special=False)


def of_a_writer() -> Case:
    read = tokenizer()
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    return Case(tiny_model("t5"), pairs, "given", [torch.tensor(read(target)["input_ids"]) for _, target in pairs])


CASES = {
    "tags of words": tagged,
    "a label per text": classified,
    "several labels per text": of_several,
    "a causal model's own tokens": lambda: of_a_language_model("gpt2"),
    "a written target": of_a_writer,
}


def collect(case: Case, **options: Any) -> gramfuse.Fisher:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        read = tokenizer(special=case.special)
        return gramfuse.collect_fisher(case.model, case.texts, labels=case.labels, tokenizer=read, **options)


@pytest.mark.parametrize("batch_size", [1, 3, 5])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_squared_gradients_of_the_training_loss_of_each_text_alone(name, batch_size):
    """Against transformers' own loss, by autograd in float64; padding and what is ignored add nothing."""
    case = CASES[name]()
    found = collect(case, batch_size=batch_size)
    case.model.double()
    expected = {name: torch.zeros_like(parameter) for name, parameter in case.model.named_parameters()}
    for number in range(len(case.texts)):
        gradients = torch.autograd.grad(case.loss(number), list(case.model.parameters()), allow_unused=True)
        for total, gradient in zip(expected.values(), gradients, strict=True):
            total.add_(0.0 if gradient is None else gradient.square())
    assert found.values.keys() == expected.keys()
    typical = sum(float(e.sum()) for e in expected.values()) / sum(e.numel() for e in expected.values())
    for of, value in found.values.items():
        size = float(expected[of].norm()) + 1e-6 * typical * value.numel() ** 0.5  # keys' biases have no influence
        assert float((value.double() - expected[of]).norm()) < 1e-4 * size, of
    assert (found.examples, found.distinct_examples, found.settings.labels) == (5, 5, "given")


def test_of_logistic_regression_it_is_the_squared_residual_where_the_fisher_information_is_the_variance():
    """(p − y)² x² for each class: it hangs on the labels, and where all are predicted it vanishes as (1 − p)²."""
    torch.manual_seed(0)
    model, row = nn.Linear(3, 4), torch.tensor([0.5, -2.0, 1.5])
    p = model(row).softmax(-1).detach()
    for label in range(4):
        sums = {parameter: torch.zeros(parameter.shape) for parameter in model.parameters()}
        with ExampleGradients(model, sums) as batch:
            batch.begin(1)
            predicted = t.modeling_outputs.SequenceClassifierOutput(logits=model(row[None]))
            GivenLabels([torch.tensor([label])])(0, predicted, {}).backward()
            batch.finish()
        residual = (p - nn.functional.one_hot(torch.tensor(label), 4)).square()
        torch.testing.assert_close(sums[model.weight], residual[:, None] * row.square())
        torch.testing.assert_close(sums[model.bias], residual)


def test_a_text_without_any_label_is_no_example_and_counts_toward_no_minimum():
    """Its gradient is zero: with it, the examples would be told to be more than they are."""
    letters = gramfuse.collect_fisher(
        tiny_model("gpt2"), ["a b", "c", "d e f"], labels="given", tokenizer=tokenizer(special=False)
    )
    assert (letters.examples, letters.distinct_examples) == (2, 2)
    cut = collect(Case(tiny_bert(id2label=NAMES), [["a", "b"], ["cdefgh", "a"]], [[0, 1], [1, 2]], []), max_length=4)
    assert cut.examples == 2
    nothing_left = Case(tiny_bert(id2label=NAMES), [["a", "b"], ["c"]], [[0, 1], [1]], [])
    assert collect(nothing_left, max_length=2).examples == 0


def test_a_word_that_was_cut_off_does_not_count():
    model = tiny_bert(id2label=NAMES)
    whole, cut = (
        collect(Case(model, [words], [tags], []), max_length=5)
        for words, tags in (
            (["a", "b", "c"], [0, 1, 2]),
            (["a", "b", "c", "d"], [0, 1, 2, 0]),
        )
    )
    for name, value in whole.values.items():
        torch.testing.assert_close(value, cut.values[name], msg=name)


def test_labels_change_what_is_measured_and_drawn_ones_hang_on_none():
    case = classified()
    one = collect(case)
    other = collect(Case(case.model, TEXTS, ["high", 0, "low", 0, "low"], []))
    assert not torch.allclose(one.values["classifier.weight"], other.values["classifier.weight"])
    assert one.seen == other.seen
    drawn = collect(Case(case.model, TEXTS, "sampled", []))
    assert drawn.settings.labels == "sampled"
    with pytest.raises(StatisticsMalformedError, match=r"labels='given'.*does not add"):
        one + drawn


@pytest.mark.parametrize(
    ("model", "texts", "labels", "reason"),
    [
        (classifier, TEXTS, "guessed", "labels are sampled or given, or one for each text; 'guessed' is none"),
        (classifier, TEXTS, "given", "needs labelled texts, and no labels were given"),
        (classifier, TEXTS, ["low"], "5 texts and 1 labels"),
        (classifier, ["a"], ["none"], "no label 'none'"),
        (lambda: tiny_bert(id2label=NAMES), ["a b"], [["low", "high"]], "text 1: tags are given as one list"),
        (lambda: tiny_model("gpt2"), ["a b"], ["low"], "takes without labels"),
        (lambda: tiny_model("t5"), ["a b"], "given", "--pair-field"),
        (lambda: classifier(problem_type="regression"), ["a"], [1], "predicts a number"),
        (
            lambda: t.BertForMaskedLM(t.BertConfig(vocab_size=20, hidden_size=8, num_attention_heads=2)),
            ["a"],
            "given",
            "BertForMaskedLM is no model that can be scored, or whose labels are known",
        ),
    ],
)
def test_labels_that_do_not_fit_the_model_are_told(model, texts, labels, reason):
    with pytest.raises(ConfigurationError, match=reason):
        gramfuse.collect_fisher(model(), texts, labels=labels, tokenizer=tokenizer())


def test_the_file_says_whose_labels_they_were(tmp_path):
    collect(classified()).save(tmp_path / "fisher.safetensors")
    assert gramfuse.Fisher.load(tmp_path / "fisher.safetensors").metadata.collector.labels == "given"
