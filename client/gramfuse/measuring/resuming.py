"""Lets a run over batches be interrupted at any moment: the same run goes on from where it was kept last."""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from torch import nn

from gramfuse.contributing.loading import ADAPTER_CONFIG_FILE
from gramfuse.measuring.batching import TokenizedText
from gramfuse.measuring.checkpoint import Checkpoint, Unfinished, read_checkpoint, read_seed, write_checkpoint
from gramfuse.measuring.inference import Progress
from gramfuse_shared.errors import CancelledError

Batch = TypeVar("Batch")

_SEED_BITS: Final = 128


class ResumableRun:
    """A run over batches, and its checkpoint, if it has one.

    Attributes:
        kept: what an earlier run had measured; None where there was none.
        done: how many batches that were.
    """

    def __init__(self, path: Path | None, run: str, *, every: timedelta, seed: int | None = None) -> None:
        """Look for a checkpoint of the run that `run` identifies.

        Args:
            path: the checkpoint's file; None to keep nothing.
            run: see `run_digest`.
            every: how often it is written.
            seed: what the run's drawing begins with, to be kept beside it.

        Raises:
            ConflictError, StatisticsMalformedError: the file is of another run, or no checkpoint.
        """
        self._path, self._run, self._every, self._seed = path, run, every, seed
        found = read_checkpoint(path, run) if path is not None else None
        self.kept: Unfinished | None = found.measured if found is not None else None
        self.done = found.batches if found is not None else 0

    def over(
        self,
        batches: Sequence[Batch],
        tokens: Sequence[int],
        *,
        measured: Callable[[], Unfinished],
        on_progress: Callable[[Progress], None],
        is_cancelled: Callable[[], bool],
    ) -> Iterator[tuple[int, Batch]]:
        """Give out each batch that is still to be measured, with its number from 1.

        Args:
            batches: all of the run.
            tokens: how many each has.
            measured: what has been measured, asked for when it is written.
            on_progress: called behind each batch.
            is_cancelled: asked behind each batch but the last; if so, the checkpoint is written and the run ends.

        Raises:
            CancelledError: `is_cancelled` said so; the message names the checkpoint.
        """
        total, resumed = sum(tokens), sum(tokens[: self.done])
        so_far, written = resumed, time.monotonic()
        for number, batch in enumerate(batches[self.done :], start=self.done + 1):
            yield number, batch
            so_far += tokens[number - 1]
            on_progress(Progress(tokens=so_far, total=total, resumed=resumed))
            cancelled = number < len(batches) and is_cancelled()
            if self._path is not None and (cancelled or time.monotonic() - written >= self._every.total_seconds()):
                write_checkpoint(self._path, Checkpoint(self._run, number, measured(), self._seed))
                written = time.monotonic()
            if cancelled:
                kept = f"are kept in {self._path}" if self._path is not None else "were measured, and nothing is kept"
                msg = f"the measurement was interrupted; {number} of {len(batches)} batches {kept}"
                raise CancelledError(msg)


def seed_of_run(given: int | None, checkpoint: str | Path | None) -> int:
    """Return what a run's drawing of labels begins with: what is given, or as it began, or what nobody can guess.

    Whoever knows the seed draws the labels of known texts again, so it is no part of any file that may leave.

    Raises:
        StatisticsMalformedError: there is a file, and it is no checkpoint of this version.
    """
    began = given if given is not None or checkpoint is None else read_seed(Path(checkpoint))
    return secrets.randbits(_SEED_BITS) if began is None else began


def run_digest(
    folders: Sequence[Path], model: nn.Module, examples: Sequence[TokenizedText], settings: Sequence[Any]
) -> str:
    """Identify a run by model, tokens and settings, so that a checkpoint of another one is not continued."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for folder in folders:
        for path in sorted([*folder.glob("*.safetensors"), *folder.glob(ADAPTER_CONFIG_FILE)]):
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    if not folders:
        for name, parameter in model.named_parameters():
            sample = parameter.detach().flatten()[:64].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)} {sample.tolist()}\n".encode())
    for example in examples:
        digest.update(json.dumps([example.ids, example.types, example.target]).encode())
    return digest.hexdigest()
