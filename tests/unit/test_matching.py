"""Orders of hidden units: found exactly, free of charge for the function, refused where the architecture is unknown."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import gramfuse
from gramfuse.cli.main import main
from gramfuse.matching.assignment import HeadSimilarity, assign, assign_heads, score
from gramfuse.matching.groups import Attention, Intermediate, Place, find_groups
from gramfuse.matching.matching import GroupMatching, Matching
from gramfuse.measuring.model_loading import load_model
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    ConflictError,
    DocumentMalformedError,
    FileUnreadableError,
    WeightsInvalidError,
)
from support.tiny import write_base, write_texts, write_tuned
from support.tiny_models import KINDS, example_batch, tiny_model


def logits(folder: Path, kind: str) -> torch.Tensor:
    model = load_model(folder, torch.device("cpu")).eval()
    with torch.no_grad():
        return model(**example_batch(kind)).logits


def random_matching(folder: Path, *, seed: int) -> Matching:
    """A matching that moves everything that may move, at random."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for group in groups_of(folder):
        moves: dict[Place, torch.Tensor] = {}
        if isinstance(group, Intermediate):
            moves = dict.fromkeys(group.places, torch.randperm(group.units, generator=generator))
        else:
            moves = random_heads(group, generator)
        groups.append(GroupMatching(group.name, (), 0.0, 1.0, moves))
    return Matching(folder, folder, "weights", tuple(groups))


def random_heads(group: Attention, generator: torch.Generator) -> dict[Place, torch.Tensor]:
    heads = torch.randperm(group.heads, generator=generator).tolist()
    moves: dict[Place, torch.Tensor] = dict.fromkeys(group.head_bias, torch.tensor(heads))
    dimensions = range(group.width)
    for layer in group.layers:
        rows: dict[str, list[int]] = {"query": [], "key": [], "value": [], "out": []}
        for head in heads:
            queries = torch.randperm(group.queries, generator=generator).tolist()
            turned = torch.randperm(group.width, generator=generator).tolist()
            valued = torch.randperm(group.width, generator=generator).tolist()
            if not group.query_dimensions_free:
                turned = list(dimensions)
            rows["key"] += [head * group.width + at for at in turned]
            rows["value"] += [head * group.width + at for at in valued]
            for query in queries:
                start = (head * group.queries + query) * group.width
                rows["query"] += [start + at for at in turned]
                rows["out"] += [start + at for at in valued]
        for name, order in rows.items():
            moves |= dict.fromkeys(getattr(layer, name), torch.tensor(order))
    return moves


def groups_of(folder: Path) -> Any:
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}
    config = transformers.AutoConfig.from_pretrained(folder)
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return find_groups(config.model_type, shapes, heads=heads, key_heads=key_heads)


def written(tmp_path: Path, kind: str) -> Path:
    model = tiny_model(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_()  # as made they are zero, and could be left behind unseen
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", KINDS)
def test_a_randomly_permuted_model_computes_the_same_and_is_brought_back_exactly(kind, tmp_path):
    model = written(tmp_path, kind)
    permuted = gramfuse.align_model(random_matching(model, seed=1), tmp_path / "permuted")
    before, after = (load_file(folder / "model.safetensors") for folder in (model, permuted))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(logits(permuted, kind), logits(model, kind), atol=1e-5, rtol=0)

    matching = gramfuse.match_models(permuted, model)
    assert not matching.identity_is_best
    assert all(group.best == pytest.approx(1, abs=1e-5) for group in matching.groups)
    back = load_file(gramfuse.align_model(matching, tmp_path / "back") / "model.safetensors")
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_the_order_of_a_stranger_computes_what_it_did(kind, tmp_path):
    model = written(tmp_path, kind)
    tiny_model(kind, seed=5).save_pretrained(tmp_path / "stranger")
    matching = gramfuse.match_models(model, tmp_path / "stranger")
    assert not matching.identity_is_best
    assert all(group.best > group.identity for group in matching.groups if not group.identity_is_best)
    aligned = gramfuse.align_model(matching, tmp_path / "aligned")
    torch.testing.assert_close(logits(aligned, kind), logits(model, kind), atol=1e-5, rtol=0)
    again = gramfuse.match_models(aligned, tmp_path / "stranger")
    found = {group.name: group.identity for group in again.groups}
    assert all(found[group.name] == pytest.approx(group.best, abs=1e-6) for group in matching.groups)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("electra", "ElectraForSequenceClassification"),
        ("xlm-roberta", "XLMRobertaForSequenceClassification"),
        ("camembert", "CamembertForSequenceClassification"),
        ("mistral", "MistralForCausalLM"),
        ("mt5", "MT5ForConditionalGeneration"),
    ],
)
def test_architectures_that_name_their_weights_as_others_do_are_known(kind, config, tmp_path):
    torch.manual_seed(0)
    cls = getattr(transformers, config)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 2}
    if kind != "mt5":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        sizes |= {"max_position_embeddings": 40, "pad_token_id": 0}
    if kind == "mistral":
        sizes["num_key_value_heads"] = 2
    cls(cls.config_class(vocab_size=60, **sizes)).save_pretrained(tmp_path / "model")
    permuted = gramfuse.align_model(random_matching(tmp_path / "model", seed=2), tmp_path / "permuted")
    same = "t5" if kind == "mt5" else kind
    torch.testing.assert_close(logits(permuted, same), logits(tmp_path / "model", same), atol=1e-5, rtol=0)
    assert not gramfuse.match_models(permuted, tmp_path / "model").identity_is_best


