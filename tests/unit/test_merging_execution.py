"""Carrying a plan out: progress, cancellation, dtypes, ready sums, diagnostics, and memory that stays flat."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gramfuse_shared.contract.manifest import LayerInfo
from gramfuse_shared.contract.secure_session import SessionTap
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    CancelledError,
    ConfigurationError,
    FileUnreadableError,
    StatisticsInvalidError,
    WeightsInvalidError,
)
from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.methods import METHODS
from gramfuse_shared.fusion.methods.method import Gram, MethodSettings
from gramfuse_shared.fusion.workspace import Workspace
from gramfuse_shared.merging import ready_sums, schedule
from gramfuse_shared.merging.execution import MemberReader, choose_device, execute_task
from gramfuse_shared.merging.plan import MergePlan
from gramfuse_shared.merging.ready_sums import SummedMember, plan_sums
from support.fusion_oracle import Contributor, least_squares, relative_error
from support.merging_cases import CPU, Merged, Model, Tap, infos, merge_models, random_models, recipe_of, taps_of


class Tensors:
    """A reader over tensors in memory."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    @property
    def tensors(self):
        return self._tensors

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name].clone()

    def read_elements(self, name: str, start: int, stop: int, _memory: object = None) -> torch.Tensor:
        return self._tensors[name].reshape(-1)[start:stop].clone()


def test_progress_adds_up_to_the_bytes_that_the_plan_announces(tmp_path):
    base, models = random_models()
    for number, origin in enumerate((base, None)):
        steps: list[int] = []
        merged = merge_models(
            tmp_path / str(number), models, origin, recipe_of(), shard_bytes=900, on_progress=steps.append
        )
        assert len(merged.plan.tasks) > 1
        assert sum(steps) == merged.plan.input_bytes
        assert len(steps) > 10


@pytest.mark.parametrize("after", [0, 1, 5, 15])
def test_a_cancelled_task_stops_at_the_next_read_and_leaves_nothing(tmp_path, after):
    base, models = random_models()
    reads: list[int] = []
    with pytest.raises(CancelledError):
        merge_models(
            tmp_path, models, base, recipe_of(), on_progress=reads.append, is_cancelled=lambda: len(reads) >= after
        )
    assert len(reads) == after
    assert not list((tmp_path / "out").iterdir())


def test_a_cancellation_after_the_last_read_still_counts(tmp_path):
    base, models = random_models()
    reads: list[int] = []
    merge_models(tmp_path / "whole", models, base, recipe_of(), on_progress=reads.append)
    total, seen = len(reads), []
    with pytest.raises(CancelledError):
        merge_models(
            tmp_path / "cut",
            models,
            base,
            recipe_of(),
            on_progress=seen.append,
            is_cancelled=lambda: len(seen) >= total,
        )
    assert not list((tmp_path / "cut" / "out").iterdir())


def test_embeddings_are_merged_in_chunks_with_the_same_result(tmp_path, monkeypatch):
    base, models = random_models()
    whole = merge_models(tmp_path / "whole", models, base, recipe_of("linear"))
    monkeypatch.setattr(schedule, "CHUNK_BYTES", 20)
    chunked = merge_models(tmp_path / "chunked", models, base, recipe_of("linear"))
    assert whole.results[0].file.sha256 == chunked.results[0].file.sha256


def test_diagnostics_say_how_every_group_was_solved(tmp_path):
    base, models = random_models(rows=10)
    models[1] = replace(models[1], taps={"attention": models[1].taps["attention"]})
    merged = merge_models(tmp_path, models, base, recipe_of(alpha=1.0, exclude=["norm*"]))
    by_name = {tuple(entry["parameters"]): entry for entry in merged.diagnostics}
    group = by_name["q.weight", "k.weight"]
    assert (group["method"], group["members"], group["width"], group["rows"]) == ("regmean", 3, 24, 30)
    assert (group["alpha"], group["compute"], group["fewest_rows"]) == (1.0, "float64", 10)
    assert group["fallback"] == "none"  # 30 rows of three members span 24 dimensions
    assert by_name[("conv.weight",)]["fallback"] == "average"
    assert "1 of 3" in by_name[("conv.weight",)]["reason"]
    assert by_name[("norm.weight",)]["method"] == "base"
    assert json.loads(json.dumps(merged.diagnostics, allow_nan=False)) == merged.diagnostics


def test_a_dead_feature_and_too_few_rows_give_finite_weights_through_files(tmp_path):
    base, models = random_models(rows=3)
    for model in models:
        model.taps["attention"].rows[:, :4] = 0.0
    merged = merge_models(tmp_path, models, base, recipe_of(alpha=1.0))
    assert all(torch.isfinite(tensor).all() for tensor in merged.tensors.values())
    mean = merge_models(tmp_path / "mean", models, base, recipe_of("linear"))
    assert relative_error(merged.tensors["q.weight"][:, :4], mean.tensors["q.weight"][:, :4]) < 2e-7
    assert merged.diagnostics[0]["dead_features"] == 4
    assert merged.diagnostics[0]["fallback"] == "ridge"


