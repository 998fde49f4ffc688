"""What is merged how: every case of the plan."""

import json
from dataclasses import replace

import pytest
from pydantic import ValidationError

from gramfuse_shared import limits
from gramfuse_shared.contract.manifest import LayerInfo, TapInfo, TensorInfo
from gramfuse_shared.contract.recipe import Conditional, Recipe
from gramfuse_shared.errors import ArchitectureMismatchError, RecipeInvalidError
from gramfuse_shared.merging.plan import LabelRows, Member, MergePlan
from gramfuse_shared.merging.planning import plan_merge
from gramfuse_shared.merging.steps import AverageStep, CopyStep, GramStep, RowsStep, Step
from support.merging_cases import recipe_of

SHAPES = {"a.weight": (4, 8), "b.weight": (3, 8), "c.weight": (8, 5), "norm.weight": (8,)}


def tensors(*names: str, dtype: str = "F32", **shapes: tuple[int, ...]) -> dict[str, TensorInfo]:
    chosen = names or tuple(SHAPES)
    return {
        name: TensorInfo.model_validate({"name": name, "dtype": dtype, "shape": shapes.get(name, SHAPES[name])})
        for name in chosen
    }


def tap(name: str, *weights: str, width: int = 8, layout: str = "out_in", rows: int = 1000) -> TapInfo:
    layers = tuple(LayerInfo.model_validate({"weight": weight, "layout": layout}) for weight in weights)
    return TapInfo(name=name, width=width, rows=rows, distinct_rows=rows, source="mixed", layers=layers)


def member(key: str, *taps: TapInfo, weight=1.0, stored: dict[str, TensorInfo] | None = None) -> Member:
    return Member(key, f"model {key}", weight, tensors() if stored is None else stored, taps)


def steps_of(plan: MergePlan) -> dict[str, Step]:
    return {output.name: step for task in plan.tasks for step in task.steps for output in step.outputs}


AB = tap("x", "a.weight", "b.weight")


def test_linears_that_share_a_tap_are_one_group():
    plan = plan_merge([member("1", AB), member("2", AB)], tensors(), recipe_of())
    steps = steps_of(plan)
    assert isinstance(steps["a.weight"], GramStep)
    assert steps["a.weight"] is steps["b.weight"]
    assert steps["a.weight"].height == 7
    assert isinstance(steps["norm.weight"], AverageStep)


def test_linears_that_share_a_tap_in_one_member_only_are_apart():
    split = (tap("x", "a.weight"), tap("y", "b.weight"))
    steps = steps_of(plan_merge([member("1", AB), member("2", *split)], tensors(), recipe_of()))
    first, second = steps["a.weight"], steps["b.weight"]
    assert isinstance(first, GramStep)
    assert isinstance(second, GramStep)
    assert first is not second
    assert [term.tap.name for term in first.terms] == ["x", "x"]
    assert [term.tap.name for term in second.terms] == ["x", "y"]


def test_a_linear_whose_tap_one_member_withholds_is_averaged_and_the_reason_is_told():
    steps = steps_of(plan_merge([member("1", AB), member("2"), member("3", AB)], tensors(), recipe_of()))
    step = steps["a.weight"]
    assert isinstance(step, AverageStep)
    assert step.reason == "1 of 3 contributions sent no statistics of its inputs: model 2"
    assert steps["c.weight"].reason == "no contribution sent statistics of its inputs"


def test_where_the_recipe_says_so_the_precision_of_a_member_without_statistics_is_estimated():
    plan = plan_merge(
        [member("1"), member("2", AB), member("3", AB)], tensors(), recipe_of(missing_statistics="estimate")
    )
    step = steps_of(plan)["a.weight"]
    assert isinstance(step, GramStep)
    assert step is steps_of(plan)["b.weight"]
    assert [(term.key, term.tap) for term in step.terms] == [("2", AB), ("3", AB), ("1", None)]
    assert (step.estimated, step.reference) == (("1",), None)
    assert step.stored_bytes == (3 + 1) * (4 + 3) * 8 * 4  # three members and the base
    assert str(plan.layers) == (
        "2 of 3 linear layers are solved, 2 of them with a precision estimated from the difference to the base: model "
        "1; 1 averaged: no contribution sent statistics of its inputs"
    )


