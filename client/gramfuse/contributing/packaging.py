"""Turn a plan into what is sent: virtual files, and the manifest that names every tensor and digest of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from gramfuse.contributing.finiteness import FiniteStream
from gramfuse.contributing.loading import FisherFile, ModelFolder, StatisticsFile
from gramfuse.contributing.plan import FISHER_FILE_NAME, STATISTICS_FILE_NAME, WEIGHTS_FILE_NAME, ContributionPlan
from gramfuse.contributing.virtual_files import Source, Span, VirtualFile
from gramfuse_shared import limits
from gramfuse_shared.contract.faults import fisher_fault, gram_fault, weights_fault
from gramfuse_shared.contract.fisher_file import METADATA_KEY as FISHER_METADATA_KEY
from gramfuse_shared.contract.fisher_file import FisherMetadata, tensors_of_fisher
from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest, WeightsEncoding
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.rules import require_architecture, require_policy
from gramfuse_shared.contract.safetensors_header import TensorLayout, format_header, parse_header
from gramfuse_shared.contract.statistics_file import METADATA_KEY, StatisticsMetadata, tensors_of_taps
from gramfuse_shared.errors import GramfuseError

_FAULTS: Final[Mapping[str, Callable[[str], GramfuseError]]] = MappingProxyType(
    {WEIGHTS_FILE_NAME: weights_fault, STATISTICS_FILE_NAME: gram_fault, FISHER_FILE_NAME: fisher_fault}
)


@dataclass(frozen=True, slots=True)
class Package:
    """A contribution ready to be sent: its manifest, and the files in the manifest's order."""

    manifest: ContributionManifest
    files: tuple[VirtualFile, ...]


def weights_file(plan: ContributionPlan, model: ModelFolder) -> VirtualFile:
    """Present the leaving weights as one safetensors file, made of ranges of the model's own files."""
    tensors = [model.tensors[decision.info.name] for decision in plan.leaving_weights]
    header = format_header([(tensor.info.name, tensor.info.dtype, tensor.info.shape) for tensor in tensors])
    return VirtualFile(WEIGHTS_FILE_NAME, header, [tensor.span for tensor in tensors])


def statistics_file(plan: ContributionPlan, statistics: StatisticsFile) -> VirtualFile | None:
    """Present the leaving taps as one statistics file, with metadata of these taps alone; None where none leaves."""
    metadata = leaving_metadata(plan, statistics.metadata)
    if metadata is None:
        return None
    return file_of_taps(statistics, metadata)


def file_of_taps(statistics: StatisticsFile, metadata: StatisticsMetadata) -> VirtualFile:
    """Present those taps of a statistics file that the metadata describes as a statistics file of their own."""
    layout = tensors_of_taps(metadata.taps, metadata.encoding)
    return _part_of(statistics, STATISTICS_FILE_NAME, layout, {METADATA_KEY: metadata.canonical().decode()})


def leaving_metadata(plan: ContributionPlan, metadata: StatisticsMetadata) -> StatisticsMetadata | None:
    """Return the metadata of the leaving taps alone; None where none leaves."""
    taps = tuple(decision.info for decision in plan.leaving_taps)
    return metadata.model_copy(update={"taps": taps}) if taps else None


def fisher_file(plan: ContributionPlan, fisher: FisherFile) -> VirtualFile | None:
    """Present the leaving Fisher information as one file, with metadata of these alone; None where none leaves."""
    parameters = tuple(decision.info for decision in plan.leaving_fisher)
    if not parameters:
        return None
    metadata = fisher.metadata.model_copy(update={"parameters": parameters})
    text = {FISHER_METADATA_KEY: metadata.canonical().decode()}
    return _part_of(fisher, FISHER_FILE_NAME, tensors_of_fisher(parameters), text)


def _part_of(
    whole: StatisticsFile | FisherFile, name: str, layout: list[TensorLayout], metadata: Mapping[str, str]
) -> VirtualFile:
    """Present some tensors of a file as a file of their own, made of ranges of it."""
    source = Source.of(whole.path)
    entries = [whole.tensors[tensor] for tensor, _, _ in layout]
    return VirtualFile(name, format_header(layout, metadata), [Span(source, e.start, e.end) for e in entries])


def leaving_files(
    plan: ContributionPlan, model: ModelFolder, statistics: StatisticsFile | None, fisher: FisherFile | None = None
) -> tuple[VirtualFile, ...]:
    """Present what leaves as files, in the manifest's order; nothing is read yet.

    Raises:
        FileUnreadableError: a source is gone.
    """
    measured = None if statistics is None else statistics_file(plan, statistics)
    information = None if fisher is None else fisher_file(plan, fisher)
    return tuple(file for file in (weights_file(plan, model), measured, information) if file is not None)


def build_package(
    plan: ContributionPlan,
    files: tuple[VirtualFile, ...],
    *,
    encoding: WeightsEncoding,
    measured: StatisticsMetadata | None,
    fisher: FisherMetadata | None = None,
    project: str,
    organization: str,
    base: BaseManifest,
    policy: Policy,
    policy_version: int,
    on_bytes: Callable[[int], None] | None = None,
) -> Package:
    """Read the leaving bytes once for their digests and write the manifest: same inputs, same manifest.

    The same reading sees whether they are finite.
    The finished manifest is held once more against the base and the policy: nothing leaves that they forbid, even if
    the plan was made otherwise.

    Raises:
        ArchitectureMismatchError, PolicyViolationError: the plan lets something leave that may not.
        FileUnreadableError: a source is gone or was changed since it was planned.
        WeightsInvalidError, StatisticsInvalidError: what leaves holds NaN or infinity.
    """
    entries = {file.name: _file_entry(file, on_bytes) for file in files}
    document: dict[str, Any] = {
        "project": project,
        "organization": organization,
        "base": base.content_digest(),
        "policy": {"version": policy_version, "digest": policy.content_digest()},
        "weights": {
            "file": entries[WEIGHTS_FILE_NAME],
            "encoding": encoding,
            "left_out": plan.left_out,
            "tensors": [decision.info.model_dump() for decision in plan.leaving_weights],
        },
    }
    if STATISTICS_FILE_NAME in entries and measured is not None:
        document["statistics"] = {
            "file": entries[STATISTICS_FILE_NAME],
            "encoding": measured.encoding,
            "taps": [decision.info.model_dump() for decision in plan.leaving_taps],
            "collector": measured.collector.model_dump(),
        }
    if plan.labels is not None:
        document["labels"] = plan.labels.model_dump(mode="json")
    if FISHER_FILE_NAME in entries and fisher is not None:
        document["fisher"] = {
            "file": entries[FISHER_FILE_NAME],
            "examples": fisher.examples,
            "distinct_examples": fisher.distinct_examples,
            "parameters": [decision.info.model_dump() for decision in plan.leaving_fisher],
            "collector": fisher.collector.model_dump(),
        }
    manifest = ContributionManifest.model_validate(document)
    require_architecture(manifest, base)
    require_policy(manifest, base, policy)
    return Package(manifest, files)


def _file_entry(file: VirtualFile, on_bytes: Callable[[int], None] | None) -> dict[str, Any]:
    values = FiniteStream(parse_header(file.header, file.length).tensors.values(), _FAULTS[file.name])
    return {
        "name": file.name,
        "bytes": file.length,
        "sha256": file.digest(on_bytes, part_bytes=limits.DEFAULT_PART_BYTES, see=values.see),
    }