def test_layers_that_share_a_tap_in_one_model_only_are_still_right(tmp_path):
    base, models = random_models()
    attention = models[0].taps["attention"]
    apart = {
        "q": Tap(attention.rows, ["q.weight"]),
        "k": Tap(attention.rows * 2.0, ["k.weight"]),
        "mlp": models[0].taps["mlp"],
    }
    models[0] = replace(models[0], taps=apart)
    merged = merge_models(tmp_path, models, base, recipe_of())
    for name, first in (("q.weight", "q"), ("k.weight", "k")):
        contributors = [
            Contributor(model.weights[name], model.taps[tap].rows, float(model.weight))
            for model, tap in zip(models, (first, "attention", "attention"), strict=True)
        ]
        assert relative_error(merged.tensors[name], least_squares(contributors, alpha=0.9)) < 2e-6


def test_double_precision_weights_keep_their_digits(tmp_path):
    _, models = random_models()
    doubled = [
        replace(m, weights={n: w.double() if w.is_floating_point() else w for n, w in m.weights.items()})
        for m in models
    ]
    merged = merge_models(tmp_path, doubled, None, recipe_of("linear"))
    total = sum(float(model.weight) for model in models)
    mean = sum(model.weights["norm.weight"] * float(model.weight) for model in doubled) / total
    assert merged.tensors["norm.weight"].dtype == torch.float64
    assert relative_error(merged.tensors["norm.weight"], mean) < 1e-15


