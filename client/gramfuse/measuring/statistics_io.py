"""Reads and writes statistics files; the format is `gramfuse_shared.contract.statistics_file`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gramfuse.contributing.loading import read_header
from gramfuse.contributing.origin import note_of
from gramfuse.whole_files import written_whole
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.contract.statistics_file import (
    METADATA_KEY,
    StatisticsMetadata,
    gram_tensor_name,
    parse_statistics_metadata,
    tensors_of_taps,
)
from gramfuse_shared.identifiers import Digest
from gramfuse_shared.merging.decoding import decode_statistics
from gramfuse_shared.merging.streaming import LocalFile, TensorFile

if TYPE_CHECKING:
    from gramfuse.measuring.statistics import Tap


def write_statistics(
    path: Path, metadata: StatisticsMetadata, taps: Iterable["Tap"], *, measured_on: Digest | None = None
) -> None:
    """Write the header for `metadata`, then the packed matrices of `taps`, which come in the same order."""
    header = format_header(
        tensors_of_taps(metadata.taps, metadata.encoding),
        {METADATA_KEY: metadata.model_dump_json(), **note_of(measured_on)},
    )
    write_values(path, header, (tap.gram for tap in taps))


def write_values(path: Path, header: bytes, values: Iterable[torch.Tensor], *, private: bool = True) -> None:
    """Write a safetensors file of F32 tensors on the CPU, in the header's order: beside, then renamed.

    For its owner only, unless nothing in it comes from `private` texts.

    Raises:
        FileUnwritableError: the folder cannot be written.
    """
    with written_whole(path, private=private) as stream:
        stream.write(header)
        for value in values:
            stream.write(value.contiguous().numpy().astype("<f4", copy=False).data)


def read_statistics(path: Path) -> tuple[StatisticsMetadata, Iterator[torch.Tensor]]:
    """Return what a statistics file says, and its packed matrices in the order of its taps, read one at a time.

    Raises:
        FileUnreadableError, HeaderMalformedError, StatisticsMalformedError: as their names say.
    """
    header = read_header(path)
    metadata = parse_statistics_metadata(header)

    def grams() -> Iterator[torch.Tensor]:
        with LocalFile(path) as source:
            file = decode_statistics(TensorFile(source, header), metadata.encoding)
            for tap in metadata.taps:
                yield file.read(gram_tensor_name(tap.name))

    return metadata, grams()
