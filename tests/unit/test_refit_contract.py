"""Head refits and calibrations: what may be asked, what an answer may hold, which recipes there are."""

import pytest
from pydantic import ValidationError

from gramfuse_shared.contract.answer_rules import require_answer_allowed
from gramfuse_shared.contract.calibration import BINS, CalibrationHistograms
from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest, StatisticsSection
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import MethodParameters, Recipe, parse_recipe
from gramfuse_shared.contract.refits import bias_of_labels
from gramfuse_shared.contract.requests import Answer, RequestCreate, require_request_allowed
from gramfuse_shared.contract.rules import require_statistics_architecture
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    HeaderMalformedError,
    PolicyViolationError,
    RecipeInvalidError,
    RequestMalformedError,
)
from gramfuse_shared.reporting.policies import describe_policy
from support.server_world import make_contribution

LABELS, WIDTH = 3, 8
DIGEST = "ab" * 32
ALLOWING = Policy(
    heads="shared",
    methods=("linear", "head", "calibration"),
    requests=("head", "calibration"),
    minimum_rows_per_dimension=2,
    minimum_evaluation_examples=10,
)
HEAD = {"classifier.weight": (LABELS, WIDTH), "classifier.bias": (LABELS,)}


def base_of(tensors=HEAD) -> BaseManifest:
    entries = [{"name": "encoder.weight", "dtype": "F32", "shape": [4, WIDTH]}]
    entries += [{"name": name, "dtype": "F32", "shape": shape} for name, shape in tensors.items()]
    entry = {"bytes": 1, "sha256": DIGEST}
    files = [{"name": "config.json", **entry}, {"name": "model.safetensors", **entry, "tensors": entries}]
    return BaseManifest.model_validate({"files": files})


def section(*, labels=LABELS, width=WIDTH + 1, rows=100, weight="classifier.weight", **changes) -> StatisticsSection:
    tap = {
        "name": "classifier",
        "width": width,
        "rows": rows,
        "distinct_rows": rows,
        "source": "mixed",
        "layers": [{"weight": weight}],
    }
    values = 4 * (width * width + width * (labels or 0))
    document = {
        "file": {"name": "statistics.safetensors", "bytes": values + 400, "sha256": DIGEST},
        "taps": [tap],
        "collector": {"collector_version": "0.1.0"},
        "labels": labels,
    }
    return StatisticsSection.model_validate(document | changes)


def histograms(*counts, labels=LABELS) -> CalibrationHistograms:
    """Of each class (label, how many bear it, how many do not), all in the middle."""

    def spread(count):
        return [count if number == BINS // 2 else 0 for number in range(BINS)]

    classes = [
        {"label": label, "labelled": spread(bearing), "others": spread(lacking)} for label, bearing, lacking in counts
    ]
    return CalibrationHistograms.model_validate({"score": "margin", "labels": labels, "classes": classes})


def answer(**parts) -> Answer:
    document = {
        "project": "acme.tweets",
        "request": "head-1",
        "organization": "globex",
        "policy": {"version": 1, "digest": DIGEST},
    }
    return Answer.model_validate(document | parts)


def asked(kind) -> RequestCreate:
    return RequestCreate(kind=kind, models=("first",))


# --- what may be asked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["head", "calibration"])
def test_a_kind_is_asked_where_the_policy_names_it_and_its_method_and_shares_heads(kind):
    require_request_allowed(kind, ALLOWING)
    for changes, message in (
        ({"requests": ()}, "allows no requests"),
        ({"methods": ("linear",)}, f"nothing be merged by {kind}"),
        ({"heads": "private"}, "needs shared heads"),
    ):
        with pytest.raises(PolicyViolationError, match=message):
            require_request_allowed(kind, ALLOWING.model_copy(update=changes))


def test_a_private_heads_statistics_are_asked_for_only_where_a_secure_sum_hides_each_ones_own():
    private = ALLOWING.model_copy(update={"heads": "private"})
    with pytest.raises(PolicyViolationError, match="with aggregation: secure nobody sees more than the sum"):
        require_request_allowed("head", private)
    secure = private.model_copy(update={"aggregation": "secure"})
    require_request_allowed("head", secure)
    with pytest.raises(PolicyViolationError, match="whose biases nobody shifts"):
        require_request_allowed("calibration", secure)


def test_gram_matrices_are_asked_only_where_regmean_may_merge_them():
    require_request_allowed("gram", Policy(requests=("gram",)))
    with pytest.raises(PolicyViolationError, match="by regmean"):
        require_request_allowed("gram", Policy(requests=("gram",), methods=("linear",)))


def test_whoever_accepts_a_policy_is_told_what_the_kinds_reveal():
    told = " ".join(describe_policy(ALLOWING))
    assert "the two tell the server your own head" in told
    assert "how often each label occurs in your labelled texts" in told
    assert "fewer than 10 distinct examples bear" in told


# --- what an answer may hold -----------------------------------------------------------------------------------------


def test_head_statistics_answer_head_and_histograms_calibration():
    require_answer_allowed(answer(statistics=section()), asked("head"), ALLOWING, base_of())
    counted = histograms((0, 10, 20), (2, 12, 18))
    require_answer_allowed(answer(histograms=counted), asked("calibration"), ALLOWING, base_of())


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("head", {}),
        ("head", {"statistics": section(labels=None, width=WIDTH)}),
        ("head", {"histograms": histograms((0, 10, 20))}),
        ("head", {"statistics": section(), "histograms": histograms((0, 10, 20))}),
        ("head", {"statistics": section(), "scores": [{"model": None, "examples": 100, "metrics": {"f1": 0.5}}]}),
        ("calibration", {"statistics": section()}),
        ("gram", {"statistics": section()}),
    ],
)
def test_an_answer_holds_what_its_kind_is_answered_by_and_nothing_else(kind, parts):
    policy = ALLOWING.model_copy(update={"requests": ("head", "calibration", "gram"), "methods": ("regmean", kind)})
    with pytest.raises(RequestMalformedError, match="and nothing else"):
        require_answer_allowed(answer(**parts), asked(kind), policy, base_of())


