"""The values of a merge's plan: who takes part with what, and what is decided of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from gramfuse_shared.contract.manifest import (
    FisherDescription,
    LeftOut,
    StatisticsEncoding,
    TapInfo,
    TensorInfo,
    Weighting,
)
from gramfuse_shared.contract.recipe import Overridable
from gramfuse_shared.fusion.methods import METHODS
from gramfuse_shared.merging.steps import AverageStep, GramStep, RowsStep, Step, Task


@dataclass(frozen=True, slots=True)
class LabelRows:
    """Of the parameters named, the rows that a member trained; its other rows of them are left out."""

    parameters: frozenset[str]
    trained: frozenset[int]


@dataclass(frozen=True, slots=True)
class Member:
    """One contribution without its values.

    Attributes:
        key: its identity, which decides the order of addition: the manifest's digest, locally a digest of the file.
        label: what messages and diagnostics call it.
        weight: cᵢ, with overrides by parameter name.
        tensors: its weights by checkpoint name.
        taps: its statistics; empty where it sent none.
        encoding: how its statistics travelled.
        weighting: how their rows count.
        labels: which rows of the head it trained; None: all.
        left_out: whether it has the base's values of the weights that are not among `tensors`, and its reader gives
            them.
        fisher: what Fisher information it sent; None where it sent none.
    """

    key: str
    label: str
    weight: Overridable
    tensors: Mapping[str, TensorInfo]
    taps: tuple[TapInfo, ...] = ()
    encoding: StatisticsEncoding = "float32"
    weighting: Weighting = "none"
    labels: LabelRows | None = None
    left_out: LeftOut = "unknown"
    fisher: FisherDescription | None = None


@dataclass(frozen=True, slots=True)
class LayerCount:
    """Matrices that a method of statistics solves, those that it has to average, and why.

    `estimated` counts those among the solved that lack statistics of the members `estimated_for`.
    """

    solved: int
    averaged: int
    reasons: tuple[str, ...]
    estimated: int = 0
    estimated_for: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Tell it in a line."""
        counts = f"{self.solved} of {self.solved + self.averaged} linear layers are solved"
        if self.estimated:
            labels = ", ".join(self.estimated_for)
            counts += f", {self.estimated} of them with a precision estimated from the difference to the base: {labels}"
        return f"{counts}; {self.averaged} averaged: {'; '.join(self.reasons)}" if self.averaged else counts


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge, decided. `labels` maps every member's key to its label, in the order of addition."""

    method: str
    method_version: str
    labels: Mapping[str, str]
    tasks: tuple[Task, ...]

    @property
    def layers(self) -> LayerCount | None:
        """How many matrices are solved, and how many averaged for want of statistics; None if the method reads none."""
        if not METHODS[self.method].reads_taps:
            return None
        steps = [_main_step(step) for task in self.tasks for step in task.steps]
        solved = sum(len(step.linears) for step in steps if isinstance(step, GramStep))
        averaged = [step for step in steps if isinstance(step, AverageStep) and step.reason is not None]
        estimated = [step for step in steps if isinstance(step, GramStep) and step.estimated]
        return LayerCount(
            solved,
            len(averaged),
            tuple(sorted({str(step.reason) for step in averaged})),
            sum(len(step.linears) for step in estimated),
            tuple(sorted({self.labels[key] for step in estimated for key in step.estimated})),
        )

    @property
    def input_bytes(self) -> int:
        """Bytes that all tasks read."""
        return sum(task.input_bytes for task in self.tasks)

    def index_json(self) -> bytes | None:
        """Return `model.safetensors.index.json` as `save_pretrained` writes it; None for a model of one file."""
        if len(self.tasks) == 1:
            return None
        names = {output.name: task.file_name for task in self.tasks for output in task.outputs}
        document = {
            "metadata": {"total_size": sum(task.output_bytes for task in self.tasks)},
            "weight_map": dict(sorted(names.items())),
        }
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _main_step(step: Step) -> Step:
    """Of a head whose rows are merged from different contributions, the step that computes; else the step itself."""
    if not isinstance(step, RowsStep):
        return step
    kinds = (GramStep, AverageStep)
    return next((part.step for kind in kinds for part in step.parts if isinstance(part.step, kind)), step)
