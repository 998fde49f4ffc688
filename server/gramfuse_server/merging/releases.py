"""What the database knows of a model's release: its policy, its cohort and the requests about it, looked up anew."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.requests.documents import request_documents
from gramfuse_server.tables import ModelRow, PolicyRow, RequestRow
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.receipt import Receipt, SignedReceipt
from gramfuse_shared.contract.releases import ModelRelease, decide_release, explain_candidate, may_be_fetched
from gramfuse_shared.contract.requests import RequestInfo
from gramfuse_shared.errors import ModelNotReleasedError


def release_of(session: Session, row: ModelRow, receipt: Receipt, now: datetime) -> ModelRelease | None:
    """Return how a model stands to the gate of the policy that it was merged under; None where that has none."""
    return _decide(session, row, receipt, now)[0]


def require_fetchable(session: Session, row: ModelRow, organization: str | None, now: datetime) -> None:
    """Require that an organization may have a model's files: it is released, or asked about in an open request.

    Raises:
        ModelNotReleasedError: it is a candidate.
    """
    release, about = _decide(session, row, SignedReceipt.parse(row.receipt).receipt, now)
    if release is not None and not may_be_fetched(organization, release, about):
        raise ModelNotReleasedError(explain_candidate(row.project, row.id, release))


def _decide(
    session: Session, row: ModelRow, receipt: Receipt, now: datetime
) -> tuple[ModelRelease | None, list[RequestInfo]]:
    # not the project's current policy: a new version, which nobody has accepted yet, would open the gate of the old
    policy = Policy.parse(session.get_one(PolicyRow, (row.project, receipt.policy.version)).document)
    if policy.release is None:
        return None, []
    about = _requests_about(session, row, now)
    cohort = {member.organization for member in receipt.contributions}
    return decide_release(row.id, cohort, policy, about), about


def _requests_about(session: Session, row: ModelRow, now: datetime) -> list[RequestInfo]:
    mentioned = select(RequestRow).where(
        RequestRow.project == row.project, RequestRow.document.contains(f'"{row.id}"', autoescape=True)
    )
    rows = session.scalars(mentioned.order_by(RequestRow.created_at, RequestRow.id)).all()
    if not rows:
        return []
    return [request for request in request_documents(session, rows, None, now) if row.id in request.models]