def test_head_statistics_of_few_rows_stay_where_they_are():
    needed = 2 * (WIDTH + 1)
    require_answer_allowed(answer(statistics=section(rows=needed)), asked("head"), ALLOWING, base_of())
    with pytest.raises(PolicyViolationError, match=f"{needed - 1} distinct rows, the policy wants {needed}"):
        require_answer_allowed(answer(statistics=section(rows=needed - 1)), asked("head"), ALLOWING, base_of())


def test_head_statistics_of_what_never_leaves_stay_too():
    own = answer(statistics=section(weight="word_embeddings.weight"))
    with pytest.raises(PolicyViolationError, match="none of the weights that read it leaves"):
        require_answer_allowed(own, asked("head"), ALLOWING, base_of(HEAD | {"word_embeddings.weight": (3, WIDTH)}))


@pytest.mark.parametrize("counts", [(9, 20), (20, 9)])
def test_a_label_that_few_bear_or_lack_is_not_counted(counts):
    with pytest.raises(PolicyViolationError, match="label 1 are counted of 9 examples, the policy wants 10"):
        require_answer_allowed(
            answer(histograms=histograms((0, 10, 10), (1, *counts))), asked("calibration"), ALLOWING, base_of()
        )


def test_histograms_of_no_label_are_no_answer():
    with pytest.raises(PolicyViolationError, match="use more labelled texts"):
        require_answer_allowed(answer(histograms=histograms()), asked("calibration"), ALLOWING, base_of())


def test_an_answer_keeps_the_bytes_that_it_had_before_there_were_refits():
    assert b"histograms" not in answer().canonical()
    assert b"labels" not in answer(statistics=section(labels=None, width=WIDTH)).canonical()


def test_a_contribution_holds_no_head_statistics():
    manifest = make_contribution(
        {"id": "acme.tweets", "base": DIGEST, "policy": {"version": 1, "digest": DIGEST}}, "acme"
    )
    document = manifest.manifest.model_dump(mode="json") | {"statistics": section().model_dump(mode="json")}
    with pytest.raises(ValidationError, match="answers a request"):
        ContributionManifest.model_validate(document)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoding": "int16"},
        {"taps": [tap.model_dump() for tap in section().taps] * 2},
        {"taps": [section().taps[0].model_dump() | {"layers": [{"weight": "c.weight", "layout": "in_out"}]}]},
        {"taps": [section().taps[0].model_dump() | {"width": 1}]},
    ],
)
def test_head_statistics_are_of_one_linear_layer_in_float32(changes):
    with pytest.raises(ValidationError, match="of one layer"):
        section(**changes)


