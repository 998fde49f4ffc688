"""The summary of a contribution's audit: held where its policy shares it, and then required before the seal."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller
from gramfuse_server.intake.policies import find_policy
from gramfuse_server.intake.uploads import lock_upload, shown_state
from gramfuse_server.tables import ContributionRow
from gramfuse_shared.contract.audit_summary import AuditSummary
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import AuditMissingError, PolicyViolationError, StateError


def policy_of(session: Session, row: ContributionRow) -> Policy:
    """Return the policy that a contribution was made under, which need not be the current one."""
    return Policy.parse(find_policy(session, row.project, row.policy_version).document)


def hold_summary(session: Session, caller: Caller, row: ContributionRow, summary: AuditSummary, now: datetime) -> None:
    """Hold the summary of a contribution's audit, in place of an earlier one; the same again changes nothing.

    Raises:
        PolicyViolationError: the policy keeps audits at home.
        StateError: the contribution is not open any more, and says something else.
    """
    if policy_of(session, row).audit != "shared":
        msg = (
            f"how an audit came out stays at home under version {row.policy_version} of the policy of {row.project} "
            "(audit: private); nothing of it was stored"
        )
        raise PolicyViolationError(msg)
    upload = lock_upload(session, row.upload)
    session.refresh(row)  # whoever held the lock may have sent another
    document = summary.canonical().decode()
    if row.audit == document:
        return
    state = shown_state(upload, now)
    if state != "open":
        msg = f"the contribution is {state}; how its audit came out is said while it is open"
        raise StateError(msg, state=state)
    row.audit = document
    audit_log.append_for(
        session,
        caller,
        at=now,
        action="contribution.audit",
        subject=row.project,
        details={"contribution": row.id, "summary": summary.content_digest()},
    )


def require_summary(row: ContributionRow, policy: Policy) -> None:
    """Require of a contribution that is to be sealed what its policy shares; raises AuditMissingError."""
    if policy.audit == "shared" and row.audit is None:
        msg = (
            "the policy says audit: shared, and how this contribution's audit came out was not sent: run `gramfuse "
            f"contribution push` again, or PUT the summary to /v1/projects/{row.project}/contributions/{row.id}/audit "
            "and seal then"
        )
        raise AuditMissingError(msg)


def sharing_audits(session: Session, rows: Sequence[ContributionRow]) -> set[tuple[str, int]]:
    """Which of the policies that contributions were made under share how audits came out, by project and version."""
    by_policy = {(row.project, row.policy_version): row for row in rows}
    return {policy for policy, row in by_policy.items() if policy_of(session, row).audit == "shared"}
