"""Execute one task of a plan: read tensors singly, add up, solve on the device, write the shard."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from gramfuse_shared.contract.manifest import FileEntry, TensorInfo
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES, FLOAT_DTYPES
from gramfuse_shared.errors import ConfigurationError, WeightsInvalidError
from gramfuse_shared.fusion.methods import METHODS, DeltaMethod, ElementMethod, PrecisionMethod
from gramfuse_shared.fusion.objective import Objective
from gramfuse_shared.fusion.workspace import Workspace, is_finite
from gramfuse_shared.merging.combining import add_deltas, average, solve_group, weigh_elements
from gramfuse_shared.merging.describing import Described
from gramfuse_shared.merging.exact_products import exact_products
from gramfuse_shared.merging.plan import MergePlan
from gramfuse_shared.merging.reading import Inputs, MemberReader
from gramfuse_shared.merging.refit_steps import RefitStep
from gramfuse_shared.merging.refitting import refit
from gramfuse_shared.merging.sampling import follow_nothing, rows_of, sample_of
from gramfuse_shared.merging.schedule import element_ranges
from gramfuse_shared.merging.steps import (
    AverageStep,
    CopyStep,
    DeltaStep,
    DiagonalStep,
    GramStep,
    MergeStep,
    RowsStep,
    Step,
)
from gramfuse_shared.merging.streaming import TORCH_DTYPES, TensorReader
from gramfuse_shared.merging.writing import ShardWriter

__all__ = ["DeviceChoice", "MemberReader", "ShardResult", "choose_device", "execute_task"]

DeviceChoice = str
"""`auto`, `cpu`, `cuda`, or `cuda:N` for one of several."""

_METADATA: Final[Mapping[str, str]] = {"format": "pt"}  # transformers refuses a file without it


@dataclass(frozen=True, slots=True)
class ShardResult:
    """A finished shard.

    Attributes:
        file: its name, length and SHA-256.
        diagnostics: JSON values; one entry per group of linears that was solved, per other matrix that was merged, and
            per parameter that was not merged as the method would, with the reason. See `merging.describing`.
    """

    file: FileEntry
    diagnostics: tuple[dict[str, Any], ...]


def choose_device(choice: DeviceChoice) -> torch.device:
    """Return the device to compute on; `auto` is CUDA where there is one.

    Raises:
        ConfigurationError: CUDA was asked for and there is none, or not this one.
    """
    available = torch.cuda.is_available()
    kind, _, number = choice.partition(":")
    if kind == "cuda" and not available:
        msg = "no CUDA device is available to torch; use --device cpu, or install a CUDA build of torch"
        raise ConfigurationError(msg)
    if number and int(number) >= torch.cuda.device_count():
        msg = f"there is no {choice}: torch sees {torch.cuda.device_count()} CUDA devices, counted from cuda:0"
        raise ConfigurationError(msg)
    return torch.device(choice if number else "cuda" if available and kind != "cpu" else "cpu")


def execute_task(
    plan: MergePlan,
    index: int,
    readers: Mapping[str, MemberReader],
    base_reader: TensorReader | None,
    target: Path,
    *,
    device: torch.device,
    on_progress: Callable[[int], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> ShardResult:
    """Merge one shard and write it to `target`, which appears only when it is complete.

    Args:
        plan: the whole plan.
        index: which of its tasks.
        readers: the members' files by member key; of ready sums the one key's `weights`.
        base_reader: the base's tensors; None where the recipe names no base.
        target: the file to write; its name need not be the task's.
        device: where to compute.
        on_progress: called with the bytes of each read; they add up to the task's `input_bytes`.
        is_cancelled: looked at before each read.

    Raises:
        CancelledError: `is_cancelled` said so; nothing is left behind.
        FileUnreadableError: an input cannot be read.
        FileUnwritableError: the disk is full or not writable; nothing is left behind.
        WeightsInvalidError: a merged value is not finite in the output's dtype.
        StatisticsInvalidError: a Gram matrix is not finite.
    """
    task = plan.tasks[index]
    described = Described(plan)
    workspace = Workspace(device)
    with (
        exact_products(),
        torch.inference_mode(),
        Inputs(task, readers, base_reader, device, on_progress=on_progress, is_cancelled=is_cancelled) as inputs,
        ShardWriter(target, task.outputs, _METADATA) as shard,
    ):
        for step in task.steps:
            for output, chunk in _execute_step(step, plan, inputs, workspace, described):
                shard.write(output.name, _convert(chunk, output, of_base=_is_of_base(step)))
        inputs.stop_if_cancelled()
    return ShardResult(shard.entry, tuple(described.entries))


def _execute_step(
    step: Step, plan: MergePlan, inputs: Inputs, workspace: Workspace, described: Described
) -> Iterator[tuple[TensorInfo, torch.Tensor]]:
    """Yield the step's tensors in order, each in one or several chunks."""
    if isinstance(step, RefitStep):
        tensors, told = refit(step, inputs)
        described.entries += told
        yield from zip(step.outputs, tensors, strict=True)
    else:
        yield from _execute_merge(step, plan, inputs, workspace, described)


