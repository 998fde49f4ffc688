"""Manifests: what a base model or a contribution consists of, down to every tensor, before a byte of it travels."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.privacy import Noised
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES, Header
from gramfuse_shared.identifiers import VERSION_PATTERN, Digest, FileName, OrganizationName, ProjectId, TensorName

Size = Annotated[int, Field(ge=0, lt=2**53)]
RowCount = Annotated[int, Field(ge=0, le=limits.MAX_ROWS)]
DtypeName = Literal[
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "I64", "U64", "F64"
]
assert set(DtypeName.__args__) == set(DTYPE_BYTES)  # type: ignore[attr-defined] # noqa: S101 - one list, two spellings


class FileEntry(Document):
    """A file by name, length and digest."""

    name: FileName
    bytes: Annotated[int, Field(ge=1, le=limits.MAX_FILE_BYTES)]
    sha256: Digest


class TensorInfo(Document):
    """A tensor without its values."""

    name: TensorName
    dtype: DtypeName
    shape: Annotated[tuple[Size, ...], Field(max_length=limits.MAX_TENSOR_DIMENSIONS)]


Tensors = Annotated[tuple[TensorInfo, ...], Field(max_length=limits.MAX_TENSORS_PER_FILE)]


class LayerInfo(Document):
    """A linear layer that reads a tap, and how its weight is stored: nn.Linear [out, in], GPT-2's Conv1D [in, out].

    `outputs` is written for layers alone that are to be refit: the columns of the layer's product.
    """

    weight: TensorName
    layout: Literal["out_in", "in_out"] = "out_in"
    outputs: Annotated[int, Field(ge=1, le=limits.MAX_TAP_WIDTH)] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )


Source = Literal["embeddings", "mixed", "unknown"]
"""Whether what a layer reads at a token depends on that token alone (`embeddings`), on others too (`mixed`), or that
this could not be found out (`unknown`, which the policy treats like `embeddings`)."""


class TapInfo(Document):
    """A tap without its values: where it is, what reads it, and how many rows went into its Gram matrix.

    `rows` divides the raw sum; `distinct_rows` counts a row once per distinct example and is what the policy's
    minimum is about. `source` says where the rows come from.
    """

    name: TensorName
    width: Annotated[int, Field(ge=1, le=limits.MAX_TAP_WIDTH)]
    rows: Annotated[int, Field(ge=1, le=limits.MAX_ROWS)]
    distinct_rows: RowCount
    source: Source
    layers: Annotated[tuple[LayerInfo, ...], Field(min_length=1, max_length=10_000)]

    @model_validator(mode="after")
    def _rows_bound_distinct_rows(self) -> Self:
        if self.distinct_rows > self.rows:
            msg = "distinct_rows exceeds rows"
            raise ValueError(msg)
        return self


Taps = Annotated[tuple[TapInfo, ...], Field(max_length=limits.MAX_TAPS)]


class BaseFile(FileEntry):
    """A file of the base model; of a safetensors file also its tensors, in file order."""

    tensors: Tensors | None = None


class BaseManifest(Document):
    """The base model of a project: a task-ready `from_pretrained` folder. Its digest is the fingerprint."""

    format: Literal["gramfuse/base/1"] = "gramfuse/base/1"
    files: Annotated[tuple[BaseFile, ...], Field(min_length=1, max_length=limits.MAX_FILES_PER_UPLOAD)]
    vocabulary_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="config.json's vocab_size; tensors with a dimension of it count as embeddings"
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        _require_unique("file", [file.name for file in self.files])
        _require_unique("tensor", [tensor.name for tensor in self.tensors])
        if not any(file.name == "config.json" for file in self.files):
            msg = "a base model holds config.json"
            raise ValueError(msg)
        if not self.tensors:
            msg = "a base model holds tensors in safetensors files"
            raise ValueError(msg)
        if any(file.name.endswith(".safetensors") == (file.tensors is None) for file in self.files):
            msg = "safetensors files, and only these, list their tensors"
            raise ValueError(msg)
        return self

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors of all files."""
        return tuple(tensor for file in self.files for tensor in file.tensors or ())


class PolicyReference(Document):
    """A policy by version and digest."""

    version: Annotated[int, Field(ge=1, le=1_000_000)]
    digest: Digest


