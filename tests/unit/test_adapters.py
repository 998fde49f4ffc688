"""Adapters are read as the models that PEFT's own `merge_and_unload` makes of them, and everything else is refused."""

import json
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gramfuse.adapters.adapter import Adapter, open_adapter
from gramfuse.adapters.weights import AdaptedTensor, AdaptedWeights, adapted_folder
from gramfuse.contributing.loading import is_adapter, open_model_folder
from gramfuse.measuring.forwarding import collect
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    ConfigurationError,
    FileUnreadableError,
    GramfuseError,
    WeightsInvalidError,
)
from support.adapters import TARGETS, save_adapter, save_base


def read_all(adapter: Adapter) -> dict[str, torch.Tensor]:
    with ExitStack() as stack:
        weights = AdaptedWeights.open(adapter, stack)
        return {name: weights.read(name) for name in weights.tensors}


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


OPTIONS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {".*.1.*.query": 2, "^bert.encoder.layer.0.output.dense": 7},
        "alpha_pattern": {"value": 11},
    },
    "saved head": {"modules_to_save": ["classifier"], "task_type": "TOKEN_CLS"},
    "all biases": {"bias": "all", "task_type": "TOKEN_CLS"},
    "biases of the adapted": {"bias": "lora_only"},
    "bias of B": {"lora_bias": True},
    "saved norms": {"modules_to_save": ["LayerNorm"]},
    "adapted embeddings": {"target_modules": ["query", "word_embeddings"]},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layer"},
    "not trained": {"init_lora_weights": True},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_weights_are_bit_for_bit_those_of_merge_and_unload(options, tmp_path):
    base = save_base(tmp_path / "base", "bert")
    folder = save_adapter(
        tmp_path / "adapter", base, merged=tmp_path / "merged", **({"target_modules": TARGETS["bert"]} | options)
    )
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    found = read_all(open_adapter(folder, base))
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert torch.equal(found[name], weights), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", TARGETS)
def test_every_architecture_and_dtype_gives_what_merge_and_unload_gives(kind, dtype, tmp_path):
    base = save_base(tmp_path / "base", kind, dtype=dtype)
    folder = save_adapter(tmp_path / "adapter", base, merged=tmp_path / "merged", target_modules=TARGETS[kind])
    expected, before = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "base"))
    adapter = open_adapter(folder, base)
    found = read_all(adapter)
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], weights.to(dtype)), name  # transformers keeps some of T5 in fp32
    assert adapter.changes.keys() == {name for name in before if not torch.equal(before[name], found[name])}
    assert adapter.changes


def test_an_adapter_of_linear_and_transposed_layers_at_once_is_read_by_the_modules_kinds(tmp_path):
    base = tmp_path / "base"
    import transformers  # noqa: PLC0415

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=1, n_head=4, n_positions=8, num_labels=3, pad_token_id=0
    )
    transformers.GPT2ForTokenClassification(config).save_pretrained(base)
    folder = save_adapter(
        tmp_path / "adapter", base, merged=tmp_path / "merged", target_modules=["c_attn", "c_proj", "classifier"]
    )
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(found, expected[name]) for name, found in read_all(open_adapter(folder, base)).items())


def test_an_adapter_that_names_modules_as_the_checkpoint_does_is_read_too(tmp_path):
    base = save_base(tmp_path / "base", "vit")
    folder = save_adapter(tmp_path / "adapter", base, target_modules=TARGETS["vit"])
    first = open_adapter(folder, base)
    path = folder / "adapter_model.safetensors"
    names = {module: name.removesuffix(".weight") for name, module in ((n, c.module) for n, c in first.changes.items())}
    tensors = load_file(path)
    for module, name in names.items():
        tensors = {key.replace(f"model.{module}.", f"model.{name}."): value for key, value in tensors.items()}
    expected = read_all(first)
    save_file(tensors, path)
    assert all(torch.equal(found, expected[name]) for name, found in read_all(open_adapter(folder, base)).items())


