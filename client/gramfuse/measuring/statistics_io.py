"""Reads and writes statistics files; the format is `gramfuse_shared.contract.statistics_file`."""

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch

from gramfuse.contributing.loading import read_header
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.contract.statistics_file import (
    METADATA_KEY,
    StatisticsMetadata,
    gram_tensor_name,
    packed_length,
    parse_statistics_metadata,
)
from gramfuse_shared.errors import FileUnreadableError, FileUnwritableError

if TYPE_CHECKING:
    from gramfuse.measuring.statistics import Tap


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Write a file beside its place and rename it on a clean exit; on any other, nothing is left behind.

    Raises:
        FileUnwritableError: the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with beside.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror or error}"
        raise FileUnwritableError(msg) from error
    finally:
        beside.unlink(missing_ok=True)


def write_statistics(path: Path, metadata: StatisticsMetadata, taps: Iterable["Tap"]) -> None:
    """Write the header for `metadata`, then the packed matrices of `taps`, which come in the same order."""
    header = format_header(
        [(gram_tensor_name(tap.name), "F32", (packed_length(tap.width),)) for tap in metadata.taps],
        {METADATA_KEY: metadata.model_dump_json()},
    )
    with written_whole(path) as stream:
        stream.write(header)
        for tap in taps:
            stream.write(tap.gram.numpy().astype("<f4", copy=False).data)


def read_statistics(path: Path) -> tuple[StatisticsMetadata, Iterator[torch.Tensor]]:
    """Return what a statistics file says, and its packed matrices in the order of its taps, read one at a time.

    Raises:
        FileUnreadableError, HeaderMalformedError, StatisticsMalformedError: as their names say.
    """
    header = read_header(path)
    metadata = parse_statistics_metadata(header)

    def grams() -> Iterator[torch.Tensor]:
        with path.open("rb") as stream:
            for entry in header.tensors.values():
                stream.seek(entry.start)
                values = np.empty(entry.length // 4, dtype="<f4")
                if stream.readinto(values.data) != entry.length:
                    msg = f"{path} became shorter while it was read"
                    raise FileUnreadableError(msg)
                yield torch.from_numpy(values)

    return metadata, grams()