def test_a_value_beyond_the_output_dtype_is_an_error_and_no_infinity(tmp_path):
    base = {"a": torch.tensor([1.0, 1e6])}
    with pytest.raises(WeightsInvalidError, match="a is not finite as F16"):
        merge_models(tmp_path, [Model("1", base)], None, recipe_of("linear", out_dtype="float16"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("members", [1, 2])
def test_weights_that_are_not_finite_are_an_error(tmp_path, members):
    models = [Model(str(index), {"a": torch.tensor([float("nan")])}) for index in range(members)]
    with pytest.raises(WeightsInvalidError, match="a is not finite"):
        merge_models(tmp_path, models, None, recipe_of("linear"))


def test_a_mask_of_infinities_that_the_base_stores_is_taken_over(tmp_path):
    mask = torch.tensor([0.0, float("-inf")])
    base = {"a": torch.ones(2), "mask": mask}
    merged = merge_models(tmp_path, [Model("1", {"a": torch.zeros(2)})], base, recipe_of("linear"))
    assert torch.equal(merged.tensors["mask"], mask)


def test_statistics_that_are_not_finite_are_an_error_and_no_silent_average(tmp_path):
    base, models = random_models()
    models[1].taps["mlp"].rows[0, 0] = float("inf")
    with pytest.raises(StatisticsInvalidError, match="'mlp'"):
        merge_models(tmp_path, models, base, recipe_of())


def test_a_reader_that_is_missing_is_named(tmp_path):
    base, models = random_models()
    plan = merge_models(tmp_path, models, base, recipe_of()).plan
    readers = {model.key: MemberReader(Tensors(dict(model.weights))) for model in models}
    with pytest.raises(FileUnreadableError, match="no statistics were given for the contribution 00"):
        execute_task(plan, 0, readers, Tensors(base), tmp_path / "x", device=CPU)
    with pytest.raises(FileUnreadableError, match="no reader was given for the contribution 00"):
        execute_task(plan, 0, {}, Tensors(base), tmp_path / "x", device=CPU)
    copied = merge_models(tmp_path, models, base, recipe_of(exclude=["*"])).plan
    with pytest.raises(FileUnreadableError, match="base model"):
        execute_task(copied, 0, {}, None, tmp_path / "x", device=CPU)


def test_the_surrounding_programs_matmul_precision_neither_matters_nor_changes(tmp_path):
    base, models = random_models()
    plain = merge_models(tmp_path, models, base, recipe_of())
    readers = {
        model.key: MemberReader(
            Tensors(dict(model.weights)), Tensors(load_file(tmp_path / f"{model.key}.statistics.safetensors"))
        )
        for model in models
    }
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        again = execute_task(plain.plan, 0, readers, Tensors(base), tmp_path / "model.safetensors", device=CPU)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert again.file == plain.results[0].file


def test_the_device_is_chosen_or_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigurationError, match="--device cpu"):
        choose_device("cuda")
    with pytest.raises(ConfigurationError, match="no CUDA device"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigurationError, match="sees 2 CUDA devices"):
        choose_device("cuda:2")


def sums_of(models: list[Model], base: dict[str, torch.Tensor], *, alpha: float):
    """Add contributions up in float64 as participants of a secure aggregation would."""
    settings = MethodSettings(alpha=alpha, normalize="equal")
    tensors, weights, taps = {}, {}, []
    for name, origin in base.items():
        if origin.is_floating_point():
            weights[name] = sum(float(model.weight) for model in models)
            tensors[ready_sums.weighted_name(name)] = sum(
                (model.weights[name].double() - origin.double()) * float(model.weight) for model in models
            )
    for info in taps_of(models[0]):
        for layer in info.layers:
            sums = None
            for model in models:
                rows = model.taps[info.name].rows
                flat = packing.packed_zeros(info.width)
                packing.accumulate_rows(flat, rows)
                precision = METHODS["regmean"].precision(
                    Gram(flat, info.width, len(rows)), float(model.weight), settings
                )
                difference = model.weights[layer.weight].double() - base[layer.weight].double()
                difference = difference if layer.layout == "out_in" else difference.T
                sums = sums or precision.begin(tuple(difference.shape), torch.float64, Workspace())
                sums.add(precision, difference)
            tensors[ready_sums.product_name(layer.weight)] = sums.products
            tensors[ready_sums.precision_name(info.name)] = packing.pack(sums.total)
        taps.append(SessionTap(name=info.name, width=info.width, layers=info.layers))
    return SummedMember("sums", "the cohort", weights, tuple(taps)), tensors


def execute_sums(folder, plan: MergePlan, tensors, base) -> Merged:
    steps: list[int] = []
    target = folder / "sums.safetensors"
    readers = {"sums": MemberReader(Tensors(tensors))}
    result = execute_task(plan, 0, readers, Tensors(base), target, device=CPU, on_progress=steps.append)
    assert sum(steps) == plan.input_bytes
    return Merged(plan, [result], load_file(target))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_ready_sums_merge_as_the_contributions_do(tmp_path, alpha):
    base, models = random_models()
    direct = merge_models(tmp_path, models, base, recipe_of(alpha=alpha))
    member, tensors = sums_of(models, base, alpha=alpha)
    merged = execute_sums(tmp_path, plan_sums(member, infos(base), recipe_of(alpha=alpha)), tensors, base)
    assert merged.tensors.keys() == direct.tensors.keys()
    for name, tensor in direct.tensors.items():
        if tensor.is_floating_point():
            assert relative_error(merged.tensors[name], tensor) < 2e-6
    assert torch.equal(merged.tensors["position_ids"], base["position_ids"])
    groups = [entry["parameters"] for entry in merged.diagnostics]
    assert ["q.weight", "k.weight"] in groups


def test_what_was_not_summed_or_is_excluded_is_the_bases(tmp_path):
    base, models = random_models()
    member, tensors = sums_of(models, base, alpha=0.9)
    fewer = replace(member, weights={name: w for name, w in member.weights.items() if name != "norm.weight"})
    plan = plan_sums(fewer, infos(base), recipe_of(exclude=["q.*"]))
    merged = execute_sums(tmp_path, plan, tensors, base)
    assert torch.equal(merged.tensors["norm.weight"], base["norm.weight"])
    assert torch.equal(merged.tensors["q.weight"], base["q.weight"])
    assert not torch.equal(merged.tensors["k.weight"], base["k.weight"])


def test_sums_that_do_not_fit_the_base_are_refused():
    base, models = random_models()
    member, _ = sums_of(models, base, alpha=0.9)
    with pytest.raises(ArchitectureMismatchError, match="sums position_ids"):
        plan_sums(replace(member, weights={"position_ids": 1.0}), infos(base), recipe_of())
    wrong = SessionTap(name="mlp", width=9, layers=(LayerInfo(weight="conv.weight"),))
    with pytest.raises(ArchitectureMismatchError, match=r"9 features, conv\.weight"):
        plan_sums(replace(member, taps=(wrong,)), infos(base), recipe_of())


MEASURE = """
import os, resource, tempfile
from contextlib import ExitStack
from pathlib import Path
import torch
torch.set_num_threads(1)
from support.merging_cases import Model, Tap, member_of, recipe_of, save_statistics
from safetensors.torch import save_file
from gramfuse_shared.merging.execution import MemberReader, execute_task
from gramfuse_shared.merging.planning import plan_merge
from gramfuse_shared.merging.streaming import LocalFile, TensorFile

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def print_working_set(folder, model, count):
    with ExitStack() as stack:
        readers = {}
        for index in range(count):
            files = [stack.enter_context(LocalFile(folder / name)) for name in ("weights", "statistics")]
            readers[str(index)] = MemberReader(*(TensorFile.open(file) for file in files))
        members = [member_of(Model(key, model.weights, model.taps)) for key in readers]
        plan = plan_merge(members, None, recipe_of())
        before = peak = resident()
        def watch(_):
            nonlocal peak
            peak = max(peak, resident())
        execute_task(plan, 0, readers, None, folder / "out", device=torch.device("cpu"), on_progress=watch)
        print(max(peak, resident()) - before, flush=True)

with tempfile.TemporaryDirectory() as name:
    weights = {"embedding": torch.randn(20000, 256), "fc.weight": torch.randn(1024, 512)}
    model = Model("", weights, {"tap": Tap(torch.randn(64, 512), ["fc.weight"])})
    save_file(weights, Path(name, "weights"))
    save_statistics(model, Path(name, "statistics"))
    for count in (2, 8):  # each in a process of its own, so that neither finds the other's memory
        child = os.fork()
        if child == 0:
            print_working_set(Path(name), model, count)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_contributions():
    """Each model's embedding is 20 MB, so six more of them held in memory would show as 120 MB."""
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    few, many = map(int, done.stdout.split())
    assert many < few + 60_000_000