def test_a_layer_that_everybody_measured_is_planned_alike_whether_what_is_missing_is_estimated_or_not():
    members = [member("1", AB), member("2", AB)]
    assert plan_merge(members, tensors(), recipe_of()) == plan_merge(
        members, tensors(), recipe_of(missing_statistics="estimate")
    )


def test_an_estimate_needs_a_base_to_differ_from():
    members = [member("1", AB), member("2")]
    with pytest.raises(RecipeInvalidError, match="differences to the base model, and the recipe names none"):
        plan_merge(members, None, recipe_of(missing_statistics="estimate"))
    plan_merge(members, None, recipe_of("linear", missing_statistics="estimate"))  # which does not read it


def test_a_tap_that_fits_no_weight_is_refused_beside_an_estimate_too():
    members = [member("1", tap("x", "a.weight", width=5)), member("2")]
    with pytest.raises(ArchitectureMismatchError, match="statistics of model 1 describe it"):
        plan_merge(members, tensors(), recipe_of(missing_statistics="estimate"))


def test_the_plan_counts_what_is_solved_and_what_is_averaged_for_want_of_statistics():
    plan = plan_merge([member("1", AB), member("2"), member("3", AB)], tensors(), recipe_of())
    assert plan.layers is not None
    assert (plan.layers.solved, plan.layers.averaged) == (0, sum(len(t.shape) == 2 for t in tensors().values()))
    assert "model 2" in str(plan.layers)
    everybody = plan_merge([member("1", AB), member("2", AB)], tensors(), recipe_of()).layers
    assert everybody is not None
    assert everybody.solved > 0
    assert "no contribution sent statistics" in str(everybody)  # of the matrices that no tap feeds
    assert plan_merge([member("1", AB), member("2", AB)], tensors(), recipe_of("linear")).layers is None


def test_an_embedding_is_averaged_without_being_missed_among_the_linear_layers():
    embedding = TensorInfo(name="bert.word_embeddings.weight", dtype="F32", shape=(31, 8))
    stored = tensors() | {embedding.name: embedding}
    members = [member(key, AB, stored=stored) for key in ("1", "2")]
    plan = plan_merge(members, stored, recipe_of())
    step = steps_of(plan)[embedding.name]
    assert isinstance(step, AverageStep)
    assert step.reason is None
    assert plan.layers is not None
    assert (plan.layers.solved, plan.layers.averaged) == (2, 1)  # c.weight
    plan = plan_merge(members, stored, recipe_of(), embedding_parameters=("c.*",))
    assert steps_of(plan)["c.weight"].reason is None


def test_a_member_without_the_weight_or_without_a_say_cannot_withhold_its_tap():
    without = member("2", stored=tensors("b.weight", "c.weight", "norm.weight"))
    mute = member("4", weight=0.0)
    steps = steps_of(plan_merge([member("1", AB), without, member("3", AB), mute], tensors(), recipe_of()))
    assert isinstance(steps["a.weight"], GramStep)
    assert [term.key for term in steps["a.weight"].terms] == ["1", "3"]
    assert isinstance(steps["b.weight"], AverageStep)


def test_members_are_added_in_ascending_key_whatever_order_they_come_in():
    one = plan_merge([member("2", AB), member("1", AB)], None, recipe_of())
    assert one == plan_merge([member("1", AB), member("2", AB)], None, recipe_of())
    assert list(one.labels) == ["1", "2"]
    assert steps_of(one)["a.weight"].reference == "1"


def test_different_alphas_or_weights_split_a_group():
    alpha = [{"filter": "a.*", "value": 0.5}, {"value": 0.9}]
    steps = steps_of(plan_merge([member("1", AB), member("2", AB)], tensors(), recipe_of(alpha=alpha)))
    assert steps["a.weight"].settings.alpha == 0.5
    assert steps["b.weight"].settings.alpha == 0.9
    weight = (Conditional(filter="b.*", value=3.0),)
    steps = steps_of(plan_merge([member("1", AB, weight=weight), member("2", AB)], tensors(), recipe_of()))
    assert [term.weight for term in steps["a.weight"].terms] == [1.0, 1.0]
    assert [term.weight for term in steps["b.weight"].terms] == [3.0, 1.0]