# --- what fits the base ----------------------------------------------------------------------------------------------


def test_head_statistics_fit_a_layer_with_an_output_for_each_label_and_an_input_for_each_feature():
    require_statistics_architecture(section(), base_of())
    for wrong, message in (
        (section(labels=4), "3 outputs, and its statistics are of 4 labels"),
        (section(width=WIDTH), f"{WIDTH - 1} wide"),
        (section(weight="score.weight"), "not a tensor of the base"),
        (section(weight="classifier.bias"), "does not fit"),
    ):
        with pytest.raises(ArchitectureMismatchError, match=message):
            require_statistics_architecture(wrong, base_of())


def test_a_file_too_short_for_its_product_is_refused_by_its_length():
    values = 4 * (WIDTH + 1) ** 2 + 4 * LABELS * (WIDTH + 1)
    short = {"name": "statistics.safetensors", "bytes": values, "sha256": DIGEST}
    with pytest.raises(HeaderMalformedError):
        require_statistics_architecture(section(file=short), base_of())


def test_the_bias_that_is_shifted_is_the_heads_one_of_so_many_labels():
    assert bias_of_labels(base_of(), ALLOWING, LABELS).name == "classifier.bias"
    roberta = {
        "classifier.dense.weight": (WIDTH, WIDTH),
        "classifier.dense.bias": (WIDTH,),
        "classifier.out_proj.weight": (LABELS, WIDTH),
        "classifier.out_proj.bias": (LABELS,),
    }
    assert bias_of_labels(base_of(roberta), ALLOWING, LABELS).name == "classifier.out_proj.bias"


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        (HEAD, 4, "has 4 rows"),
        ({"classifier.weight": (LABELS, WIDTH)}, LABELS, "none of the base model's parameters could be"),
        (HEAD | {"score.bias": (LABELS,)}, LABELS, "classifier.bias, score.bias could be"),
    ],
)
def test_a_bias_that_is_not_there_or_cannot_be_told_is_refused(head, labels, message):
    with pytest.raises(ArchitectureMismatchError, match=message):
        bias_of_labels(base_of(head), ALLOWING, labels)
    counted = histograms((0, 10, 10), labels=labels)
    with pytest.raises(ArchitectureMismatchError, match=message):
        require_answer_allowed(answer(histograms=counted), asked("calibration"), ALLOWING, base_of(head))


# --- recipes ---------------------------------------------------------------------------------------------------------

ANEW = "base_model: first\nrequest: head-1\n"


def test_a_recipe_of_a_head_says_its_ridge_though_nobody_chose_one():
    recipe = parse_recipe("merge_method: head\n" + ANEW)
    assert recipe.parameters.ridge == 0.01
    assert b'"ridge":0.01' in recipe.canonical()
    assert Recipe.parse(recipe.canonical()) == recipe
    assert Recipe(merge_method="head", base_model="first", request="head-1") == recipe
    rows = MethodParameters(normalize="rows")
    assert Recipe(merge_method="head", base_model="first", request="head-1", parameters=rows).parameters == (
        MethodParameters(normalize="rows", ridge=0.01)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: head\n", "the answers to a request"),
        ("merge_method: calibration\n", "the answers to a request"),
        ("merge_method: head\nparameters: {ridge: 0}\n" + ANEW, "a ridge above 0"),
        ("merge_method: head\nparameters: {ridge: [{value: 0.1, filter: x}, {value: 0}]}\n" + ANEW, "a ridge above 0"),
        ("merge_method: calibration\nparameters: {exclude: ['classifier.*']}\n" + ANEW, "leave out exclude"),
        ("merge_method: head\nparameters: 3\n" + ANEW, "parameters must be"),
    ],
)
def test_a_refit_that_cannot_be_is_refused(text, message):
    with pytest.raises(RecipeInvalidError, match=message):
        parse_recipe(text)


def test_a_ridge_of_zero_is_not_taken_for_the_default():
    with pytest.raises(ValidationError, match="a ridge above 0"):
        Recipe(merge_method="head", base_model="first", request="head-1", parameters=MethodParameters(ridge=0.0))
