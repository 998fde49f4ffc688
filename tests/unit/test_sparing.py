"""What nobody looks at is not computed, and nothing that somebody looks at changes by it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import gramfuse
from gramfuse.measuring.layers import find_layers
from gramfuse.measuring.refit import collect_refit
from gramfuse.measuring.sparing import Sparing
from gramfuse_shared.errors import WiringChangedError
from support.tiny_models import KINDS, tiny_model
from support.tokenizing import word_tokenizer

TEXTS = ["a b c d", "e f", "g h i", "j", "b b e", "d h a"]
OF_TEXT = [kind for kind in KINDS if kind != "vit"]


@contextmanager
def calls_of(model: nn.Module) -> Iterator[Counter[str]]:
    """Count how often each linear layer computes its product."""
    counts: Counter[str] = Counter()
    names = {id(module): name for name, module in model.named_modules()}
    plain = nn.Linear.forward

    def forward(module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        counts[names.get(id(module), "")] += 1
        return plain(module, rows)

    nn.Linear.forward = forward  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        nn.Linear.forward = plain  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", OF_TEXT)
def test_statistics_of_some_layers_are_to_the_bit_those_that_are_measured_with_all(kind):
    model = tiny_model(kind)
    everything = gramfuse.collect(model, TEXTS, tokenizer=word_tokenizer(), batch_size=2, share_inputs=False)
    layers = [layer.weight for layer in find_layers(model)]
    for weight in (layers[0], layers[len(layers) // 2], layers[-1]):
        some = gramfuse.collect(
            model, TEXTS, tokenizer=word_tokenizer(), batch_size=2, share_inputs=False, layers=[weight]
        )
        (found,) = some.taps
        (wanted,) = [tap for tap in everything.taps if tap.info.name == found.info.name]
        assert found.info == wanted.info
        assert torch.equal(found.gram, wanted.gram)
    assert not [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("kind", ["bert", "t5", "gpt2", "llama"])
def test_refits_of_some_layers_are_to_the_bit_those_of_all(kind):
    merged, own = tiny_model(kind, seed=1), tiny_model(kind, seed=2)
    layers = [layer.weight for layer in find_layers(merged)]
    chosen = layers[len(layers) // 2]

    def measure(weights: list[str]) -> Any:
        return collect_refit(merged, own, TEXTS, tokenizer=word_tokenizer(), batch_size=2, layers=weights)

    assert torch.equal(measure([chosen]).products[chosen], measure(layers).products[chosen])
    assert not [module for model in (merged, own) for module in model.modules() if "forward" in vars(module)]


def test_layers_behind_the_last_measured_one_compute_in_the_first_pass_alone():
    model = tiny_model("bert")
    first = "bert.encoder.layer.0.attention.self.query"
    with calls_of(model) as counts:
        gramfuse.collect(model, TEXTS, tokenizer=word_tokenizer(), batch_size=2, layers=[f"{first}.weight"])
    probes = counts["classifier"] - 1  # the probe's passes are whole, and stand before the first
    assert counts["bert.encoder.layer.1.output.dense"] == 1 + probes
    assert counts[first] == 3 + probes


def test_a_later_pass_of_the_first_block_costs_a_part_of_the_model():
    model = tiny_model("llama")
    chosen = [layer for layer in find_layers(model) if ".layers.0." in layer.weight]
    inputs = {"input_ids": torch.tensor([[4, 5, 6, 7]])}
    flops = []
    with Sparing(model, chosen).sparing(), torch.no_grad():
        for _ in range(2):
            with FlopCounterMode(display=False) as counter:
                model(**inputs)
            flops.append(counter.get_total_flops())
    assert flops[1] < 0.6 * flops[0]  # the second of two blocks, and the vocabulary


def test_a_layer_that_runs_again_before_a_measured_one_is_not_spared():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.wanted, self.last = (nn.Linear(3, 3) for _ in range(3))

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.last(self.shared(self.wanted(self.shared(rows))))

    model = Twice()
    chosen = [layer for layer in find_layers(model) if layer.weight == "wanted.weight"]
    with Sparing(model, chosen).sparing():
        model(torch.ones(1, 3))
        assert [name for name, module in model.named_modules() if "forward" in vars(module)] == ["last"]


def test_a_model_that_changes_the_order_of_its_layers_is_told_and_measures_nothing_wrong():
    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
            self.turned = False

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.one(self.other(rows)) if self.turned else self.other(self.one(rows))

    model = Turning()
    chosen = [layer for layer in find_layers(model) if layer.weight == "one.weight"]
    with Sparing(model, chosen).sparing():
        model(torch.ones(1, 3))
        model.turned = True
        with pytest.raises(WiringChangedError, match="measure all"):
            model(torch.ones(1, 3))
    assert "forward" not in vars(model.other)


def test_what_another_library_put_in_the_place_of_a_forward_stays():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    theirs = model[1].forward
    model[1].forward = theirs  # type: ignore[method-assign]
    (chosen,) = [layer for layer in find_layers(model) if layer.weight == "0.weight"]
    with Sparing(model, [chosen]).sparing():
        model(torch.ones(1, 3))
        assert model[1].forward is theirs
    assert vars(model[1])["forward"] is theirs
