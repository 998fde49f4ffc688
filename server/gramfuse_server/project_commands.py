"""The commands `gramfuse-server project …`: what an operator does with projects."""

from typing import Annotated, Final

import typer

from gramfuse_server import audit_log, schema
from gramfuse_server.clock import system_clock
from gramfuse_server.database import reading, transaction
from gramfuse_server.settings import load_settings
from gramfuse_shared.errors import NotConfirmedError
from gramfuse_shared.shell import printing

project_commands: Final = typer.Typer(help="Delete projects.", no_args_is_help=True)


@project_commands.callback()
def root() -> None:
    """Delete projects."""


@project_commands.command("delete")
def delete_project(
    project: Annotated[str, typer.Argument(help="The project's full name, e.g. acme.tweets.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a project, as its coordinator may: jobs and requests end, what was given is withdrawn, its bytes go.

    Models' files go with the next sweep, all else after GRAMFUSE_DELETION_DELAY, a day. Receipts, policies, acceptances
    and the audit log stay, and the name stays taken. Twice is the same as once.

    Example: gramfuse-server project delete acme.tweets
    """
    # the job engine, for this command alone
    from gramfuse_server import ending  # noqa: PLC0415
    from gramfuse_server.jobs import JobQueue  # noqa: PLC0415
    from gramfuse_server.operations.projects import find_project  # noqa: PLC0415

    settings = load_settings()
    with schema.opened(settings.database_url) as database:
        with reading(database) as session:
            find_project(session, project)
        if not yes and not typer.confirm(f"Delete {project}, with all models and contributions, for good?", err=True):
            msg = f"{project} stays"
            raise NotConfirmedError(msg)
        with transaction(database) as session:
            row, now = find_project(session, project, lock=True), system_clock()
            ending.delete_project(session, audit_log.SHELL, row, queue=JobQueue(database), settings=settings, now=now)
            told = {"project": project, "deleted_at": None if row.deleted_at is None else row.deleted_at.isoformat()}
    printing.show(told, lambda _: typer.echo(f"{project} is deleted"))
