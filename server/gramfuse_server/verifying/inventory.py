"""What the database names in the blob store, and what of it is not there as it should be. Reads only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.blobs import COMPLETE, PARTS, Blobs, blob_key, part_key
from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.tables import (
    AskedRow,
    ContributionRow,
    JobContributionRow,
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
Kind = Literal["base", "contribution", "answer", "model", "shard", "part"]
_SHOWN_OF_IDS: Final = 12
"""Characters of a contribution's id that a command takes in place of all."""


@dataclass(frozen=True, slots=True)
class Named:
    """Bytes that the database counts on: where they should lie, who names them, and what to do without them."""

    key: str
    bytes: int
    sha256: str
    named_by: str
    advice: str
    project: str
    kind: Kind
    organization: str | None = None
    contribution: str | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """Named bytes that are not there as they should be; `found` is their length, None where nothing is.

    `models` were merged from damaged ones at some time since they were accepted: nobody knows whether before or after.
    """

    named: Named
    trouble: Trouble
    found: int | None
    models: tuple[str, ...] = ()


_RESTORE: Final = "restore it from the copy of the store"
_BASE: Final = (
    f"{_RESTORE}; else whoever has the folder (participants pulled it) sends it as another project, `gramfuse project "
    "create NAME --base FOLDER --policy FILE`: its files are written here anew, for both"
)
_ANSWER: Final = f"{_RESTORE}; else ask anew, by a request of another name"
_MODEL: Final = f"{_RESTORE}; else delete the model and submit its job under another name"
_TASK: Final = "cancel the job and retry it: an attempt computes all of its shards"
_PARTS_AGAIN: Final = (
    f"{_RESTORE}; else withdraw the contribution, or name another project for a base model, and send it again"
)


def named_files(session: Session) -> Iterator[Named]:
    """Everything that is to be there: files of uploads and models, shards of running jobs, parts that were received."""
    yield from _of_uploads(session)
    models = (
        select(ModelFileRow)
        .join(ModelRow, (ModelRow.project == ModelFileRow.project) & (ModelRow.id == ModelFileRow.model))
        .where(ModelRow.deleted_at.is_(None))
        .order_by(ModelFileRow.project, ModelFileRow.model, ModelFileRow.position)
    )
    for row in session.scalars(models):
        named_by = f"model {row.project}/{row.model}, {row.name}"
        yield Named(blob_key(row.sha256), row.bytes, row.sha256, named_by, _MODEL, row.project, "model")
    shards = (
        select(TaskRow)
        .join(JobRow, (JobRow.project == TaskRow.project) & (JobRow.id == TaskRow.job))
        .where(TaskRow.attempt == JobRow.attempt, JobRow.state.in_(UNFINISHED), TaskRow.state == "succeeded")
        .order_by(TaskRow.project, TaskRow.job, TaskRow.number)
    )
    for task in session.scalars(shards):
        if task.sha256 is not None and task.bytes is not None:
            named_by = f"job {task.project}/{task.job}, attempt {task.attempt}, {task.file}"
            yield Named(blob_key(task.sha256), task.bytes, task.sha256, named_by, _TASK, task.project, "shard")


def _of_uploads(session: Session) -> Iterator[Named]:
    whose = (
        select(UploadRow, ContributionRow, AskedRow)
        .outerjoin(ContributionRow, ContributionRow.upload == UploadRow.id)
        .outerjoin(AskedRow, AskedRow.upload == UploadRow.id)
    )
    # where deletion is due, as of withdrawn ones, nobody counts on the bytes any more
    accepted = whose.where(
        UploadRow.state == "accepted", UploadRow.deleted_at.is_(None), UploadRow.delete_after.is_(None)
    )
    files = (
        accepted.add_columns(UploadFileRow)
        .join(UploadFileRow, UploadFileRow.upload == UploadRow.id)
        .order_by(UploadRow.project, UploadRow.id, UploadFileRow.position)
    )
    for upload, contribution, asked, file in session.execute(files):
        named_by = f"{_whose(upload, contribution, asked)}, {file.name}"
        advice = _ANSWER if upload.kind == "answer" else _BASE
        if contribution is not None:
            shown = f"{upload.project} {contribution.id[:_SHOWN_OF_IDS]}"
            advice = (
                f"{_RESTORE}; else {contribution.organization} takes it back and pushes it again: "
                f"`gramfuse contribution withdraw {shown}`, `gramfuse contribution push`"
            )
        yield Named(
            blob_key(file.sha256),
            file.bytes,
            file.sha256,
            named_by,
            advice,
            upload.project,
            upload.kind,
            *_owner(contribution, asked),
        )
    parts = (
        whose.where(UploadRow.state.in_(("open", "sealed")))
        .add_columns(UploadPartRow)
        .join(UploadPartRow, UploadPartRow.upload == UploadRow.id)
        .order_by(UploadRow.project, UploadRow.id, UploadPartRow.file, UploadPartRow.number)
    )
    for upload, contribution, asked, part in session.execute(parts):
        key = part_key(part.upload, part.file, part.number, part.sha256)
        named_by = f"{_whose(upload, contribution, asked)}, part {part.number} of {part.file}"
        owner = _owner(contribution, asked)
        yield Named(key, part.bytes, part.sha256, named_by, _PARTS_AGAIN, upload.project, "part", *owner)


def _whose(upload: UploadRow, contribution: ContributionRow | None, asked: AskedRow | None) -> str:
    if contribution is not None:
        return f"contribution {contribution.id} of {contribution.organization} to {upload.project}"
    if asked is not None:
        return f"answer of {asked.organization} to request {upload.project}/{asked.request}"
    return f"base model of {upload.project}"


def _owner(contribution: ContributionRow | None, asked: AskedRow | None) -> tuple[str | None, str | None]:
    owned = contribution or asked
    return (owned.organization if owned else None, contribution.id if contribution else None)


def merged_from(session: Session, named: Named) -> tuple[str, ...]:
    """Name the models that a contribution, or a base model, went into, the oldest first; those that are not deleted."""
    models = select(ModelRow.id).where(ModelRow.project == named.project, ModelRow.deleted_at.is_(None))
    if named.kind == "contribution":
        models = models.join(
            JobContributionRow,
            (JobContributionRow.project == ModelRow.project) & (JobContributionRow.job == ModelRow.id),
        ).where(JobContributionRow.contribution == named.contribution)
    elif named.kind != "base":
        return ()
    return tuple(session.scalars(models.order_by(ModelRow.created_at, ModelRow.id)))


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
            losses.append(Loss(named, "wrong size", found, merged_from(session, named)))
        elif digests:
            if named.key not in wrong:
                wrong[named.key] = sha256_hex_of_chunks(blobs.chunks(named.key)) != named.sha256
            if wrong[named.key]:
                losses.append(Loss(named, "wrong bytes", found, merged_from(session, named)))
    unnamed = sum(key.startswith(COMPLETE) for key in sizes.keys() - counted.keys())
    return Inventory(len(counted), sum(counted.values()), tuple(losses), unnamed)
