"""Uploads: files in parts, for a project's base model and for contributions alike. Creation, quota, states, expiry."""

import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import require_living
from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.settings import Settings
from gramfuse_server.tables import JobRow, ModelRow, ProjectRow, UploadFileRow, UploadPartRow, UploadRow
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import FileUpload
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.scales_file import SCALES_FILE_NAME
from gramfuse_shared.errors import QuotaExceededError, StateError, TooLargeError
from gramfuse_shared.units import format_bytes

_ID_BYTES: Final = 16
ROOM: Final = "Delete models or withdraw what is not needed, or ask the server's operator to raise the project's quota"


def create_upload(
    session: Session, *, kind: str, project: str, files: Sequence[FileEntry], settings: Settings, now: datetime
) -> UploadRow:
    """Open an upload, if the project's quota has room for it. Lock the project's row first, where it exists.

    Raises:
        QuotaExceededError: the project would hold more than it may.
        TooLargeError: a file has more bytes than parts can carry.
    """
    size = sum(file.bytes for file in files)
    used, quota = used_bytes(session, project), quota_of(session.get(ProjectRow, project), settings)
    if used + size > quota:
        held = f"{project} holds {format_bytes(used)} and may hold {format_bytes(quota)}"
        msg = f"{held}: {format_bytes(size)} more do not fit. {ROOM}"
        raise QuotaExceededError(msg, used=used, quota=quota, requested=size)
    upload = UploadRow(
        id=secrets.token_hex(_ID_BYTES),
        kind=kind,
        project=project,
        state="open",
        bytes=size,
        created_at=now,
        expires_at=now + settings.upload_lifetime,
    )
    session.add(upload)
    session.flush()
    for position, file in enumerate(files):
        length = part_length(file.bytes, settings.part_bytes)
        session.add(
            UploadFileRow(
                upload=upload.id,
                name=file.name,
                position=position,
                bytes=file.bytes,
                sha256=file.sha256,
                part_bytes=length,
                part_count=-(-file.bytes // length),
            )
        )
    session.flush()
    return upload


def part_length(file_bytes: int, preferred: int) -> int:
    """Bytes of a file's parts: as preferred, or larger where the file would have too many.

    Raises:
        TooLargeError: even the largest parts would be too many.
    """
    smallest = -(-file_bytes // limits.MAX_PARTS_PER_FILE)
    if smallest <= preferred:
        return preferred
    length = -(-smallest // limits.MIB) * limits.MIB
    if length > limits.MAX_PART_BYTES:
        most = limits.MAX_PART_BYTES * limits.MAX_PARTS_PER_FILE
        msg = f"a file of {file_bytes} bytes cannot be uploaded; at most {most}. Save the model in smaller shards"
        raise TooLargeError(msg)
    return length


def quota_of(project: ProjectRow | None, settings: Settings) -> int:
    """What a project may hold: its own quota, else the settings', as one that is not there yet."""
    own = None if project is None else project.quota_bytes
    return settings.project_quota_bytes if own is None else own


def used_bytes(session: Session, project: str) -> int:
    """What a project holds, see `used_bytes_of`."""
    return used_bytes_of(session, [project])[project]


def used_bytes_of(session: Session, projects: Sequence[str]) -> dict[str, int]:
    """What projects hold or will: uploads that are not given up, open ones in full, models, and those being merged.

    A model that is being merged counts like the base, about whose size it will have. Files that several name count as
    often as they are named.
    """
    used = dict.fromkeys(projects, 0)
    held = [
        select(table.project, func.sum(table.bytes).label("total"))
        .where(table.project.in_(projects), table.deleted_at.is_(None))
        .group_by(table.project)
        for table in (UploadRow, ModelRow)
    ]
    merged = (
        select(JobRow.project, func.sum(UploadRow.bytes).label("total"))
        .join(ProjectRow, ProjectRow.id == JobRow.project)
        .join(UploadRow, UploadRow.id == ProjectRow.base_upload)
        .where(JobRow.project.in_(projects), JobRow.state.in_(UNFINISHED))
        .group_by(JobRow.project)
    )
    for query in (*held, merged):
        for row in session.execute(query):
            used[row.project] += int(row.total)
    return used


def shown_state(upload: UploadRow, now: datetime) -> str:
    """The upload's state as of now: an open one that nobody swept yet may have expired."""
    return "expired" if upload.state == "open" and upload.expires_at <= now else upload.state


def require_open(upload: UploadRow, now: datetime) -> None:
    """Raises StateError unless parts may still arrive."""
    state = shown_state(upload, now)
    if state != "open":
        again = "; start again with a higher generation" if state in {"expired", "withdrawn"} else ""
        msg = f"the upload is {state}, parts arrive only while it is open{again}"
        raise StateError(msg, state=state)


def lock_upload(session: Session, upload: str) -> UploadRow:
    """Return an upload's row, held until the commit."""
    return session.scalars(
        select(UploadRow).where(UploadRow.id == upload).with_for_update().execution_options(populate_existing=True)
    ).one()


def files_of(session: Session, uploads: Iterable[str]) -> dict[str, tuple[FileUpload, ...]]:
    """Describe the files of uploads and how many parts of each have arrived."""
    wanted = list(uploads)
    arrived = {
        (upload, file): count
        for upload, file, count in session.execute(
            select(UploadPartRow.upload, UploadPartRow.file, func.count())
            .where(UploadPartRow.upload.in_(wanted))
            .group_by(UploadPartRow.upload, UploadPartRow.file)
        )
    }
    found: dict[str, list[FileUpload]] = {upload: [] for upload in wanted}
    for row in session.scalars(
        select(UploadFileRow).where(UploadFileRow.upload.in_(wanted)).order_by(UploadFileRow.position)
    ):
        found[row.upload].append(
            FileUpload(
                name=row.name,
                bytes=row.bytes,
                sha256=row.sha256,
                part_bytes=row.part_bytes,
                part_count=row.part_count,
                received_parts=arrived.get((row.upload, row.name), 0),
            )
        )
    return {upload: tuple(files) for upload, files in found.items()}


def scales_of(session: Session, upload: str) -> str | None:
    """Return the digest of the scales file that is uploaded beside a base model; None where there is none."""
    file = session.get(UploadFileRow, (upload, SCALES_FILE_NAME))
    return None if file is None else file.sha256


def expire_uploads(session: Session, now: datetime) -> int:
    """Expire the open uploads whose time is over and release their bytes for deletion; return how many."""
    overdue = session.scalars(
        select(UploadRow)
        .where(UploadRow.state == "open", UploadRow.expires_at <= now)
        .order_by(UploadRow.id)
        .with_for_update(skip_locked=True)
    ).all()
    for upload in overdue:
        upload.state, upload.delete_after = "expired", now
        upload.reason = "its parts did not all arrive in time"
    for upload in overdue:
        audit_log.append(
            session,
            at=now,
            organization=None,
            token=None,
            action="upload.expire",
            subject=upload.project,
            details={"kind": upload.kind, "upload": upload.id},
        )
    return len(overdue)


def lock_project(session: Session, project: str) -> ProjectRow | None:
    """Return a project's row, held until the commit, if there is one; raises StateError if it was deleted."""
    row = session.scalars(select(ProjectRow).where(ProjectRow.id == project).with_for_update()).one_or_none()
    if row is not None:
        require_living(row)
    return row
