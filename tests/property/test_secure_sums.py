"""What comes out of masked words is the plain merge: below 1e-10 of how far members are apart, in float64."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gramfuse_shared.errors import ArchitectureMismatchError, ValueOutOfBoundsError
from gramfuse_shared.secure.planning import DEFAULT_BOUNDS
from support.merging_cases import merge_models, random_models, recipe_of
from support.secure_models import merge_in_secret, scales_of
from support.secure_sessions import ORGANIZATIONS


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**20),
    members=st.sampled_from([3, 4, 5]),
    drops=st.booleans(),
    method=st.sampled_from(["linear", "regmean"]),
    alpha=st.sampled_from([0.0, 0.5, 0.9, 0.95]),
    normalize=st.sampled_from(["equal", "rows"]),
    ridge=st.sampled_from([0.0, 0.1]),
    factor=st.sampled_from([0.2, 1.0, 30.0]),
)
def test_a_sum_in_secret_merges_as_the_members_do_in_the_open(
    seed, members, drops, method, alpha, normalize, ridge, factor
):
    base, models = random_models(seed, members=members)
    base = doubled(base)
    parameters = {"alpha": alpha, "normalize": normalize, "ridge": ridge} if method == "regmean" else {}
    recipe = recipe_of(method, dtype="float64", **parameters)
    dropped = ORGANIZATIONS[1:2] if drops and members > 3 else ()
    remaining = [model for name, model in zip(ORGANIZATIONS, models, strict=False) if name not in dropped]
    scales = scales_of(models[0], factor=factor)
    with tempfile.TemporaryDirectory() as folder:
        found = merge_in_secret(Path(folder) / "secret", base, models, recipe, scales, dropped=dropped)
        plain = merge_models(Path(folder) / "open", remaining, base, recipe).tensors
    assert found.keys() == plain.keys()
    for name, expected in plain.items():
        if expected.is_floating_point():
            apart = (remaining[0].weights[name].double() - remaining[1].weights[name].double()).norm()
            assert (found[name] - expected).norm() < 1e-10 * apart, name


def doubled(base):
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in base.items()}


def error_of(found, expected, models, name) -> float:
    """How far two merges of a parameter are apart, over how far the members are."""
    apart = (models[0].weights[name].double() - models[1].weights[name].double()).norm()
    return float((found[name] - expected[name]).norm() / apart)


def with_features(models, factors):
    """Return models whose taps' features are multiplied by factors, as a layer norm's gain might."""
    return [
        replace(
            model, taps={name: replace(tap, rows=tap.rows * factors.to(tap.rows)) for name, tap in model.taps.items()}
        )
        for model in models
    ]


def test_members_that_are_hardly_apart_and_features_of_a_thousandfold_range_keep_their_bits(tmp_path):
    base, models = random_models(7, members=7)
    near = {name: tensor for name, tensor in base.items() if tensor.is_floating_point()}
    models = [
        replace(m, weights=dict(m.weights) | {n: t + 1e-3 * (m.weights[n] - t) for n, t in near.items()}, weight=1.0)
        for m in models
    ]
    models = with_features(models, torch.logspace(-1.5, 1.5, 24))
    recipe = recipe_of(alpha=0.95, dtype="float64")
    found = merge_in_secret(tmp_path / "s", doubled(base), models, recipe, scales_of(models[0]), dropped=("brick",))
    remaining = [model for name, model in zip(ORGANIZATIONS, models, strict=True) if name != "brick"]
    plain = merge_models(tmp_path / "o", remaining, doubled(base), recipe).tensors
    for name in near:
        assert error_of(found, plain, remaining, name) < 1e-10, name


def test_a_feature_that_nobody_uses_keeps_the_mean_as_it_does_in_the_open(tmp_path):
    base, models = random_models(3)
    scales = scales_of(models[0])
    models = with_features(models, torch.tensor([0.0] + [1.0] * 23))
    recipe = recipe_of(dtype="float64")
    found = merge_in_secret(tmp_path / "s", doubled(base), models, recipe, scales)
    plain = merge_models(tmp_path / "o", models, doubled(base), recipe).tensors
    for name in ("q.weight", "k.weight", "conv.weight"):
        assert error_of(found, plain, models, name) < 1e-10, name


def test_a_feature_of_which_words_hold_too_few_bits_keeps_the_mean(tmp_path):
    """Its square is 1e-12 of what it is on public text: some ten bits, and what is divided by it would be noise."""
    base, models = random_models(3)
    scales = scales_of(models[0])
    models = with_features(models, torch.tensor([1e-6] + [1.0] * 23))
    found = merge_in_secret(tmp_path, doubled(base), models, recipe_of(dtype="float64"), scales)
    total = sum(float(model.weight) for model in models)
    mean = sum(float(model.weight) * model.weights["q.weight"].double() for model in models) / total
    assert torch.allclose(found["q.weight"][:, 0], mean[:, 0], rtol=0, atol=1e-12)
    assert not torch.allclose(found["q.weight"][:, 1], mean[:, 1], rtol=0, atol=1e-3)


def test_taps_without_scales_are_averaged(tmp_path):
    base, models = random_models(4)
    recipe = recipe_of(dtype="float64")
    found = merge_in_secret(tmp_path / "s", doubled(base), models, recipe, scales_of(models[0]), scaled_taps=["mlp"])
    linear = merge_models(tmp_path / "l", models, doubled(base), recipe_of("linear", dtype="float64")).tensors
    plain = merge_models(tmp_path / "o", models, doubled(base), recipe).tensors
    assert error_of(found, linear, models, "q.weight") < 1e-10
    assert error_of(found, plain, models, "conv.weight") < 1e-10


def test_a_value_over_its_bound_ends_the_session_before_anything_is_masked(tmp_path):
    base, models = random_models(5)
    large = dict(models[1].weights) | {"norm.weight": models[1].weights["norm.weight"] + 1e4}
    models[1] = replace(models[1], weights=large)
    with pytest.raises(ValueOutOfBoundsError, match=r"weighted\.norm\.weight .* bound of 32"):
        merge_in_secret(tmp_path, doubled(base), models, recipe_of(), scales_of(models[0]))
    kept = [path.name for path in (tmp_path / "members" / "brick").rglob("*") if path.is_file()]
    assert sorted(kept) == ["keys.json", "root", "shares.json"]
    # with larger bounds, and so fewer bits, it goes through
    bounds = DEFAULT_BOUNDS | {"weighted": 1e5, "product": 1e6}
    merge_in_secret(tmp_path / "again", doubled(base), models, recipe_of(), scales_of(models[0]), bounds=bounds)


def test_scales_of_another_width_or_of_no_such_tap_are_refused(tmp_path):
    base, models = random_models(6)
    scales = scales_of(models[0])
    for index, wrong in enumerate([scales | {"attention": torch.ones(23)}, {"mlp": scales["mlp"]}]):
        with pytest.raises(ArchitectureMismatchError, match="tap attention, 24 wide"):
            merge_in_secret(tmp_path / str(index), doubled(base), models, recipe_of(), wrong)


def with_fisher(models, seed=0):
    """Return models with Fisher information of their matrices: squares over some orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return [
        replace(
            model,
            fisher={
                name: torch.randn(weight.shape, generator=generator).square() * 10 ** torch.rand(weight.shape)
                for name, weight in model.weights.items()
                if weight.dim() == 2
            },
            examples=10 + index,
        )
        for index, model in enumerate(models)
    ]


