"""What one member adds to the sums of announced answers, in float64, a chunk at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch

from gramfuse_shared.contract.calibration import BINS, HOLDERS_SUM, LABELLED_SUM, OTHERS_SUM, CalibrationHistograms
from gramfuse_shared.contract.manifest import StatisticsSection
from gramfuse_shared.contract.recipe import DEFAULT_WEIGHT, resolve
from gramfuse_shared.contract.secure_session import SessionManifest, SummedTensor
from gramfuse_shared.errors import ArchitectureMismatchError
from gramfuse_shared.merging.schedule import element_ranges
from gramfuse_shared.merging.streaming import TensorReader

_FLOAT64_BYTES = 8


@dataclass(frozen=True, slots=True)
class StatisticsSummands:
    """cᵢGᵢ/nᵢ and cᵢBᵢ/nᵢ of what a head is refit from, or cᵢGᵢ and cᵢBᵢ where each row counts the same."""

    file: TensorReader
    factor: float

    @classmethod
    def of(cls, session: SessionManifest, organization: str, section: StatisticsSection, file: TensorReader) -> Self:
        """Take a member's file of head statistics, whose weight in the session applies."""
        (tap,) = section.taps
        member = session.member(organization)
        weight = DEFAULT_WEIGHT if member is None else member.weight
        factor = resolve(weight, tap.layers[0].weight, default=DEFAULT_WEIGHT)
        return cls(file, factor if session.recipe.parameters.normalize == "rows" else factor / tap.rows)

    def chunks(self, tensor: SummedTensor) -> Iterator[torch.Tensor]:
        """Yield the member's values of one sum in order, flat, float64.

        Raises:
            ArchitectureMismatchError: the session sums what was not measured.
        """
        if tensor.name not in self.file.tensors:
            raise _unknown(tensor)
        for start, stop in element_ranges(tensor.count, _FLOAT64_BYTES):
            yield self.file.read_elements(tensor.name, start, stop).to(torch.float64) * self.factor


@dataclass(frozen=True, slots=True)
class HistogramSummands:
    """Counts of a member's histograms, zero for labels that it did not count, and one for each that it did."""

    histograms: CalibrationHistograms

    def chunks(self, tensor: SummedTensor) -> Iterator[torch.Tensor]:
        """Yield the member's counts of one sum, flat, float64; raises ArchitectureMismatchError as above."""
        labels = self.histograms.labels
        counts: Mapping[str, torch.Tensor] = {
            LABELLED_SUM: torch.zeros(labels, BINS, dtype=torch.float64),
            OTHERS_SUM: torch.zeros(labels, BINS, dtype=torch.float64),
            HOLDERS_SUM: torch.zeros(labels, dtype=torch.float64),
        }
        for one in self.histograms.classes:
            counts[LABELLED_SUM][one.label] = torch.tensor(one.labelled, dtype=torch.float64)
            counts[OTHERS_SUM][one.label] = torch.tensor(one.others, dtype=torch.float64)
            counts[HOLDERS_SUM][one.label] = 1.0
        if tensor.name not in counts:
            raise _unknown(tensor)
        yield counts[tensor.name].view(-1)


def _unknown(tensor: SummedTensor) -> ArchitectureMismatchError:
    msg = f"the session sums {tensor.name}, which is not in the announced answer"
    return ArchitectureMismatchError(msg, tensor=tensor.name)
