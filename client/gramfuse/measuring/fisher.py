"""The diagonal of a model's Fisher information: a commutative monoid, and its file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import torch

from gramfuse.contributing.loading import read_header
from gramfuse.measuring.statistics_io import write_values
from gramfuse.measuring.stream import worst_source
from gramfuse_shared import limits
from gramfuse_shared.contract.fisher_file import (
    LARGEST_VALUE,
    METADATA_KEY,
    FisherMetadata,
    parse_fisher_metadata,
    tensors_of_fisher,
)
from gramfuse_shared.contract.manifest import FisherParameter, FisherSettings, Source
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.errors import StateError, StatisticsInvalidError, StatisticsMalformedError
from gramfuse_shared.merging.streaming import LocalFile, TensorFile


class Fisher:
    """F = Σ (∂ log p/∂θ)² over examples, by the checkpoint's name of each parameter; fp32 on the CPU, a raw sum.

    `one + other` is as if both had been measured in one run; the zero is `Fisher()`. Equal examples are counted once in
    `distinct_examples`, also across a sum, as long as neither part was loaded from a file: files hold no trace of
    single examples.

    Attributes:
        values: the sums.
        examples: how many examples were summed.
        seen: hashes of the distinct ones.
        anonymous: how many distinct ones are known by their number alone.
        sources: of what the parameter's module reads.
    """

    def __init__(
        self,
        values: Mapping[str, torch.Tensor] | None = None,
        *,
        examples: int = 0,
        seen: Iterable[bytes] = (),
        anonymous: int = 0,
        sources: Mapping[str, Source] | None = None,
        settings: FisherSettings | None = None,
        base: str | None = None,
    ) -> None:
        self.values: dict[str, torch.Tensor] = dict(values or {})
        self.examples = examples
        self.seen: set[bytes] = set(seen)
        self.anonymous = anonymous
        self.sources: dict[str, Source] = dict(sources or {})
        self.settings = settings
        self.base = base

    @property
    def distinct_examples(self) -> int:
        """How many different examples there were."""
        return len(self.seen) + self.anonymous

    def __add__(self, other: Self) -> Self:
        """Return the Fisher information of both runs together.

        Raises:
            StatisticsMalformedError: they are of other parameters, or measured with other settings or another base.
        """
        if not self.values or not other.values:
            return (self if self.values else other)._copy()
        shapes = [{name: tuple(value.shape) for name, value in part.values.items()} for part in (self, other)]
        if shapes[0] != shapes[1]:
            odd = next(name for name in (*shapes[0], *shapes[1]) if shapes[0].get(name) != shapes[1].get(name))
            msg = f"Fisher information of other models does not add: they differ in {odd}"
            raise StatisticsMalformedError(msg)
        if self.settings != other.settings:
            msg = f"Fisher information measured with {self.settings} and with {other.settings} does not add"
            raise StatisticsMalformedError(msg)
        if self.base and other.base and self.base != other.base:
            msg = f"Fisher information of base {self.base} and of base {other.base} does not add"
            raise StatisticsMalformedError(msg)
        return type(self)(
            {name: value + other.values[name] for name, value in self.values.items()},
            examples=self.examples + other.examples,
            seen=self.seen | other.seen,
            anonymous=self.anonymous + other.anonymous,
            sources={name: worst_source((self.sources[name], other.sources[name])) for name in self.sources},
            settings=self.settings,
            base=self.base or other.base,
        )

    def __repr__(self) -> str:
        return f"Fisher({len(self.values)} parameters, {self.examples:,} examples)"

    @property
    def metadata(self) -> FisherMetadata:
        """What a file would say of it, without the values.

        Raises:
            StateError: nothing was measured.
            StatisticsInvalidError: a sum is not finite, or absurdly large; the message names the parameter.
        """
        if not self.examples or self.settings is None:
            msg = "nothing was measured: there were no examples"
            raise StateError(msg)
        return FisherMetadata(
            base=self.base,
            examples=min(self.examples, limits.MAX_ROWS),
            distinct_examples=min(self.distinct_examples, limits.MAX_ROWS),
            collector=self.settings,
            parameters=tuple(
                FisherParameter(
                    name=name,
                    shape=tuple(value.shape),
                    norm=_norm(name, value),
                    source=self.sources.get(name, "unknown"),
                )
                for name, value in self.values.items()
            ),
        )

    def save(self, path: str | Path) -> None:
        """Write the file: beside, then renamed, so that nobody sees half of one. Raises as `metadata` does."""
        metadata = self.metadata
        header = format_header(tensors_of_fisher(metadata.parameters), {METADATA_KEY: metadata.canonical().decode()})
        write_values(Path(path), header, self.values.values())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file.

        Raises:
            FileUnreadableError: there is no such file.
            HeaderMalformedError, StatisticsMalformedError: it is not a file of Fisher information.
        """
        header = read_header(Path(path))
        metadata = parse_fisher_metadata(header)
        with LocalFile(Path(path)) as source:
            file = TensorFile(source, header)
            values = {parameter.name: file.read(parameter.name) for parameter in metadata.parameters}
        return cls(
            values,
            examples=metadata.examples,
            anonymous=metadata.distinct_examples,
            sources={parameter.name: parameter.source for parameter in metadata.parameters},
            settings=metadata.collector,
            base=metadata.base,
        )

    def _copy(self) -> Self:
        return type(self)(
            {name: value.clone() for name, value in self.values.items()},
            examples=self.examples,
            seen=self.seen,
            anonymous=self.anonymous,
            sources=self.sources,
            settings=self.settings,
            base=self.base,
        )


def _norm(name: str, value: torch.Tensor) -> float:
    if value.numel() and not bool(value.amax() <= LARGEST_VALUE):  # NaN fails too
        msg = (
            f"the Fisher information of {name!r} holds NaN or infinity, or values beyond any gradient's: check the "
            "model's outputs on these texts, and whether training diverged"
        )
        raise StatisticsInvalidError(msg, parameter=name)
    return float(value.double().square().sum().sqrt())
