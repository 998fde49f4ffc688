"""Refits of linear layers: what may be asked and answered, which recipes there are, and the engine in float64."""

from contextlib import ExitStack

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from gramfuse.measuring.refit import RefitStatistics
from gramfuse_shared.contract.answer_rules import require_answer_allowed
from gramfuse_shared.contract.manifest import BaseManifest, StatisticsSection
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import Recipe, parse_recipe
from gramfuse_shared.contract.refits import layers_that_may_be_refit
from gramfuse_shared.contract.requests import Answer, RequestCreate, require_request_allowed
from gramfuse_shared.contract.rules import require_statistics_architecture
from gramfuse_shared.contract.scales_file import ScalesMetadata
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    HeaderMalformedError,
    PolicyViolationError,
    RecipeInvalidError,
    RequestMalformedError,
)
from gramfuse_shared.merging.execution import MemberReader, execute_task
from gramfuse_shared.merging.plan import Member
from gramfuse_shared.merging.refit_planning import plan_layers
from gramfuse_shared.merging.steps import CopyStep
from gramfuse_shared.merging.streaming import LocalFile, TensorFile
from gramfuse_shared.reporting.policies import describe_policy
from support.merging_cases import CPU, infos
from support.refits import WIDTH, layer_statistics, rows_of_layers

DIGEST = "ab" * 32
POLICY = Policy(methods=("linear", "refit"), requests=("refit",), minimum_rows_per_dimension=2)
SHAPES = {
    "layer.0.q.weight": (4, WIDTH),
    "layer.0.q.bias": (4,),
    "layer.0.k.weight": (3, WIDTH),
    "layer.0.k.bias": (3,),
    "layer.0.conv.weight": (WIDTH, 7),
    "word_embeddings.weight": (9, WIDTH),
    "classifier.weight": (2, WIDTH),
    "classifier.bias": (2,),
}
LAYERS = ("layer.0.k.weight", "layer.0.q.weight")
NEEDED = 2 * (WIDTH + 1)


def base_of(shapes=SHAPES) -> BaseManifest:
    entries = [{"name": name, "dtype": "F32", "shape": shape} for name, shape in shapes.items()]
    entry = {"bytes": 1, "sha256": DIGEST}
    files = [{"name": "config.json", **entry}, {"name": "model.safetensors", **entry, "tensors": entries}]
    return BaseManifest.model_validate({"files": files})


def section(outputs=None, *, rows=100, width=WIDTH, source="mixed", layouts=None, **changes) -> StatisticsSection:
    found = outputs or {name: SHAPES[name][0] for name in LAYERS}
    metadata = layer_statistics(found, rows, width=width, source=source, layouts=layouts).metadata()
    values = 4 * (width + 1) * (width + 1 + sum(found.values()))
    file = {"name": "statistics.safetensors", "bytes": values + 400, "sha256": DIGEST}
    return StatisticsSection.model_validate(
        {"file": file, "taps": metadata.taps, "collector": metadata.collector} | changes
    )


def answer(statistics: StatisticsSection | None) -> Answer:
    document = {
        "project": "acme.tweets",
        "request": "refit-1",
        "organization": "globex",
        "policy": {"version": 1, "digest": DIGEST},
        "statistics": statistics,
    }
    return Answer.model_validate(document)


def asked(*layers: str) -> RequestCreate:
    return RequestCreate(kind="refit", models=("first",), layers=layers)


def require(statistics, request=None, policy=POLICY, base=None):
    require_answer_allowed(answer(statistics), request or asked(), policy, base or base_of())


# --- what may be asked -----------------------------------------------------------------------------------------------


def test_refits_are_asked_where_the_policy_names_them_in_requests_and_methods_be_heads_private_or_not():
    for heads in ("private", "shared"):
        require_request_allowed("refit", POLICY.model_copy(update={"heads": heads}))
    with pytest.raises(PolicyViolationError, match="allows no requests"):
        require_request_allowed("refit", POLICY.model_copy(update={"requests": ()}))
    with pytest.raises(PolicyViolationError, match="nothing be merged by refit"):
        require_request_allowed("refit", POLICY.model_copy(update={"methods": ("linear", "regmean")}))


@pytest.mark.parametrize(
    "changes",
    [{"models": ("first", "second")}, {"weighting": "output_gradient"}, {"block": "own", "layers": LAYERS}],
)
def test_a_refit_is_of_one_model_its_own_and_weights_nothing(changes):
    with pytest.raises(ValidationError, match="of the kind refit"):
        RequestCreate.model_validate({"kind": "refit", "models": ("first",)} | changes)


def test_whoever_accepts_a_policy_is_told_what_a_refit_reveals():
    assert "the two tell the server your own layers" in " ".join(describe_policy(POLICY))


