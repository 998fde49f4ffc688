"""Forgets the secrets of sessions that ended without this member's last answer: left out, given up, or outrun."""

from collections.abc import Sequence
from datetime import datetime

from gramfuse.answering.kept import KeptAnswers
from gramfuse.participation import Client
from gramfuse.securing.kept import KeptSessions
from gramfuse.securing.rules import claim_of
from gramfuse.securing.stages import kept_sessions
from gramfuse_shared import limits
from gramfuse_shared.contract.requests import RequestInfo


def forget_ended(client: Client, project: str, answers: KeptAnswers, *, now: datetime) -> None:
    """Remove the secrets and words of a project's sessions in which this member will not speak again.

    And answers that were announced to requests of which no sum was begun.

    A server that says falsely that a session ended loses its sum, and learns nothing.

    Args:
        client: the organization's connection.
        project: whose sessions they are.
        answers: where announced answers lie.
        now: the time, in UTC.

    Raises:
        GramfuseError: the server, or the folder, cannot be read.
    """
    sessions = kept_sessions(client, project)
    unended, announced = sessions.unended(), answers.announced()
    requests = client.requests(project) if unended or announced else []
    stages: dict[str, list[RequestInfo]] = {digest: [] for digest in unended}
    for request in requests:
        if request.session in stages:
            stages[request.session].append(request)
    for digest, session in unended.items():
        known = stages[digest]
        last = max((request.deadline for request in known), default=session.began)
        if (
            any(request.kind == "unmask" and request.state == "complete" for request in known)
            or (last + limits.LONGEST_SESSION_PAUSE <= now and all(request.state != "open" for request in known))
            or _is_outrun(client, sessions, digest, known)
        ):
            session.forget_secrets()
    if announced and not sessions.unended() and all(request.state != "open" for request in requests):
        deadlines = {request.id: request.deadline for request in requests}
        for name in announced:
            if name in deadlines and deadlines[name] + limits.LONGEST_SESSION_PAUSE <= now:
                answers.forget(name)


def _is_outrun(client: Client, sessions: KeptSessions, digest: str, stages: Sequence[RequestInfo]) -> bool:
    """Tell whether this member has let another sum of the same contribution, or answers, be unmasked."""
    if not stages or not sessions.completed():
        return False
    manifest = client.session(stages[0].project, stages[0].id)
    completed = sessions.completed_under(claim_of(manifest, client.organization))
    return completed is not None and manifest.digest == digest != completed.session
