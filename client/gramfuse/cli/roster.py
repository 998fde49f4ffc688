"""Commands about the identity keys of a project's members: show, verify, reset."""

from collections.abc import Sequence
from typing import Annotated

import typer

from gramfuse.cli import output, session
from gramfuse.cli.arguments import ProjectArgument
from gramfuse.cli.asking import require_confirmed
from gramfuse.trust import RosterEntry

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The identity keys of a project's members.")


@app.command()
def show(project: ProjectArgument) -> None:
    """Show every member's fingerprint, and whether you verified it. A changed one is an error until you verify anew.

    Example: gramfuse roster show acme.tweets
    """
    with session.open_client() as client:
        _show(client.roster(project))


@app.command()
def verify(
    project: ProjectArgument,
    yes: Annotated[bool, typer.Option("--yes", help="The fingerprints were compared already.")] = False,
) -> None:
    """Keep every member's key as compared: from then on another key of that member is an error.

    Compare each fingerprint with what its people say `gramfuse identity show` shows them, by another way than this
    server: on the phone, in person. Who says yes without that has verified nothing.

    Example: gramfuse roster verify acme.tweets
    """
    with session.open_client() as client:
        entries = client.roster(project)
        _tell(entries)
        require_confirmed("Do all of these agree with what their people told you?", yes=yes, option="--yes")
        kept = client.verify_roster(project, entries)
    _show(kept)


@app.command()
def reset(
    project: ProjectArgument,
    organization: Annotated[str, typer.Argument(help="Whose key was lost or is no longer to be trusted.")],
) -> None:
    """Forget a member's key (coordinator): it joins again with another, and everybody verifies anew. Recorded.

    Example: gramfuse roster reset acme.tweets globex
    """
    with session.open_client() as client:
        client.reset_identity(project, organization)
        entries = client.roster(project)
    _show(entries)


def _rows(entries: Sequence[RosterEntry]) -> list[tuple[str, str, str]]:
    return [(entry.organization, entry.fingerprint or "", entry.standing) for entry in entries]


def _tell(entries: Sequence[RosterEntry]) -> None:
    for organization, fingerprint, standing in _rows(entries):
        output.note(f"{organization}: {fingerprint or 'no key'} ({standing})")


def _show(entries: Sequence[RosterEntry]) -> None:
    columns = ("organization", "fingerprint", "standing")
    output.show([entry.to_json() for entry in entries], output.table(columns, _rows(entries)))
