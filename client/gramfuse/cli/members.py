"""Commands about who takes part in a project: invite, uninvite, join, remove, leave."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from gramfuse.cli import output, session
from gramfuse.cli.arguments import ProjectArgument
from gramfuse.cli.asking import require_confirmed, tell_before_asking
from gramfuse_shared.contract.http_api import Project
from gramfuse_shared.contract.identity import fingerprint_of
from gramfuse_shared.errors import NotConfirmedError, NotFoundError, RequestMalformedError
from gramfuse_shared.reporting.contributions import spoken_of, why_passed_over
from gramfuse_shared.reporting.policies import differences_text, policy_text

if TYPE_CHECKING:
    from gramfuse.participation import Client


def invite(
    project: ProjectArgument,
    organizations: Annotated[list[str], typer.Argument(metavar="ORGANIZATION...", help="Who is to take part.")],
) -> None:
    """Make organizations participants (coordinator). Twice is the same as once.

    Where some cannot be invited, because the server knows no such organization, the others are invited all the same;
    both are named, and it ends with an error.

    Example: gramfuse project invite acme.tweets globex initech
    """
    invited: list[str] = []
    known: list[str] = []
    refused: dict[str, str] = {}
    with session.open_client() as client:
        found = client.project(project)
        members = {one.organization for one in found.participants}
        for organization in dict.fromkeys(organizations):
            try:
                found = client.invite(found.id, organization)
            except (NotFoundError, RequestMalformedError) as error:
                refused[organization] = error.message
            else:
                (known if organization in members else invited).append(organization)
    words = []
    if known:
        words.append(f"there already: {', '.join(known)}")
    if invited:
        words.append(f"invited {', '.join(invited)}; next, each of them: gramfuse project join {found.id}")
    if words:
        output.show(
            output.to_json(found) | {"new": bool(invited), "invited": invited},
            lambda console: console.print("\n".join(words), markup=False),
        )
    if refused:
        msg = "; ".join(f"{organization} was not invited: {why}" for organization, why in refused.items())
        raise NotFoundError(msg)


def uninvite(
    project: ProjectArgument,
    organizations: Annotated[
        list[str], typer.Argument(metavar="ORGANIZATION...", help="Whose invitation is taken back.")
    ],
) -> None:
    """Take invitations back that were not accepted (coordinator). Who has joined stays; see `project remove`.

    Example: gramfuse project uninvite acme.tweets initrode
    """
    with session.open_client() as client:
        for organization in organizations:
            left = client.uninvite(project, organization)
    names = ", ".join(organizations)
    output.show(left, lambda console: console.print(f"{names}: not invited to {left.id} any more", markup=False))


def join(
    project: ProjectArgument,
    accept_policy: Annotated[
        str | None,
        typer.Option("--accept-policy", metavar="DIGEST", help="Accept the policy of this digest without being asked."),
    ] = None,
) -> None:
    """Read the project's policy and accept it for your organization. The acceptance is signed and recorded.

    A newer version is told with what differs from the one that your organization accepted before. What it contributed
    before no longer counts: push again.

    The first time this makes your organization's identity key and registers it in the project. Tell its fingerprint to
    the other organizations by another way than this server: they compare it.

    Examples: gramfuse project join acme.tweets · gramfuse project join acme.tweets --accept-policy 5f2c…
    """
    with session.open_client() as client:
        found = client.project(project)
        current = client.policy(found.id)
        is_accepted = client.has_accepted(found)
        if not is_accepted:
            tell_before_asking(policy_text(current), yes=accept_policy is not None)
        accepted = next(
            (one.accepted_policy for one in found.participants if one.organization == client.organization), None
        )
        if accepted is not None and accepted.version != current.version:
            before = client.policy(found.id, accepted.version)
            tell_before_asking(differences_text(before, current.policy), yes=accept_policy is not None)
        if accept_policy is not None and accept_policy != current.digest:
            msg = (
                f"the current policy is version {current.version} with digest {current.digest}, not "
                f"{accept_policy}; read it before you accept it"
            )
            raise NotConfirmedError(msg, version=current.version, digest=current.digest)
        if is_accepted:
            output.note(f"your organization has accepted version {current.version} already")
        else:
            require_confirmed(
                f"Accept version {current.version} of the policy of {project} for your organization?",
                yes=accept_policy is not None,
                option=f"--accept-policy {current.digest}",
            )
        acceptance = client.accept_policy(found.id, current.digest)
        sent = client.contributions(found.id, organization=client.organization) if accepted is not None else ()
    output.show(
        acceptance,
        lambda console: console.print(
            f"{acceptance.organization} accepted version {acceptance.policy.version} at "
            f"{acceptance.accepted_at:%Y-%m-%d %H:%M}, with the identity {fingerprint_of(acceptance.identity)}",
            markup=False,
        ),
    )
    mine = spoken_of(sent, current.version)
    if mine is not None and mine.passed_over == "policy":
        output.note(
            f"your contribution {mine.id[:16]}: {why_passed_over(mine)}, with gramfuse contribution push {found.id}"
        )


def remove(
    project: ProjectArgument,
    organization: Annotated[str, typer.Argument(metavar="ORGANIZATION", help="Who takes part no more.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove without being asked.")] = False,
) -> None:
    """End an organization's part in the project (coordinator): what it gave is withdrawn, and it sees it no more.

    Its contributions and answers are withdrawn as by `contribution withdraw`: unfinished jobs that use them are
    cancelled, their bytes are deleted after 24 hours. Published models stay. Where cohorts are frozen, the others
    cannot be merged without it any more, once a model with it was published. It can be invited again.

    Example: gramfuse project remove acme.tweets initech
    """
    with session.open_client() as client:
        found = client.project(project)
        if organization not in {one.organization for one in found.participants}:
            output.note(f"{organization} does not take part in {found.id}")
        else:
            require_confirmed(
                f"Remove {organization} from {found.id}, and withdraw what it contributed and answered?"
                f"{_frozen(client, found, organization)}",
                yes=yes,
            )
        left = client.remove(found.id, organization)
    output.show(left, lambda console: console.print(f"{organization}: takes part in {left.id} no more", markup=False))


def leave(
    project: ProjectArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Leave without being asked.")] = False,
) -> None:
    """Leave the project with your organization: what it gave is withdrawn, and you see the project no more.

    Contributions and answers are withdrawn as by `contribution withdraw`: unfinished jobs that use them are cancelled,
    their bytes are deleted after 24 hours. What you signed stays recorded; published models stay, with whoever pulled
    them too. Where cohorts are frozen, the others cannot be merged without you any more, once a model with you was
    published. Fetch before what you want to keep: models, receipts. The coordinator can invite you again. The
    coordinator's own organization cannot leave; it deletes the project.

    Example: gramfuse project leave acme.tweets
    """
    with session.open_client() as client, _telling_who_is_no_member(project):
        found = client.project(project)
        require_confirmed(
            f"Leave {found.id} with {client.organization}, and withdraw what it contributed and answered? You will not "
            f"see the project any more.{_frozen(client, found, client.organization)}",
            yes=yes,
        )
        left = client.leave(found.id)
        gone = client.organization
    output.show(left, lambda console: console.print(f"{gone} has left {left.id}", markup=False))


def _frozen(client: "Client", project: Project, organization: str) -> str:
    """Say what a departure means for the others, where cohorts are frozen and something was merged with who leaves."""
    if client.policy(project.id).policy.cohorts != "frozen":
        return ""
    merged = [{one.organization for one in job.cohort} for job in client.jobs(project.id) if job.state == "succeeded"]
    others = sorted({name for cohort in merged if organization in cohort for name in cohort} - {organization})
    if not others:
        return ""
    return (
        f" Cohorts are frozen, and a model of {organization} with {', '.join(others)} was published: without it they "
        "are not merged here any more, because that would reveal what it contributed."
    )


@contextmanager
def _telling_who_is_no_member(project: str) -> Iterator[None]:
    """Say of a project that is not found that it may be one left before: the server cannot tell which.

    An answer to a departure that was lost is asked for again, and then nobody may know of the project any more.
    """
    try:
        yield
    except NotFoundError as error:
        msg = f"your organization is no member of {project}, or not any more if it left before: {error.message}"
        raise NotFoundError(msg) from error
