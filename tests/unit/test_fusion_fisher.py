"""Fisher-weighted averaging by the engine, against the definition in float64."""

from dataclasses import replace

import pytest
import torch

from gramfuse_shared.errors import ArchitectureMismatchError, RecipeInvalidError, StatisticsInvalidError
from gramfuse_shared.fusion.methods import METHODS, ElementMethod
from gramfuse_shared.fusion.methods.method import Fisher, MethodSettings
from gramfuse_shared.merging import schedule
from gramfuse_shared.merging.plan import LabelRows, Member
from gramfuse_shared.merging.planning import plan_merge
from support.fusion_oracle import relative_error
from support.merging_cases import Model, infos, member_of, merge_models, random_models, recipe_of

PARAMETERS = ("q.weight", "k.weight", "conv.weight", "norm.weight")


def fisher_models(seed=0, *, members=3, decades=8.0, names=PARAMETERS):
    """Models whose Fisher information spans many decades, as that of real ones does, over different examples."""
    base, models = random_models(seed, members=members)
    generator = torch.Generator().manual_seed(seed + 100)
    found = []
    for index, model in enumerate(models):
        fisher = {
            name: 10.0 ** (decades * (torch.rand(base[name].shape, generator=generator) - 1)) * (1 + index)
            for name in names
        }
        found.append(Model(model.key, model.weights, weight=model.weight, fisher=fisher, examples=100 * (index + 1)))
    return base, found


def definition(models, name, normalize="equal", names=PARAMETERS):
    """W = Σ aᵢFᵢWᵢ / Σ aᵢFᵢ, element by element in float64."""
    products = total = 0.0
    for model in models:
        norm = float(sum(model.fisher[other].double().square().sum() for other in names) ** 0.5)
        own = float(model.fisher[name].double().norm())
        divisors = {"equal": model.examples, "rows": 1.0, "norm": norm, "parameter_norm": own}
        scale = float(model.weight) / divisors[normalize]
        products = products + scale * model.fisher[name].double() * model.weights[name].double()
        total = total + scale * model.fisher[name].double()
    return products / total


@pytest.mark.parametrize("normalize", ["equal", "rows", "norm", "parameter_norm"])
def test_every_element_is_weighed_by_its_fisher_information(tmp_path, normalize):
    base, models = fisher_models()
    merged = merge_models(tmp_path, models, base, recipe_of("fisher", normalize=normalize))
    for name in PARAMETERS:
        assert relative_error(merged.tensors[name], definition(models, name, normalize)) < 2e-7
    assert torch.equal(merged.tensors["position_ids"], base["position_ids"])
    assert merged.exceptions == []


def test_float32_is_enough_for_every_single_element(tmp_path):
    """The weights of an element are ratios of sums without cancellation: each is right to a few roundings."""
    base, models = fisher_models(3, members=40, decades=20.0)
    merged = merge_models(tmp_path, models, base, recipe_of("fisher"))
    for name in PARAMETERS:
        exact = definition(models, name)
        largest = torch.stack([model.weights[name].abs() for model in models]).amax(dim=0)
        assert float(((merged.tensors[name].double() - exact).abs() / largest).max()) < 4e-7


def test_float64_is_what_weights_of_float64_are_merged_in(tmp_path):
    _, models = fisher_models()
    doubled = [replace(m, weights={name: m.weights[name].double() for name in PARAMETERS}) for m in models]
    merged = merge_models(tmp_path, doubled, None, recipe_of("fisher"))
    assert relative_error(merged.tensors["q.weight"], definition(doubled, "q.weight")) < 1e-14


def test_where_nobody_has_information_the_mean_stays_and_is_told(tmp_path):
    base, models = fisher_models()
    for model in models:
        model.fisher["norm.weight"][:5] = 0.0
    merged = merge_models(tmp_path, models, base, recipe_of("fisher"))
    weights = [float(model.weight) for model in models]
    mean = sum(c * m.weights["norm.weight"].double() for c, m in zip(weights, models, strict=True)) / sum(weights)
    assert relative_error(merged.tensors["norm.weight"][:5], mean[:5]) < 2e-7
    assert relative_error(merged.tensors["norm.weight"][5:], definition(models, "norm.weight")[5:]) < 2e-7
    (entry,) = merged.exceptions
    assert entry["parameters"] == ["norm.weight"]
    assert "5 of 24 elements" in str(entry["reason"])