# --- assignment: the definition, by all orders ---------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(0, 1000))
def test_no_order_is_better_than_the_assigned_one(units, seed):
    from itertools import permutations  # noqa: PLC0415

    similarity = torch.randn(units, units, generator=torch.Generator().manual_seed(seed))
    found = score(similarity, assign(similarity))
    best = max(score(similarity, torch.tensor(order)) for order in permutations(range(units)))
    assert found == pytest.approx(best, abs=1e-5)


@given(st.integers(0, 1000))
def test_heads_with_one_query_each_are_assigned_as_well_as_by_any_order_of_heads_and_dimensions(seed):
    from itertools import permutations  # noqa: PLC0415

    heads, width = 2, 3
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(4, heads * width, heads * width, generator=generator)
    found = assign_heads((HeadSimilarity(*parts),), heads=heads, queries=1, width=width, query_dimensions_free=True)
    best = max(
        sum(
            max(float(block[torch.arange(width), list(order)].sum()) for order in permutations(range(width)))
            for place, head in enumerate(of_heads)
            for block in (
                (parts[0] + parts[1])[place * width :, head * width :][:width, :width],
                (parts[2] + parts[3])[place * width :, head * width :][:width, :width],
            )
        )
        for of_heads in permutations(range(heads))
    )
    assert found.score == pytest.approx(best, abs=1e-5)


@given(st.integers(0, 1000))
def test_heads_that_share_keys_are_assigned_no_worse_than_they_were(seed):
    heads, queries, width = 2, 2, 3
    generator = torch.Generator().manual_seed(seed)
    wide, narrow = heads * queries * width, heads * width
    query, out = torch.randn(2, wide, wide, generator=generator)
    key, value = torch.randn(2, narrow, narrow, generator=generator)
    similarity = HeadSimilarity(query, key, value, out)
    found = assign_heads((similarity,), heads=heads, queries=queries, width=width, query_dimensions_free=False)
    assert found.score >= float(query.trace() + out.trace() + key.trace() + value.trace()) - 1e-4


def test_units_between_which_nothing_decides_stay():
    assert assign(torch.zeros(4, 4)).tolist() == [0, 1, 2, 3]
    assert assign(torch.ones(3, 3)).tolist() == [0, 1, 2]


def test_similarities_that_are_not_finite_are_refused():
    with pytest.raises(WeightsInvalidError, match="not finite"):
        assign(torch.full((2, 2), float("nan")))


# --- fine-tunes, texts, the command --------------------------------------------------------------------------------


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    write_base(tmp_path / "base")
    write_tuned(tmp_path / "base", tmp_path / "tuned", seed=1)
    write_texts(tmp_path / "texts.jsonl", count=40)
    return tmp_path


def texts_of(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]


def test_a_model_little_off_its_base_is_in_its_order(tuned):
    matching = gramfuse.match_models(tuned / "tuned", tuned / "base")
    feed_forward = [group for group in matching.groups if group.name.endswith(".output.dense")]
    assert matching.identity_is_best
    assert all(part.stay == part.units for group in feed_forward for part in group.parts)


