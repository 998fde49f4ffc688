"""What an upload carries: the document that announced its files, and the name under which the audit log knows it."""

from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.tables import AskedRow, ContributionRow, ProjectRow, UploadRow
from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest
from gramfuse_shared.contract.requests import Answer

Manifest: TypeAlias = BaseManifest | ContributionManifest | Answer


@dataclass(frozen=True, slots=True)
class Subject:
    """An upload's document, and its name."""

    name: str
    manifest: Manifest


def subject_of(session: Session, upload: UploadRow) -> Subject | None:
    """Return what an upload carries; None where something newer has replaced it."""
    if upload.kind == "base":
        project = session.scalars(select(ProjectRow).where(ProjectRow.base_upload == upload.id)).one_or_none()
        return None if project is None else Subject(project.id, BaseManifest.parse(project.base_manifest))
    if upload.kind == "contribution":
        row = session.scalars(select(ContributionRow).where(ContributionRow.upload == upload.id)).one_or_none()
        return None if row is None else Subject(f"{row.project}/{row.id}", ContributionManifest.parse(row.manifest))
    place = session.scalars(select(AskedRow).where(AskedRow.upload == upload.id)).one_or_none()
    if place is None or place.answer is None:
        return None
    return Subject(f"{place.project}/{place.request}", Answer.parse(place.answer))