def test_a_member_without_information_of_an_element_does_not_count_there(tmp_path):
    base, models = fisher_models()
    models[0].fisher["norm.weight"][0] = models[1].fisher["norm.weight"][0] = 0.0
    merged = merge_models(tmp_path, models, base, recipe_of("fisher"))
    assert torch.allclose(merged.tensors["norm.weight"][0], models[2].weights["norm.weight"][0], rtol=1e-6)


def test_a_member_without_any_information_weighs_nothing_when_norms_divide(tmp_path):
    base, models = fisher_models()
    silent = Model("zz", base, fisher={name: torch.zeros(base[name].shape) for name in PARAMETERS})
    merged = merge_models(tmp_path, [*models, silent], base, recipe_of("fisher", normalize="norm"))
    assert relative_error(merged.tensors["q.weight"], definition(models, "q.weight", "norm")) < 2e-7


def test_norms_of_parameters_let_members_count_alike_in_each_whatever_their_scales(tmp_path):
    """By the norm of all, who has the largest of any parameter weighs little in the others."""
    base, models = fisher_models()
    chooser = torch.Generator().manual_seed(9)
    scaled = [
        replace(
            m, fisher={name: value * 10 ** float(torch.rand(1, generator=chooser)) for name, value in m.fisher.items()}
        )
        for m in models
    ]
    for normalize, stays in (("parameter_norm", True), ("norm", False)):
        one, other = (
            merge_models(tmp_path / f"{normalize}-{number}", cohort, base, recipe_of("fisher", normalize=normalize))
            for number, cohort in enumerate((models, scaled))
        )
        assert (relative_error(one.tensors["q.weight"], other.tensors["q.weight"]) < 1e-6) == stays


def test_the_norm_is_that_of_what_is_merged_alone(tmp_path):
    base, models = fisher_models()
    merged = merge_models(tmp_path, models, base, recipe_of("fisher", normalize="norm", exclude=["conv.weight"]))
    rest = ("q.weight", "k.weight", "norm.weight")
    assert torch.equal(merged.tensors["conv.weight"], base["conv.weight"])
    assert relative_error(merged.tensors["q.weight"], definition(models, "q.weight", "norm", rest)) < 2e-7


def test_equal_information_makes_the_weighted_mean(tmp_path):
    base, models = fisher_models()
    alike = [replace(m, examples=1, fisher={name: torch.ones(base[name].shape) for name in PARAMETERS}) for m in models]
    fisher = merge_models(tmp_path / "fisher", alike, base, recipe_of("fisher"))
    mean = merge_models(tmp_path / "mean", alike, base, recipe_of("linear"))
    for name in PARAMETERS:
        assert relative_error(fisher.tensors[name], mean.tensors[name]) < 2e-7


def test_neither_order_nor_shards_nor_chunks_change_a_bit(tmp_path, monkeypatch):
    base, models = fisher_models(members=4)
    one = merge_models(tmp_path / "one", models, base, recipe_of("fisher"))
    monkeypatch.setattr(schedule, "CHUNK_BYTES", 28)
    other = merge_models(tmp_path / "other", models[::-1], base, recipe_of("fisher"), shard_bytes=1000)
    assert len(other.results) > 1
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_progress_counts_every_byte_that_is_read(tmp_path):
    base, models = fisher_models()
    counted: list[int] = []
    merged = merge_models(tmp_path, models, base, recipe_of("fisher"), on_progress=counted.append)
    assert sum(counted) == merged.plan.input_bytes
    assert merged.plan.layers is None


def test_what_somebody_sent_nothing_of_is_averaged_and_told_by_name(tmp_path):
    base, models = fisher_models()
    del models[1].fisher["q.weight"]
    for model in models:
        del model.fisher["norm.weight"]
    merged = merge_models(tmp_path, models, base, recipe_of("fisher"))
    reasons = {entry["parameters"][0]: str(entry["reason"]) for entry in merged.exceptions}
    assert reasons == {
        "q.weight": "1 of 3 contributions sent no Fisher information of it: model 01",
        "norm.weight": "no contribution sent Fisher information of it",
    }
    mean = sum(float(m.weight) * m.weights["q.weight"].double() for m in models) / sum(float(m.weight) for m in models)
    assert relative_error(merged.tensors["q.weight"], mean) < 2e-7