def test_layers_that_may_be_refit_are_matrices_outside_heads_and_embeddings_that_leave_with_their_bias():
    body = {"layer.0.q.weight", "layer.0.k.weight", "layer.0.conv.weight"}
    assert layers_that_may_be_refit(base_of(), POLICY) == body
    shared = POLICY.model_copy(update={"heads": "shared", "embeddings": "average"})
    assert layers_that_may_be_refit(base_of(), shared) == body
    private_bias = POLICY.model_copy(update={"head_parameters": ("*.q.bias",)})
    assert layers_that_may_be_refit(base_of(), private_bias) == body - {"layer.0.q.weight"} | {"classifier.weight"}


# --- what an answer may hold -----------------------------------------------------------------------------------------


def test_refit_statistics_answer_refit_and_nothing_else_does():
    require(section())
    require(section(), asked(*LAYERS))
    gram = [tap.model_copy(update={"layers": tuple(one.model_copy(update={"outputs": None}) for one in tap.layers)})
            for tap in section().taps]  # fmt: skip
    for statistics in (None, section(taps=gram), section({"classifier.weight": 2}, labels=2, taps=_head_taps())):
        with pytest.raises(RequestMalformedError, match="and nothing else"):
            require(statistics)
    gram_policy = POLICY.model_copy(update={"requests": ("gram",), "methods": ("regmean",)})
    with pytest.raises(RequestMalformedError, match="and nothing else"):
        require(section(), RequestCreate(kind="gram", models=("first",)), gram_policy)


def _head_taps():
    tap = section({"classifier.weight": 2}).taps[0]
    return [tap.model_copy(update={"layers": (tap.layers[0].model_copy(update={"outputs": None}),)})]


def test_statistics_of_few_rows_and_of_what_embeddings_feed_stay_where_they_are():
    require(section(rows=NEEDED))
    with pytest.raises(PolicyViolationError, match=f"{NEEDED - 1} distinct rows, the policy wants {NEEDED}"):
        require(section(rows=NEEDED - 1))
    for source in ("embeddings", "unknown"):
        with pytest.raises(PolicyViolationError, match="embedding_taps: withhold"):
            require(section(source=source))
        require(section(source=source), policy=POLICY.model_copy(update={"embedding_taps": "send"}))


@pytest.mark.parametrize("weight", ["classifier.weight", "word_embeddings.weight"])
def test_nothing_of_a_layer_that_stays_leaves_not_even_beside_one_that_may(weight):
    with pytest.raises(PolicyViolationError, match=f"what {weight} would be refit from may not leave"):
        require(section({"layer.0.q.weight": 4, weight: SHAPES[weight][0]}))


def test_a_layer_that_was_not_asked_for_is_refused():
    with pytest.raises(ArchitectureMismatchError, match=r"layer\.0\.k\.weight was not asked for"):
        require(section(), asked("layer.0.q.weight"))


def test_products_have_a_column_for_each_output_however_the_weight_is_stored():
    require_statistics_architecture(section(), base_of())
    conv = {"layer.0.conv.weight": 7}
    require_statistics_architecture(section(conv, layouts={"layer.0.conv.weight": "in_out"}), base_of())
    for wrong, message in (
        (section({"layer.0.q.weight": 5}), "has 4 outputs, and its product 5 columns"),
        (section({"layer.0.q.weight": 4}, width=WIDTH + 1), f"{WIDTH + 1} wide"),
        (section(conv), f"{WIDTH} wide"),
        (section({"other.weight": 4}), "not a tensor of the base"),
        (section({"layer.0.q.bias": 4}), "does not fit"),
    ):
        with pytest.raises(ArchitectureMismatchError, match=message):
            require_statistics_architecture(wrong, base_of())


def test_a_file_too_short_for_its_products_is_refused_by_its_length():
    short = {"name": "statistics.safetensors", "bytes": 4 * (WIDTH + 1) ** 2 + 100, "sha256": DIGEST}
    with pytest.raises(HeaderMalformedError):
        require_statistics_architecture(section(file=short), base_of())


def test_no_scales_have_outputs():
    document = {"base": DIGEST, "collector_version": "1.0.0", "examples": 3, "clip": 1.0, "clip_percentile": 90}
    with pytest.raises(ValidationError, match="no layer of theirs has outputs"):
        ScalesMetadata.model_validate(document | {"taps": section().taps})


# --- recipes ---------------------------------------------------------------------------------------------------------

ANEW = "base_model: first\nrequest: refit-1\n"


