"""What a merge tells of each layer, as JSON values: how it was found, how certain that is, what was gained."""

from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch

from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.fusion.least_squares import Diagnosis
from gramfuse_shared.merging.plan import MergePlan
from gramfuse_shared.merging.sampling import Sample
from gramfuse_shared.merging.steps import AverageStep, CopyStep, DeltaStep, DiagonalStep, GramStep, RowsStep
from gramfuse_shared.merging.terms import ReadySum

_MATRIX: Final = 2


@dataclass(slots=True)
class Described:
    """The entries of a task, in the order of its steps.

    Every entry has `parameters`, `method`, `fallback` and `reason`, why it is not what the method makes of it.

    - Of a group of linears that was solved: `members`, `width`, `compute`, and the diagnosis: `smallest_pivot`,
      `smallest_eigenvalue`, `dead_features`, `condition`, `gained`; where they were measured `alpha`, `rows`,
      `fewest_rows`, and `estimated`, the labels of the members whose precision is, whose rows are not counted.
    - Of what was merged of single members: `distances`, ‖Wᵢ − W‖/‖W‖ by the member's label, from sampled elements.
    - `label_rows` where it concerns so many rows of a head alone; then without distances.

    Vectors that are merged as the method would have no entry.
    """

    plan: MergePlan
    label_rows: int | None = None
    entries: list[dict[str, Any]] = field(default_factory=list)

    def group(self, step: GramStep, diagnosis: Diagnosis, sample: Sample) -> None:
        """Tell of a group of linears that was solved."""
        names = [output.name for output in step.outputs]
        entry = {"parameters": names, "method": self.plan.method, "width": step.width, "compute": step.compute}
        self._add(entry | self._measured(step) | asdict(diagnosis), sample)

    def elements(self, step: DiagonalStep, dead: int, sample: Sample) -> None:
        """Tell of a parameter that was weighed element by element, `dead` of which nobody had any information."""
        reason = None
        if dead:
            count = torch.Size(step.output.shape).numel()
            reason = f"nobody has any Fisher information of {dead} of {count} elements: they are averaged"
        self._add_parameter(step.output, self.plan.method, "none", reason, sample)

    def deltas(self, step: DeltaStep, sample: Sample) -> None:
        """Tell of a parameter to which differences were added."""
        self._add_parameter(step.output, self.plan.method, "none", None, sample)

    def average(self, step: AverageStep, sample: Sample) -> None:
        """Tell of a parameter that was averaged."""
        fallback = "none" if step.reason is None else "average"
        self._add_parameter(step.output, self.plan.method, fallback, step.reason, sample)

    def copy(self, step: CopyStep) -> None:
        """Tell of a parameter that was taken over, if there is a reason."""
        self._add_parameter(step.output, "base", "none", step.reason, None)

    def rows(self, step: RowsStep) -> None:
        """Tell of a head whose rows were trained by different members; its parts follow."""
        self._add_parameter(step.output, self.plan.method, "none", step.reason, None)

    def _add_parameter(
        self, output: TensorInfo, method: str, fallback: str, reason: str | None, sample: Sample | None
    ) -> None:
        is_followed = sample is not None and len(output.shape) >= _MATRIX
        if reason is not None or is_followed:
            entry = {"parameters": [output.name], "method": method, "fallback": fallback, "reason": reason}
            self._add(entry, sample if is_followed else None)

    def _add(self, entry: dict[str, Any], sample: Sample | None) -> None:
        distances = {} if sample is None else sample.distances()
        if distances:
            entry |= {"distances": {self.plan.labels[key]: value for key, value in distances.items()}}
        if self.label_rows is not None:
            entry |= {"label_rows": self.label_rows}
        self.entries.append(entry)

    def _measured(self, step: GramStep) -> dict[str, Any]:
        if isinstance(step.terms, ReadySum):
            return {}
        told: dict[str, Any] = {"members": len(step.terms)}
        rows = [term.tap.rows for term in step.terms if term.tap is not None]
        if not rows:
            return told
        if step.estimated:
            told["estimated"] = [self.plan.labels[key] for key in step.estimated]
        return told | {"alpha": step.settings.alpha, "rows": sum(rows), "fewest_rows": min(rows)}
