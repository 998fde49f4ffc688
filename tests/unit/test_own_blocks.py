"""An organization's own blocks in a merged model: what is replaced, and what the layers read then."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import gramfuse
from gramfuse.measuring.inference import open_model
from gramfuse.measuring.layers import checkpoint_names, find_layers
from gramfuse.measuring.own_blocks import put_own_blocks
from gramfuse_shared.errors import ArchitectureMismatchError, ConfigurationError
from support import tiny
from support.adapters import save_adapter
from support.tiny_models import KINDS, Recorder, tiny_model

BLOCK = "bert.encoder.layer.1."
LAYERS = (f"{BLOCK}intermediate.dense.weight",)


@pytest.fixture
def folders(tmp_path):
    tiny.write_base(tmp_path / "base")
    tiny.write_tuned(tmp_path / "base", tmp_path / "merged", seed=1)
    tiny.write_tuned(tmp_path / "base", tmp_path / "own", seed=2)
    return tmp_path


def values(model):
    saved = checkpoint_names(model)
    return {saved[name]: value.detach() for name, value in model.named_parameters()}


def test_a_block_is_replaced_whole_and_nothing_else(folders):
    model = open_model(folders / "merged").model
    put_own_blocks(model, folders / "own", LAYERS)
    merged, own = (load_file(folders / name / "model.safetensors") for name in ("merged", "own"))
    for name, value in values(model).items():
        torch.testing.assert_close(value, (own if name.startswith(BLOCK) else merged)[name], rtol=0, atol=0)
    assert sum(name.startswith(BLOCK) for name in values(model)) == 16  # six linears with biases, two norms


def test_what_is_measured_are_the_merged_models_inputs_as_the_own_block_passes_them_on(folders):
    """The definition: hidden states of the merged blocks below, through the organization's own layer module."""
    tiny.write_texts(folders / "texts.jsonl", count=6, words=9)
    texts = [line.split('"')[3] for line in (folders / "texts.jsonl").read_text().splitlines()]
    opened = open_model(folders / "merged")
    put_own_blocks(opened.model, folders / "own", LAYERS)
    taps = gramfuse.collect(opened.model, texts, tokenizer=opened.tokenizer).taps
    merged, own = (open_model(folders / name).model.double() for name in ("merged", "own"))
    block = own.bert.encoder.layer[1]
    recorder = Recorder(block)
    for text in texts:
        inputs = opened.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            block(merged.bert(**inputs, output_hidden_states=True).hidden_states[1])
    for tap in taps:
        if tap.info.name.startswith(BLOCK):
            expected = recorder.gram(tap.info.layers[0].weight.removeprefix(BLOCK))
            torch.testing.assert_close(tap.unpacked().double(), expected, rtol=1e-4, atol=1e-3)


def test_an_adapters_block_is_the_bases_with_the_adapter_added(folders):
    target = f"{BLOCK}output.dense"
    save_adapter(folders / "adapter", folders / "base", target_modules=[target], task_type="SEQ_CLS")
    model = open_model(folders / "merged").model
    with pytest.raises(ConfigurationError, match="project base pull"):
        put_own_blocks(model, folders / "adapter", LAYERS)
    put_own_blocks(model, folders / "adapter", LAYERS, base_folder=folders / "base")
    base, found = load_file(folders / "base" / "model.safetensors"), values(model)
    changed = {name for name in found if name.startswith(BLOCK) and not torch.equal(found[name], base[name])}
    assert changed == {f"{target}.weight"}


def test_a_model_without_the_block_or_of_another_shape_is_refused(folders):
    model = open_model(folders / "merged").model
    name = f"{BLOCK}output.dense.bias"
    for wrong in ({}, {name: torch.zeros(3)}):
        shutil.copytree(folders / "own", folders / "broken", dirs_exist_ok=True)
        tensors = load_file(folders / "own" / "model.safetensors")
        del tensors[name]
        save_file(tensors | wrong, folders / "broken" / "model.safetensors", {"format": "pt"})
        with pytest.raises(ArchitectureMismatchError, match=name):
            put_own_blocks(model, folders / "broken", LAYERS)


@pytest.mark.parametrize("kind", KINDS)
def test_of_every_architecture_a_block_can_be_the_own_one(kind, tmp_path):
    model, own = tiny_model(kind, seed=1), tiny_model(kind, seed=2)
    own.save_pretrained(tmp_path / "own")
    layer = next(layer.weight for layer in find_layers(model) if re.match(r"[^\d]*\.1\.", layer.weight))
    prefix = layer[: layer.index(".1.") + 3]
    before = {name: value.clone() for name, value in values(model).items()}
    put_own_blocks(model, tmp_path / "own", [layer])
    wanted = values(own)
    for name, value in values(model).items():
        assert torch.equal(value, wanted[name] if name.startswith(prefix) else before[name]), name
