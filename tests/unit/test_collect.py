"""The collector against the definition: every Gram matrix is XᵀX of the rows that the layer was called with."""

import gc
import warnings
import weakref

import pytest
import torch
from torch import nn

from gramfuse.measuring.collection import Collector
from gramfuse.measuring.statistics import Statistics
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    StateError,
    StatisticsInvalidError,
    WiringChangedError,
)
from support.tiny_models import PAD, Recorder, example_batch, tiny_bert, tiny_model, token_batch


def grams_by_layer(statistics: Statistics) -> dict[str, torch.Tensor]:
    return {layer.weight: tap.unpacked() for tap in statistics.taps for layer in tap.info.layers}


def assert_is_definition(statistics: Statistics, recorder: Recorder) -> None:
    found = grams_by_layer(statistics)
    assert found.keys() == recorder.inputs.keys()
    for layer, gram in found.items():
        expected = recorder.gram(layer)
        assert torch.linalg.norm(gram.double() - expected) <= 2e-6 * torch.linalg.norm(expected), layer


def unpadded(mask: torch.Tensor):
    def keep(_name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 3 and tensor.shape[:2] == mask.shape:
            return tensor[mask.bool()]
        return tensor.reshape(-1, tensor.shape[-1])

    return keep


def test_every_gram_is_the_definition_and_padding_is_dropped():
    model, batches = tiny_bert(), [token_batch(seed=1), token_batch((3, 8), seed=2)]
    expected: dict[str, torch.Tensor] = {}
    with torch.no_grad(), Collector(model) as statistics:
        for batch in batches:
            recorder = Recorder(model, unpadded(batch["attention_mask"]))
            model(**batch)
            recorder.close()
            for layer in recorder.inputs:
                expected[layer] = expected.get(layer, 0) + recorder.gram(layer)
    for layer, gram in grams_by_layer(statistics).items():
        torch.testing.assert_close(gram.double(), expected[layer], rtol=2e-5, atol=2e-5)
    assert {tap.info.rows for tap in statistics.taps} == {9 + 6 + 4 + 3 + 8}


def test_counted_padding_is_what_the_published_code_measures():
    model, batch = tiny_bert(), token_batch()
    recorder = Recorder(model)
    with torch.no_grad(), Collector(model, padding="counted") as statistics:
        model(**batch)
    assert_is_definition(statistics, recorder)
    assert {tap.info.rows for tap in statistics.taps} == {27}
    assert statistics.metadata.collector.padding == "counted"


def test_layers_that_read_the_same_tensor_share_a_tap():
    model = tiny_bert()
    with torch.no_grad(), Collector(model) as statistics:
        model(**token_batch())
    shared = next(tap.info for tap in statistics.taps if tap.info.name == "bert.encoder.layer.1.attention.self.key")
    assert [layer.weight.split(".")[-2] for layer in shared.layers] == ["key", "query", "value"]


def test_debertas_keys_also_read_relative_embeddings_and_its_values_do_not():
    model, batch = tiny_model("deberta-v3"), token_batch()
    recorder = Recorder(model, unpadded(batch["attention_mask"]))
    with torch.no_grad(), Collector(model) as statistics:
        model(**batch)
    assert_is_definition(statistics, recorder)
    attention = "deberta.encoder.layer.1.attention.self."
    taps = {layer.weight: tap for tap in statistics.taps for layer in tap.info.layers}
    key, query, value = (taps[f"{attention}{part}_proj.weight"] for part in ("key", "query", "value"))
    assert query is key
    assert query is not value
    # Relative embeddings belong to no example: they count as rows, not as distinct ones.
    assert key.info.rows > key.info.distinct_rows == value.info.rows


@pytest.mark.parametrize("target", [(5, 7, 2), (2, 9, 5)], ids=["another length", "the same length"])
def test_an_encoder_decoders_layers_go_by_the_mask_of_what_they_read(target):
    model, batch = tiny_model("t5"), example_batch("t5", target=target)

    def keep(name: str, tensor: torch.Tensor) -> torch.Tensor:
        of_encoder = name.startswith("encoder.") or name.endswith(
            ("EncDecAttention.k.weight", "EncDecAttention.v.weight")
        )
        mask = batch["attention_mask" if of_encoder else "decoder_attention_mask"]
        return tensor[mask.bool()]

    recorder = Recorder(model, keep)
    with torch.no_grad(), Collector(model) as statistics:
        model(**batch)
    if "lm_head.weight" not in grams_by_layer(statistics):  # transformers 5 ties it whatever the config says
        recorder.inputs.pop("lm_head.weight")
    assert_is_definition(statistics, recorder)


def test_decoder_inputs_made_from_labels_are_padding_where_the_labels_are():
    model, batch = tiny_model("t5"), token_batch()
    labels = torch.tensor([[7, 8, 9, 3], [7, 3, -100, -100], [9, 9, 3, -100]])
    with torch.no_grad(), Collector(model) as statistics:
        model(**batch, labels=labels)
    rows = {tap.info.name: tap.info.rows for tap in statistics.taps}
    assert rows["decoder.block.0.layer.0.SelfAttention.k"] == 4 + 2 + 3
    assert rows["decoder.block.0.layer.1.EncDecAttention.k"] == 9 + 6 + 4


def test_generation_with_a_cache_measures_every_position_once():
    model = tiny_model("gpt2")
    ids = token_batch((5, 5))["input_ids"]
    recorder = Recorder(model)
    with torch.no_grad(), Collector(model) as statistics:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    recorder.inputs.pop("lm_head.weight")
    assert_is_definition(statistics, recorder)


def test_generation_of_an_encoder_decoder_works_layer_by_layer():
    model, batch = tiny_model("t5"), token_batch((6, 4))
    with torch.no_grad(), Collector(model) as statistics:
        model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    rows = {tap.info.name: tap.info.rows for tap in statistics.taps}
    assert rows["encoder.block.1.layer.0.SelfAttention.k"] == rows["decoder.block.0.layer.1.EncDecAttention.k"] == 10
    assert rows["decoder.block.0.layer.0.SelfAttention.k"] == 2 * 3


def test_gpt2_reads_its_weights_transposed():
    model = tiny_model("gpt2")
    with torch.no_grad(), Collector(model) as statistics:
        model(**token_batch())
    assert {layer.layout for tap in statistics.taps for layer in tap.info.layers} == {"in_out"}
    widths = {tap.info.name: tap.info.width for tap in statistics.taps}
    assert widths["transformer.h.0.mlp.c_proj"] == 128


def test_tied_output_weights_need_no_tap_and_untied_ones_have_one():
    for kind, has_tap in (("qwen2", False), ("llama", True)):
        with torch.no_grad(), Collector(tiny_model(kind)) as statistics:
            pass
        del statistics
        model = tiny_model(kind)
        with torch.no_grad(), Collector(model) as statistics:
            model(**token_batch())
        assert ("lm_head.weight" in grams_by_layer(statistics)) is has_tap


def test_training_with_gradient_checkpointing_counts_no_row_twice_and_keeps_the_gradients():
    def run(*, collect: bool, reentrant: bool) -> tuple[list[torch.Tensor], Statistics | None]:
        model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model.train()
        warnings.simplefilter("ignore", FutureWarning)  # renamed in transformers 5
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        batch = token_batch() | {"labels": torch.zeros(3, 9, dtype=torch.long)}
        if collect:
            with Collector(model) as statistics:
                model(**batch).loss.backward()
        else:
            statistics = None
            model(**batch).loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], statistics

    for reentrant in (False, True):
        expected, _ = run(collect=False, reentrant=reentrant)
        found, statistics = run(collect=True, reentrant=reentrant)
        assert statistics is not None
        assert {tap.info.rows for tap in statistics.taps} == {19}
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_collecting_in_training_mode_warns_once_and_leaves_random_numbers_and_the_mode_alone():
    model = tiny_bert()
    model.train()
    batch = token_batch()
    torch.manual_seed(5)
    expected = model(**batch).logits
    torch.manual_seed(5)
    with Collector(model):
        with pytest.warns(UserWarning, match=r"model\.eval\(\)"):
            found = model(**batch).logits
        model(**batch)  # warnings are errors here: it warns once
    assert torch.equal(found, expected)
    assert all(module.training for module in model.modules())
    assert found.requires_grad
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_autocast_does_not_round_the_sums():
    model, batch = tiny_bert(), token_batch()
    recorder = Recorder(model, unpadded(batch["attention_mask"]))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), Collector(model) as statistics:
        model(**batch)
    assert_is_definition(statistics, recorder)


