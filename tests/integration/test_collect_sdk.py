"""`gramfuse.collect` runs the forward itself: decoders, generators, models without a padding token."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import gramfuse
from gramfuse.measuring.collection import Collector
from support.tiny_models import tiny_model

TEXTS = ["a b c d", "e f", "g", "a b c d e f g"]


def tokenizer(*, pad: str | None = None) -> PreTrainedTokenizerFast:
    words = {"[PAD]": 0, "[UNK]": 4, **{chr(97 + number): number + 5 for number in range(26)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token=pad)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_one_batch_is_measured_as_the_texts_one_by_one(kind):
    model, words = tiny_model(kind), tokenizer()
    found = gramfuse.collect(model, TEXTS, tokenizer=words, batch_size=3)
    with torch.no_grad(), Collector(model) as expected:
        for text in TEXTS:
            model(input_ids=torch.tensor([words(text)["input_ids"]]))
    for one, two in zip(found.taps, expected.taps, strict=True):
        assert one.info.layers == two.info.layers
        assert (one.info.rows, one.info.distinct_rows) == (two.info.rows, two.info.distinct_rows) == (14, 14)
        torch.testing.assert_close(one.gram, two.gram, rtol=1e-4, atol=1e-4)


def test_the_product_with_the_vocabulary_is_skipped_and_its_input_measured():
    model = tiny_model("llama")
    computed: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda _m, _i, output: computed.append(output.shape))
    statistics = gramfuse.collect(model, TEXTS, tokenizer=tokenizer())
    assert {shape[-1] for shape in computed} == {1}
    assert "lm_head.weight" in {layer.weight for tap in statistics.taps for layer in tap.info.layers}
    with torch.no_grad():
        assert model(torch.tensor([[5, 6]])).logits.shape[-1] == model.config.vocab_size


@pytest.mark.parametrize("pairs", [True, False])
def test_an_encoder_decoder_reads_sources_and_targets(pairs):
    texts = [(text, "h i j") for text in TEXTS] if pairs else TEXTS
    statistics = gramfuse.collect(tiny_model("t5"), texts, tokenizer=tokenizer(pad="[PAD]"), batch_size=2)
    rows = {tap.info.name: tap.info.rows for tap in statistics.taps}
    assert rows["encoder.block.0.layer.0.SelfAttention.k"] == 14
    assert rows["decoder.block.0.layer.1.EncDecAttention.k"] == 14
    assert rows["decoder.block.0.layer.0.SelfAttention.k"] == (12 if pairs else 14)


def test_a_model_without_a_padding_token_has_none_afterwards():
    model = tiny_model("gpt2")
    model.config.pad_token_id = None
    gramfuse.collect(model, TEXTS, tokenizer=tokenizer())
    assert model.config.pad_token_id is None


def test_long_texts_are_cut():
    statistics = gramfuse.collect(tiny_model("bert"), TEXTS, tokenizer=tokenizer(), max_length=2)
    assert statistics.taps[0].info.rows == 2 + 2 + 1 + 2
