"""Models scored on labelled texts: tasks, labels, cut-off words, batches, and the command."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

import gramfuse
from gramfuse.cli.main import main
from gramfuse.evaluating.labelled_texts import LabelFields, read_labelled_texts
from gramfuse.evaluating.tasks import task_of
from gramfuse.measuring.texts import Fields
from gramfuse_shared.errors import (
    CancelledError,
    ConfigurationError,
    DocumentMalformedError,
    FileUnreadableError,
    WeightsInvalidError,
)
from support.tokenizing import WORDS
from support.tokenizing import word_tokenizer as tokenizer

TAGS = {0: "O", 1: "B-PER", 2: "I-PER"}
SMALL: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.5,  # so that predictions differ from text to text
}
TEXTS = ["a b c", "d e", "f g h i j k", "l", "a b c", "m n o p"]


def classifier(**options: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    names = dict(enumerate(("anger", "joy", "fear")))
    return BertForSequenceClassification(BertConfig(**SMALL, id2label=names, **options)).eval()


def tagger(**options: Any) -> BertForTokenClassification:
    torch.manual_seed(0)
    return BertForTokenClassification(BertConfig(**(SMALL | {"id2label": TAGS} | options))).eval()


def causal() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=4, n_positions=40, initializer_range=0.5)
    ).eval()


def writer() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=2
        )
    ).eval()


def logits_alone(model: Any, text: str | list[str]) -> torch.Tensor:
    """The definition: the model called with one text, without padding."""
    encoded = tokenizer()(text, is_split_into_words=isinstance(text, list), return_tensors="pt")
    with torch.no_grad():
        return model(**encoded).logits[0]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_predictions_are_those_of_each_text_alone_whatever_the_batch(batch_size):
    model = classifier()
    for text, logits in zip(
        TEXTS, gramfuse.predict(model, TEXTS, tokenizer=tokenizer(), batch_size=batch_size), strict=True
    ):
        assert torch.allclose(logits, logits_alone(model, text), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_words_are_predicted_at_their_first_token(batch_size):
    model = tagger()
    # the tokenizer makes two tokens of a word with a stroke, a-b → a b
    backend = tokenizer()
    texts = [["a", "b"], ["c", "d e", "f"], ["g"]]
    places = [[1, 2], [1, 2, 4], [1]]
    for text, at, logits in zip(
        texts, places, gramfuse.predict(model, texts, tokenizer=backend, batch_size=batch_size), strict=True
    ):
        assert torch.allclose(logits, logits_alone(model, text)[at], atol=1e-5)


def test_a_word_that_is_cut_off_has_no_prediction():
    logits = gramfuse.predict(tagger(), [["a", "b", "c"], ["d", " ", "e"]], tokenizer=tokenizer(), max_length=4)
    assert [row.isnan().all().item() for row in logits[0]] == [False, False, True]
    assert [row.isnan().all().item() for row in logits[1]] == [False, True, False]


@pytest.mark.parametrize(
    ("model", "texts", "labels"),
    [
        (classifier, TEXTS, ["joy", "anger", 2, "fear", "joy", 0]),  # the repeated text ties with itself, to rounding
        (
            lambda: classifier(problem_type="multi_label_classification"),
            TEXTS,
            [["joy", "fear"], [], "anger", [2], ["joy"], [0, "fear"]],
        ),
        (
            tagger,
            [text.split() for text in TEXTS],
            [[TAGS[at % 3] for at, _ in enumerate(text.split())] for text in TEXTS],
        ),
        (causal, TEXTS, None),
        (writer, [(text, text[::-1]) for text in TEXTS], None),
    ],
)
def test_the_batch_size_does_not_change_a_score(model, texts, labels):
    first, *others = [
        gramfuse.evaluate(model(), texts, labels, tokenizer=tokenizer(), batch_size=size) for size in (1, 2, 5, 100)
    ]
    assert (first.examples, first.distinct_examples) == (6, 5)
    assert all(math.isfinite(value) for value in first.metrics.values())
    for other in others:
        assert other.metrics == pytest.approx(dict(first.metrics), rel=1e-5)


def test_a_classifier_is_scored_by_what_it_predicts():
    model = classifier()
    predicted = [int(logits_alone(model, text).argmax()) for text in TEXTS]
    assert len(set(predicted)) > 1
    right = gramfuse.evaluate(model, TEXTS, predicted, tokenizer=tokenizer())
    assert right.task == "sequence-classification"
    assert (right.metrics["f1"], right.metrics["accuracy"]) == (1.0, 1.0)
    wrong = gramfuse.evaluate(model, TEXTS, [(label + 1) % 3 for label in predicted], tokenizer=tokenizer())
    assert (wrong.metrics["f1"], wrong.metrics["accuracy"]) == (0.0, 0.0)


def test_a_causal_model_is_scored_by_the_loss_of_each_token_but_the_first():
    model = causal()
    losses, right = [], []
    for text in TEXTS:
        ids = tokenizer()(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
        right.append(logits.argmax(1) == ids[0, 1:])
    loss = float(torch.cat(losses).mean())
    evaluation = gramfuse.evaluate(model, TEXTS, tokenizer=tokenizer())
    assert evaluation.task == "causal-lm"
    wanted = {"loss": loss, "perplexity": math.exp(loss), "accuracy": float(torch.cat(right).double().mean())}
    assert evaluation.metrics == pytest.approx(wanted, rel=1e-5)


def test_a_writing_model_is_scored_by_the_loss_of_its_targets():
    model, pairs = writer(), [("a b c", "x y"), ("d", "z y x w")]
    losses = []
    for source, target in pairs:
        encoded, labels = (
            tokenizer()(source, return_tensors="pt"),
            tokenizer()(target, return_tensors="pt")["input_ids"],
        )
        with torch.no_grad():
            logits = model(input_ids=encoded["input_ids"], labels=labels).logits[0].double()
        losses.append(torch.nn.functional.cross_entropy(logits, labels[0], reduction="none"))
    evaluation = gramfuse.evaluate(model, pairs, tokenizer=tokenizer())
    assert evaluation.task == "seq2seq-lm"
    assert evaluation.metrics["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_the_model_is_left_as_it_was():
    model = classifier().train()
    gramfuse.evaluate(model, TEXTS, [0] * 6, tokenizer=tokenizer())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_progress_reaches_all_tokens_and_a_run_can_be_cancelled():
    seen: list[Any] = []
    gramfuse.predict(classifier(), TEXTS, tokenizer=tokenizer(), batch_size=2, on_progress=seen.append)
    assert [step.total for step in seen] == [sum(2 + len(text.split()) for text in TEXTS)] * 3
    assert seen[-1].tokens == seen[-1].total
    with pytest.raises(CancelledError, match="behind 2 of 6"):
        gramfuse.predict(classifier(), TEXTS, tokenizer=tokenizer(), batch_size=2, is_cancelled=lambda: True)


@pytest.mark.parametrize(
    ("model", "texts", "labels", "message"),
    [
        (classifier, ["a"], ["hope"], "text 1: the model has no label 'hope'; it has anger, joy, fear"),
        (classifier, ["a"], [3], "no label 3"),
        (classifier, ["a"], [True], "no label True"),
        (classifier, ["a"], [["joy"]], "multi_label_classification"),
        (classifier, ["a", "b"], ["joy"], "2 texts and 1 labels"),
        (classifier, [], [], "0 texts"),
        (classifier, ["a"], None, "no labels were given"),
        (tagger, ["a b"], [["O", "O"]], "text 1: tags"),
        (tagger, [["a", "b"]], [["O"]], "one for each word"),
        (tagger, [["a"]], ["O"], "one for each word"),
        (tagger, [["a"]], [["B-LOC"]], "no label 'B-LOC'"),
        (causal, ["a"], ["joy"], "without labels"),
        (writer, ["a"], None, "--pair-field"),
        (lambda: classifier(problem_type="regression"), ["a"], [0], "predicts a number"),
        (lambda: BertModel(BertConfig(**SMALL)), ["a"], [0], "BertModel is no model that can be scored"),
    ],
)
def test_what_cannot_be_scored_is_told(model, texts, labels, message):
    with pytest.raises(ConfigurationError, match=message):
        gramfuse.evaluate(model(), texts, labels, tokenizer=tokenizer())


def test_a_model_of_many_labels_is_not_told_with_all_of_them():
    model = tagger(id2label={number: f"T{number}" for number in range(40)})
    with pytest.raises(ConfigurationError, match=r"it has T0, .*T11, … \(40 in all\)"):
        gramfuse.evaluate(model, [["a"]], [["T40"]], tokenizer=tokenizer())


def test_only_a_classifier_predicts_labels_and_a_token_classifier_takes_words():
    with pytest.raises(ConfigurationError, match="writes text"):
        gramfuse.predict(causal(), ["a"], tokenizer=tokenizer())
    with pytest.raises(ConfigurationError, match="list of words"):
        gramfuse.predict(tagger(), ["a"], tokenizer=tokenizer())
    with pytest.raises(ConfigurationError, match="needs its tokenizer"):
        gramfuse.predict(tagger(), [["a"]])


def test_predictions_that_are_not_finite_are_refused():
    model = classifier()
    with torch.no_grad():
        model.classifier.bias[1] = torch.nan
    with pytest.raises(WeightsInvalidError, match="NaN"):
        gramfuse.evaluate(model, ["a"], ["joy"], tokenizer=tokenizer())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    made = {"classifier": classifier, "tagger": tagger, "causal": causal, "writer": writer}
    for name, make in made.items():
        make().save_pretrained(path / name)
        tokenizer().save_pretrained(path / name)
    return path


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_task_of_a_folder_is_known_without_its_weights(folders, tmp_path):
    tasks = [task_of(folders / name) for name in ("classifier", "tagger", "causal", "writer")]
    assert tasks == ["sequence-classification", "token-classification", "causal-lm", "seq2seq-lm"]
    (tmp_path / "config.json").write_text('{"architectures": ["MindModel"], "model_type": "mind"}', encoding="utf-8")
    with pytest.raises(FileUnreadableError, match="not one that transformers knows"):
        task_of(tmp_path)


def test_the_command_scores_labelled_texts(folders, tmp_path, capsys):
    texts = write(
        tmp_path / "t.jsonl", [{"text": "a b", "label": "joy"}, {"text": "", "label": 0}, {"text": "c", "label": 1}]
    )
    code, printed, _ = run(capsys, "evaluate", "--model", folders / "classifier", "--texts", texts, "--format", "json")
    assert code == 0
    result = json.loads(printed)
    assert (result["task"], result["examples"]) == ("sequence-classification", 2)
    wanted = gramfuse.evaluate(folders / "classifier", ["a b", "c"], ["joy", "joy"])
    assert result["metrics"] == pytest.approx(dict(wanted.metrics))
    code, printed, _ = run(capsys, "evaluate", "--model", folders / "classifier", "--texts", texts, "--examples", 1)
    assert code == 0
    assert "sequence-classification on 1 texts" in printed
    assert "average precision" in printed


def test_the_command_scores_tagged_words_and_counts_distinct_texts(folders, tmp_path, capsys):
    record = {"words": ["a", "b"], "entities": ["B-PER", "O"]}
    texts = write(tmp_path / "t.jsonl", [record, record])
    options = ("--model", folders / "tagger", "--texts", texts, "--tokens", "words", "--tags", "entities")
    code, printed, _ = run(capsys, "evaluate", *options)
    assert code == 0
    assert "token-classification on 2 texts (1 distinct)" in printed


def test_the_command_scores_language_models_on_texts_alone(folders, tmp_path, capsys):
    (tmp_path / "t.txt").write_text("a b c\n\nd e f\n", encoding="utf-8")
    code, printed, _ = run(
        capsys, "evaluate", "--model", folders / "causal", "--texts", tmp_path / "t.txt", "--format", "json"
    )
    assert (code, set(json.loads(printed)["metrics"])) == (0, {"loss", "perplexity", "accuracy"})


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([{"text": "a"}], (), "none of the fields label, labels"),
        ([{"text": "a", "label": 0}], ("--label-field", "mood"), "no field 'mood'"),
        ([{"text": "a", "label": 0.5}], (), "neither a label"),
        ([{"text": "a", "label": [0, None]}], (), "neither a label"),
        ([{"text": ""}], (), "holds no text"),
        ([{"text": "a", "label": "hope"}], (), "no label 'hope'"),
        ([{"text": "a", "label": 0}], ("--label-field", "label", "--tags", "label"), "not both"),
        (["a line of text"], (), "text without labels"),
        ([7], (), "not an object"),
    ],
)
def test_files_that_cannot_be_scored_are_told(folders, tmp_path, capsys, records, options, message):
    texts = write(tmp_path / "t.jsonl", records)
    code, _, err = run(capsys, "evaluate", "--model", folders / "classifier", "--texts", texts, *options)
    assert code == 1
    assert message in err


def test_labels_are_found_by_their_usual_names(tmp_path):
    texts = write(tmp_path / "t.jsonl", [{"tokens": ["a"], "ner_tags": [1]}, {"text": "b", "labels": ["joy"]}])
    read = read_labelled_texts(texts)
    assert (read.texts, read.labels) == ([["a"], "b"], [[1], ["joy"]])
    plain = tmp_path / "t.txt"
    plain.write_text("a\n", encoding="utf-8")
    with pytest.raises(DocumentMalformedError, match="without labels"):
        read_labelled_texts(plain, Fields(), LabelFields())