def test_inference_mode_works_and_its_sums_can_still_be_added():
    model = tiny_bert()
    with Collector(model) as statistics:
        with torch.inference_mode():
            model(**token_batch())
        with torch.no_grad():
            model(**token_batch())
    twice = statistics + statistics
    assert {tap.info.rows for tap in twice.taps} == {4 * 19}


class Experts(nn.Module):
    """Layers that some passes do not reach, and one that reads what another wrote into."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, values: torch.Tensor, *, expert: str = "both") -> torch.Tensor:
        out = values
        if expert in {"one", "both"}:
            out = self.one(values)
        if expert in {"two", "both"}:
            out = self.two(values if expert == "both" else out)
        return out


def test_layers_that_are_never_reached_have_no_tap():
    model = Experts()
    with torch.no_grad(), Collector(model) as statistics:
        model(torch.randn(5, 4), expert="one")
        model(torch.randn(5, 4), expert="two")
    assert [tap.info.name for tap in statistics.taps] == ["one", "two"]
    assert [tap.info.rows for tap in statistics.taps] == [5, 5]


@pytest.mark.parametrize("kind", ["bert", "t5", "deberta-v3"])
def test_chosen_layers_have_the_statistics_that_they_have_among_all(kind):
    model, batch = tiny_model(kind), example_batch(kind)
    with torch.no_grad(), Collector(model) as everything:
        model(**batch)
    for tap in everything.taps:
        chosen = {layer.weight for layer in tap.info.layers}
        with torch.no_grad(), Collector(model, layers=chosen) as statistics:
            model(**batch)
        (found,) = statistics.taps
        assert found.info == tap.info
        assert torch.equal(found.unpacked(), tap.unpacked())


def test_layers_of_which_none_is_linear_are_refused_by_name():
    with pytest.raises(ArchitectureMismatchError, match=r"bert\.embeddings\.LayerNorm\.weight"):
        Collector(tiny_bert(), layers={"bert.embeddings.LayerNorm.weight"})


def test_a_changed_wiring_is_refused_with_the_way_out_and_measured_without_sharing():
    model = Experts()
    with torch.no_grad():
        with Collector(model) as statistics:
            model(torch.randn(5, 4))
            with pytest.raises(WiringChangedError, match="share_inputs=False") as caught:
                model(torch.randn(5, 4), expert="one")
        assert "one.weight" in caught.value.message
        assert "two.weight" in caught.value.message
        with pytest.raises(StateError, match="share_inputs=False"):
            statistics.save("never-written.safetensors")
        recorder = Recorder(model)
        with Collector(model, share_inputs=False) as statistics:
            model(torch.randn(5, 4))
            model(torch.randn(5, 4), expert="one")
    assert_is_definition(statistics, recorder)


class WritesInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        out = self.before(values)
        return out + self.after(values.relu_())


def test_a_tensor_that_was_written_to_is_another_one():
    model = WritesInPlace()
    recorder = Recorder(model)
    with torch.no_grad(), Collector(model) as statistics:
        for _ in range(2):
            model(torch.randn(6, 4))
    assert len(statistics.taps) == 2
    assert_is_definition(statistics, recorder)


class Recycles(nn.Module):
    """Frees an input before the next one is made, which then often lies at the same address."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for number, layer in enumerate(self.layers):
            layer(values * (number + 1))
        return values


