"""Contributions without statistics in a RegMean cohort: what the engine makes of them, from files to files."""

import random
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gramfuse_shared.errors import WeightsInvalidError
from gramfuse_shared.merging.steps import GramStep
from support.fusion_oracle import Contributor, least_squares, relative_error
from support.merging_cases import Model, merge_models, random_models, recipe_of

SEEDS = st.integers(0, 2**20)
LINEARS_OF = {"attention": ("q.weight", "k.weight"), "mlp": ("conv.weight",)}


def without(model: Model, *taps: str) -> Model:
    return replace(model, taps={name: tap for name, tap in model.taps.items() if name not in taps})


def oriented(name: str, weight: torch.Tensor) -> torch.Tensor:
    return weight.T if name.startswith("conv") else weight


def stacked(weights: dict[str, torch.Tensor], tap: str) -> torch.Tensor:
    return torch.cat([oriented(name, weights[name]) for name in LINEARS_OF[tap]]).double()


def expected(base: dict[str, torch.Tensor], models: list[Model], tap: str, *, alpha: float, normalize: str):
    """The definition: least squares on pooled rows, where the rows of D, brought to size, stand in for missing ones."""
    measured = [model.taps[tap].rows.double() for model in models if tap in model.taps]
    rows = round(sum(len(x) for x in measured) / len(measured))
    energy = sum(float(x.square().sum()) / len(x) for x in measured) / len(measured)
    contributors = []
    for model in models:
        moved = stacked(model.weights, tap) - stacked(base, tap)
        share = float(model.weight)
        if tap in model.taps:
            inputs = model.taps[tap].rows.double()
        else:  # as many rows as D has, that count as `rows`
            inputs = moved * (len(moved) * energy) ** 0.5 / moved.norm()
            share *= rows / len(moved) if normalize == "rows" else 1.0
        contributors.append(Contributor(stacked(model.weights, tap), inputs, share))
    return least_squares(contributors, alpha=alpha, normalize=normalize)


@settings(max_examples=20)
@given(
    seed=SEEDS,
    alpha=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    normalize=st.sampled_from(["equal", "rows"]),
    lacking=st.sampled_from([(2,), (0,), (1, 2)]),
)
def test_what_a_member_did_not_measure_is_read_off_its_difference_to_the_base(seed, alpha, normalize, lacking):
    base, models = random_models(seed)
    models = [without(model, "attention") if index in lacking else model for index, model in enumerate(models)]
    recipe = recipe_of(alpha=alpha, normalize=normalize, missing_statistics="estimate")
    with tempfile.TemporaryDirectory() as folder:
        merged = merge_models(Path(folder), models, base, recipe)
    for tap, linears in LINEARS_OF.items():
        found = torch.cat([oriented(name, merged.tensors[name]) for name in linears])
        assert relative_error(found, expected(base, models, tap, alpha=alpha, normalize=normalize)) < 2e-6
    groups = {tuple(entry["parameters"]): entry for entry in merged.diagnostics}
    assert groups["q.weight", "k.weight"]["estimated"] == [f"model 0{index}" for index in lacking]
    assert "estimated" not in groups["conv.weight",]
    measured = [len(model.taps["attention"].rows) for model in models if "attention" in model.taps]
    assert groups["q.weight", "k.weight"]["rows"] == sum(measured)


@settings(max_examples=10)
@given(seed=SEEDS)
def test_the_order_in_which_contributions_are_given_changes_no_bit(seed):
    base, models = random_models(seed, members=4)
    models = [without(models[0], "attention", "mlp"), models[1], without(models[2], "mlp"), models[3]]
    shuffled = random.Random(seed).sample(models, len(models))
    with tempfile.TemporaryDirectory() as folder:
        arguments = (base, recipe_of(missing_statistics="estimate"))
        one = merge_models(Path(folder) / "one", models, *arguments)
        other = merge_models(Path(folder) / "other", shuffled, *arguments)
    assert one.results[0].file.sha256 == other.results[0].file.sha256