def test_the_bytes_are_the_same_whichever_part_is_read_and_however_often(tmp_path, monkeypatch):
    monkeypatch.setattr("gramfuse.adapters.weights.BLOCK_ELEMENTS", 200)
    base = save_base(tmp_path / "base", "gpt2")
    folder = save_adapter(tmp_path / "adapter", base, target_modules=TARGETS["gpt2"])
    model = adapted_folder(folder, base)
    whole = read_all(open_adapter(folder, base))
    chance = random.Random(0)
    for name, tensor in model.tensors.items():
        expected = whole[name].numpy().tobytes()
        assert isinstance(tensor.source, AdaptedTensor)
        assert tensor.length == len(expected)
        with tensor.source.open() as stream:
            assert stream.read() == expected
            for _ in range(10):
                start = chance.randrange(len(expected))
                length = chance.randrange(1, 3000)
                stream.seek(start)
                assert stream.tell() == start
                assert stream.read(length) == expected[start : start + length]


def test_a_base_or_adapter_that_changes_while_it_is_read_is_refused(tmp_path):
    base = save_base(tmp_path / "base", "bert")
    folder = save_adapter(tmp_path / "adapter", base, target_modules=["query"])
    tensor = next(iter(adapted_folder(folder, base).tensors.values()))
    (base / "model.safetensors").touch()
    with pytest.raises(FileUnreadableError, match=r"model\.safetensors was changed"):
        tensor.source.open()


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "dora": ({"use_dora": True}, "use_dora .*merge_and_unload"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' trains from changed base"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "parameters": ({"target_parameters": ["experts.weight"]}, "target_parameters"),
    "replication": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    "a setting of tomorrow": ({"use_something": True}, "use_something does more"),
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "rank": ({"r": 0}, "r is 0"),
    "rank that is true": ({"r": True}, "r is True"),
    "alpha": ({"lora_alpha": "a lot"}, "lora_alpha is 'a lot'"),
    "alpha without end": ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
    "patterns": ({"rank_pattern": ["query"]}, "rank_pattern is no object"),
    "pattern": ({"alpha_pattern": {"(": 3}}, "no regular expression"),
    "long pattern": ({"alpha_pattern": {"a" * 600: 3}}, "longer than 512"),
}


@pytest.fixture
def base(tmp_path) -> Path:
    return save_base(tmp_path / "base", "bert")


@pytest.fixture
def folder(tmp_path, base) -> Path:
    return save_adapter(tmp_path / "adapter", base, target_modules=["query"], modules_to_save=["classifier"])


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_configuration_that_is_no_plain_product_is_refused_by_name(folder, base, changes, message):
    rewrite(folder, **changes)
    with pytest.raises(ConfigurationError, match=message):
        open_adapter(folder, base)


def test_a_real_dora_adapter_is_refused_even_if_its_configuration_hides_it(tmp_path, base):
    folder = save_adapter(tmp_path / "dora", base, target_modules=["query"], use_dora=True)
    rewrite(folder, use_dora=False)
    with pytest.raises(ArchitectureMismatchError, match=r"lora_magnitude_vector.*merge_and_unload"):
        open_adapter(folder, base)


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
HEAD = "base_model.model.classifier"
TAMPERED = {
    "rank": ({f"{QUERY}.lora_A.weight": torch.ones(5, 32)}, ArchitectureMismatchError, "with rank 4"),
    "width": ({f"{QUERY}.lora_B.weight": torch.ones(31, 4)}, ArchitectureMismatchError, "with rank 4"),
    "axes": ({f"{QUERY}.lora_A.weight": torch.ones(128)}, ArchitectureMismatchError, "with rank 4"),
    "half of it": ({f"{QUERY}.lora_A.weight": None}, ArchitectureMismatchError, "only one of the factors"),
    "head": ({f"{HEAD}.weight": torch.ones(4, 32)}, ArchitectureMismatchError, "without resizing"),
    "bias of B": ({f"{QUERY}.lora_B.bias": torch.ones(3)}, ArchitectureMismatchError, "without resizing"),
    "integers": ({f"{HEAD}.weight": torch.ones(3, 32).long()}, ArchitectureMismatchError, "not floating-point"),
    "module": ({f"{QUERY}.inner.lora_A.weight": torch.ones(4, 32)}, ArchitectureMismatchError, "does not store"),
    "norm": (
        {
            f"base_model.model.bert.embeddings.LayerNorm.lora_{part}.weight": torch.ones(shape)
            for part, shape in (("A", (4, 32)), ("B", (32, 4)))
        },
        ArchitectureMismatchError,
        "no linear layer",
    ),
    "path": ({"../../etc/passwd": torch.ones(1)}, ArchitectureMismatchError, "not named as PEFT"),
    "path behind the prefix": (
        {"base_model.model.../../etc/passwd": torch.ones(1)},
        ArchitectureMismatchError,
        "does not store",
    ),
    "twice": ({f"{HEAD}.base_layer.weight": torch.ones(3, 32)}, ArchitectureMismatchError, "two tensors for one"),
    "copy": ({f"{HEAD}.original_module.other": torch.ones(3)}, ArchitectureMismatchError, "no part of a plain LoRA"),
}