def test_a_recycled_address_is_not_taken_for_the_same_tensor():
    model = Recycles()
    recorder = Recorder(model, lambda _name, tensor: tensor.clone())
    with torch.no_grad(), Collector(model) as statistics:
        model(torch.randn(6, 4))
        model(torch.randn(6, 4))
    assert len(statistics.taps) == 6
    assert_is_definition(statistics, recorder)


def test_no_activation_is_kept_alive():
    model = Recycles()
    seen: list[weakref.ref[torch.Tensor]] = []
    model.layers[0].register_forward_pre_hook(lambda _m, arguments: seen.append(weakref.ref(arguments[0])))
    with torch.no_grad(), Collector(model):
        model(torch.randn(6, 4))
        gc.collect()
        assert seen[-1]() is None


def test_a_weight_shared_by_modules_is_one_layer_that_reads_both_inputs():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    values = torch.randn(7, 4)
    with torch.no_grad(), Collector(model) as statistics:
        model(values)
        second = model[1](model[0](values))
    (tap,) = statistics.taps
    both = torch.cat([values, second.detach(), values]).double()
    torch.testing.assert_close(tap.unpacked().double(), both.T @ both, rtol=1e-5, atol=1e-5)


def test_a_forward_that_fails_is_not_half_counted():
    model = Experts()

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with torch.no_grad(), Collector(model) as statistics:
        hook = model.two.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(torch.randn(5, 4))
        hook.remove()
        model(torch.randn(5, 4))
    assert {tap.info.rows for tap in statistics.taps} == {5}


