"""The sum of a session as a job merges it: described to the engine, and taken out of its masks. Imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from sqlalchemy.orm import Session

from gramfuse_server.blobs import Blobs, blob_key, sums_key
from gramfuse_server.merging.attempts import Attempt
from gramfuse_server.merging.blob_source import BlobSource
from gramfuse_server.requests.documents import find_request
from gramfuse_server.requests.sessions import is_stage, session_of, stages_of
from gramfuse_server.tables import JobRow
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.scales_file import SCALES_FILE_NAME
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.merging.ready_sums import SummedMember
from gramfuse_shared.merging.scales import load_scales
from gramfuse_shared.merging.streaming import TensorFile
from gramfuse_shared.merging.summed_refits import SummedAnswers
from gramfuse_shared.secure.summands import mean_squares_of
from gramfuse_shared.secure.sums import summed_member, write_sums
from gramfuse_shared.secure.unmasking import Transcript, Unmasking, plan_unmasking

KEY: Final = "sums"


@dataclass(frozen=True, slots=True)
class Summed:
    """A session whose sum is merged: its last request, what was agreed on, and what takes the masks off."""

    request: str
    session: SessionManifest
    unmasking: Unmasking

    def member(self, base: BaseManifest) -> SummedMember:
        """Describe the sums to the engine."""
        return summed_member(self.session, self.unmasking, {tensor.name: tensor for tensor in base.tensors}, KEY)

    @property
    def answers(self) -> SummedAnswers:
        """Describe the sums of announced answers to the engine."""
        count = len(self.unmasking.masked)
        return SummedAnswers(KEY, f"the sum of {count} organizations' answers", count)


def find_summed(session: Session, job: JobRow, recipe: Recipe) -> Summed | None:
    """Return the session whose sum a job merges; None of other jobs.

    Raises:
        SecureSessionRefusedError, SignatureInvalidError: the masks cannot be taken off.
    """
    if recipe.request is None:
        return None
    row = find_request(session, job.project, recipe.request)
    if not is_stage(row):
        return None
    said = stages_of(session, row)
    transcript = Transcript(said["keys"], said["shares"], said["masked"], said["unmask"])
    manifest = session_of(session, row)
    return Summed(row.id, manifest, plan_unmasking(manifest, transcript))


def put_sums(summed: Summed, attempt: Attempt, blobs: Blobs, scratch: Path) -> None:
    """Take the masks off and write the sums, unless they lie there: the same bytes whoever does.

    Raises:
        FileUnreadableError, FileUnwritableError: the words, the scales, or the disk.
    """
    if blobs.size(_key(attempt)) is not None:
        return
    files = {
        message.sender: TensorFile.open(BlobSource(blobs, blob_key(words.sha256), words.bytes))
        for message in summed.unmasking.masked
        for words in [message.body.words]
    }
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch, prefix="sums-") as folder:
        scales = _mean_squares(summed.session, blobs, Path(folder) / SCALES_FILE_NAME)
        target = Path(folder) / "sums.safetensors"
        write_sums(target, summed.session, summed.unmasking, files, scales)
        blobs.put_file(_key(attempt), target)


def open_sums(attempt: Attempt, blobs: Blobs) -> TensorFile:
    """Open the sums that an attempt merges; raises FileUnreadableError."""
    key = _key(attempt)
    return TensorFile.open(BlobSource(blobs, key, blobs.size(key) or 0))


def _mean_squares(session: SessionManifest, blobs: Blobs, beside: Path) -> Mapping[str, torch.Tensor]:
    if session.scales is None:
        return {}
    with beside.open("wb") as stream:
        for chunk in blobs.chunks(blob_key(session.scales)):
            stream.write(chunk)
    return mean_squares_of(session, load_scales(beside))


def _key(attempt: Attempt) -> str:
    return sums_key(attempt.project, attempt.job, attempt.number)
