"""Who may download a model's files, its receipt as a file, and the end of the files."""

from datetime import datetime

from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller, visible_project
from gramfuse_server.intake.policies import current_policy
from gramfuse_server.merging.documents import find_model
from gramfuse_server.merging.releases import require_fetchable
from gramfuse_server.tables import ModelFileRow, ModelRow
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.errors import NotFoundError, RoleRequiredError


def find_readable_model(session: Session, caller: Caller, project: str, model: str, now: datetime) -> ModelRow:
    """Return a model whose files the caller may download.

    Raises:
        NotFoundError: there is none, or it is deleted.
        RoleRequiredError: the policy leaves downloads to the coordinator.
        ModelNotReleasedError: its policy's release gate holds it back.
    """
    owner = visible_project(session, caller, project)
    row = find_model(session, owner.id, model)
    if current_policy(session, owner).downloads == "coordinator" and caller.organization != owner.coordinator:
        msg = f"the policy leaves downloads to {owner.coordinator} (downloads: coordinator)"
        raise RoleRequiredError(msg)
    if row.deleted_at is not None:
        msg = f"model {model} was deleted; its receipt remains"
        raise NotFoundError(msg)
    require_fetchable(session, row, caller.organization, now)
    return row


def find_model_file(session: Session, model: ModelRow, file: str) -> ModelFileRow:
    """Return a file of a model; raises NotFoundError."""
    row = session.get(ModelFileRow, (model.project, model.id, file))
    if row is None:
        msg = f"model {model.id} has no file {file}"
        raise NotFoundError(msg)
    return row


def delete_files(session: Session, actor: audit_log.Actor, row: ModelRow, now: datetime) -> None:
    """Delete a model's files, whoever may; its row is locked. Receipt and job stay. Twice is the same as once."""
    if row.deleted_at is None:
        row.deleted_at = row.delete_after = now
        session.flush()
        audit_log.append_for(session, actor, at=now, action="model.delete", subject=f"{row.project}/{row.id}")


def receipt_text(model: ModelRow) -> str:
    """Return a model's signed receipt as its file has it."""
    return SignedReceipt.parse(model.receipt).model_dump_json(indent=1) + "\n"