def test_repeated_examples_count_once_in_any_batch_and_padding():
    model, batch = tiny_bert(), token_batch((9, 6, 4))
    alone = {name: tensor[1:2, :6] for name, tensor in batch.items()}
    with torch.no_grad(), Collector(model) as statistics:
        model(**batch)
        model(**batch)
        model(**alone)
    info = statistics.taps[0].info
    assert (info.rows, info.distinct_rows) == (19 + 19 + 6, 19)


def test_pooled_rows_are_one_an_example():
    model = tiny_model("roberta")
    with torch.no_grad(), Collector(model) as statistics:
        model(**token_batch())
    info = {tap.info.name: tap.info for tap in statistics.taps}["classifier.dense"]
    assert (info.rows, info.distinct_rows, info.source) == (3, 3, "mixed")


def test_inputs_that_are_not_finite_are_refused_by_name(tmp_path):
    model = Experts()
    with torch.no_grad(), Collector(model) as statistics:
        model(torch.full((2, 4), torch.inf), expert="one")
    with pytest.raises(StatisticsInvalidError, match="'one'"):
        statistics.save(tmp_path / "statistics.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_nothing_measured_is_nothing_saved(tmp_path):
    with Collector(Experts()) as statistics:
        pass
    with pytest.raises(StateError, match="nothing was measured"):
        statistics.save(tmp_path / "statistics.safetensors")


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ArchitectureMismatchError, match="nothing to measure"):
        Collector(nn.Embedding(3, 3))


def test_sources_are_told_apart_in_every_kind_of_attention():
    first = {"bert": "bert.encoder.layer.0.attention.self.key", "gpt2": "transformer.h.0.attn.c_attn"}
    for kind, tap in first.items():
        model = tiny_model(kind)
        with torch.no_grad(), Collector(model) as statistics:
            model(**token_batch())
        sources = {info.name: info.source for info in (tap.info for tap in statistics.taps)}
        assert sources.pop(tap) == "embeddings"
        assert set(sources.values()) == {"mixed"}


def test_a_source_that_cannot_be_probed_is_unknown():
    model = tiny_bert()
    with torch.no_grad(), Collector(model) as statistics:
        model(input_ids=torch.full((2, 4), 7), attention_mask=torch.ones(2, 4))
    assert {tap.info.source for tap in statistics.taps} == {"unknown"}
    with torch.no_grad(), Collector(model, resume=statistics) as statistics:
        model(**token_batch())
    assert {tap.info.source for tap in statistics.taps} == {"embeddings", "mixed"}


def test_padding_token_ids_do_not_matter_only_the_mask_does():
    model, batch = tiny_bert(), token_batch()
    other = dict(batch)
    other["input_ids"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], PAD + 9)
    found = []
    for inputs in (batch, other):
        with torch.no_grad(), Collector(model) as statistics:
            model(**inputs)
        found.append(statistics)
    for one, two in zip(found[0].taps, found[1].taps, strict=True):
        assert one.info == two.info
        torch.testing.assert_close(one.gram, two.gram, rtol=1e-5, atol=1e-5)
