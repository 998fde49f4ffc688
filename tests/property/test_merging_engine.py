"""The whole engine, files in and files out, keeps the properties of the mathematics."""

import random
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.fusion_oracle import Contributor, least_squares, relative_error
from support.merging_cases import Model, merge_models, random_models, recipe_of

SEEDS = st.integers(0, 2**20)
TAP_OF = {"q.weight": "attention", "k.weight": "attention", "conv.weight": "mlp"}


def oriented(name: str, weight: torch.Tensor) -> torch.Tensor:
    return weight.T if name.startswith("conv") else weight


def expected(
    models: list[Model], name: str, *, alpha: float, normalize: str = "equal", ridge: float = 0.0
) -> torch.Tensor:
    tap = TAP_OF[name]
    contributors = [Contributor(oriented(name, m.weights[name]), m.taps[tap].rows, float(m.weight)) for m in models]
    return oriented(name, least_squares(contributors, alpha=alpha, normalize=normalize, ridge=ridge))


@settings(max_examples=15)
@given(
    seed=SEEDS,
    members=st.integers(2, 4),
    alpha=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    normalize=st.sampled_from(["equal", "rows"]),
    with_base=st.booleans(),
    ridge=st.sampled_from([0.0, 0.1]),
)
def test_merged_files_hold_the_least_squares_solution(seed, members, alpha, normalize, with_base, ridge):
    base, models = random_models(seed, members=members)
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(alpha=alpha, normalize=normalize, ridge=ridge)
        merged = merge_models(Path(folder), models, base if with_base else None, recipe)
    for name in TAP_OF:
        exact = expected(models, name, alpha=alpha, normalize=normalize, ridge=ridge)
        assert relative_error(merged.tensors[name], exact) < 2e-6
    total = sum(float(model.weight) for model in models)
    mean = sum(model.weights["norm.weight"].double() * float(model.weight) for model in models) / total
    assert relative_error(merged.tensors["norm.weight"], mean) < 2e-7
    assert torch.equal(merged.tensors["position_ids"], base["position_ids"])


@settings(max_examples=15)
@given(seed=SEEDS, alpha=st.sampled_from([0.9, 1.0]), with_base=st.booleans())
def test_the_order_in_which_contributions_are_given_changes_no_bit(seed, alpha, with_base):
    base, models = random_models(seed, members=4)
    shuffled = list(models)
    random.Random(seed).shuffle(shuffled)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (base if with_base else None, recipe_of(alpha=alpha))
        one = merge_models(Path(folder) / "one", models, *arguments)
        other = merge_models(Path(folder) / "other", shuffled, *arguments)
    assert [result.file.sha256 for result in one.results] == [result.file.sha256 for result in other.results]


@settings(max_examples=10)
@given(seed=SEEDS, alpha=st.floats(0, 1), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_one_contribution_comes_out_bit_by_bit(seed, alpha, dtype):
    base, (model,) = random_models(seed, members=1)
    weights = {name: w.to(dtype) if w.is_floating_point() else w for name, w in model.weights.items()}
    stored = {name: w.to(dtype) if w.is_floating_point() else w for name, w in base.items()}
    with tempfile.TemporaryDirectory() as folder:
        merged = merge_models(Path(folder), [replace(model, weights=weights)], stored, recipe_of(alpha=alpha))
    assert merged.tensors.keys() == weights.keys()
    assert all(torch.equal(merged.tensors[name], weights[name]) for name in weights)


@settings(max_examples=10)
@given(seed=SEEDS)
def test_a_contribution_of_weight_zero_changes_nothing(seed):
    base, models = random_models(seed, members=3)
    with tempfile.TemporaryDirectory() as folder:
        with_zero = [*models[:2], replace(models[2], weight=0.0)]
        one = merge_models(Path(folder) / "one", with_zero, base, recipe_of())
        other = merge_models(Path(folder) / "other", models[:2], base, recipe_of())
    assert one.results[0].file.sha256 == other.results[0].file.sha256


@settings(max_examples=10)
@given(seed=SEEDS, shard_bytes=st.integers(1, 4000))
def test_the_size_of_shards_changes_no_bit_of_a_tensor(seed, shard_bytes):
    base, models = random_models(seed)
    with tempfile.TemporaryDirectory() as folder:
        one = merge_models(Path(folder) / "one", models, base, recipe_of())
        many = merge_models(Path(folder) / "many", models, base, recipe_of(), shard_bytes=shard_bytes)
    assert one.tensors.keys() == many.tensors.keys()
    assert all(torch.equal(one.tensors[name], many.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize(("stored", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_half_precision_weights_are_merged_in_float32_and_rounded_once(tmp_path, stored, tolerance):
    base, models = random_models(3)
    half = [
        replace(model, weights={n: w.to(stored) if w.is_floating_point() else w for n, w in model.weights.items()})
        for model in models
    ]
    merged = merge_models(tmp_path, half, base, recipe_of(out_dtype=str(stored).removeprefix("torch.")))
    for name in TAP_OF:
        exact = expected(half, name, alpha=0.9)
        assert merged.tensors[name].dtype == stored
        # at most one rounding away from the exact result: half a unit in the last place, and a little of float32's
        assert relative_error(merged.tensors[name], exact) <= relative_error(exact.to(stored), exact) * 1.01
        assert relative_error(merged.tensors[name], exact) < tolerance