@settings(max_examples=10)
@given(seed=SEEDS)
def test_permuting_the_features_permutes_the_merge(seed):
    base, models = random_models(seed)
    models[1] = without(models[1], "attention", "mlp")
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))

    def permuted(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: w[:, order] if name in LINEARS_OF["attention"] else w for name, w in weights.items()}

    def permuted_taps(model: Model) -> dict[str, object]:
        return {n: replace(t, rows=t.rows[:, order]) if n == "attention" else t for n, t in model.taps.items()}

    others = [replace(model, weights=permuted(model.weights), taps=permuted_taps(model)) for model in models]
    recipe = recipe_of(alpha=1.0, missing_statistics="estimate")
    with tempfile.TemporaryDirectory() as folder:
        one = merge_models(Path(folder) / "one", models, base, recipe)
        other = merge_models(Path(folder) / "other", others, permuted(base), recipe)
    for name in LINEARS_OF["attention"]:
        assert relative_error(other.tensors[name], one.tensors[name][:, order]) < 1e-6


@settings(max_examples=10)
@given(seed=SEEDS)
def test_a_member_without_difference_has_a_weight_where_weights_count_and_no_say_in_a_solved_layer(seed):
    base, models = random_models(seed)
    unmoved = Model("99", base, {}, weight=7.0)
    recipe = recipe_of(missing_statistics="estimate")
    with tempfile.TemporaryDirectory() as folder:
        one = merge_models(Path(folder) / "one", models, base, recipe)
        other = merge_models(Path(folder) / "other", [*models, unmoved], base, recipe)
    for name in ("q.weight", "k.weight", "conv.weight"):
        assert relative_error(other.tensors[name], one.tensors[name]) < 2e-6
    assert relative_error(other.tensors["norm.weight"], one.tensors["norm.weight"]) > 1e-3


def test_in_the_directions_of_a_narrow_difference_its_contribution_has_most_of_the_say(tmp_path):
    """What the policy's `missing_statistics` warns of: an adapter of rank 1 comes out almost as it went in."""
    base, models = random_models(4)
    direction = torch.nn.functional.normalize(torch.randn(24, generator=torch.Generator().manual_seed(1)), dim=0)
    update = torch.outer(torch.randn(8, generator=torch.Generator().manual_seed(2)), direction)
    narrow = replace(without(models[0], "attention"), weights=models[0].weights | {
        "q.weight": base["q.weight"] + update, "k.weight": base["k.weight"],
    })  # fmt: skip
    cohort = [narrow, *models[1:]]
    moved = {
        mode: (merge_models(tmp_path / mode, cohort, base, recipe_of(alpha=1.0, missing_statistics=mode))
               .tensors["q.weight"] - base["q.weight"]) @ direction
        for mode in ("average", "estimate")
    }  # fmt: skip
    own = update @ direction
    assert relative_error(moved["estimate"], own) < 0.3
    assert relative_error(moved["average"], own) > 0.6


def test_where_nobody_measured_a_tap_or_the_base_does_not_store_the_weight_an_average_is_told(tmp_path):
    base, models = random_models(3)
    models = [without(models[0], "mlp"), without(models[1], "mlp", "attention"), without(models[2], "mlp")]
    smaller = {name: tensor for name, tensor in base.items() if name != "k.weight"}
    merged = merge_models(tmp_path, models, smaller, recipe_of(missing_statistics="estimate"))
    by_name = {name: entry for entry in merged.diagnostics for name in entry["parameters"]}
    assert by_name["conv.weight"]["reason"] == "no contribution sent statistics of its inputs"
    assert by_name["k.weight"]["reason"] == (
        "1 of 3 contributions sent no statistics of its inputs: model 01; and the base does not store it, so none are "
        "estimated"
    )
    assert by_name["q.weight"]["estimated"] == ["model 01"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_not_estimated_from(tmp_path, value):
    base, models = random_models(3)
    spoilt = replace(
        without(models[0], "attention", "mlp"), weights=models[0].weights | {"q.weight": base["q.weight"] * value}
    )
    with pytest.raises(WeightsInvalidError, match=r"q\.weight is not finite"):
        merge_models(tmp_path, [spoilt, *models[1:]], base, recipe_of(missing_statistics="estimate"))


def test_a_plan_reads_the_base_and_the_measured_statistics_once(tmp_path):
    base, models = random_models(3)
    models[0] = without(models[0], "attention")
    read = []
    merged = merge_models(tmp_path, models, base, recipe_of(missing_statistics="estimate"), on_progress=read.append)
    assert sum(read) == merged.plan.input_bytes
    (group,) = [step for step in merged.plan.tasks[0].steps if isinstance(step, GramStep) and step.estimated]
    assert group.reference is None
    assert [term.key for term in group.terms] == ["01", "02", "00"]