@pytest.mark.parametrize(("tensors", "error", "message"), TAMPERED.values(), ids=TAMPERED.keys())
def test_tensors_that_do_not_fit_the_base_are_refused(folder, base, tensors, error, message):
    path = folder / "adapter_model.safetensors"
    changed = {name: tensor for name, tensor in (load_file(path) | tensors).items() if tensor is not None}
    save_file(changed, path)
    with pytest.raises(error, match=message):
        open_adapter(folder, base)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_before_they_are_sent(folder, base, value):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"{QUERY}.lora_B.weight"][0, 0] = value
    save_file(tensors, path)
    with pytest.raises(WeightsInvalidError, match="NaN or infinity"):
        read_all(open_adapter(folder, base))


def test_an_adapter_of_tied_weights_is_refused(tmp_path):
    base = save_base(tmp_path / "base", "qwen2")
    folder = save_adapter(tmp_path / "adapter", base, target_modules=["lm_head"])
    with pytest.raises(ArchitectureMismatchError, match=r"lm_head.*tied"):
        open_adapter(folder, base)


def test_an_adapter_of_another_base_is_refused(tmp_path, folder):
    other = save_base(tmp_path / "other", "distilbert")
    with pytest.raises(ArchitectureMismatchError, match="belongs to another model"):
        open_adapter(folder, other)


def test_no_path_that_a_configuration_names_is_followed(folder, base, tmp_path):
    rewrite(folder, base_model_name_or_path=str(tmp_path / "elsewhere"), revision="../../x", auto_mapping={"a": "b"})
    assert open_adapter(folder, base).changes


def test_a_pickle_is_never_read(folder, base):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(FileUnreadableError, match="a pickle, which may run code"):
        open_adapter(folder, base)


def test_an_empty_or_missing_file_is_refused(folder, base):
    path = folder / "adapter_model.safetensors"
    save_file({}, path)
    with pytest.raises(ArchitectureMismatchError, match="changes nothing"):
        open_adapter(folder, base)
    path.unlink()
    with pytest.raises(FileUnreadableError, match="cannot be read"):
        open_adapter(folder, base)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"architectures": ["pipeline"]}, ConfigurationError),
        ({"architectures": ["BertForTokenClassification"], "hidden_size": 30, "num_attention_heads": 4}, GramfuseError),
    ],
)
def test_a_base_whose_configuration_names_no_model_is_refused(folder, base, config, error):
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(error):
        open_adapter(folder, base)


def test_a_folder_is_an_adapter_or_a_model_and_never_both(folder, base):
    assert is_adapter(folder)
    assert not is_adapter(base)
    with pytest.raises(FileUnreadableError, match="is an adapter, and this takes a whole model"):
        open_model_folder(folder)
    (base / "model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(FileUnreadableError, match="in folders of their own"):
        is_adapter(folder)


# --- measuring -------------------------------------------------------------------------------------------------------


def test_an_adapter_is_measured_as_its_whole_model(tmp_path, base):
    folder = save_adapter(tmp_path / "adapter", base, merged=tmp_path / "merged", target_modules=TARGETS["bert"])
    tokenizer = Tokenizer(
        models.WordLevel({"[UNK]": 0, "[PAD]": 1} | {word: 5 + i for i, word in enumerate("abcdefg")})
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for place in (base, tmp_path / "merged"):
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(place)
    texts = ["a b c", "d e", "f g a b"]
    found = collect(folder, texts, base_folder=base, device="cpu", checkpoint=tmp_path / "kept")
    expected = collect(tmp_path / "merged", texts, device="cpu")
    assert found.metadata == expected.metadata
    for names, stream in expected.streams.items():
        assert torch.equal(found.streams[names].gram, stream.gram)
    with pytest.raises(ConfigurationError, match="--base"):
        collect(folder, texts)
