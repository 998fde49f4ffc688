"""Real architectures, tiny and random: collect, merge two, save, from_pretrained, forward."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from gramfuse.local_merging import merge
from gramfuse.measuring.collection import Collector
from gramfuse.measuring.layers import require_saved_layers
from gramfuse.measuring.statistics import Statistics
from gramfuse_shared.contract.recipe import Recipe
from support.tiny_models import KINDS, example_batch, tiny_model

FIRST = {
    "bert": "bert.encoder.layer.0.attention.self.key",
    "roberta": "roberta.encoder.layer.0.attention.self.key",
    "distilbert": "distilbert.transformer.layer.0.attention.k_lin",
    "gpt2": "transformer.h.0.attn.c_attn",
    "llama": "model.layers.0.self_attn.k_proj",
    "qwen2": "model.layers.0.self_attn.k_proj",
    "qwen3": "model.layers.0.self_attn.k_proj",
    "vit": "vit.encoder.layer.0.attention.attention.key",
    "deberta-v2": "deberta.encoder.layer.0.attention.self.",
    "deberta-v3": "deberta.encoder.layer.0.attention.self.",
    "t5": "coder.block.0.layer.0.SelfAttention.k",
}


def collect(model: Any, kind: str, *, seed: int) -> Statistics:
    with torch.no_grad(), Collector(model) as statistics:
        for batch in range(4):
            model(**example_batch(kind, seed=seed + batch))
    return statistics


def save_contribution(folder: Path, kind: str, *, seed: int) -> Any:
    """Save a model of its own weights, its tokenizer and its statistics, as an organization would have them."""
    model = tiny_model(kind, seed=seed)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    collect(model, kind, seed=10 * seed).save(folder / "statistics.safetensors")
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_first_layer_of_a_stack_is_fed_by_embeddings(kind):
    statistics = collect(tiny_model(kind), kind, seed=0)
    sources = {tap.info.name: tap.info.source for tap in statistics.taps}
    # DeBERTa-v2's projections of relative embeddings see no text at all: there is nothing to probe them with.
    without_text = {tap.info.name for tap in statistics.taps if ".pos_" in tap.info.name}
    assert {tap.info.distinct_rows for tap in statistics.taps if tap.info.name in without_text} <= {0}
    assert {name for name, source in sources.items() if source == "unknown"} == without_text
    fed = {name for name, source in sources.items() if source == "embeddings"}
    assert fed == {name for name in sources if FIRST[kind] in name} - without_text
    assert fed


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_named_as_the_model_is_saved(kind, tmp_path):
    model = tiny_model(kind)
    model.save_pretrained(tmp_path)
    collector = Collector(model)
    require_saved_layers(collector.layers, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for layer in collector.layers:
        inputs = saved[layer.weight].shape[1 if layer.layout == "out_in" else 0]
        assert inputs == layer.width


@pytest.mark.parametrize("kind", KINDS)
def test_two_models_merge_into_one_that_from_pretrained_loads(kind, tmp_path):
    parts = [save_contribution(tmp_path / name, kind, seed=seed) for seed, name in enumerate(("one", "two"))]
    document = {
        "merge_method": "regmean",
        "base_model": str(tmp_path / "one"),
        "models": [{"model": str(tmp_path / name)} for name in ("one", "two")],
        "parameters": {"alpha": 0.9},
    }
    merge(Recipe.model_validate(document), tmp_path / "merged")

    kind_of_model = type(parts[0])
    merged, loading = kind_of_model.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    with torch.no_grad():
        output = merged.eval()(**example_batch(kind)).logits
    assert torch.isfinite(output).all()
    # Merged linears are neither of the two nor their average.
    name = next(layer.weight for layer in Collector(parts[0]).layers)
    one, two, both = (load_file(tmp_path / part / "model.safetensors")[name] for part in ("one", "two", "merged"))
    assert not torch.allclose(both, (one + two) / 2, atol=1e-5)
    assert (both - (one + two) / 2).norm() < 2 * (one - two).norm()

    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        ours, bases = (json.loads((tmp_path / part / file).read_text()) for part in ("merged", "one"))
        assert ours == bases, file
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")("a")["input_ids"] == [1]
