"""What an organization is shown of a contribution, and its withdrawal after a question."""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy.orm import Session
from starlette.requests import Request

from gramfuse_server.auth import Caller, changeable_project, visible_project
from gramfuse_server.dashboard.checks import checks_of
from gramfuse_server.dashboard.forms import Form, Led
from gramfuse_server.dashboard.sources import Sources, contribution_in, project_in
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake import contributions
from gramfuse_server.tables import ContributionRow
from gramfuse_shared.contract.http_api import ContributionDetail

MAX_TAPS: Final = 200
"""Rows of the table of taps; the JSON has them all."""
_UNWITHDRAWABLE: Final = frozenset({"rejected", "expired", "withdrawn"})


def read_contribution(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read a contribution; manifest, files and reason are told of the organization's own alone."""
    with reading(sources.database) as session:
        project = visible_project(session, caller, project_in(request))
        row = contributions.find_contribution(session, project, contribution_in(request))
        contribution = _document(session, sources, caller, row)
    own = contribution.organization == caller.organization
    return {
        "project": project.id,
        "contribution": contribution,
        "checks": checks_of(contribution),
        "own": own,
        "may_withdraw": own and contribution.state not in _UNWITHDRAWABLE,
        "max_taps": MAX_TAPS,
    }


def ask_withdrawal(sources: Sources, request: Request, caller: Caller) -> Mapping[str, Any]:
    """Read the contribution that is about to be withdrawn."""
    with reading(sources.database) as session:
        row = _own(session, request, caller)
        contribution = _document(session, sources, caller, row)
    return {
        "contribution": contribution,
        "project": row.project,
        "delay": sources.settings.deletion_delay.total_seconds(),
    }


def withdraw(sources: Sources, form: Form) -> Led:
    """Withdraw a contribution."""
    now, settings = sources.clock(), sources.settings
    with transaction(sources.database) as session:
        project = changeable_project(session, form.caller, project_in(form.request))
        row = contributions.own_contribution(session, form.caller, project, contribution_in(form.request))
        contributions.withdraw(session, form.caller, row, jobs=sources.queue, settings=settings, now=now)
    return Led(f"contributions/{row.project}/{row.id}")


def _own(session: Session, request: Request, caller: Caller) -> ContributionRow:
    project = visible_project(session, caller, project_in(request))
    return contributions.own_contribution(session, caller, project, contribution_in(request))


def _document(session: Session, sources: Sources, caller: Caller, row: ContributionRow) -> ContributionDetail:
    now = sources.clock()
    (document,) = contributions.contribution_documents(session, [row], caller.organization, now, manifests=True)
    return document