def test_a_member_may_have_no_say_in_some_parameters():
    weight = (Conditional(filter="norm", value=0.0),)
    steps = steps_of(plan_merge([member("1", weight=weight), member("2")], tensors(), recipe_of("linear")))
    assert steps["norm.weight"] == CopyStep(tensors()["norm.weight"], "2", tensors()["norm.weight"])
    assert isinstance(steps["a.weight"], AverageStep)


def test_a_parameter_that_nobody_has_a_say_in_is_the_bases():
    weight = (Conditional(filter="norm", value=0.0),)
    nobody = [member("1", weight=weight), member("2", weight=weight)]
    assert steps_of(plan_merge(nobody, tensors(), recipe_of("linear")))["norm.weight"].source is None
    with pytest.raises(RecipeInvalidError, match=r"norm\.weight a weight above 0"):
        plan_merge(nobody, None, recipe_of("linear"))


def test_a_parameter_that_no_member_stores_is_the_bases():
    body = member("1", stored=tensors("a.weight"))
    steps = steps_of(plan_merge([body], tensors(), recipe_of("linear")))
    assert steps["norm.weight"].source is None
    assert steps["a.weight"].source == "1"


def test_a_parameter_that_only_members_store_is_merged_over_those_that_do():
    parts = [member("1"), member("2"), member("3", stored=tensors("a.weight"))]
    steps = steps_of(plan_merge(parts, tensors("a.weight"), recipe_of("linear")))
    step = steps["norm.weight"]
    assert isinstance(step, AverageStep)
    assert [term.key for term in step.terms] == ["1", "2"]
    assert step.reference == steps["a.weight"].reference == "1"


def test_a_parameter_that_fewer_members_hold_than_must_is_the_bases_and_the_reason_is_told():
    members = [member("1"), member("2"), member("3", stored=tensors("a.weight"))]
    steps = steps_of(plan_merge(members, tensors(), recipe_of(method="linear"), minimum_holders=3))
    alone = steps["b.weight"]
    assert isinstance(steps["a.weight"], AverageStep)
    assert isinstance(alone, CopyStep)
    assert (alone.source, alone.reason) == (None, "2 of 3 contributions hold it, 3 are needed")
    with pytest.raises(RecipeInvalidError, match=r"too few models give b\.weight a weight"):
        plan_merge(members, tensors("a.weight"), recipe_of(method="linear"), minimum_holders=3)


def test_excluded_parameters_are_the_bases_and_need_one():
    recipe = recipe_of(exclude=["a.*"])
    step = steps_of(plan_merge([member("1", AB), member("2", AB)], tensors(), recipe))["a.weight"]
    assert isinstance(step, CopyStep)
    assert step.source is None
    assert step.reason == "excluded by the recipe"
    with pytest.raises(RecipeInvalidError, match="add base_model"):
        plan_merge([member("1")], None, recipe)
    assert "a.weight" not in steps_of(plan_merge([member("1")], tensors("b.weight"), recipe))


def test_tensors_that_are_not_floating_point_are_the_bases_or_the_first_members():
    integers = tensors("norm.weight", dtype="I64")
    members = [member("2", stored=integers), member("1", stored=integers)]
    assert steps_of(plan_merge(members, integers, recipe_of()))["norm.weight"].source is None
    without = steps_of(plan_merge(members, None, recipe_of(out_dtype="bfloat16")))["norm.weight"]
    assert without.source == "1"
    assert without.outputs[0].dtype == "I64"


def test_a_linear_weight_that_a_tap_names_but_the_checkpoint_does_not_store_is_no_matter():
    tied = tap("head", "lm_head.weight", "a.weight")
    plan = plan_merge([member("1", tied), member("2", tied)], tensors(), recipe_of())
    assert "lm_head.weight" not in steps_of(plan)
    assert isinstance(steps_of(plan)["a.weight"], GramStep)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_output_dtype_is_the_recipes_or_as_stored(dtype):
    names = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    mixed = {**tensors("a.weight", dtype="F16"), **tensors("norm.weight", dtype="F32")}
    steps = steps_of(plan_merge([member("1")], mixed, recipe_of("linear")))
    assert [steps[name].outputs[0].dtype for name in mixed] == ["F16", "F32"]
    steps = steps_of(plan_merge([member("1")], mixed, recipe_of("linear", out_dtype=dtype)))
    assert {steps[name].outputs[0].dtype for name in mixed} == {names[dtype]}