Weighting = Literal["none", "output_gradient"]
"""How rows count: all alike, or each by the square of the loss's gradient at its layer's output."""


class CollectorSettings(Document):
    """How statistics were measured; numbers and fixed words only, never free text.

    `weighting` and `noised` are written only where they are not the default: what was sent before keeps its bytes. Of
    noised statistics `rows` is the number of examples at every tap: exact counts would tell of the texts.
    """

    collector_version: Annotated[str, Field(pattern=VERSION_PATTERN)]
    precision: Literal["float32", "bfloat16"] = "float32"
    padding: Literal["dropped", "counted"] = "dropped"
    weighting: Weighting = Field(default="none", exclude_if=lambda value: value == "none")
    noised: Noised | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _noise_is_on_clipped_rows(self) -> Self:
        if self.noised is not None and (self.weighting, self.padding) != ("none", "dropped"):
            msg = "rows that gradients weigh, or that are padding, are not clipped, so no noise makes them private"
            raise ValueError(msg)
        return self


LabelCount = Annotated[int, Field(ge=1, le=limits.MAX_LABELS)]

StatisticsEncoding = Literal["float32", "int16"]
"""How Gram matrices travel: as they were summed, or scaled to a unit diagonal and rounded (`statistics_file`)."""


WeightsEncoding = Literal["stored", "bf16-delta"]
"""How weights travel: as the checkpoint stores them, or as differences from the base model's, in bfloat16."""


LeftOut = Literal["unknown", "base"]
"""What a contribution's model holds where it sends no tensor: something of its own, or the base model's values."""


class WeightsSection(Document):
    """The file of weights: tensors in file order.

    `left_out` is written only where it is not the default: what was sent before it came keeps its bytes.
    """

    file: FileEntry
    encoding: WeightsEncoding = "stored"
    left_out: LeftOut = Field(default="unknown", exclude_if=lambda value: value == "unknown")
    tensors: Annotated[Tensors, Field(min_length=1)]


StatisticsKind = Literal["gram", "head", "refit"]
"""What a file holds: Gram matrices of layers' inputs for a merge, or what a head, or linear layers, are refit from."""


class StatisticsSection(Document):
    """The file of statistics: taps in file order.

    `labels` is written for what a head is refit from alone: the columns of its product with the logits. Layers that
    are to be refit say their outputs.
    """

    file: FileEntry
    encoding: StatisticsEncoding = "float32"
    taps: Annotated[Taps, Field(min_length=1)]
    collector: CollectorSettings
    labels: LabelCount | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        require_one_kind(self.labels, self.taps, self.encoding)
        return self

    @property
    def kind(self) -> StatisticsKind:
        """What the file holds."""
        return kind_of_statistics(self.labels, self.taps)


def kind_of_statistics(labels: int | None, taps: Sequence[TapInfo]) -> StatisticsKind:
    """Tell what statistics are of: with labels of a head, with outputs of layers that are to be refit."""
    if labels is not None:
        return "head"
    return "refit" if any(layer.outputs is not None for tap in taps for layer in tap.layers) else "gram"


def require_distinct_taps(taps: Sequence[TapInfo]) -> None:
    """Require that no tap and no layer is named twice; raises ValueError."""
    names = [tap.name for tap in taps]
    weights = [layer.weight for tap in taps for layer in tap.layers]
    if len(set(names)) != len(names) or len(set(weights)) != len(weights):
        msg = "a tap or a layer is named twice"
        raise ValueError(msg)


def require_one_kind(labels: int | None, taps: Sequence[TapInfo], encoding: StatisticsEncoding) -> None:
    """Require that a head is one layer, and that either all layers are to be refit or none; raises ValueError."""
    layers = [layer for tap in taps for layer in tap.layers]
    kind = kind_of_statistics(labels, taps)
    if kind == "gram":
        return
    if encoding != "float32" or any(tap.width == 1 for tap in taps):
        msg = f"{kind} statistics are of one layer or several with at least one feature, in float32"
        raise ValueError(msg)
    if kind == "head" and (len(taps) != 1 or [(one.layout, one.outputs) for one in layers] != [("out_in", None)]):
        msg = "head statistics are of one layer, stored [out, in]"
        raise ValueError(msg)
    if kind == "refit" and any(layer.outputs is None for layer in layers):
        msg = "refit statistics say the outputs of every layer"
        raise ValueError(msg)


