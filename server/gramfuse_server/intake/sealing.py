"""Sealing: are all parts there, and do the files' own headers say what the manifest announced?"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.blobs import Blobs
from gramfuse_server.intake.parts import PartedFile, parted_file
from gramfuse_server.jobs import JobQueue
from gramfuse_server.tables import UploadFileRow, UploadRow
from gramfuse_shared import limits
from gramfuse_shared.contract.fisher_file import METADATA_KEY as FISHER_METADATA_KEY
from gramfuse_shared.contract.fisher_file import parse_fisher_metadata
from gramfuse_shared.contract.manifest import (
    BaseManifest,
    ContributionManifest,
    FisherDescription,
    FisherSection,
    StatisticsSection,
    TensorInfo,
    tensors_of,
)
from gramfuse_shared.contract.rules import require_scales_architecture, vocabulary_size
from gramfuse_shared.contract.safetensors_header import LENGTH_BYTES, Header, parse_header, parse_header_length
from gramfuse_shared.contract.scales_file import SCALES_FILE_NAME, parse_scales_metadata
from gramfuse_shared.contract.secure import WORDS_FILE_NAME
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.contract.statistics_file import METADATA_KEY, parse_statistics_metadata
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    DocumentMalformedError,
    PartsMissingError,
    PolicyViolationError,
    StatisticsMalformedError,
)

MAX_CONFIG_BYTES: Final = limits.MIB
_WEIGHTS_METADATA: Final = frozenset({"format"})


def complete_files(session: Session, blobs: Blobs, upload: UploadRow) -> dict[str, PartedFile]:
    """Return the upload's files, each readable as one.

    Raises:
        PartsMissingError: parts have not arrived; `facts` counts them by file.
    """
    files: dict[str, PartedFile] = {}
    missing: dict[str, int] = {}
    for entry in session.scalars(
        select(UploadFileRow).where(UploadFileRow.upload == upload.id).order_by(UploadFileRow.position)
    ):
        file = parted_file(session, blobs, entry)
        if file is None:
            missing[entry.name] = entry.part_count
        else:
            files[entry.name] = file
    if missing:
        msg = f"parts of {', '.join(sorted(missing)[:5])} are missing; send them, then seal again"
        raise PartsMissingError(msg, files=sorted(missing)[:100])
    return files


class Readable(Protocol):
    """Bytes of a known length, read by ranges."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes [start, end)."""


def read_header(file: Readable) -> Header:
    """Parse the safetensors header at a file's beginning; raises HeaderMalformedError, HeaderTooLargeError."""
    prefix = file.read(0, LENGTH_BYTES)
    length = parse_header_length(prefix)
    return parse_header(prefix + file.read(LENGTH_BYTES, LENGTH_BYTES + length), file.size)


def require_contribution_files(manifest: ContributionManifest, files: Mapping[str, PartedFile]) -> None:
    """Require that the files of a contribution are what its manifest announces, as far as headers tell.

    Raises:
        HeaderMalformedError, HeaderTooLargeError, StatisticsMalformedError: not a well-formed file.
        ArchitectureMismatchError: well-formed, but not what was announced.
        PolicyViolationError: a header carries free text.
    """
    header = read_header(files[manifest.weights.file.name])
    _require_tensors(manifest.weights.file.name, header, manifest.weights.tensors)
    _require_metadata(manifest.weights.file.name, header, _WEIGHTS_METADATA)
    if manifest.fisher is not None:
        _require_fisher(manifest.fisher, manifest.base, read_header(files[manifest.fisher.file.name]))
    if manifest.statistics is not None:
        require_statistics_file(manifest.statistics, manifest.base, files)


def require_statistics_file(announced: StatisticsSection, base: str, files: Mapping[str, PartedFile]) -> None:
    """Require that a statistics file is what was announced, measured for this base or for none. Raises as above."""
    header = read_header(files[announced.file.name])
    metadata = parse_statistics_metadata(header, kind=announced.kind)
    _require_metadata(announced.file.name, header, frozenset({METADATA_KEY}))
    if (metadata.taps, metadata.collector, metadata.encoding, metadata.labels) != (
        announced.taps,
        announced.collector,
        announced.encoding,
        announced.labels,
    ):
        msg = f"{announced.file.name} does not describe the taps and settings that were announced"
        raise StatisticsMalformedError(msg)
    if metadata.base not in {None, base}:
        msg = "the statistics were measured for another base model; collect them with the project's base"
        raise ArchitectureMismatchError(msg)


