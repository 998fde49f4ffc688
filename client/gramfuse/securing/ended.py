"""Forgets the secrets of sessions that ended without this member's last answer: left out, given up, or outrun."""

from collections.abc import Sequence
from datetime import datetime

from gramfuse.participation import Client
from gramfuse.securing.kept import KeptSessions
from gramfuse.securing.rules import claim_of
from gramfuse.securing.stages import kept_sessions
from gramfuse_shared import limits
from gramfuse_shared.contract.requests import RequestInfo


def forget_ended(client: Client, project: str, *, now: datetime) -> None:
    """Remove the secrets and words of a project's sessions in which this member will not speak again.

    A server that says falsely that a session ended loses its sum, and learns nothing.

    Args:
        client: the organization's connection.
        project: whose sessions they are.
        now: the time, in UTC.

    Raises:
        GramfuseError: the server, or the folder, cannot be read.
    """
    sessions = kept_sessions(client, project)
    unended = sessions.unended()
    stages: dict[str, list[RequestInfo]] = {digest: [] for digest in unended}
    for request in client.requests(project) if unended else ():
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


def _is_outrun(client: Client, sessions: KeptSessions, digest: str, stages: Sequence[RequestInfo]) -> bool:
    """Tell whether this member has let another sum of the same contribution, or answers, be unmasked."""
    if not stages or not sessions.completed():
        return False
    manifest = client.session(stages[0].project, stages[0].id)
    completed = sessions.completed_under(claim_of(manifest, client.organization))
    return completed is not None and manifest.digest == digest != completed.session
