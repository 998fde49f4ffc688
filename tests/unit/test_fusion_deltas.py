"""Methods that add differences to the base, against their papers' definitions written out."""

import itertools

import pytest
import torch

from gramfuse_shared.errors import RecipeInvalidError
from gramfuse_shared.fusion.methods.sparsifying import keep_at_random_, keep_largest_
from support.fusion_oracle import relative_error
from support.merging_cases import Model, merge_models, random_models, recipe_of

DELTA_METHODS = ("task_arithmetic", "ties", "dare_linear", "dare_ties")


def differences(base, models, name):
    return [model.weights[name].double() - base[name].double() for model in models]


def trimmed(values, density):
    """Keep the largest elements, one by one."""
    flat = values.flatten()
    order = sorted(range(flat.numel()), key=lambda i: -abs(float(flat[i])))
    kept = torch.zeros_like(flat)
    for i in order[: max(1, round(density * flat.numel()))]:
        kept[i] = flat[i]
    return kept.view_as(values)


def elected_mean(sparse, weights):
    """TIES-Merging, algorithm 1, element by element."""
    out = torch.zeros_like(sparse[0])
    for place in itertools.product(*map(range, out.shape)):
        sign = sum(c * float(d[place]) for c, d in zip(weights, sparse, strict=True))
        agreeing = [(c, float(d[place])) for c, d in zip(weights, sparse, strict=True) if float(d[place]) * sign > 0]
        if agreeing:
            out[place] = sum(c * d for c, d in agreeing) / sum(c for c, _ in agreeing)
    return out


def test_task_arithmetic_adds_the_scaled_sum_of_differences(tmp_path):
    base, models = random_models()
    merged = merge_models(tmp_path, models, base, recipe_of("task_arithmetic", **{"lambda": 0.4}))
    for name in ("q.weight", "conv.weight", "norm.weight"):
        total = sum(float(m.weight) * d for m, d in zip(models, differences(base, models, name), strict=True))
        assert relative_error(merged.tensors[name], base[name].double() + 0.4 * total) < 2e-7
    assert torch.equal(merged.tensors["position_ids"], base["position_ids"])


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_is_the_mean_of_the_largest_differences_that_agree(tmp_path, density):
    base, models = random_models(members=4)
    merged = merge_models(tmp_path, models, base, recipe_of("ties", density=density, **{"lambda": 0.7}))
    weights = [float(model.weight) for model in models]
    for name in ("q.weight", "conv.weight", "norm.weight"):
        sparse = [trimmed(d, density) for d in differences(base, models, name)]
        assert relative_error(merged.tensors[name], base[name].double() + 0.7 * elected_mean(sparse, weights)) < 1e-6


def test_a_contribution_equal_to_the_base_elects_nobody_and_changes_nothing_of_ties(tmp_path):
    base, models = random_models(members=2)
    idle = Model("zz", base)
    one = merge_models(tmp_path / "one", models, base, recipe_of("ties"))
    other = merge_models(tmp_path / "other", [*models, idle], base, recipe_of("ties"))
    assert one.results[0].file.sha256 == other.results[0].file.sha256


def test_dare_keeps_its_share_and_the_expectation():
    values = torch.ones(200_000)
    kept = keep_at_random_(values.clone(), 0.25, seed=3)
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(kept, keep_at_random_(values.clone(), 0.25, seed=3))
    assert not torch.equal(kept, keep_at_random_(values.clone(), 0.25, seed=4))


def test_dare_that_keeps_everything_is_task_arithmetic(tmp_path):
    base, models = random_models()
    dare = merge_models(tmp_path / "dare", models, base, recipe_of("dare_linear", density=1.0))
    plain = merge_models(tmp_path / "plain", models, base, recipe_of("task_arithmetic"))
    assert dare.results[0].file.sha256 == plain.results[0].file.sha256


def test_every_contribution_draws_its_own_chance_anew_for_every_seed(tmp_path):
    base, models = random_models(members=3)
    twins = [Model(key, models[0].weights) for key in ("a", "b")]
    merged = merge_models(tmp_path / "twins", twins, base, recipe_of("dare_linear", density=0.5))
    moved = (merged.tensors["q.weight"] - base["q.weight"]) / differences(base, models, "q.weight")[0]
    # each keeps an element or not: none, one or both of them, each scaled by two
    assert set(moved.round().unique().tolist()) == {0.0, 2.0, 4.0}
    first = merge_models(tmp_path / "0", models, base, recipe_of("dare_ties"))
    again = merge_models(tmp_path / "1", models, base, recipe_of("dare_ties"))
    other = merge_models(tmp_path / "2", models, base, recipe_of("dare_ties", seed=1))
    assert first.results[0].file.sha256 == again.results[0].file.sha256 != other.results[0].file.sha256


@pytest.mark.parametrize("method", DELTA_METHODS)
def test_neither_the_order_of_contributions_nor_the_size_of_shards_changes_a_bit(tmp_path, method):
    base, models = random_models(members=4)
    one = merge_models(tmp_path / "one", models, base, recipe_of(method))
    other = merge_models(tmp_path / "other", models[::-1], base, recipe_of(method), shard_bytes=1000)
    assert len(other.results) > 1
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize("method", DELTA_METHODS)
def test_progress_counts_every_byte_that_is_read(tmp_path, method):
    base, models = random_models()
    counted: list[int] = []
    merged = merge_models(tmp_path, models, base, recipe_of(method), on_progress=counted.append)
    assert sum(counted) == merged.plan.input_bytes


@pytest.mark.parametrize("method", DELTA_METHODS)
def test_a_method_of_differences_needs_a_base(tmp_path, method):
    _, models = random_models()
    with pytest.raises(RecipeInvalidError, match=f"{method} takes differences from the base model.*add base_model"):
        merge_models(tmp_path, models, None, recipe_of(method))


def test_what_the_base_does_not_store_is_averaged_and_told(tmp_path):
    base, models = random_models()
    norm = base.pop("norm.weight")
    merged = merge_models(tmp_path, models, base, recipe_of("ties"))
    weights = [float(model.weight) for model in models]
    mean = sum(c * m.weights["norm.weight"].double() for c, m in zip(weights, models, strict=True)) / sum(weights)
    assert relative_error(merged.tensors["norm.weight"], mean) < 2e-7
    assert norm.shape == merged.tensors["norm.weight"].shape
    (entry,) = merged.exceptions
    assert (entry["parameters"], entry["fallback"]) == (["norm.weight"], "average")
    assert "the base does not store it" in str(entry["reason"])


def test_a_filter_gives_one_layer_its_own_lambda_and_density(tmp_path):
    base, models = random_models()
    filters = [{"filter": "norm", "value": 0.0}, {"value": 1.0}]
    merged = merge_models(tmp_path, models, base, recipe_of("task_arithmetic", **{"lambda": filters}))
    assert torch.equal(merged.tensors["norm.weight"], base["norm.weight"])
    assert not torch.equal(merged.tensors["q.weight"], base["q.weight"])


@pytest.mark.parametrize(("density", "kept"), [(0.01, 1), (0.5, 5), (0.99, 10), (1.0, 10)])
def test_trimming_keeps_at_least_one_element_and_never_more_than_its_share(density, kept):
    values = torch.arange(1.0, 11.0) * torch.tensor([1.0, -1.0] * 5)
    assert int((keep_largest_(values.clone(), density) != 0).sum()) == kept


def test_trimming_keeps_all_elements_that_are_equally_large():
    assert int((keep_largest_(torch.ones(10), 0.3) != 0).sum()) == 10
