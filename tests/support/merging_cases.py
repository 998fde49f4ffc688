"""Small models with statistics on disk, and their merge: what the engine's tests share."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gramfuse.measuring.fisher import Fisher
from gramfuse_shared.contract.manifest import (
    CollectorSettings,
    FisherSettings,
    LayerInfo,
    TapInfo,
    TensorInfo,
    tensors_of,
)
from gramfuse_shared.contract.recipe import Overridable, Recipe
from gramfuse_shared.contract.safetensors_header import Header
from gramfuse_shared.contract.statistics_file import METADATA_KEY, StatisticsMetadata, gram_tensor_name
from gramfuse_shared.fusion import packing
from gramfuse_shared.merging.execution import MemberReader, ShardResult, execute_task
from gramfuse_shared.merging.plan import LabelRows, Member, MergePlan
from gramfuse_shared.merging.planning import plan_merge
from gramfuse_shared.merging.streaming import LocalFile, TensorFile

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Tap:
    """A tap's rows and who reads them; a name that starts with `conv` is stored [in, out]."""

    rows: torch.Tensor
    weights: Sequence[str]

    def layers(self) -> tuple[LayerInfo, ...]:
        return tuple(
            LayerInfo(weight=name, layout="in_out" if name.startswith("conv") else "out_in") for name in self.weights
        )


@dataclass(frozen=True)
class Model:
    """One organization's model: weights by name, taps by name, and raw Fisher information by name over `examples`."""

    key: str
    weights: Mapping[str, torch.Tensor]
    taps: Mapping[str, Tap] = field(default_factory=dict)
    weight: Overridable = 1.0
    labels: LabelRows | None = None
    fisher: Mapping[str, torch.Tensor] = field(default_factory=dict)
    examples: int = 1
    fisher_labels: str = "sampled"


