"""`make paper` with other encoders and other data sets: what `from_pretrained` and `load_dataset` find by a name."""

from dataclasses import replace

import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import gramfuse
import support.paper_modules  # noqa: F401 - makes the package of the next lines known

from benchmarks.paper.bases import build_base  # isort: skip
from benchmarks.paper.catalogue import task_named  # isort: skip
from benchmarks.paper.corpora import Corpus  # isort: skip
from benchmarks.paper.experiments import DOMAINS  # isort: skip
from benchmarks.paper.hub import hub_examples  # isort: skip

SENTENCES = [{"tokens": ["Mia", "saw", "Oslo"], "tags": ["B-PER", "O", "B-LOC"]}, {"tokens": ["rain"], "tags": ["O"]}]
TEXTS = [{"text": "Mia saw Oslo", "labels": ["joy"]}, {"text": "rain", "labels": []}]
SMALL = {"vocab_size": 12, "pad_token_id": 0, "eos_token_id": 3, "num_labels": 3}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "share_att_key": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "legacy": False,
}
CONFIGURATIONS = {
    "roberta": lambda: transformers.RobertaConfig(**SMALL, **WIDE, max_position_embeddings=40),
    "distilbert": lambda: transformers.DistilBertConfig(**SMALL, dim=32, n_layers=2, n_heads=4, hidden_dim=48),
    "deberta-v3": lambda: transformers.DebertaV2Config(**SMALL, **WIDE, **DEBERTA),
    "t5": lambda: transformers.T5Config(
        **SMALL, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, tie_word_embeddings=False,
    ),
}  # fmt: skip


def encoder(kind, folder):
    """Write a tiny encoder of an architecture with a tokenizer of whole words."""
    torch.manual_seed(0)
    transformers.AutoModel.from_config(CONFIGURATIONS[kind]()).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Mia", "saw", "Oslo", "rain"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("task", "examples"), [("entities", SENTENCES), ("emotions", TEXTS)])
@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_an_encoder_of_another_architecture_is_trained_measured_and_judged(kind, task, examples, tmp_path):
    chosen = task_named(task)
    base = build_base(chosen, str(encoder(kind, tmp_path / "encoder")), tmp_path / "base", seed=1)
    model = chosen.architecture.from_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen.finetune(model, tokenizer, examples, epochs=1, learning_rate=1e-3, seed=1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(value is model.get_input_embeddings().weight for value in model.parameters() if value.requires_grad)
    logits = chosen.logits(model, tokenizer, examples)
    assert logits.isfinite().all()
    assert chosen.scores(examples, logits).keys() == {"f1", "average_precision"}
    model.save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    measured = gramfuse.collect(tmp_path / "own", chosen.texts(examples), device="cpu")
    assert measured.taps


def test_a_data_set_of_entities_is_read_by_name_and_counts_the_tables_kinds(tmp_path):
    tags = ClassLabel(names=["O", "B-person", "B-GPE", "I-GPE", "B-product"])
    features = Features({"tokens": List(Value("string")), "ner_tags": List(tags)})
    records = {"tokens": [["Mia", "New", "York", "Soap"]], "ner_tags": [[1, 2, 3, 4]]}
    (tmp_path / "tweets").mkdir()
    Dataset.from_dict(records, features=features).to_parquet(tmp_path / "tweets" / "validation.parquet")
    (example,) = Corpus(str(tmp_path / "tweets")).examples("dev")
    assert example == {"tokens": ["Mia", "New", "York", "Soap"], "tags": ["B-PER", "B-LOC", "I-LOC", "O"]}


def test_a_data_set_of_emotions_is_read_by_name_with_one_label_or_several(tmp_path):
    names = ClassLabel(names=["Joy", "neutral", "fear"])
    for folder, labels, feature in (("one", [0, 1], names), ("several", [[0, 2], []], List(names))):
        (tmp_path / folder).mkdir()
        features = Features({"text": Value("string"), "labels": feature})
        found = Dataset.from_dict({"text": ["hurray", "it is"], "labels": labels}, features=features)
        found.to_parquet(tmp_path / folder / "train.parquet")
    assert [example["labels"] for example in hub_examples(str(tmp_path / "one"), "train", None)] == [["joy"], []]
    several = hub_examples(str(tmp_path / "several"), "train", at_most=1)
    assert several == [{"text": "hurray", "labels": ["joy", "fear"]}]


@pytest.mark.parametrize(
    ("records", "what"),
    [({"question": ["what?"]}, "question"), ({"text": ["a"], "labels": [3]}, "have no names")],
)
def test_a_data_set_that_is_neither_says_what_is_wanted(records, what, tmp_path):
    Dataset.from_dict(records).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=what):
        hub_examples(str(tmp_path), "train", None)


def test_another_encoder_and_other_domains_have_a_table_of_their_own():
    changed = DOMAINS.with_others("roberta-base", ["conll2003"], None, 5)
    assert changed.setting == "btc roberta-base conll2003"
    assert (changed.source, changed.sections, changed.held_out, changed.epochs) == (
        "roberta-base",
        ("conll2003",),
        (),
        5,
    )
    assert DOMAINS.with_others(None, None, None, None) == DOMAINS
    assert replace(DOMAINS, setting="x").with_others("a", None, None, None).held_out == DOMAINS.held_out
