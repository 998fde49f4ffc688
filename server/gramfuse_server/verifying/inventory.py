"""What the database names in the blob store, and what of it is not there as it should be. Reads only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.blobs import COMPLETE, PARTS, Blobs, blob_key, part_key
from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.tables import (
    JobRow,
    ModelFileRow,
    ModelRow,
    TaskRow,
    UploadFileRow,
    UploadPartRow,
    UploadRow,
)
from gramfuse_shared.digest import sha256_hex_of_chunks

Trouble = Literal["missing", "wrong size", "wrong bytes"]


@dataclass(frozen=True, slots=True)
class Named:
    """Bytes that the database counts on: where they should lie, and who names them."""

    key: str
    bytes: int
    sha256: str
    named_by: str
    advice: str


@dataclass(frozen=True, slots=True)
class Loss:
    """Named bytes that are not there as they should be; `found` is their length, None where nothing is."""

    named: Named
    trouble: Trouble
    found: int | None


_PUSH_AGAIN: Final = "restore it from the copy of the store; else its organization withdraws it and pushes again"
_BASE: Final = "restore it from the copy of the store: a project cannot go on without its base model"
_ANSWER: Final = "restore it from the copy of the store; else ask anew, by a request of another name"
_MODEL: Final = "restore it from the copy of the store; else delete the model and submit its job under another name"
_TASK: Final = "cancel the job and retry it: an attempt computes all of its shards"
_PARTS_AGAIN: Final = "restore it from the copy of the store; else its organization withdraws it and sends it again"


def named_files(session: Session) -> Iterator[Named]:
    """Everything that is to be there: files of uploads and models, shards of running jobs, parts that were received."""
    advice = {"base": _BASE, "contribution": _PUSH_AGAIN, "answer": _ANSWER}
    accepted = (
        select(UploadRow.kind, UploadRow.project, UploadFileRow)
        .join(UploadRow, UploadRow.id == UploadFileRow.upload)
        # where deletion is due, as of withdrawn ones, nobody counts on the bytes any more
        .where(UploadRow.state == "accepted", UploadRow.deleted_at.is_(None), UploadRow.delete_after.is_(None))
        .order_by(UploadRow.project, UploadRow.id, UploadFileRow.position)
    )
    for kind, project, file in session.execute(accepted):
        named_by = f"{kind} {project}, upload {file.upload}, {file.name}"
        yield Named(blob_key(file.sha256), file.bytes, file.sha256, named_by, advice[kind])
    models = (
        select(ModelFileRow)
        .join(ModelRow, (ModelRow.project == ModelFileRow.project) & (ModelRow.id == ModelFileRow.model))
        .where(ModelRow.deleted_at.is_(None))
        .order_by(ModelFileRow.project, ModelFileRow.model, ModelFileRow.position)
    )
    for row in session.scalars(models):
        named_by = f"model {row.project}/{row.model}, {row.name}"
        yield Named(blob_key(row.sha256), row.bytes, row.sha256, named_by, _MODEL)
    shards = (
        select(TaskRow)
        .join(JobRow, (JobRow.project == TaskRow.project) & (JobRow.id == TaskRow.job))
        .where(TaskRow.attempt == JobRow.attempt, JobRow.state.in_(UNFINISHED), TaskRow.state == "succeeded")
        .order_by(TaskRow.project, TaskRow.job, TaskRow.number)
    )
    for task in session.scalars(shards):
        if task.sha256 is not None and task.bytes is not None:
            named_by = f"job {task.project}/{task.job}, attempt {task.attempt}, {task.file}"
            yield Named(blob_key(task.sha256), task.bytes, task.sha256, named_by, _TASK)
    parts = (
        select(UploadRow.kind, UploadRow.project, UploadPartRow)
        .join(UploadRow, UploadRow.id == UploadPartRow.upload)
        .where(UploadRow.state.in_(("open", "sealed")))
        .order_by(UploadRow.project, UploadRow.id, UploadPartRow.file, UploadPartRow.number)
    )
    for kind, project, part in session.execute(parts):
        key = part_key(part.upload, part.file, part.number, part.sha256)
        named_by = f"{kind} {project}, upload {part.upload}, part {part.number} of {part.file}"
        yield Named(key, part.bytes, part.sha256, named_by, _PARTS_AGAIN)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What was found: how much is named, what of it is lost, and how many complete files nothing names."""

    files: int
    bytes: int
    losses: tuple[Loss, ...]
    unnamed: int


def take_inventory(session: Session, blobs: Blobs, *, digests: bool) -> Inventory:
    """Compare what is named with what is there; with `digests`, read all of it.

    First what is named, then what is there: files are written before they are named, so a server may go on meanwhile.

    Raises:
        OSError, BaseError of obstore: the store does not answer.
    """
    everything = list(named_files(session))
    sizes = dict(blobs.sizes(COMPLETE)) | dict(blobs.sizes(PARTS))
    wrong: dict[str, bool] = {}
    counted: dict[str, int] = {}
    losses = []
    for named in everything:
        counted[named.key] = named.bytes
        found = sizes.get(named.key)
        if found is None:
            losses.append(Loss(named, "missing", None))
        elif found != named.bytes:
            losses.append(Loss(named, "wrong size", found))
        elif digests:
            if named.key not in wrong:
                wrong[named.key] = sha256_hex_of_chunks(blobs.chunks(named.key)) != named.sha256
            if wrong[named.key]:
                losses.append(Loss(named, "wrong bytes", found))
    unnamed = sum(key.startswith(COMPLETE) for key in sizes.keys() - counted.keys())
    return Inventory(len(counted), sum(counted.values()), tuple(losses), unnamed)