@settings(max_examples=5)
@given(st.integers(0, 2**20), st.sampled_from(["norm", "parameter_norm"]), st.booleans())
def test_fisher_information_is_summed_element_by_element(seed, normalize, drops):
    base, models = random_models(seed, members=4)
    models = with_fisher(models, seed)
    recipe = recipe_of("fisher", normalize=normalize, dtype="float64")
    dropped = ("brick",) if drops else ()
    remaining = [model for name, model in zip(ORGANIZATIONS, models, strict=False) if name not in dropped]
    with tempfile.TemporaryDirectory() as folder:
        found = merge_in_secret(Path(folder) / "secret", doubled(base), models, recipe, {}, dropped=dropped)
        plain = merge_models(Path(folder) / "open", remaining, doubled(base), recipe).tensors
    for name, tensor in base.items():
        if tensor.is_floating_point():
            assert error_of(found, plain, remaining, name) < 1e-10, name


def test_an_element_of_which_nobody_has_information_keeps_the_mean(tmp_path):
    base, models = random_models(2)
    models = with_fisher(models)
    for model in models:
        model.fisher["q.weight"][0, :2] = torch.tensor([0.0, 1e-14])
    recipe = recipe_of("fisher", normalize="norm", dtype="float64")
    found = merge_in_secret(tmp_path, doubled(base), models, recipe, {})
    total = sum(float(model.weight) for model in models)
    mean = sum(float(model.weight) * model.weights["q.weight"].double() for model in models) / total
    assert torch.allclose(found["q.weight"][0, :2], mean[0, :2], rtol=0, atol=1e-12)
    assert not torch.allclose(found["q.weight"][0, 2:], mean[0, 2:], rtol=0, atol=1e-3)
