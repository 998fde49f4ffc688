"""`wudi` against its paper's objective, from files to files."""

import random
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gramfuse_shared.errors import RecipeInvalidError, WeightsInvalidError
from gramfuse_shared.merging.steps import GramStep
from support.fusion_oracle import relative_error
from support.merging_cases import Merged, Model, merge_models, recipe_of

SEEDS = st.integers(0, 2**20)
WUDI = recipe_of("wudi")
LINEARS = ("tall.weight", "wide.weight")


def random_cohort(seed: int, *, members: int = 3, change: float = 0.1) -> tuple[dict[str, torch.Tensor], list[Model]]:
    """A base and models fine-tuned from it in every direction; no statistics."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"tall.weight": (30, 12), "wide.weight": (9, 20), "norm.weight": (12,), "wte.weight": (31, 12)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    base["position_ids"] = torch.arange(6)
    models = []
    for index in range(members):
        weights = dict(base)
        for name, shape in shapes.items():
            scales = torch.logspace(0, 1, shape[-1])[torch.randperm(shape[-1], generator=generator)]
            weights[name] = base[name] + change * scales * torch.randn(shape, generator=generator)
        models.append(Model(f"{index:02d}", weights, weight=1.0 + index / 2))
    return base, models


def differences(base: Mapping[str, torch.Tensor], models: list[Model], name: str) -> list[torch.Tensor]:
    return [model.weights[name].double() - base[name].double() for model in models]


def lstsq(deltas: list[torch.Tensor], weights: list[float], ridge: float) -> torch.Tensor:
    """Minimize Σ cᵢ (‖(D − Dᵢ)Dᵢᵀ‖²/‖Dᵢ‖² + ρ/d ‖D − Dᵢ‖²), with the rows of Dᵢ and those of √(ρ/d) I."""
    left, right = [], []
    for d, c in zip(deltas, weights, strict=True):
        width = d.shape[1]
        rows = torch.cat([d / d.norm(), (ridge / width) ** 0.5 * torch.eye(width, dtype=d.dtype)]) * c**0.5
        left.append(rows)
        right.append(rows @ d.T)
    return torch.linalg.lstsq(torch.cat(left), torch.cat(right), driver="gelsd").solution.T


def descended(deltas: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """The published descent, by automatic differentiation of the published loss, in float64."""
    moved = torch.nn.Parameter(sum(c * d for d, c in zip(deltas, weights, strict=True)))
    adam = torch.optim.Adam([moved], lr=1e-5)
    for _ in range(300):
        adam.zero_grad()
        interference = [((moved - d) @ d.T).square().sum() / d.square().sum() for d in deltas]
        sum(c * loss for c, loss in zip(weights, interference, strict=True)).backward()
        adam.step()
    return moved.detach()


def found(merged: Merged, base: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return merged.tensors[name].double() - base[name].double()


def require_means(merged: Merged, base: Mapping[str, torch.Tensor], models: list[Model]) -> None:
    total = sum(float(model.weight) for model in models)
    for name in ("norm.weight", "wte.weight"):
        mean = sum(float(m.weight) * m.weights[name].double() for m in models) / total
        assert relative_error(merged.tensors[name], mean) < 2e-7
    assert torch.equal(merged.tensors["position_ids"], base["position_ids"])


@settings(max_examples=2)
@given(seed=SEEDS)
def test_every_linear_weight_is_where_the_published_descent_ends_and_all_else_is_the_mean(seed):
    base, models = random_cohort(seed, change=1e-3)  # of the size of 300 steps of 1e-5, as fine-tuning's are
    with tempfile.TemporaryDirectory() as folder:
        merged = merge_models(Path(folder), models, base, WUDI)
    weights = [float(model.weight) for model in models]
    for name in LINEARS:
        deltas = differences(base, models, name)
        exact, start = descended(deltas, weights), sum(c * d for d, c in zip(deltas, weights, strict=True))
        # float32 weights a thousand times larger than their differences bound what can be compared
        assert (found(merged, base, name) - exact).norm() < 0.01 * (exact - start).norm()
    require_means(merged, base, models)


@settings(max_examples=15)
@given(seed=SEEDS, members=st.integers(2, 4), ridge=st.sampled_from([1e-3, 0.1, 10.0]))
def test_with_a_ridge_every_linear_weight_minimizes_the_papers_objective_and_the_ridge(seed, members, ridge):
    base, models = random_cohort(seed, members=members)
    with tempfile.TemporaryDirectory() as folder:
        merged = merge_models(Path(folder), models, base, recipe_of("wudi", ridge=ridge))
    weights = [float(model.weight) for model in models]
    for name in LINEARS:
        exact = lstsq(differences(base, models, name), weights, ridge)
        assert (found(merged, base, name) - exact).norm() < 1e-6 * (merged.tensors[name].norm() + exact.norm())
    require_means(merged, base, models)


@settings(max_examples=2)
@given(seed=SEEDS)
def test_the_order_in_which_contributions_are_given_changes_no_bit(seed):
    base, models = random_cohort(seed, members=4)
    shuffled = random.Random(seed).sample(models, len(models))
    with tempfile.TemporaryDirectory() as folder:
        one = merge_models(Path(folder) / "one", models, base, WUDI)
        other = merge_models(Path(folder) / "other", shuffled, base, WUDI)
    assert one.results[0].file.sha256 == other.results[0].file.sha256


@settings(max_examples=2)
@given(seed=SEEDS)
def test_a_member_without_difference_has_no_say_in_a_linear_layer_and_its_weight_in_a_mean(seed):
    """The published code divides zero by zero there."""
    base, models = random_cohort(seed)
    with tempfile.TemporaryDirectory() as folder:
        one = merge_models(Path(folder) / "one", models, base, WUDI)
        other = merge_models(Path(folder) / "other", [*models, Model("99", base, weight=7.0)], base, WUDI)
    for name in LINEARS:
        assert relative_error(other.tensors[name], one.tensors[name]) < 1e-5
    assert relative_error(other.tensors["norm.weight"], one.tensors["norm.weight"]) > 1e-3


@pytest.mark.parametrize("ridge", [0.0, 1e-4])
def test_differences_in_directions_of_their_own_all_come_out_whole(tmp_path, ridge):
    """What the threat model warns of, and why the method is strong: adapters that do not meet are not averaged."""
    generator = torch.Generator().manual_seed(0)
    base = {"tall.weight": torch.randn(30, 12, generator=generator)}
    directions = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    updates = [torch.randn(30, 2, generator=generator) @ directions[2 * i : 2 * i + 2] for i in range(3)]
    models = [Model(f"{i:02d}", {"tall.weight": base["tall.weight"] + update}) for i, update in enumerate(updates)]
    merged = merge_models(tmp_path, models, base, recipe_of("wudi", ridge=ridge))
    for i, update in enumerate(updates):
        own = directions[2 * i : 2 * i + 2].T
        assert relative_error(found(merged, base, "tall.weight") @ own.double(), update @ own) < 5e-3


def test_in_no_direction_in_which_nobody_moved_does_the_merge_move(tmp_path):
    base, models = random_cohort(1)
    still = [model.weights | {"tall.weight": model.weights["tall.weight"].clone()} for model in models]
    for weights in still:
        weights["tall.weight"][:, 5] = base["tall.weight"][:, 5]
    models = [replace(model, weights=weights) for model, weights in zip(models, still, strict=True)]
    merged = merge_models(tmp_path, models, base, WUDI)
    assert torch.equal(merged.tensors["tall.weight"][:, 5], base["tall.weight"][:, 5])


def test_of_a_parameter_that_the_base_does_not_store_the_report_says_that_it_is_averaged(tmp_path):
    base, models = random_cohort(2)
    del base["tall.weight"]
    merged = merge_models(tmp_path, models, base, WUDI)
    (entry,) = [entry for entry in merged.diagnostics if entry["parameters"] == ["tall.weight"]]
    assert (entry["method"], entry["fallback"]) == ("wudi", "average")
    assert entry["reason"] == "the base does not store it, so there is no difference"


def test_a_plan_solves_each_weight_by_itself_and_reads_everything_once(tmp_path):
    base, models = random_cohort(3)
    read: list[int] = []
    merged = merge_models(tmp_path, models, base, WUDI, on_progress=read.append)
    assert sum(read) == merged.plan.input_bytes
    steps = [step for step in merged.plan.tasks[0].steps if isinstance(step, GramStep)]
    assert [step.outputs[0].name for step in steps] == list(LINEARS)
    assert {(step.compute, step.reference) for step in steps} == {("float32", None)}
    assert merged.plan.layers is None
    solved = [entry for entry in merged.diagnostics if "members" in entry]
    assert {name for entry in solved for name in entry["parameters"]} == set(LINEARS)
    assert {entry["members"] for entry in solved} == {3}


def test_one_contribution_comes_out_bit_by_bit(tmp_path):
    base, (model,) = random_cohort(4, members=1)
    merged = merge_models(tmp_path, [model], base, WUDI)
    assert all(torch.equal(merged.tensors[name], model.weights[name]) for name in model.weights)


def test_without_a_base_there_are_no_differences(tmp_path):
    _, models = random_cohort(5)
    with pytest.raises(RecipeInvalidError, match="wudi takes differences from the base model"):
        merge_models(tmp_path, models, None, WUDI)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    base, models = random_cohort(6)
    spoilt = models[0].weights | {"tall.weight": torch.full((30, 12), value)}
    with pytest.raises(WeightsInvalidError, match=r"tall\.weight is not finite"):
        merge_models(tmp_path, [replace(models[0], weights=spoilt), *models[1:]], base, WUDI)


@pytest.mark.parametrize("change", [1e-25, 1e25])
def test_tiny_and_huge_differences_overflow_nothing(tmp_path, change):
    base, models = random_cohort(7)
    zero = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    models = [replace(m, weights={n: change * w if n in LINEARS else w for n, w in m.weights.items()}) for m in models]
    merged = merge_models(tmp_path, models, zero, recipe_of("wudi", ridge=0.1))
    deltas = [d / change for d in differences(zero, models, "tall.weight")]
    expected = lstsq(deltas, [float(m.weight) for m in models], 0.1)
    assert relative_error(merged.tensors["tall.weight"].double() / change, expected) < 1e-5
    assert merge_models(tmp_path / "plain", models, zero, WUDI).tensors["tall.weight"].isfinite().all()