def infos(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    names = {
        torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
        torch.int64: "I64", torch.bool: "BOOL", torch.uint8: "U8",
    }  # fmt: skip
    return {
        name: TensorInfo(name=name, dtype=names[tensor.dtype], shape=tuple(tensor.shape))
        for name, tensor in tensors.items()
    }


def taps_of(model: Model) -> tuple[TapInfo, ...]:
    return tuple(
        TapInfo(
            name=name,
            width=tap.rows.shape[1],
            rows=len(tap.rows),
            distinct_rows=len(tap.rows),
            source="mixed",
            layers=tap.layers(),
        )
        for name, tap in model.taps.items()
    )


def member_of(model: Model) -> Member:
    return Member(
        model.key,
        f"model {model.key}",
        model.weight,
        infos(model.weights),
        taps_of(model),
        labels=model.labels,
        fisher=fisher_of(model).metadata if model.fisher else None,
    )


def fisher_of(model: Model) -> Fisher:
    settings = FisherSettings(collector_version="0", labels=model.fisher_labels)
    sources = dict.fromkeys(model.fisher, "mixed")
    return Fisher(model.fisher, examples=model.examples, anonymous=model.examples, sources=sources, settings=settings)


def save_statistics(model: Model, path: Path) -> None:
    grams = {}
    for name, tap in model.taps.items():
        flat = packing.packed_zeros(tap.rows.shape[1])
        packing.accumulate_rows(flat, tap.rows)
        grams[gram_tensor_name(name)] = flat
    metadata = StatisticsMetadata(collector=CollectorSettings(collector_version="0"), taps=taps_of(model))
    write_in_order(path, grams, {METADATA_KEY: metadata.model_dump_json()})


def write_in_order(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in the given order; `save_file` sorts."""
    from gramfuse_shared.merging.writing import ShardWriter  # noqa: PLC0415 - the code under test, kept out of imports

    with ShardWriter(path, list(infos(tensors).values()), metadata) as shard:
        for name, tensor in tensors.items():
            shard.write(name, tensor)


def recipe_of(method: str = "regmean", **parameters: object) -> Recipe:
    top = {key: parameters.pop(key) for key in ("dtype", "out_dtype") if key in parameters}
    return Recipe.model_validate({"merge_method": method, "parameters": parameters} | top)


@dataclass(frozen=True)
class Merged:
    plan: MergePlan
    results: list[ShardResult]
    tensors: dict[str, torch.Tensor]

    @property
    def diagnostics(self) -> list[dict[str, object]]:
        return [entry for result in self.results for entry in result.diagnostics]

    @property
    def exceptions(self) -> list[dict[str, object]]:
        """What was not merged as the method would."""
        return [entry for entry in self.diagnostics if entry["reason"] is not None]


def merge_models(
    folder: Path,
    models: Sequence[Model],
    base: Mapping[str, torch.Tensor] | None,
    recipe: Recipe,
    *,
    shard_bytes: int = 2**30,
    device: torch.device = CPU,
    on_progress: Callable[[int], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Merged:
    """Write the models to files, merge them by the engine, and load what came out."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = plan_merge([member_of(model) for model in models], base and infos(base), recipe, shard_bytes=shard_bytes)
    with ExitStack() as stack:

        def reader(name: str, tensors: Mapping[str, torch.Tensor]) -> TensorFile:
            path = folder / f"{name}.safetensors"
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
            return TensorFile.open(stack.enter_context(LocalFile(path)))

        readers = {}
        for model in models:
            statistics = None
            if model.taps:
                path = folder / f"{model.key}.statistics.safetensors"
                save_statistics(model, path)
                statistics = TensorFile.open(stack.enter_context(LocalFile(path)))
            fisher = None
            if model.fisher:
                path = folder / f"{model.key}.fisher.safetensors"
                fisher_of(model).save(path)
                fisher = TensorFile.open(stack.enter_context(LocalFile(path)))
            readers[model.key] = MemberReader(reader(model.key, model.weights), statistics, fisher)
        base_reader = None if base is None else reader("base", base)
        results, tensors = [], {}
        for task in plan.tasks:
            target = folder / "out" / task.file_name
            target.parent.mkdir(exist_ok=True)
            results.append(
                execute_task(
                    plan, task.index, readers, base_reader, target,
                    device=device, on_progress=on_progress, is_cancelled=is_cancelled,
                )
            )  # fmt: skip
            tensors |= load_file(target)
    return Merged(plan, results, tensors)


def header_infos(header: Header) -> dict[str, TensorInfo]:
    return {info.name: info for info in tensors_of(header)}


def random_models(
    seed: int = 0, *, members: int = 3, width: int = 24, rows: int = 400
) -> tuple[dict[str, torch.Tensor], list[Model]]:
    """Return a base and models fine-tuned from it: q and k share a tap, `conv` is GPT-2's layout, `norm` has no tap."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    base = {
        "q.weight": randn(8, width),
        "k.weight": randn(5, width),
        "conv.weight": randn(width, 7),
        "norm.weight": randn(width),
        "position_ids": torch.arange(6),
    }
    models = []
    for index in range(members):
        weights = {
            name: tensor + 0.1 * randn(*tensor.shape) if tensor.is_floating_point() else tensor
            for name, tensor in base.items()
        }
        mixing = torch.eye(width) + 0.5 * randn(width, width) / width**0.5
        taps = {
            "attention": Tap(randn(rows, width) @ mixing, ["q.weight", "k.weight"]),
            "mlp": Tap(randn(rows + 10 * index, width) @ mixing.T, ["conv.weight"]),
        }
        models.append(Model(f"{index:02d}", weights, taps, weight=1.0 + index / 2))
    return base, models


class Memory:
    """A source that hands out copies of what it holds, as an object store does; remembers how much at once."""

    def __init__(self, content: bytes, *, parallel: int = 1) -> None:
        self._content = content
        self.parallel = parallel
        self.largest_read = 0

    @property
    def size(self) -> int:
        return len(self._content)

    def read_into(self, start: int, target: memoryview) -> None:
        self.largest_read = max(self.largest_read, len(target))
        target[:] = self._content[start : start + len(target)]
