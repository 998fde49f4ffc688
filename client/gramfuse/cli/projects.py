"""Commands about projects, from `create` over `join` to `leave` and `delete`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gramfuse.cli import output, session
from gramfuse.cli.asking import require_confirmed, tell_before_asking
from gramfuse.whole_files import written_whole
from gramfuse_shared.contract.http_api import Contribution, Participant, PolicyVersion, Project
from gramfuse_shared.contract.identity import fingerprint_of
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import NotConfirmedError, NotFoundError, RequestMalformedError
from gramfuse_shared.reporting.contributions import progress_told, spoken_of, why_passed_over
from gramfuse_shared.reporting.policies import policy_differences, policy_text
from gramfuse_shared.units import format_bytes

if TYPE_CHECKING:
    from gramfuse.participation import Client

ProjectArgument = Annotated[
    str, typer.Argument(metavar="PROJECT", help="acme.tweets, or tweets where only one project is called so.")
]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Create, join and look at projects.")
base_app = typer.Typer(add_completion=False, no_args_is_help=True, help="The project's base model.")
app.add_typer(base_app, name="base")
scales_app = typer.Typer(add_completion=False, no_args_is_help=True, help="The project's scales file.")
app.add_typer(scales_app, name="scales")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="The project's name; your organization is put before it.")],
    base: Annotated[Path, typer.Option("--base", help="A task-ready from_pretrained folder with an initialised head.")],
    policy: Annotated[
        Path | None, typer.Option("--policy", help="The policy, YAML or JSON. Default: the safe settings.")
    ] = None,
    scales: Annotated[
        Path | None,
        typer.Option("--scales", help="The file of `gramfuse scales collect`; the policy is given its digest."),
    ] = None,
) -> None:
    """Create a project: send its base model and its policy. Running it again sends only what is missing; of a project
    that is there already it says so.

    Example: gramfuse project create tweets --base base --policy policy.yaml
    """
    from gramfuse.cli import bars, policies  # noqa: PLC0415 - only where this command runs

    chosen = None if policy is None else policies.read_policy(policy)
    with session.open_client() as client, bars.transfer() as on_progress:
        new = not _is_there(client, name)
        project = client.create_project(name, base=base, policy=chosen, scales=scales, on_progress=on_progress)
    if not new:
        output.note(f"{project.id} is there already, created {project.created_at:%Y-%m-%d %H:%M} UTC; nothing was sent")
    _show(project, told={"new": new})


@app.command(name="list")
def list_() -> None:
    """List the projects that your organization takes part in.

    Example: gramfuse project list
    """
    with session.open_client() as client:
        projects = client.projects()
    rows = [
        (p.id, p.shown_state, str(len(p.participants)), f"{p.policy.version}", f"{p.created_at:%Y-%m-%d}")
        for p in projects
    ]
    output.show(projects, output.table(("project", "state", "participants", "policy", "created"), rows, right=(2, 3)))


@app.command()
def show(project: ProjectArgument) -> None:
    """Show a project: state, base model, and how far each participant is: policy accepted, contribution accepted.

    Example: gramfuse project show acme.tweets
    """
    with session.open_client() as client:
        found = client.project(project)
        # A project without a base model has no contributions to ask for.
        _show(found, client.contributions(found.id) if found.state == "ready" else ())


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def delete(
    project: ProjectArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without being asked.")] = False,
) -> None:
    """Delete the project for everybody (coordinator); what was signed stays, and its name stays taken.

    Jobs and requests are cancelled, everybody's contributions and answers withdrawn, models' files and the base model
    deleted: within 24 hours the server holds none of them. Receipts, policies, acceptances and the audit log stay and
    can be read. Models that others pulled stay with them.

    Example: gramfuse project delete acme.tweets
    """
    with session.open_client() as client:
        found = client.project(project)
        organizations = len(found.participants)
        require_confirmed(
            f"Delete {found.id} for its {organizations} organization{'' if organizations == 1 else 's'}: base model, "
            "contributions, answers, models? It cannot be taken back.",
            yes=yes,
        )
        deleted = client.delete_project(found.id)
    output.show(
        deleted, lambda console: console.print(f"deleted: {deleted.id}; its receipts stay readable", markup=False)
    )


@app.command()
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
            tell_before_asking(_differences(before, current.policy), yes=accept_policy is not None)
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


@app.command()
def policy(
    project: ProjectArgument,
    version: Annotated[int | None, typer.Option("--version", help="A past version; default the current one.")] = None,
) -> None:
    """Show a project's policy in words, with its digest.

    Example: gramfuse project policy acme.tweets --format json
    """
    with session.open_client() as client:
        found = client.policy(project, version)
    output.show(found, lambda console: console.print(policy_text(found), markup=False))


@app.command()
def publish(
    project: ProjectArgument,
    policy: Annotated[Path, typer.Option("--policy", help="The new policy, YAML or JSON.")],
    yes: Annotated[bool, typer.Option("--yes", help="Publish without being asked.")] = False,
) -> None:
    """Show what the next version of the policy changes, ask, and publish it (coordinator).

    Every participant has to accept it anew, and to push again: merges take only what was contributed under it. Rules
    that are those of the current version are no new version, and nothing is asked.

    Example: gramfuse project publish acme.tweets --policy policy.yaml
    """
    from gramfuse.cli import policies  # noqa: PLC0415 - only where this command runs

    with session.open_client() as client:
        before = client.policy(project)
        rules = policies.read_policy(policy)
        found = client.project(project)
        new = rules.content_digest() != before.digest
        # A project without a base model has no contributions to ask for.
        sent = client.contributions(found.id) if found.state == "ready" else ()
        if new:
            tell_before_asking(_differences(before, rules), yes=yes)
            require_confirmed(
                f"Publish version {before.version + 1} of the policy of {found.id}? {_demands(found, sent)}", yes=yes
            )
        else:
            output.note(f"version {before.version} has these rules already; nothing was published")
        published = client.set_policy(found.id, rules)
        found = client.project(found.id)
        sent = client.contributions(found.id) if found.state == "ready" else ()
    output.show(published, lambda console: console.print(policy_text(published), markup=False))
    awaited = [one.organization for one in found.participants if one.accepted_policy != found.policy]
    if awaited:
        output.note(f"has to be accepted by {', '.join(awaited)}: gramfuse project join {found.id}")
    outdated = sorted(one.organization for one in sent if one.passed_over == "policy")
    if outdated:
        output.note(
            f"contributions of {', '.join(outdated)} were made under an earlier version and no longer count: each has "
            f"to push again, with gramfuse contribution push {found.id}"
        )


@base_app.command()
def pull(
    project: ProjectArgument, folder: Annotated[Path, typer.Argument(help="A new folder for the base model.")]
) -> None:
    """Fetch the base model that everybody fine-tunes. Running it again resumes.

    Example: gramfuse project base pull acme.tweets base
    """
    from gramfuse.cli import bars  # noqa: PLC0415 - only where this command runs

    with session.open_client() as client, bars.transfer() as on_progress:
        pulled = client.pull_base(project, folder, on_progress=on_progress)
    output.show({"folder": str(pulled)}, lambda console: console.print(f"base model in {pulled}", markup=False))


@scales_app.command("pull")
def pull_scales(
    project: ProjectArgument,
    file: Annotated[Path, typer.Argument(help="Where a copy of the project's scales file shall lie.")],
) -> None:
    """Fetch the file by which everybody scales statistics, and check its digest. Commands that need it fetch it too.

    Example: gramfuse project scales pull acme.tweets scales.safetensors
    """
    from gramfuse.cli import bars  # noqa: PLC0415 - only where this command runs

    with session.open_client() as client, bars.transfer() as on_progress:
        kept = client.scales(project, on_progress=on_progress)
    with written_whole(file, private=False) as stream:
        stream.write(kept.read_bytes())
    output.show({"file": str(file)}, lambda console: console.print(f"the project's scales in {file}", markup=False))


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


def _is_there(client: "Client", name: str) -> bool:
    """Tell whether a project was created before, its base model sent."""
    try:
        return client.project(name if "." in name else f"{client.organization}.{name}").state == "ready"
    except NotFoundError:
        return False


def _demands(project: Project, contributions: Sequence[Contribution]) -> str:
    """Say what a new version of the policy asks of everybody."""
    members = len(project.participants)
    whose = sorted(one.organization for one in contributions if one.counts)
    told = f"Each of the {members} organizations has" if members > 1 else "Your organization has"
    if not whose:
        return f"{told} to accept it, before anything can be pushed or merged."
    stop = "1 contribution stops" if len(whose) == 1 else f"{len(whose)} contributions stop"
    return f"{told} to accept it, and {stop} counting until pushed again: {', '.join(whose)}."


def _differences(before: PolicyVersion, now: Policy) -> str:
    told = policy_differences(before.policy, now) or ["nothing: the rules are the same"]
    return "\n".join([f"What differs from version {before.version}:", *(f"  {line}" for line in told)])


def _show(
    project: Project, contributions: Sequence[Contribution] = (), *, told: Mapping[str, object] | None = None
) -> None:
    size = format_bytes(sum(file.bytes for file in project.files))
    rows = [
        ("project", project.id),
        ("state", _state_of(project)),
        ("coordinator", project.coordinator),
        ("base", f"{project.base} ({len(project.files)} files, {size})"),
        ("policy", f"version {project.policy.version}, digest {project.policy.digest}"),
        ("holds", f"{format_bytes(project.bytes)} of {format_bytes(project.quota)}"),
    ]
    for number, participant in enumerate(project.participants):
        rows.append(("participants" if number == 0 else "", _progress_of(participant, project, contributions)))
    output.show(output.to_json(project) | dict(told or {}), output.table(("", ""), rows))


def _state_of(project: Project) -> str:
    if project.deleted_at is not None:
        return f"{project.shown_state} on {project.deleted_at:%Y-%m-%d %H:%M} UTC"
    return project.state + (f": {project.reason}" if project.reason else "")


def _progress_of(participant: Participant, project: Project, contributions: Sequence[Contribution]) -> str:
    """Say how far a participant is, from the invitation to an accepted contribution."""
    accepted = participant.accepted_policy
    if accepted is None:
        return f"{participant.organization}: has not accepted the policy"
    if accepted != project.policy:
        return f"{participant.organization}: has accepted policy version {accepted.version}, not the current one"
    sent = [found for found in contributions if found.organization == participant.organization]
    told = progress_told(spoken_of(sent, project.policy.version))
    return f"{participant.organization}: policy accepted, {told}"