def test_a_permuted_model_is_brought_back_by_what_its_units_do(tuned):
    base = tuned / "base"
    permuted = gramfuse.align_model(random_matching(base, seed=3), tuned / "permuted")
    matching = gramfuse.match_models(permuted, base, texts=texts_of(tuned))
    assert matching.by == "activations"
    assert all(group.best == pytest.approx(1, abs=1e-5) for group in matching.groups)
    back = load_file(gramfuse.align_model(matching, tuned / "back") / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert all(torch.equal(back[name], before[name]) for name in before)


def test_correlations_are_those_of_the_unpadded_rows(tuned):
    from gramfuse.matching.activations import correlate  # noqa: PLC0415

    groups = groups_of(tuned / "base")
    place = next(group for group in groups if isinstance(group, Intermediate)).places[-1]
    texts = [text[: 20 * (1 + number % 5)] for number, text in enumerate(texts_of(tuned))]
    seen = []
    for name in ("tuned", "base"):
        model = load_model(tuned / name, torch.device("cpu")).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(tuned / "base")
        rows: list[torch.Tensor] = []
        module = model.get_submodule(place.tensor.removesuffix(".weight"))
        module.register_forward_pre_hook(lambda _module, read, rows=rows: rows.append(read[0][0]))
        with torch.no_grad():
            for text in texts:
                model(torch.tensor([tokenizer(text)["input_ids"]]))
        seen.append(torch.cat(rows).double())
    expected = torch.corrcoef(torch.cat(seen, 1).T)[place.length :, : place.length]
    found = correlate(tuned / "tuned", tuned / "base", groups, texts, batch_size=3)
    torch.testing.assert_close(found((place,)), expected, atol=1e-4, rtol=0)


def test_constant_units_are_like_no_others():
    from gramfuse.matching.activations import Correlation  # noqa: PLC0415

    correlation = Correlation(2)
    rows = torch.tensor([[1.0, 0.1], [2.0, 0.1], [4.0, 0.1]])
    correlation.add(rows, rows)
    torch.testing.assert_close(correlation.matrix(), torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64))


def test_the_command_tells_and_aligns(tuned, capsys):
    permuted = gramfuse.align_model(random_matching(tuned / "tuned", seed=4), tuned / "permuted")
    (permuted / "statistics.safetensors").write_bytes(b"of the old order")
    arguments = ["match", str(permuted), str(tuned / "base"), "--texts", str(tuned / "texts.jsonl")]
    assert main([*arguments, "--out", str(tuned / "aligned"), "--by", "activations", "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [each["by"] for each in result["matchings"]] == ["weights", "activations"]
    assert not any(each["identity_is_best"] for each in result["matchings"])
    assert result["aligned"] == {"folder": str(tuned / "aligned"), "by": "activations"}
    assert not (tuned / "aligned" / "statistics.safetensors").exists()
    note = json.loads((tuned / "aligned" / "gramfuse-alignment.json").read_text())
    assert note["aligned_to"] == "base"
    assert len(note["moved"]) == 4

    assert main(["match", str(tuned / "tuned"), str(tuned / "base")]) == 0
    told = capsys.readouterr().out
    assert "the present order is the best" in told
    assert "bert.encoder.layer.*.output.dense × 2" in told
    assert main([*arguments, "--out", str(tuned / "second")]) == 0
    told = capsys.readouterr().out
    assert "another order fits better" in told
    assert "Collect its statistics anew" in told


def test_the_command_refuses_activations_without_texts(tuned, capsys):
    folders = [str(tuned / "tuned"), str(tuned / "base")]
    assert main(["match", *folders, "--out", str(tuned / "out"), "--by", "activations"]) == 1
    assert "--texts" in capsys.readouterr().err


def test_a_sharded_model_stays_sharded(tmp_path):
    write_base(tmp_path / "base", max_shard_size="40KB")
    assert (tmp_path / "base" / "model.safetensors.index.json").is_file()
    model = tmp_path / "base"
    write_tuned(model, tmp_path / "tuned", seed=2)
    matching = gramfuse.match_models(model, tmp_path / "tuned")
    aligned = gramfuse.align_model(matching, tmp_path / "aligned")
    assert {path.name for path in model.glob("model*")} == {path.name for path in aligned.glob("model*")}
    torch.testing.assert_close(logits(aligned, "bert"), logits(model, "bert"), atol=1e-5, rtol=0)


# --- refused -------------------------------------------------------------------------------------------------------


def test_an_unknown_architecture_is_refused_by_name():
    with pytest.raises(ArchitectureMismatchError, match=r"'mamba'.*known are bert"):
        find_groups("mamba", {}, heads=1, key_heads=1)


def changed(folder: Path, change: Any) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


LAYER = "bert.encoder.layer.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update({f"{LAYER}.adapter.weight": torch.ones(2)}), "holds adapter.weight"),
        (lambda tensors: tensors.pop(f"{LAYER}.intermediate.dense.weight"), "holds no intermediate.dense"),
        (lambda tensors: tensors.pop(f"{LAYER}.output.dense.weight"), "missing, or no matrix"),
        (lambda tensors: tensors.pop(f"{LAYER}.attention.self.key.weight"), "holds no attention.self.key"),
        (
            lambda tensors: tensors.update({f"{LAYER}.attention.self.key.weight": torch.ones(24, 32)}),
            "is 32 wide where 24 was expected",
        ),
        (lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layer." in name], "no tensor is named"),
    ],
)
def test_what_is_not_known_is_refused(change, message, tuned):
    changed(tuned / "tuned", change)
    with pytest.raises(ArchitectureMismatchError, match=message):
        gramfuse.match_models(tuned / "tuned", tuned / "base")


def test_heads_that_cannot_share_keys_evenly_are_refused(tuned):
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tuned / "base" / "model.safetensors").items()}
    with pytest.raises(ArchitectureMismatchError, match="evenly"):
        find_groups("bert", shapes, heads=4, key_heads=3)


