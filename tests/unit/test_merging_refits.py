"""Refits through the engine: which tensors change and to what, against the definition in float64."""

from contextlib import ExitStack
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

from gramfuse.measuring.head import HeadStatistics
from gramfuse_shared.contract.calibration import BINS, CalibrationHistograms, bin_edge
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import ArchitectureMismatchError, CancelledError, RecipeInvalidError
from gramfuse_shared.fusion.calibration import add_histograms, choose_shifts
from gramfuse_shared.merging.execution import MemberReader, execute_task
from gramfuse_shared.merging.plan import LabelRows, Member
from gramfuse_shared.merging.refit_planning import plan_calibration, plan_head
from gramfuse_shared.merging.schedule import tap_of
from gramfuse_shared.merging.streaming import LocalFile, TensorFile
from gramfuse_shared.merging.terms import Term
from support.merging_cases import CPU, infos

LABELS, WIDTH = 4, 6
WEIGHT, BIAS = "classifier.weight", "classifier.bias"
LABEL_ROWS = frozenset({WEIGHT, BIAS})


@pytest.fixture
def model():
    """A merged model: some tensors before its head and one behind it."""
    generator = torch.Generator().manual_seed(0)
    return {
        "encoder.weight": torch.randn(WIDTH, WIDTH, generator=generator),
        "positions": torch.arange(5),
        WEIGHT: torch.randn(LABELS, WIDTH, generator=generator),
        BIAS: torch.randn(LABELS, generator=generator),
        "norm.weight": torch.ones(WIDTH),
    }


class Owner:
    """An organization's features [rows, d], its own logits [rows, labels], and its place in a merge."""

    def __init__(self, number, rows, *, weight=1.0, trained=None, layer=WEIGHT, width=WIDTH):
        generator = torch.Generator().manual_seed(100 + number)
        self.key = f"{number:02d}"
        self.features = torch.randn(rows, width, generator=generator) + 0.5
        self.logits = torch.randn(rows, LABELS, generator=generator) * 3
        self.statistics = HeadStatistics.of(layer, self.features, self.logits, {})
        self.weight = weight
        self.labels = None if trained is None else LabelRows(LABEL_ROWS, frozenset(trained))

    @property
    def member(self):
        taps = self.statistics.metadata.taps
        return Member(self.key, f"org-{self.key}", self.weight, {}, taps, labels=self.labels)


def recipe(method="head", **parameters):
    top = {key: parameters.pop(key) for key in ("out_dtype",) if key in parameters}
    document = {"merge_method": method, "base_model": "first", "request": "r", "parameters": parameters} | top
    return Recipe.model_validate(document)


def run(plan, folder, model, owners=(), **options):
    """Execute every task of a plan; return the tensors and the diagnostics."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, diagnostics = {}, []
    with ExitStack() as stack:

        def open_file(path):
            return TensorFile.open(stack.enter_context(LocalFile(path)))

        save_file(model, folder / "model.safetensors")
        origin = open_file(folder / "model.safetensors")
        readers = {}
        for owner in owners:
            owner.statistics.save(folder / f"{owner.key}.safetensors")
            readers[owner.key] = MemberReader(origin, open_file(folder / f"{owner.key}.safetensors"))
        for task in plan.tasks:
            result = execute_task(
                plan, task.index, readers, origin, folder / "out" / task.file_name, device=CPU, **options
            )
            tensors |= load_file(folder / "out" / task.file_name)
            diagnostics += result.diagnostics
    return tensors, diagnostics


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path


def ridge_of(owners, ridge, *, rows=range(LABELS), scale=lambda owner: owner.weight / len(owner.features)):
    """The definition: least squares on the pooled rows, each owner's scaled, over rows of zero logits for the ridge."""
    stacked, targets = [], []
    for owner in owners:
        root = scale(owner) ** 0.5
        ones = torch.ones(len(owner.features), 1, dtype=torch.float64)
        stacked.append(root * torch.cat([owner.features.double(), ones], dim=1))
        targets.append(root * owner.logits.double()[:, list(rows)])
    z, t = torch.cat(stacked), torch.cat(targets)
    penalty = (ridge * float(z[:, :-1].square().sum()) / WIDTH) ** 0.5
    bottom = torch.cat([penalty * torch.eye(WIDTH, dtype=torch.float64), torch.zeros(WIDTH, 1)], dim=1)
    solution = torch.linalg.lstsq(torch.cat([z, bottom]), torch.cat([t, torch.zeros(WIDTH, len(rows))])).solution
    return solution[:-1].T, solution[-1]  # [rows, d], [rows]