@pytest.mark.parametrize(
    ("alpha", "rows", "dtype", "stored", "expected"),
    [
        (0.9, 1000, None, "F32", "float32"),
        (0.96, 1000, None, "F32", "float64"),
        (0.96, 1000, "float32", "F32", "float64"),  # a recipe cannot ask for digits that are not there
        (0.9, 10, None, "F32", "float64"),
        (0.9, 1000, "float64", "F32", "float64"),
        (0.9, 1000, None, "F64", "float64"),
        (0.9, 1000, None, "BF16", "float32"),
    ],
)
def test_the_precision_of_the_computation_is_what_alpha_the_rows_and_the_recipe_need(
    alpha, rows, dtype, stored, expected
):
    recipe = recipe_of(alpha=alpha, dtype=dtype)
    members = [
        member(key, tap("x", "a.weight", rows=rows), stored=tensors("a.weight", dtype=stored)) for key in ("1", "2")
    ]
    assert steps_of(plan_merge(members, None, recipe))["a.weight"].compute == expected


def test_shapes_that_differ_are_refused_with_the_name_of_parameter_and_model():
    other = member("2", stored=tensors(**{"norm.weight": (9,)}))
    with pytest.raises(ArchitectureMismatchError, match=r"norm\.weight is F32 \[9\] in model 2"):
        plan_merge([member("1"), other], None, recipe_of())
    with pytest.raises(ArchitectureMismatchError, match=r"norm\.weight is F32 \[9\] in model 2"):
        plan_merge([other], tensors(), recipe_of())


def test_a_float_and_an_integer_under_one_name_are_refused():
    other = member("2", stored=tensors(dtype="I64"))
    with pytest.raises(ArchitectureMismatchError, match="I64"):
        plan_merge([member("1"), other], None, recipe_of())


@pytest.mark.parametrize(
    "wrong",
    [
        tap("x", "a.weight", width=4),
        tap("x", "a.weight", width=4, layout="in_out"),
        tap("x", "norm.weight"),
    ],
)
def test_a_tap_that_does_not_fit_its_weight_is_refused(wrong):
    with pytest.raises(ArchitectureMismatchError, match="collect them again"):
        plan_merge([member("1", tap("x", "a.weight", "norm.weight")), member("2", wrong)], None, recipe_of())


def test_the_linear_method_reads_no_statistics():
    steps = steps_of(plan_merge([member("1", AB), member("2", AB)], tensors(), recipe_of("linear")))
    assert isinstance(steps["a.weight"], AverageStep)
    assert steps["a.weight"].reason is None


def test_a_merge_of_nobody_is_refused():
    with pytest.raises(RecipeInvalidError, match="positive weight"):
        plan_merge([member("1", weight=0.0)], tensors(), recipe_of())
    with pytest.raises(RecipeInvalidError, match="positive weight"):
        plan_merge([], tensors(), recipe_of())
    with pytest.raises(RecipeInvalidError, match="nothing to merge"):
        plan_merge([member("1", stored={})], None, recipe_of())


def test_the_same_content_twice_is_refused():
    with pytest.raises(RecipeInvalidError, match="same content"):
        plan_merge([member("1"), member("1")], tensors(), recipe_of())


def test_a_negative_weight_never_reaches_the_plan():
    with pytest.raises(ValidationError):
        Recipe.model_validate({"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": -1}}]})


def test_a_model_that_fits_one_file_has_no_index():
    plan = plan_merge([member("1", AB), member("2", AB)], tensors(), recipe_of())
    assert [task.file_name for task in plan.tasks] == ["model.safetensors"]
    assert plan.index_json() is None