def test_a_merge_that_would_be_an_average_under_another_name_is_refused():
    base, models = fisher_models()
    members = [member_of(model) for model in models]
    odd = Member("zz", "umbrella", 1.0, infos(base))
    with pytest.raises(RecipeInvalidError, match="fisher would be an average; none came from umbrella"):
        plan_merge([*members, odd], infos(base), recipe_of("fisher"))
    with pytest.raises(RecipeInvalidError, match=r"gramfuse stats fisher"):
        plan_merge([member_of(Model(m.key, m.weights, m.taps)) for m in models], infos(base), recipe_of("fisher"))


def test_drawn_and_given_labels_do_not_mix():
    base, models = fisher_models()
    odd = Model("zz", models[0].weights, fisher=models[0].fisher, fisher_labels="given")
    with pytest.raises(RecipeInvalidError, match="given: model zz; sampled: model 00, model 01"):
        plan_merge([member_of(model) for model in [*models[:2], odd]], infos(base), recipe_of("fisher"))


@pytest.mark.parametrize("normalize", ["equal", "norm", "parameter_norm"])
def test_rows_of_a_head_are_weighed_among_those_who_trained_them(tmp_path, normalize):
    base, models = fisher_models()
    rows = LabelRows(frozenset({"k.weight"}), frozenset({0, 1}))
    first = replace(models[0], labels=rows)
    merged = merge_models(tmp_path, [first, *models[1:]], base, recipe_of("fisher", normalize=normalize))
    found = merged.tensors["k.weight"]
    assert relative_error(found[:2], definition(models, "k.weight", normalize)[:2]) < 2e-7
    assert relative_error(found[2:], definition(models[1:], "k.weight", normalize)[2:]) < 2e-7


def test_information_of_another_shape_is_refused_by_name():
    base, models = fisher_models()
    models[1].fisher["q.weight"] = torch.ones(3, 3)
    with pytest.raises(ArchitectureMismatchError, match=r"q\.weight is \[8, 24\].*model 01 says \[3, 3\]"):
        plan_merge([member_of(model) for model in models], infos(base), recipe_of("fisher"))


@pytest.mark.parametrize("value", [-1e-9, float("inf"), float("nan")])
def test_what_is_no_sum_of_squares_ends_the_merge(tmp_path, monkeypatch, value):
    """Local files were not inspected by anybody: the engine looks at what it reads."""
    base, models = fisher_models()
    models[1].fisher["norm.weight"][3] = value
    monkeypatch.setattr("gramfuse.measuring.fisher._norm", lambda _name, _values: 1.0)
    with pytest.raises(StatisticsInvalidError, match=r"norm\.weight holds a negative or infinite value or NaN"):
        merge_models(tmp_path, models, base, recipe_of("fisher"))


@pytest.mark.parametrize("normalize", ["norm", "parameter_norm"])
def test_the_divisor_of_norms_is_no_parameter_of_other_methods(normalize):
    with pytest.raises(ValueError, match=f"normalize: {normalize} is a parameter of fisher, not of regmean"):
        recipe_of("regmean", normalize=normalize)


def test_the_method_says_its_precision_alone():
    method = METHODS["fisher"]
    assert isinstance(method, ElementMethod)
    values = torch.tensor([2.0, 0.0])
    for normalize, scale in (("equal", 3 / 50), ("rows", 3.0), ("norm", 3 / 7), ("parameter_norm", 3 / 7)):
        precision = method.elementwise_precision(Fisher(values, 50, 7.0), 3.0, MethodSettings(1.0, normalize))
        assert precision.values is values
        assert precision.scale == pytest.approx(scale)
    none = method.elementwise_precision(Fisher(values, 50, 0.0), 3.0, MethodSettings(1.0, "norm"))
    assert none.scale == 0.0
