"""A merged model as an adapter of its base: PEFT itself loads it, and what truncation loses is what the report says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import gramfuse
from gramfuse.adapters.adapter import open_adapter
from gramfuse.adapters.drafting import target_modules
from gramfuse.adapters.exporting import export_adapter
from gramfuse.adapters.factorizing import factorize
from gramfuse.adapters.structure import Structure
from gramfuse.cli.main import main
from gramfuse_shared.errors import ArchitectureMismatchError, ConfigurationError, ConflictError, WeightsInvalidError
from support.adapters import load_base, load_with_peft, save_adapter, save_base
from support.tiny_models import example_batch


def save_merged(folder: Path, base: Path, *, seed: int = 3, only: str = "") -> Path:
    """Save a model of the base's kind that differs from it in every tensor that `only` is a part of the name of."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    for name, values in tensors.items():
        if only in name:
            noise = torch.randn(values.shape, generator=generator)
            tensors[name] = (values.float() + 0.1 * noise).to(values.dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    return folder


def unloaded(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT makes of the base and the adapter, by the checkpoint's names."""
    model = load_with_peft(base, adapter)
    merged = adapter / "unloaded"
    model.merge_and_unload().save_pretrained(merged)
    return load_file(merged / "model.safetensors")


def change_of(found: dict[str, torch.Tensor], base: Path, names: Any) -> torch.Tensor:
    before = load_file(base / "model.safetensors")
    return torch.cat([(found[name].double() - before[name].double()).flatten() for name in names])


@pytest.mark.parametrize("kind", ["bert", "distilbert", "t5", "gpt2", "llama", "qwen2", "vit"])
def test_at_full_rank_the_adapter_is_the_merged_model(kind, tmp_path):
    base = save_base(tmp_path / "base", kind)
    merged = save_merged(tmp_path / "merged", base)
    done = export_adapter(merged, base, tmp_path / "adapter", rank=1000)
    found, expected = unloaded(base, done.path), load_file(merged / "model.safetensors")
    left_out = {entry.tensor for entry in done.left_out}
    for name, weights in expected.items():
        if name not in left_out:
            torch.testing.assert_close(found[name], weights, rtol=1e-5, atol=1e-5)
    assert left_out == {
        "qwen2": {"model.embed_tokens.weight"},  # its output weights are tied to it
        "gpt2": {"transformer.wte.weight"},
        "t5": {"shared.weight"},  # of encoder and decoder
        "vit": {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"},
    }.get(kind, set())
    assert all(layer.error < 1e-6 for layer in done.layers)
    assert (done.error < 1e-6) == (not left_out)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_error_that_is_reported_is_that_of_what_peft_loads(kind, tmp_path):
    base = save_base(tmp_path / "base", kind)
    merged = save_merged(tmp_path / "merged", base)
    done = export_adapter(merged, base, tmp_path / "adapter", rank=3)
    found, expected = unloaded(base, done.path), load_file(merged / "model.safetensors")
    for layer in done.layers:
        change, wanted = (change_of(weights, base, [layer.tensor]) for weights in (found, expected))
        assert float((wanted - change).norm() / wanted.norm()) == pytest.approx(layer.error, abs=1e-4)
        assert layer.rank == min(3, layer.full_rank)
    change, wanted = (change_of(weights, base, sorted(expected)) for weights in (found, expected))
    assert float((wanted - change).norm() / wanted.norm()) == pytest.approx(done.error, abs=1e-4)
    card, report = (done.path / name for name in ("README.md", "gramfuse-export.json"))
    assert f"lost {done.error:.2%} of the merge" in card.read_text("utf-8")
    assert json.loads(report.read_text("utf-8"))["error"] == done.error
    assert str(tmp_path) not in card.read_text("utf-8") + (done.path / "adapter_config.json").read_text("utf-8")


def test_the_exported_adapter_computes_what_the_merged_model_does(tmp_path):
    base = save_base(tmp_path / "base", "bert")
    merged = save_merged(tmp_path / "merged", base)
    done = export_adapter(merged, base, tmp_path / "adapter", rank=64)
    model = load_with_peft(base, done.path)
    with torch.no_grad():
        found, expected = (part(**example_batch("bert")).logits for part in (model, load_base(merged).eval()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_exported_adapter_is_one_that_can_be_contributed(tmp_path):
    base = save_base(tmp_path / "base", "bert")
    done = export_adapter(save_merged(tmp_path / "merged", base), base, tmp_path / "adapter", energy=0.9)
    assert len({layer.rank for layer in done.layers}) > 1  # so there are patterns of rank and alpha
    changes = open_adapter(done.path, base).changes
    assert changes.keys() == {layer.tensor for layer in done.layers} | set(done.whole)
    assert all(change.scale == 1.0 for change in changes.values() if change.a is not None)
    assert all(layer.error <= 0.1**0.5 + 1e-6 for layer in done.layers)


def test_an_adapter_survives_a_merge_of_itself_at_its_own_rank(tmp_path):
    base = save_base(tmp_path / "base", "llama")
    save_adapter(tmp_path / "tuned", base, merged=tmp_path / "merged", target_modules=["q_proj", "down_proj"], r=3)
    done = export_adapter(tmp_path / "merged", base, tmp_path / "adapter", rank=3)
    assert {layer.tensor.rpartition(".")[0].rpartition(".")[2] for layer in done.layers} == {"q_proj", "down_proj"}
    assert done.error < 1e-5
    assert (done.whole, done.left_out) == ((), ())


@pytest.mark.parametrize(("only", "whole"), [("LayerNorm", 10), ("query.bias", 2)])
def test_a_merge_that_changed_no_linear_weight_is_held_exactly(only, whole, tmp_path):
    base = save_base(tmp_path / "base", "bert")
    merged = save_merged(tmp_path / "merged", base, only=only)
    done = export_adapter(merged, base, tmp_path / "adapter")
    assert len(done.whole) == whole
    found, expected = unloaded(base, done.path), load_file(merged / "model.safetensors")
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())
    assert done.error == 0.0


def test_a_model_in_half_precision_keeps_its_dtype_where_tensors_are_whole(tmp_path):
    base = save_base(tmp_path / "base", "llama", dtype=torch.bfloat16)
    merged = save_merged(tmp_path / "merged", base)
    done = export_adapter(merged, base, tmp_path / "adapter", rank=1000)
    stored = load_file(done.path / "adapter_model.safetensors")
    assert {values.dtype for key, values in stored.items() if "lora_" in key} == {torch.float32}
    assert {values.dtype for key, values in stored.items() if "lora_" not in key} == {torch.bfloat16}
    found, expected = unloaded(base, done.path), load_file(merged / "model.safetensors")
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14), st.integers(0, 100))
def test_no_product_of_that_rank_is_nearer(outputs, inputs, rank, seed):
    delta = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    factors = factorize(delta, rank=rank)
    squares = torch.linalg.svdvals(delta.double()).square()
    assert factors.rank == min(rank, outputs, inputs)
    assert (factors.b.shape, factors.a.shape) == ((outputs, factors.rank), (factors.rank, inputs))
    assert factors.lost == pytest.approx(float(squares[factors.rank :].sum()), abs=1e-10 + 1e-5 * factors.size)
    assert factors.size == pytest.approx(float(squares.sum()))


@given(st.floats(0.01, 1.0), st.integers(0, 100))
def test_the_least_rank_that_keeps_the_energy_is_taken(energy, seed):
    delta = torch.randn(9, 7, generator=torch.Generator().manual_seed(seed))
    factors = factorize(delta, energy=energy)
    shares = torch.linalg.svdvals(delta.double()).square().cumsum(0)
    shares = shares / shares[-1]
    assert float(shares[factors.rank - 1]) >= energy - 1e-9
    assert factors.rank == 1 or float(shares[factors.rank - 2]) < energy + 1e-9


def test_what_cannot_be_exported_is_told(tmp_path):
    base = save_base(tmp_path / "base", "bert")
    merged = save_merged(tmp_path / "merged", base)
    out = tmp_path / "adapter"
    for settings in ({"rank": 3, "energy": 0.5}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.5}):
        with pytest.raises(ConfigurationError, match="rank of at least 1"):
            export_adapter(merged, base, out, **settings)
    with pytest.raises(ArchitectureMismatchError, match="same weights"):
        export_adapter(base, base, out)
    with pytest.raises(ArchitectureMismatchError, match="not there"):
        export_adapter(save_base(tmp_path / "other", "distilbert"), base, out)
    with pytest.raises(ConflictError):
        export_adapter(merged, base, base)
    tensors = load_file(merged / "model.safetensors")
    tensors["classifier.bias"][0] = float("nan")
    save_file(tensors, merged / "model.safetensors")
    with pytest.raises(WeightsInvalidError, match="NaN"):
        export_adapter(merged, base, out)
    assert not out.exists()


def test_a_layer_that_alone_was_changed_is_adapted_alone(tmp_path):
    base = save_base(tmp_path / "base", "bert")
    merged = save_merged(tmp_path / "merged", base, only="layer.1.output.dense.weight")
    names = load_file(base / "model.safetensors")
    done = export_adapter(merged, base, tmp_path / "adapter", rank=100)
    found = unloaded(base, done.path)
    changed = {name for name in names if not torch.equal(found[name], names[name])}
    assert changed == {"bert.encoder.layer.1.output.dense.weight"}


def test_modules_are_named_by_an_expression_where_a_path_is_the_end_of_anothers():
    structure = Structure({}, {}, {}, {"a": "dense", "b": "inner.dense"}, frozenset())
    assert target_modules(structure, {"inner.dense"}) == ["inner.dense"]
    expression = target_modules(structure, {"dense"})
    assert isinstance(expression, str)  # PEFT matches a whole path with it, and the end of one with a list
    assert re.fullmatch(expression, "dense")
    assert not re.fullmatch(expression, "inner.dense")


def test_the_command_shows_what_each_layer_loses(tmp_path, capsys):
    base = save_base(tmp_path / "base", "bert")
    merged = save_merged(tmp_path / "merged", base)
    arguments = ["model", "export-adapter", str(merged), "--base", str(base), "--rank", "2", "--out"]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    shown = capsys.readouterr().out
    assert "2 of 32" in shown
    assert "of the merge it loses" in shown
    assert main(["--format", "json", *arguments, str(tmp_path / "two")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["error"] == pytest.approx(json.loads((tmp_path / "one/gramfuse-export.json").read_text())["error"])
    assert gramfuse.export_adapter is export_adapter