def test_shards_are_named_as_save_pretrained_does_and_the_index_says_where_everything_is():
    plan = plan_merge([member("1", AB), member("2", AB)], tensors(), recipe_of(), shard_bytes=130)
    assert [task.file_name for task in plan.tasks] == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ]
    index = json.loads(plan.index_json() or b"")
    assert index["metadata"]["total_size"] == 4 * (4 * 8 + 3 * 8 + 8 * 5 + 8)
    assert index["weight_map"].keys() == SHAPES.keys()
    # a group is not divided, so that its statistics are read and factorized once
    assert index["weight_map"]["a.weight"] == index["weight_map"]["b.weight"]
    assert plan.input_bytes == sum(task.input_bytes for task in plan.tasks)


def test_larger_items_come_first_in_a_file_so_that_every_tensor_is_aligned():
    stored = {**tensors("norm.weight", dtype="BF16", **{"norm.weight": (3,)}), **tensors("a.weight")}
    stored |= tensors("b.weight", dtype="I64")
    plan = plan_merge([member("1", stored=stored)], None, recipe_of("linear"))
    assert plan.tasks[0].tensors == ("b.weight", "a.weight", "norm.weight")


# --- rows of heads ---------------------------------------------------------------------------------------------------


HEAD_TAP = tap("x", "a.weight")


def labelled(key: str, *trained: int, names: tuple[str, ...] = ("a.weight",)) -> Member:
    return replace(member(key, HEAD_TAP), labels=LabelRows(frozenset(names), frozenset(trained)))


def test_rows_are_merged_in_sets_that_the_same_members_trained():
    members = [labelled("1", 0, 1), labelled("2", 1, 2), member("3", HEAD_TAP)]
    step = steps_of(plan_merge(members, tensors(), recipe_of()))["a.weight"]
    assert isinstance(step, RowsStep)
    found = {
        part.rows: [term.key for term in part.step.terms] for part in step.parts if isinstance(part.step, GramStep)
    }
    assert found == {(0,): ["1", "3"], (1,): ["1", "2", "3"], (2,): ["2", "3"]}
    assert step.parts[-1].rows == (3,)
    assert step.parts[-1].step == CopyStep(tensors()["a.weight"], "3", tensors()["a.weight"])
    assert step.reason == "3 of 4 label rows were trained by fewer than the 3 contributions that hold them"


def test_a_row_that_too_few_trained_is_the_bases_like_a_parameter_that_too_few_sent():
    members = [labelled("1", 0, 1), labelled("2", 0, 1), labelled("3", 0), member("4", HEAD_TAP)]
    step = steps_of(plan_merge(members, tensors(), recipe_of("linear"), minimum_holders=3))["a.weight"]
    assert isinstance(step, RowsStep)
    (all_of_them, three, nobody) = step.parts
    assert (all_of_them.rows, three.rows, nobody.rows) == ((0,), (1,), (2, 3))
    assert isinstance(three.step, AverageStep)
    assert nobody.step == CopyStep(tensors()["a.weight"], None, tensors()["a.weight"], nobody.step.reason)
    assert step.reason.endswith("; 2 have the base's values")


def test_a_row_that_nobody_trained_needs_a_base():
    with pytest.raises(RecipeInvalidError, match=r"too few models give a\.weight"):
        plan_merge([labelled("1", 0), labelled("2", 0)], None, recipe_of("linear"))


def test_a_member_of_weight_zero_trained_no_row():
    weight = (Conditional(filter="a.", value=0.0),)
    members = [labelled("1", 0, 1, 2, 3), replace(labelled("2", 0), weight=weight), labelled("3", 0, 1, 2, 3)]
    assert isinstance(steps_of(plan_merge(members, tensors(), recipe_of()))["a.weight"], GramStep)


def test_an_excluded_head_is_the_bases_whatever_was_trained():
    recipe = recipe_of("linear", exclude=["a.*"])
    assert isinstance(steps_of(plan_merge([labelled("1", 0), member("2")], tensors(), recipe))["a.weight"], CopyStep)


