"""Row by row, a head is the merge of those that trained the row, whatever the method."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.merging.plan import LabelRows
from support.fusion_oracle import Contributor, least_squares, relative_error, weighted_mean
from support.merging_cases import Merged, Model, Tap, merge_models, recipe_of

WIDTH, LABELS = 12, 5
HEAD = ("classifier.weight", "classifier.bias")
METHODS = ("linear", "regmean", "task_arithmetic", "ties", "dare_linear", "dare_ties", "wudi")
TRAINED = st.lists(
    st.none() | st.sets(st.integers(0, LABELS - 1)), min_size=1, max_size=4
)  # of each member: all of the labels, or these

Trained = Sequence[set[int] | None]


def models_of(seed: int, trained: Trained) -> tuple[dict[str, torch.Tensor], list[Model]]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    base = {"body.weight": randn(7, WIDTH), HEAD[0]: randn(LABELS, WIDTH), HEAD[1]: randn(LABELS)}
    models = []
    for index, labels in enumerate(trained):
        weights = {name: tensor + 0.1 * randn(*tensor.shape) for name, tensor in base.items()}
        taps = {"body": Tap(randn(200, WIDTH), ["body.weight"]), "head": Tap(randn(300, WIDTH), [HEAD[0]])}
        said = None if labels is None else LabelRows(frozenset(HEAD), frozenset(labels))
        models.append(Model(f"{index:02d}", weights, taps, weight=1.0 + index / 2, labels=said))
    return base, models


def merged(models: Sequence[Model], base: dict[str, torch.Tensor], recipe: Recipe) -> Merged:
    with tempfile.TemporaryDirectory() as folder:
        return merge_models(Path(folder), models, base, recipe)


def has_trained(model: Model, row: int) -> bool:
    return model.labels is None or row in model.labels.trained


@settings(max_examples=40)
@given(seed=st.integers(0, 2**20), trained=TRAINED, method=st.sampled_from(METHODS))
def test_each_row_is_bit_by_bit_that_of_a_merge_of_those_alone_that_trained_it(seed, trained, method):
    base, models = models_of(seed, trained)
    recipe = recipe_of(method, **({"density": 0.6, "lambda": 0.7} if method not in {"linear", "regmean"} else {}))
    found = merged(models, base, recipe).tensors
    for row in range(LABELS):
        sharing = [replace(model, labels=None) for model in models if has_trained(model, row)]
        expected = merged(sharing, base, recipe).tensors if sharing else base
        for name in HEAD:
            assert torch.equal(found[name][row], expected[name][row])
    everything = merged([replace(model, labels=None) for model in models], base, recipe).tensors
    assert torch.equal(found["body.weight"], everything["body.weight"])


@settings(max_examples=20)
@given(seed=st.integers(0, 2**20), trained=TRAINED, alpha=st.sampled_from([0.5, 0.9, 1.0]))
def test_each_row_is_the_least_squares_answer_and_each_bias_the_mean_of_those_that_trained_it(seed, trained, alpha):
    base, models = models_of(seed, trained)
    found = merged(models, base, recipe_of(alpha=alpha)).tensors
    for row in range(LABELS):
        sharing = [model for model in models if has_trained(model, row)]
        if not sharing:
            continue
        layers = [Contributor(m.weights[HEAD[0]][row : row + 1], m.taps["head"].rows, float(m.weight)) for m in sharing]
        assert relative_error(found[HEAD[0]][row], least_squares(layers, alpha=alpha)[0]) < 2e-6
        biases = [Contributor(m.weights[HEAD[1]][row : row + 1], m.taps["head"].rows, float(m.weight)) for m in sharing]
        assert relative_error(found[HEAD[1]][row], weighted_mean(biases)[0]) < 2e-6


def test_a_row_of_whose_members_one_has_no_statistics_is_estimated_as_if_these_were_all():
    base, models = models_of(7, [{0, 1, 3}, {1, 2}, None])
    models[1] = replace(models[1], taps={})
    recipe = recipe_of(missing_statistics="estimate")
    found = merged(models, base, recipe)
    for row in range(LABELS):
        sharing = [replace(model, labels=None) for model in models if has_trained(model, row)]
        assert torch.equal(found.tensors[HEAD[0]][row], merged(sharing, base, recipe).tensors[HEAD[0]][row])
    assert {"label_rows", "estimated"} <= {key for entry in found.diagnostics for key in entry}


@pytest.mark.parametrize("method", ["linear", "regmean"])
def test_saying_all_labels_is_saying_nothing(method):
    base, models = models_of(3, [None, None, None])
    said = [replace(m, labels=LabelRows(frozenset(HEAD), frozenset(range(LABELS)))) for m in models]
    one, other = (merged(chosen, base, recipe_of(method)) for chosen in (models, said))
    assert one.results == other.results


@pytest.mark.parametrize(("out_dtype", "stored"), [("bfloat16", torch.bfloat16), (None, torch.float32)])
def test_rows_of_several_origins_come_out_in_one_dtype(out_dtype, stored):
    base, models = models_of(4, [{0, 1}, {1, 2}, {1}])
    recipe = recipe_of("linear", **({"out_dtype": out_dtype} if out_dtype else {}))
    found = merged(models, base, recipe)
    assert found.tensors[HEAD[0]].dtype == stored
    assert torch.equal(found.tensors[HEAD[0]][4], base[HEAD[0]][4].to(stored))
    assert torch.equal(found.tensors[HEAD[0]][2], models[1].weights[HEAD[0]][2].to(stored))


def test_the_report_counts_rows_and_names_nobody():
    base, models = models_of(5, [{0, 1}, {1, 2}, None])
    entries = [entry for entry in merged(models, base, recipe_of()).diagnostics if entry["parameters"] == [HEAD[0]]]
    assert entries[0]["reason"] == "4 of 5 label rows were trained by fewer than the 3 contributions that hold them"
    assert [entry.get("label_rows") for entry in entries] == [None, 1, 1, 1]
    assert not any("model" in str(entry["reason"]) for entry in entries)


def test_progress_counts_what_is_read_for_each_set_of_rows(tmp_path):
    base, models = models_of(6, [{0}, {1}, None])
    read = []
    found = merge_models(tmp_path, models, base, recipe_of(), on_progress=read.append)
    assert sum(read) == found.plan.input_bytes