def same_but(before, after, *changed):
    assert before.keys() == after.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(changed)


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["equal", "rows"])
def test_the_head_is_ridge_regression_of_all_logits_on_all_features_and_the_rest_stays(model, folder, normalize):
    owners = [Owner(0, 40), Owner(1, 90, weight=2.0), Owner(2, 25)]
    chosen = recipe(ridge=0.05, normalize=normalize)
    plan = plan_head([owner.member for owner in owners], infos(model), chosen)
    tensors, (entry,) = run(plan, folder, model, owners)
    scale = (lambda owner: owner.weight) if normalize == "rows" else (lambda o: o.weight / len(o.features))
    weight, bias = ridge_of(owners, 0.05, scale=scale)
    torch.testing.assert_close(tensors[WEIGHT].double(), weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(tensors[BIAS].double(), bias, atol=1e-6, rtol=1e-5)
    same_but(model, tensors, WEIGHT, BIAS)
    assert (entry["parameters"], entry["members"], entry["rows"], entry["fewest_rows"]) == ([WEIGHT, BIAS], 3, 155, 25)
    assert (entry["method"], entry["fallback"], entry["reason"]) == ("head", "none", None)
    assert (plan.method, plan.method_version, plan.layers) == ("head", "head/1", None)


def test_the_default_ridge_is_a_hundredth_of_the_mean_of_the_diagonal(model, folder):
    owners = [Owner(0, 40), Owner(1, 90)]
    tensors, _ = run(plan_head([o.member for o in owners], infos(model), recipe()), folder, model, owners)
    torch.testing.assert_close(tensors[WEIGHT].double(), ridge_of(owners, 0.01)[0], atol=1e-6, rtol=1e-5)


def test_a_row_is_refit_from_those_who_trained_it_and_stays_where_they_are_too_few(model, folder):
    owners = [Owner(0, 40, trained=[0, 1]), Owner(1, 60, trained=[0, 1, 2]), Owner(2, 30)]
    members = [owner.member for owner in owners]
    plan = plan_head(members, infos(model), recipe(ridge=0.05), minimum_holders=2)
    tensors, entries = run(plan, folder, model, owners)
    first, second = ridge_of(owners, 0.05, rows=[0, 1]), ridge_of(owners[1:], 0.05, rows=[2])
    for place, (weight, bias) in (([0, 1], first), ([2], second)):
        torch.testing.assert_close(tensors[WEIGHT][place].double(), weight, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(tensors[BIAS][place].double(), bias, atol=1e-6, rtol=1e-5)
    # label 3 was trained by the third alone
    assert torch.equal(tensors[WEIGHT][3], model[WEIGHT][3])
    assert torch.equal(tensors[BIAS][3], model[BIAS][3])
    assert [(entry["label_rows"], entry["members"]) for entry in entries] == [(2, 3), (1, 2)]
    assert "1 of 4 label rows are refit from fewer than the 3 answers; 1 of 4" in entries[0]["reason"]
    with pytest.raises(RecipeInvalidError, match="trained by 4 of the contributions"):
        plan_head(members, infos(model), recipe(), minimum_holders=4)


def test_whoever_has_no_weight_has_no_say(model, folder):
    owners = [Owner(0, 40), Owner(1, 60, weight=0.0), Owner(2, 30)]
    plan = plan_head([owner.member for owner in owners], infos(model), recipe(ridge=0.05))
    tensors, _ = run(plan, folder, model, owners)
    torch.testing.assert_close(
        tensors[WEIGHT].double(), ridge_of([owners[0], owners[2]], 0.05)[0], atol=1e-6, rtol=1e-5
    )
    assert list(plan.labels.values()) == ["org-00", "org-02"]


def test_a_head_without_a_bias_stays_one(model, folder):
    del model[BIAS]
    owners = [Owner(0, 40), Owner(1, 90)]
    tensors, (entry,) = run(plan_head([o.member for o in owners], infos(model), recipe()), folder, model, owners)
    same_but(model, tensors, WEIGHT)
    assert entry["parameters"] == [WEIGHT]
    z, t = (torch.cat(parts).double() for parts in zip(*[(o.features, o.logits) for o in owners], strict=True))
    scale = torch.cat([torch.full((len(o.features), 1), 1 / len(o.features), dtype=torch.float64) for o in owners])
    gram = z.T @ (scale * z)
    gram += 0.01 * gram.trace() / WIDTH * torch.eye(WIDTH)
    expected = torch.linalg.solve(gram, z.T @ (scale * t)).T
    torch.testing.assert_close(tensors[WEIGHT].double(), expected, atol=1e-6, rtol=1e-5)


def test_the_order_in_which_members_are_given_changes_no_bit(model, folder, tmp_path):
    owners = [Owner(number, 30 + number) for number in range(4)]
    results = []
    for number, order in enumerate((owners, owners[::-1])):
        (tmp_path / str(number) / "out").mkdir(parents=True)
        plan = plan_head([owner.member for owner in order], infos(model), recipe())
        results.append(run(plan, tmp_path / str(number), model, order)[0])
    one, other = results
    assert torch.equal(one[WEIGHT], other[WEIGHT])


def test_progress_counts_the_bytes_that_the_plan_announces_and_a_refit_can_be_cancelled(model, folder):
    owners = [Owner(0, 40, trained=[0]), Owner(1, 60)]
    plan = plan_head([owner.member for owner in owners], infos(model), recipe())
    read = []
    run(plan, folder, model, owners, on_progress=read.append)
    assert sum(read) == plan.input_bytes
    with pytest.raises(CancelledError):
        run(plan, folder, model, owners, is_cancelled=lambda: True)


def test_what_is_written_in_another_dtype_is_all_of_it(model, folder):
    owners = [Owner(0, 40), Owner(1, 90)]
    plan = plan_head([o.member for o in owners], infos(model), recipe(out_dtype="bfloat16"))
    tensors, _ = run(plan, folder, model, owners)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16, torch.int64}


@pytest.mark.parametrize(
    "owners",
    [[], [Owner(0, 9, layer="score.weight")], [Owner(0, 9), Owner(1, 9, layer="score.weight")]],
)
def test_answers_of_other_layers_or_of_none_are_refused(model, owners):
    with pytest.raises(ArchitectureMismatchError, match="one layer of the model"):
        plan_head([owner.member for owner in owners], infos(model), recipe())


def test_a_term_without_a_tap_is_no_term_of_a_head():
    with pytest.raises(ValueError, match="names their tap"):
        tap_of(Term("a", 1.0))


# --- biases ----------------------------------------------------------------------------------------------------------


def counted(seed, *labels, kind="logit", of=LABELS):
    generator = torch.Generator().manual_seed(seed)

    def counts(low):
        return tuple(torch.randint(low, low + 9, (BINS,), generator=generator).tolist())

    classes = [{"label": label, "labelled": counts(0), "others": counts(3)} for label in labels]
    return CalibrationHistograms.model_validate({"score": kind, "labels": of, "classes": classes})


def members_of(histograms, weights=None):
    return [Member(key, key, (weights or {}).get(key, 1.0), {}) for key in histograms]


@pytest.mark.parametrize("kind", ["logit", "margin"])
def test_each_bias_is_moved_by_what_the_sums_of_the_histograms_say_and_nothing_else_is(model, folder, kind):
    found = {"a": counted(1, 0, 1, 2, 3, kind=kind), "b": counted(2, 0, 1, 2, 3, kind=kind)}
    plan = plan_calibration(found, members_of(found), BIAS, infos(model), recipe("calibration"))
    tensors, (entry,) = run(plan, folder, model)
    same_but(model, tensors, BIAS)
    shifts = choose_shifts(add_histograms(list(found.values())))
    assert bool(shifts.any())
    torch.testing.assert_close(tensors[BIAS], (model[BIAS].double() + shifts).float(), atol=0, rtol=0)
    assert (entry["method"], entry["members"], plan.method_version) == ("calibration", 2, "calibration/1")
    assert f"{int((shifts != 0).sum())} of 4 biases are shifted" in entry["reason"]


def test_a_logits_shift_is_the_edge_with_the_best_f1_of_all_texts_together(model, folder):
    """The definition, by brute force over the edges between bins."""
    found = {"a": counted(1, 2), "b": counted(2, 2)}
    plan = plan_calibration(found, members_of(found), BIAS, infos(model), recipe("calibration"), minimum_holders=2)
    tensors, (entry,) = run(plan, folder, model)
    labelled = [x + y for x, y in zip(*[one.classes[0].labelled for one in found.values()], strict=True)]
    others = [x + y for x, y in zip(*[one.classes[0].others for one in found.values()], strict=True)]
    best = max(
        range(1, BINS),
        key=lambda k: (
            2 * sum(labelled[k:]) / (sum(labelled[k:]) + sum(others[k:]) + sum(labelled)),
            -abs(bin_edge(k)),
        ),
    )
    expected = model[BIAS].clone()
    expected[2] -= bin_edge(best)
    torch.testing.assert_close(tensors[BIAS], expected)
    assert "3 of 4 labels stay" in entry["reason"]


def test_a_label_that_too_few_counted_is_not_shifted_and_takes_no_part(model, folder):
    found = {"a": counted(1, 0, 1), "b": counted(2, 1), "c": counted(3, 1, 2)}
    plan = plan_calibration(found, members_of(found), BIAS, infos(model), recipe("calibration"), minimum_holders=3)
    tensors, (entry,) = run(plan, folder, model)
    assert [int(label) for label in (tensors[BIAS] != model[BIAS]).nonzero()] == [1]
    assert "fewer than 3 organizations counted them" in entry["reason"]
    with pytest.raises(RecipeInvalidError, match="no label was counted by 4"):
        plan_calibration(found, members_of(found), BIAS, infos(model), recipe("calibration"), minimum_holders=4)


def test_histograms_of_whoever_has_no_weight_are_left_out(model, folder):
    found = {"a": counted(1, 0), "b": counted(2, 0, 1)}
    members = members_of(found, {"b": 0.0})
    plan = plan_calibration(found, members, BIAS, infos(model), recipe("calibration"))
    tensors, _ = run(plan, folder, model)
    expected = (model[BIAS].double() + choose_shifts(found["a"])).float()
    assert torch.equal(tensors[BIAS], expected)


def test_what_has_its_best_edges_at_zero_stays_as_it_is(model, folder):
    clear = tuple(int(number >= BINS // 2) for number in range(BINS))
    classes = [{"label": 0, "labelled": clear, "others": clear[::-1]}]
    found = {"a": CalibrationHistograms.model_validate({"score": "logit", "labels": LABELS, "classes": classes})}
    plan = plan_calibration(found, members_of(found), BIAS, infos(model), recipe("calibration"))
    tensors, (entry,) = run(plan, folder, model)
    same_but(model, tensors)
    assert entry["reason"].startswith("0 of 4 biases are shifted;")


@pytest.mark.parametrize(
    ("found", "bias"),
    [
        ({"a": counted(1, 0, of=3)}, BIAS),
        ({"a": counted(1, 0)}, "score.bias"),
        ({"a": counted(1, 0), "b": counted(1, 0, of=5)}, BIAS),
        ({"a": counted(1, 0), "b": counted(1, 0, kind="margin")}, BIAS),
    ],
)
def test_histograms_that_do_not_fit_the_model_or_each_other_are_refused(model, found, bias):
    with pytest.raises(ArchitectureMismatchError):
        plan_calibration(found, members_of(found), bias, infos(model), recipe("calibration"))


def test_a_refit_of_a_model_in_shards_changes_the_head_and_copies_the_other_shards(model, folder):
    owners = [Owner(0, 40), Owner(1, 90)]
    plan = plan_head([o.member for o in owners], infos(model), recipe(), shard_bytes=150)
    assert len(plan.tasks) > 1
    assert all(one.index + 1 == other.index for one, other in pairwise(plan.tasks))
    tensors, _ = run(plan, folder, model, owners)
    same_but(model, tensors, WEIGHT, BIAS)