def test_models_of_different_sizes_are_refused(tuned):
    write_base(tuned / "larger", hidden=64)
    with pytest.raises(ArchitectureMismatchError, match="built otherwise"):
        gramfuse.match_models(tuned / "base", tuned / "larger")
    write_base(tuned / "deeper", layers=3)
    with pytest.raises(ArchitectureMismatchError, match="it has more layers"):
        gramfuse.match_models(tuned / "base", tuned / "deeper")


def test_weights_that_are_not_finite_are_refused(tuned):
    changed(tuned / "tuned", lambda tensors: tensors[f"{LAYER}.output.dense.weight"].fill_(float("nan")))
    with pytest.raises(WeightsInvalidError):
        gramfuse.match_models(tuned / "tuned", tuned / "base")


def test_zero_weights_are_like_nothing_and_stay(tuned):
    def clear(tensors: dict[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            tensor.zero_()

    matching = gramfuse.match_models(changed(tuned / "tuned", clear), tuned / "base")
    assert matching.identity_is_best
    assert {group.ratio for group in matching.groups} == {None}


def test_a_folder_without_a_config_is_refused(tuned):
    (tuned / "base" / "config.json").unlink()
    with pytest.raises(FileUnreadableError, match=r"config\.json"):
        gramfuse.match_models(tuned / "tuned", tuned / "base")


def test_differences_are_no_weights(tuned):
    (tuned / "tuned" / "model.safetensors").rename(tuned / "tuned" / "differences.safetensors")
    with pytest.raises(ArchitectureMismatchError, match="holds differences"):
        gramfuse.match_models(tuned / "tuned", tuned / "base")


def test_texts_without_tokens_and_other_vocabularies_are_refused(tuned):
    config = json.loads((tuned / "tuned" / "config.json").read_text())
    model = transformers.BertForSequenceClassification.from_pretrained(tuned / "tuned")
    model.resize_token_embeddings(config["vocab_size"] + 1, mean_resizing=False)
    model.save_pretrained(tuned / "tuned")
    with pytest.raises(ArchitectureMismatchError, match="vocabularies differ"):
        gramfuse.match_models(tuned / "tuned", tuned / "base", texts=["word1"])
    with pytest.raises(DocumentMalformedError, match="none of the texts"):
        gramfuse.match_models(tuned / "base", tuned / "base", texts=[])


def test_a_folder_that_is_in_use_is_not_replaced(tuned):
    matching = gramfuse.match_models(tuned / "tuned", tuned / "base")
    with pytest.raises(ConflictError, match="not empty"):
        gramfuse.align_model(matching, tuned / "base")
