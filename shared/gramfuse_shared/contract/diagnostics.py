"""What a merge tells of its layers: how each was found, how certain that is, what was gained, how far members are.

Published files tell the spread of distances, nobody's by name. A job's diagnostics, which an organization asks for with
its token, tell its own besides.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field

from gramfuse_shared.contract.document import Document
from gramfuse_shared.identifiers import JobId, ProjectId

DIAGNOSTICS_FILE_NAME: Final = "diagnostics.json"
"""A model's layers, as a list of the engine's entries without single members' distances."""

SIGNIFICANT_DIGITS: Final = 3
"""Of what was estimated from samples; more would say what is not known, and change with a machine's threads."""

Fallback = Literal["none", "ridge", "average"]


class Spread(Document):
    """The distances of a layer's members: the smallest, the median, the largest."""

    smallest: float
    median: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Take at least one distance; of an even number the median is the mean of the two in the middle."""
        ordered = sorted(values)
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        return cls(smallest=rounded(ordered[0]), median=rounded(middle), largest=rounded(ordered[-1]))


class Layer(Document):
    """Parameters that were merged together, or one by itself; what does not apply is null.

    Attributes:
        parameters: their names; a group of linear weights that read the same inputs is one entry.
        method: what they were merged by; `base`: they are the base's.
        fallback: `ridge` or `average` where the method could not be followed.
        reason: why it is not what the method makes of it.
        rows, fewest_rows: of the statistics, in all and of the member with the fewest.
        dead_features: inputs that no row ever used.
        estimated: members whose statistics were estimated.
        label_rows: so many rows of a head, where only these are meant.
        condition: of the system that was solved, scaled to a unit diagonal: at least this.
        gained: the share of RegMean's objective gained over the average, of a sample of rows; below 0: lost.
        spread: the members' distances ‖Wᵢ − W‖/‖W‖, of a sample of elements.
        own: the distance of the organization that asks; never in published files.
    """

    parameters: Annotated[tuple[str, ...], Field(min_length=1)]
    method: str
    fallback: Fallback
    reason: str | None = None
    rows: int | None = None
    fewest_rows: int | None = None
    dead_features: int | None = None
    estimated: tuple[str, ...] = ()
    label_rows: int | None = None
    condition: float | None = None
    gained: float | None = None
    spread: Spread | None = None
    own: float | None = None

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any], *, own: str | None = None) -> Self:
        """Read an entry of the engine's, or of a published file; `own` is the label whose distance is told."""
        published = without_members(entry)
        distance = entry.get("distances", {}).get(own)
        known = {key: value for key, value in published.items() if key in cls.model_fields}
        return cls.model_validate(known | {"own": None if distance is None else rounded(distance)})


class JobDiagnostics(Document):
    """What a job's present attempt tells of its layers so far; `complete` once all of its tasks are done."""

    project: ProjectId
    job: JobId
    attempt: int
    complete: bool
    layers: tuple[Layer, ...]


def without_members(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an engine's entry as it may be published: distances as their spread, estimates to a few digits."""
    kept = {key: value for key, value in entry.items() if key != "distances"}
    for key in ("condition", "gained"):
        if kept.get(key) is not None:
            kept[key] = rounded(kept[key])
    if entry.get("distances"):
        kept["spread"] = Spread.of(list(entry["distances"].values())).model_dump()
    return kept


def rounded(value: float) -> float:
    """Round to `SIGNIFICANT_DIGITS`; no zero is negative."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") + 0.0