def test_a_recipe_of_a_refit_says_its_ridge_though_nobody_chose_one():
    recipe = parse_recipe("merge_method: refit\n" + ANEW)
    assert recipe.parameters.ridge == 0.01
    assert Recipe.parse(recipe.canonical()) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: refit\n", "the answers to a request"),
        ("merge_method: refit\nparameters: {ridge: 0}\n" + ANEW, "layers are refit with a ridge above 0"),
        ("merge_method: refit\nparameters: {exclude: ['*.q.*']}\n" + ANEW, "leave out exclude"),
    ],
)
def test_a_refit_that_cannot_be_is_refused(text, message):
    with pytest.raises(RecipeInvalidError, match=message):
        parse_recipe(text)


# --- the engine ------------------------------------------------------------------------------------------------------

OUTPUTS = {"layer.0.q.weight": 4, "layer.0.k.weight": 3, "layer.0.conv.weight": 7}
LAYOUTS = {"layer.0.conv.weight": "in_out"}


@pytest.fixture
def model():
    """A merged model, whose third layer is stored [in, out] and has no bias."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} | {
        "positions": torch.arange(5)
    }


class Owner:
    """An organization whose layers all read one tap, or each its own, and its place in a merge."""

    def __init__(self, number, rows, *, weight=1.0, outputs=None, apart=False, layouts=None):
        self.key, self.rows, self.weight = f"{number:02d}", rows, weight
        self.outputs = OUTPUTS if outputs is None else outputs
        self.seed = 100 + number
        parts = [{name: m} for name, m in self.outputs.items()] if apart else [self.outputs]
        self.parts = [(part, self.seed + at) for at, part in enumerate(parts)]
        self.statistics = RefitStatistics()
        for part, seed in self.parts:
            self.statistics += layer_statistics(part, rows, seed, layouts=layouts or LAYOUTS)

    @property
    def member(self):
        return Member(self.key, f"org-{self.key}", self.weight, {}, self.statistics.metadata().taps)

    def pooled(self, layer):
        """x̃ and e of one layer, float64."""
        part, seed = next((part, seed) for part, seed in self.parts if layer in part)
        x, lacking = rows_of_layers(part, self.rows, seed)
        return x.double(), lacking[layer].double()


def recipe(**parameters):
    top = {key: parameters.pop(key) for key in ("out_dtype",) if key in parameters}
    document = {"merge_method": "refit", "base_model": "first", "request": "r", "parameters": parameters} | top
    return Recipe.model_validate(document)


def plan(owners, model, chosen=None, only=OUTPUTS, **options):
    return plan_layers([owner.member for owner in owners], infos(model), chosen or recipe(), only=only, **options)


def run(planned, folder, model, owners, **options):
    (folder / "out").mkdir(parents=True, exist_ok=True)
    tensors, diagnostics = {}, []
    with ExitStack() as stack:

        def open_file(path):
            return TensorFile.open(stack.enter_context(LocalFile(path)))

        save_file(model, folder / "model.safetensors")
        origin, readers = open_file(folder / "model.safetensors"), {}
        for owner in owners:
            owner.statistics.save(folder / f"{owner.key}.safetensors")
            readers[owner.key] = MemberReader(origin, open_file(folder / f"{owner.key}.safetensors"))
        for task in planned.tasks:
            target = folder / "out" / task.file_name
            diagnostics += execute_task(planned, task.index, readers, origin, target, device=CPU, **options).diagnostics
            tensors |= load_file(target)
    return tensors, diagnostics


def refit_by_definition(model, layer, owners, ridge, scale=lambda owner: owner.weight / owner.rows):
    """Least squares on the pooled rows over one row of no difference for each feature; with what the model has."""
    pairs = [(scale(owner) ** 0.5, *owner.pooled(layer)) for owner in owners]
    x, e = torch.cat([root * x for root, x, _ in pairs]), torch.cat([root * e for root, _, e in pairs])
    bias = layer.replace("weight", "bias")
    if bias not in model:
        x = x[:, :-1]
    penalty = torch.diag((ridge * x.square().sum(dim=0)).sqrt())
    change = torch.linalg.lstsq(torch.cat([x, penalty]), torch.cat([e, e.new_zeros(len(penalty), e.shape[1])])).solution
    weight = model[layer].double() + (change[:WIDTH] if layer in LAYOUTS else change[:WIDTH].T)
    return {layer: weight} | ({bias: model[bias].double() + change[WIDTH]} if bias in model else {})


def require_refit(tensors, model, owners, ridge=0.01, **options):
    expected = {}
    for layer in OUTPUTS:
        expected |= refit_by_definition(model, layer, owners, ridge, **options)
    for name, value in expected.items():
        torch.testing.assert_close(tensors[name].double(), value, atol=1e-6, rtol=1e-5)
    assert {name for name in model if not torch.equal(model[name], tensors[name])} == set(expected)


@pytest.mark.parametrize("normalize", ["equal", "rows"])
@pytest.mark.parametrize("apart", [False, True])
def test_layers_are_ridge_regression_of_all_differences_on_all_rows_and_the_rest_stays(
    model, tmp_path, normalize, apart
):
    owners = [Owner(0, 40), Owner(1, 90, weight=2.0, apart=apart), Owner(2, 25)]
    planned = plan(owners, model, recipe(ridge=0.05, normalize=normalize))
    tensors, entries = run(planned, tmp_path, model, owners)
    scale = {"rows": lambda owner: owner.weight, "equal": lambda owner: owner.weight / owner.rows}[normalize]
    require_refit(tensors, model, owners, 0.05, scale=scale)
    # what reads one tap in every answer, with a bias or without, is solved together
    grouped = [["q.weight", "q.bias", "k.weight", "k.bias"], ["conv.weight"]]
    if apart:
        grouped = [["q.weight", "q.bias"], ["k.weight", "k.bias"], ["conv.weight"]]
    assert [entry["parameters"] for entry in entries] == [[f"layer.0.{name}" for name in names] for names in grouped]
    assert {(entry["method"], entry["fallback"], entry["members"]) for entry in entries} == {("refit", "none", 3)}
    assert (entries[0]["rows"], entries[0]["fewest_rows"], entries[0]["width"]) == (155, 25, WIDTH + 1)
    assert (planned.method, planned.method_version, planned.layers) == ("refit", "refit/1", None)


def test_layers_that_somebody_did_not_answer_stay(model, tmp_path):
    owners = [Owner(0, 40), Owner(1, 30, outputs={"layer.0.q.weight": 4})]
    tensors, _ = run(plan(owners, model, only={"layer.0.q.weight"}), tmp_path, model, owners)
    changed = {name for name in model if not torch.equal(model[name], tensors[name])}
    assert changed == {"layer.0.q.weight", "layer.0.q.bias"}


def test_whoever_has_no_weight_has_no_say_and_too_few_change_nothing(model, tmp_path):
    owners = [Owner(0, 40), Owner(1, 60, weight=0.0), Owner(2, 30)]
    planned = plan(owners, model, minimum_holders=2)
    tensors, _ = run(planned, tmp_path, model, owners)
    require_refit(tensors, model, [owners[0], owners[2]])
    assert list(planned.labels.values()) == ["org-00", "org-02"]
    with pytest.raises(RecipeInvalidError, match="answered by 3 of the organizations"):
        plan(owners, model, minimum_holders=3)


def test_the_order_in_which_members_are_given_changes_no_bit(model, tmp_path):
    owners = [Owner(number, 30 + number) for number in range(3)]
    one, other = (
        run(plan(order, model), tmp_path / str(number), model, order)[0]
        for number, order in enumerate((owners, owners[::-1]))
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_progress_counts_the_bytes_that_the_plan_announces_in_one_shard_and_in_several(model, tmp_path):
    owners = [Owner(0, 40), Owner(1, 60)]
    for name, shard_bytes in (("one", 2**20), ("several", 150)):
        planned, read = plan(owners, model, shard_bytes=shard_bytes), []
        tensors, _ = run(planned, tmp_path / name, model, owners, on_progress=read.append)
        assert sum(read) == planned.input_bytes
        require_refit(tensors, model, owners)
    assert len(planned.tasks) > 1


def test_what_is_written_in_another_dtype_is_all_of_it(model, tmp_path):
    owners = [Owner(0, 40), Owner(1, 90)]
    tensors, _ = run(plan(owners, model, recipe(out_dtype="bfloat16")), tmp_path, model, owners)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16, torch.int64}


def test_layers_that_the_model_has_not_or_that_are_stored_in_two_ways_are_refused(model):
    with pytest.raises(ArchitectureMismatchError, match=r"other\.weight is no parameter"):
        plan([Owner(0, 40, outputs={"other.weight": 4})], model, only={"other.weight"})
    odd = Owner(1, 40, layouts=dict.fromkeys(OUTPUTS, "in_out"))
    with pytest.raises(ArchitectureMismatchError, match="in_out to another"):
        plan([Owner(0, 40), odd], model)
    with pytest.raises(RecipeInvalidError, match="nothing can be refit"):
        plan([Owner(0, 40)], model, minimum_holders=2)


def test_where_the_answers_have_no_layer_in_common_the_plan_is_a_copy(model):
    planned = plan([Owner(0, 40), Owner(1, 40)], model, only=(), minimum_holders=2)
    steps = [step for task in planned.tasks for step in task.steps]
    assert {type(step) for step in steps} == {CopyStep}
    assert {output.name for step in steps for output in step.outputs} == model.keys()
    assert len(planned.labels) == 2