def _execute_merge(
    step: MergeStep,
    plan: MergePlan,
    inputs: Inputs,
    workspace: Workspace,
    described: Described,
    rows: tuple[int, ...] | None = None,
) -> Iterator[tuple[TensorInfo, torch.Tensor]]:
    """Do the same of what members' values are merged to; `rows`: those that will be taken, None: all."""
    method, device = METHODS[plan.method], workspace.device
    # of rows that some members trained, distances would tell which these are
    followed = sample_of(step, device) if rows is None else follow_nothing(device)
    match step, method:
        case GramStep(), PrecisionMethod():
            objective = Objective(rows_of(step, rows).to(device))
            weights, diagnosis = solve_group(step, inputs, method, workspace, followed, objective)
            described.group(step, diagnosis, followed)
            yield from zip(step.outputs, weights, strict=True)
        case DiagonalStep(), ElementMethod():
            dead = 0
            for chunk, diagnosis in weigh_elements(step, inputs, method, workspace, followed):
                dead += diagnosis.dead_features
                yield step.output, chunk
            described.elements(step, dead, followed)
        case DeltaStep(), DeltaMethod():
            yield step.output, add_deltas(step, inputs, method, workspace, followed)
            described.deltas(step, followed)
        case AverageStep(), _:
            for chunk in average(step, inputs, workspace, followed):
                yield step.output, chunk
            described.average(step, followed)
        case RowsStep(), _:
            yield step.output, _merge_rows(step, plan, inputs, workspace, described)
        case CopyStep(), _:
            described.copy(step)
            for chunk in _copy(step, inputs):
                yield step.output, chunk
        case _:  # pragma: no cover - a plan holds its own method's steps
            msg = f"{plan.method} has no {type(step).__name__}"
            raise TypeError(msg)


def _merge_rows(
    step: RowsStep, plan: MergePlan, inputs: Inputs, workspace: Workspace, described: Described
) -> torch.Tensor:
    """Return a parameter, flat, in the output's dtype: of each part's merge the part's own rows.

    Whole in memory twice: it is a head, with one row for each label.
    """
    rows, dtype = step.output.shape[0], TORCH_DTYPES[step.output.dtype]
    count = torch.Size(step.output.shape).numel()
    whole, found = (workspace.take(name, (count,), dtype) for name in ("rows", "part"))
    described.rows(step)
    for part in step.parts:
        place, of_part = 0, Described(plan, label_rows=len(part.rows))
        for output, chunk in _execute_merge(part.step, plan, inputs, workspace, of_part, part.rows):
            flat = _convert(chunk, output, of_base=_is_of_base(part.step)).reshape(-1)
            found[place : place + flat.numel()].copy_(flat)
            place += flat.numel()
        described.entries += of_part.entries
        chosen = torch.tensor(part.rows, device=whole.device)
        whole.view(rows, -1)[chosen] = found.view(rows, -1)[chosen]
    return whole


def _is_of_base(step: Step) -> bool:
    return isinstance(step, CopyStep) and step.source is None


def _copy(step: CopyStep, inputs: Inputs) -> Iterator[torch.Tensor]:
    count = torch.Size(step.stored.shape).numel()
    for start, stop in element_ranges(count, DTYPE_BYTES[step.stored.dtype]):
        yield inputs.read(step.source, step.stored.name, start, stop)


def _convert(chunk: torch.Tensor, output: TensorInfo, *, of_base: bool) -> torch.Tensor:
    """Convert to the output's dtype. What the base stores in that dtype passes as it is: a mask may hold infinity.

    Raises:
        WeightsInvalidError: a value is NaN or infinite there.
    """
    if output.dtype not in FLOAT_DTYPES or (of_base and chunk.dtype == TORCH_DTYPES[output.dtype]):
        return chunk
    converted = chunk.to(TORCH_DTYPES[output.dtype])
    if not is_finite(converted):
        kind = "an input holds NaN or infinity, or a value is beyond this dtype's range"
        step = "check the inputs, exclude it, or choose another out_dtype"
        msg = f"{output.name} is not finite as {output.dtype}: {kind}; {step}"
        raise WeightsInvalidError(msg, tensor=output.name)
    return converted