def require_words_file(session: SessionManifest, files: Mapping[str, PartedFile]) -> None:
    """Require that a file of masked words holds the tensors that the session sums, and no text.

    Raises:
        HeaderMalformedError, HeaderTooLargeError: not a well-formed file.
        ArchitectureMismatchError: it holds other tensors.
        PolicyViolationError: it carries text.
    """
    header = read_header(files[WORDS_FILE_NAME])
    _require_metadata(WORDS_FILE_NAME, header, frozenset())
    _require_tensors(WORDS_FILE_NAME, header, session.words)


def require_base_files(manifest: BaseManifest, files: Mapping[str, PartedFile]) -> None:
    """Require that a base model's files are what its manifest announces, as far as headers and config.json tell.

    Where the project's scales file is beside them, it was measured on this base model.

    Raises:
        HeaderMalformedError, HeaderTooLargeError: not a well-formed file.
        ArchitectureMismatchError: well-formed, but not what was announced.
        DocumentMalformedError: config.json is not a JSON object of moderate size.
        ScalesMalformedError: the scales file beside it is not one.
    """
    for file in manifest.files:
        if file.tensors is not None:
            _require_tensors(file.name, read_header(files[file.name]), file.tensors)
    if SCALES_FILE_NAME in files:
        require_scales_architecture(parse_scales_metadata(read_header(files[SCALES_FILE_NAME])), manifest)
    config = files["config.json"]
    if config.size > MAX_CONFIG_BYTES:
        msg = f"config.json has {config.size} bytes; at most {MAX_CONFIG_BYTES} are read"
        raise DocumentMalformedError(msg)
    try:
        document = json.loads(config.read(0, config.size))
    except (ValueError, RecursionError) as error:
        msg = f"config.json is not JSON: {error}"
        raise DocumentMalformedError(msg) from error
    if not isinstance(document, dict):
        msg = "config.json is not a JSON object"
        raise DocumentMalformedError(msg)
    if vocabulary_size(document) != manifest.vocabulary_size:
        msg = f"config.json's vocab_size is {vocabulary_size(document)}, the manifest says {manifest.vocabulary_size}"
        raise ArchitectureMismatchError(msg)


def seal(session: Session, upload: UploadRow, *, queue: JobQueue, now: datetime) -> None:
    """Close an open upload and hand it to a worker, in one transaction."""
    upload.state, upload.sealed_at = "sealed", now
    session.flush()
    queue.enqueue_inspection(session, upload)


def reject(upload: UploadRow, reason: str, now: datetime) -> None:
    """Refuse an upload for good and release its bytes for deletion."""
    upload.state, upload.reason, upload.decided_at, upload.delete_after = "rejected", reason, now, now


def _require_fisher(announced: FisherSection, base: str, header: Header) -> None:
    metadata = parse_fisher_metadata(header)
    _require_metadata(announced.file.name, header, frozenset({FISHER_METADATA_KEY}))
    told = FisherDescription.model_fields
    if any(getattr(metadata, name) != getattr(announced, name) for name in told):
        msg = f"{announced.file.name} does not describe the parameters and settings that the manifest announces"
        raise StatisticsMalformedError(msg)
    if metadata.base not in {None, base}:
        msg = "the Fisher information was measured for another base model; measure it with the project's base"
        raise ArchitectureMismatchError(msg)


def _require_tensors(name: str, header: Header, announced: tuple[TensorInfo, ...]) -> None:
    found = tensors_of(header)
    if found != announced:
        odd = next((pair for pair in zip(found, announced, strict=False) if pair[0] != pair[1]), None)
        detail = (
            f"{odd[0].name} {odd[0].dtype} {list(odd[0].shape)} where {odd[1].name} {odd[1].dtype} "
            f"{list(odd[1].shape)} was announced"
            if odd
            else f"{len(found)} tensors where {len(announced)} were announced"
        )
        msg = f"the header of {name} does not list the manifest's tensors: {detail}"
        raise ArchitectureMismatchError(msg)


def _require_metadata(name: str, header: Header, allowed: frozenset[str]) -> None:
    spare = sorted(set(header.metadata) - allowed)
    if spare:
        msg = f"the header of {name} carries text under {spare[0][:80]!r}; nothing but numbers leaves an organization"
        raise PolicyViolationError(msg)
