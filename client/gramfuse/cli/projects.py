"""Commands about projects: create, list, show, delete, policy, publish, base pull, scales pull; and `members`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gramfuse.cli import members, output, session
from gramfuse.cli.arguments import ProjectArgument
from gramfuse.cli.asking import require_confirmed, tell_before_asking
from gramfuse.whole_files import written_whole
from gramfuse_shared.contract.http_api import Contribution, Participant, Project
from gramfuse_shared.errors import NotFoundError
from gramfuse_shared.reporting.contributions import progress_told, spoken_of
from gramfuse_shared.reporting.policies import differences_text, policy_text
from gramfuse_shared.units import format_bytes

if TYPE_CHECKING:
    from gramfuse.participation import Client

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


for command in (members.invite, members.uninvite, members.join, members.remove, members.leave):
    app.command()(command)


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
            tell_before_asking(differences_text(before, rules), yes=yes)
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
