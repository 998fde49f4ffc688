"""Ask: who is asked what until when, and taking it back."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.auth import Caller
from gramfuse_server.intake.policies import current_policy
from gramfuse_server.requests.documents import accepted_answers, progress, request_of
from gramfuse_server.requests.sessions import require_stage_after
from gramfuse_server.tables import AskedRow, JobContributionRow, ModelRow, ProjectRow, RequestRow
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import RequestCreate, require_request_allowed, stage_named
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import ConflictError, NotFoundError, StateError


def ask(
    session: Session,
    project: ProjectRow,
    caller: Caller,
    *,
    identifier: str,
    body: RequestCreate,
    plan_session: Callable[[Recipe], SessionManifest],
    now: datetime,
) -> tuple[RequestRow, bool]:
    """Ask the organizations of the models' cohorts, or find the request; tell whether it is new. Project locked.

    A stage of a secure sum asks those whom the manifest names or, behind the first, who answered the stage before;
    `plan_session` plans the manifest of a new one.

    Raises:
        ConflictError: the id stands for another request.
        NotFoundError: there is no such model, or it is deleted, or no such request to come after.
        PolicyViolationError: the policy does not allow the kind.
        RequestMalformedError, StateError: see `require_stage_after`.
        GramfuseError: what `plan_session` raises.
    """
    known = session.get(RequestRow, (project.id, identifier))
    if known is not None:
        if request_of(known) != body:
            msg = f"request {identifier} asks something else; choose another id"
            raise ConflictError(msg)
        return known, False
    require_request_allowed(body.kind, current_policy(session, project))
    manifest, opened_by = None, None
    stage = stage_named(body.kind)
    if body.recipe is not None:
        manifest = plan_session(body.recipe)
        organizations = list(manifest.organizations)
    elif stage is not None and body.after is not None:
        earlier = require_stage_after(session, project.id, stage, body.after, now)
        opened_by = earlier.opened_by or earlier.id
        organizations = sorted(accepted_answers(session, earlier))
    else:
        _require_models(session, project.id, body.models)
        organizations = _members(session, project.id, body.models)
    row = RequestRow(
        project=project.id,
        id=identifier,
        document=body.canonical().decode(),
        session=None if manifest is None else manifest.canonical().decode(),
        opened_by=opened_by,
        policy_version=project.policy_version,
        asked_by=caller.token,
        created_at=now,
        deadline=now + timedelta(seconds=body.seconds),
    )
    session.add(row)
    session.flush()
    session.add_all(
        AskedRow(project=project.id, request=identifier, organization=organization) for organization in organizations
    )
    session.flush()
    audit_log.append_for(
        session,
        caller,
        at=now,
        action="request.create",
        subject=f"{project.id}/{identifier}",
        details={
            "kind": body.kind,
            "models": list(body.models),
            "organizations": organizations,
            **({} if manifest is None else {"session": manifest.digest}),
        },
    )
    return row, True


def cancel(session: Session, actor: audit_log.Actor, row: RequestRow, *, now: datetime) -> None:
    """Take a request back; twice is the same as once.

    Raises:
        StateError: it is over.
    """
    state = progress(session, row, now).state
    if state == "cancelled":
        return
    if state != "open":
        msg = f"request {row.id} is {state} already"
        raise StateError(msg, state=state)
    row.cancelled_at = now
    session.flush()
    audit_log.append_for(session, actor, at=now, action="request.cancel", subject=f"{row.project}/{row.id}")


def _require_models(session: Session, project: str, models: Sequence[str]) -> None:
    for model in models:
        found = session.get(ModelRow, (project, model))
        if found is None or found.deleted_at is not None:
            msg = f"there is no model {model} in {project}; a request is about merged models"
            raise NotFoundError(msg)


def _members(session: Session, project: str, models: tuple[str, ...]) -> list[str]:
    return list(
        session.scalars(
            select(JobContributionRow.organization)
            .where(JobContributionRow.project == project, JobContributionRow.job.in_(models))
            .distinct()
            .order_by(JobContributionRow.organization)
        )
    )