@pytest.mark.parametrize(
    ("trained", "taps", "counts"),
    [
        (((0, 1), (1, 2)), (HEAD_TAP,), (1, 0)),
        (((0, 1), (1, 2)), (), (0, 1)),
        (((), ()), (HEAD_TAP,), (0, 0)),
    ],
)
def test_a_head_merged_in_sets_counts_as_one_layer(trained, taps, counts):
    head = tensors("a.weight")
    members = [replace(labelled(str(n), *rows), tensors=head, taps=taps) for n, rows in enumerate(trained)]
    layers = plan_merge(members, head, recipe_of()).layers
    assert layers is not None
    assert (layers.solved, layers.averaged) == counts


def test_there_is_a_bound_on_sets_of_rows():
    count = limits.MAX_LABEL_SETS
    wide = {"h.weight": TensorInfo(name="h.weight", dtype="F32", shape=(count, 8))}
    members = [
        replace(
            member(f"{number:03d}", stored=wide), labels=LabelRows(frozenset(wide), frozenset(range(number, count)))
        )
        for number in range(count)
    ]
    step = steps_of(plan_merge(members, wide, recipe_of("linear")))["h.weight"]
    assert isinstance(step, RowsStep)
    assert len(step.parts) == count
    wider = {"h.weight": TensorInfo(name="h.weight", dtype="F32", shape=(count + 1, 8))}
    members = [replace(member, tensors=wider) for member in members]
    with pytest.raises(RecipeInvalidError, match=f"{count + 1} different sets of contributions"):
        plan_merge(members, wider, recipe_of("linear"))


# --- members that leave out what is the base's ------------------------------------------------------------------------


def untouched(key: str, *taps: TapInfo, stored: tuple[str, ...] = ("a.weight",)) -> Member:
    return Member(key, f"model {key}", 1.0, tensors(*stored), taps, left_out="base")


A = tap("x", "a.weight")


def test_a_member_counts_with_the_bases_value_where_it_left_a_tensor_out_as_such():
    steps = steps_of(plan_merge([member("2"), untouched("1"), member("3")], tensors(), recipe_of("linear")))
    assert [term.key for term in steps["norm.weight"].terms] == ["1", "2", "3"]
    assert steps["norm.weight"].stored_bytes == 3 * 8 * 4


def test_what_a_member_left_out_without_a_word_does_not_count():
    silent = Member("1", "model 1", 1.0, tensors("a.weight"))
    steps = steps_of(plan_merge([silent, member("2"), member("3")], tensors(), recipe_of("linear")))
    assert [term.key for term in steps["norm.weight"].terms] == ["2", "3"]


def test_too_few_members_that_changed_a_tensor_leave_it_the_bases_however_many_left_it_out():
    members = [untouched("1"), untouched("2"), untouched("3", stored=("a.weight", "norm.weight"))]
    steps = steps_of(plan_merge(members, tensors(), recipe_of("linear"), minimum_holders=2))
    assert isinstance(steps["norm.weight"], CopyStep)
    assert steps["norm.weight"].source is None
    assert isinstance(steps["a.weight"], AverageStep)


def test_a_linear_that_a_member_left_out_is_solved_among_those_who_sent_its_statistics():
    members = [member("1", AB), untouched("2", A), member("3", AB)]
    steps = steps_of(plan_merge(members, tensors(), recipe_of()))
    assert [term.key for term in steps["a.weight"].terms] == ["1", "2", "3"]
    assert isinstance(steps["b.weight"], GramStep)
    assert [term.key for term in steps["b.weight"].terms] == ["1", "3"]
    assert steps["b.weight"].stored_bytes == 2 * 3 * 8 * 4


def test_a_linear_that_all_but_one_left_out_is_averaged():
    members = [untouched("1", A), member("2", AB)]
    steps = steps_of(plan_merge(members, tensors(), recipe_of()))
    assert isinstance(steps["b.weight"], AverageStep)
    assert [term.key for term in steps["b.weight"].terms] == ["1", "2"]


def test_a_member_of_no_weight_for_a_tensor_does_not_count_there():
    weight = (Conditional(filter="norm", value=0.0), Conditional(value=1.0))
    light = Member("1", "model 1", weight, tensors("a.weight"), left_out="base")
    steps = steps_of(plan_merge([light, member("2"), member("3")], tensors(), recipe_of("linear")))
    assert [term.key for term in steps["norm.weight"].terms] == ["2", "3"]