class TrainedLabels(Document):
    """Which of the project's label ids a contribution trained: ids alone, never names. Of other rows it has no say.

    `count` is the base model's number of labels: so many rows has a head's parameter that belongs to labels.
    """

    count: Annotated[int, Field(ge=1, le=limits.MAX_LABELS)]
    trained: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=limits.MAX_LABELS)]

    @model_validator(mode="after")
    def _ids_are_ascending_and_known(self) -> Self:
        if any(one >= other for one, other in pairwise(self.trained)):
            msg = "trained label ids are ascending, each once"
            raise ValueError(msg)
        if self.trained and self.trained[-1] >= self.count:
            msg = f"a trained label id is {self.trained[-1]}, the labels end at {self.count - 1}"
            raise ValueError(msg)
        return self


Labels = Literal["sampled", "given"]
"""Whose labels a loss was taken of: drawn from the model's own predictions, or those that came with the texts."""


class FisherSettings(Document):
    """How Fisher information was measured; numbers and fixed words only, never free text."""

    collector_version: Annotated[str, Field(pattern=VERSION_PATTERN)]
    labels: Labels = "sampled"


class FisherParameter(Document):
    """A parameter's Fisher information without its values: the tensor of its name, F32 and of this shape.

    `norm` is ‖F‖, the root of the values' sum of squares; `source` is that of what the parameter's module reads.
    """

    name: TensorName
    shape: Annotated[tuple[Size, ...], Field(max_length=limits.MAX_TENSOR_DIMENSIONS)]
    norm: Annotated[float, Field(ge=0)]
    source: Source


class FisherDescription(Document):
    """What Fisher information was measured of: the diagonal F = Σ (∂ log p/∂θ)², a raw sum over `examples`.

    `distinct_examples` counts equal examples once and is what the policy's minimum is about.
    """

    examples: Annotated[int, Field(ge=1, le=limits.MAX_ROWS)]
    distinct_examples: RowCount
    collector: FisherSettings
    parameters: Annotated[tuple[FisherParameter, ...], Field(min_length=1, max_length=limits.MAX_TENSORS_PER_FILE)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        _require_unique("parameter", [parameter.name for parameter in self.parameters])
        if self.distinct_examples > self.examples:
            msg = "distinct_examples exceeds examples"
            raise ValueError(msg)
        return self


class FisherSection(FisherDescription):
    """The file of Fisher information: parameters in file order."""

    file: FileEntry


class ContributionManifest(Document):
    """One participant's immutable upload. Its digest is the contribution's id, so it holds no clock and no chance.

    `generation` is raised to send the same content again after an earlier contribution expired or was withdrawn.
    `labels` is written only where not all labels were trained, `fisher` only where there is any: what was sent before
    they came keeps its bytes.
    """

    format: Literal["gramfuse/contribution/1"] = "gramfuse/contribution/1"
    project: ProjectId
    organization: OrganizationName
    base: Digest
    policy: PolicyReference
    generation: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    weights: WeightsSection
    statistics: StatisticsSection | None = None
    labels: TrainedLabels | None = Field(default=None, exclude_if=lambda value: value is None)
    fisher: FisherSection | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        _require_unique("file", [file.name for file in self.files])
        _require_unique("tensor", [tensor.name for tensor in self.weights.tensors])
        if self.statistics is not None:
            if self.statistics.kind != "gram":
                msg = "what layers are refit from answers a request; a contribution holds Gram matrices"
                raise ValueError(msg)
            _require_unique("tap", [tap.name for tap in self.statistics.taps])
            _require_unique("layer", [layer.weight for tap in self.statistics.taps for layer in tap.layers])
        return self

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files that travel."""
        sections = (self.weights, self.statistics, self.fisher)
        return tuple(section.file for section in sections if section is not None)


def tensors_of(header: Header) -> tuple[TensorInfo, ...]:
    """List a parsed header's tensors in file order, as a manifest does."""
    return tuple(
        TensorInfo.model_validate({"name": entry.name, "dtype": entry.dtype, "shape": entry.shape})
        for entry in header.tensors.values()
    )


def _require_unique(what: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        msg = f"a {what} is named twice"
        raise ValueError(msg)
