"""The commands `gramfuse-server job …`: what an operator does with jobs."""

from enum import StrEnum
from typing import Annotated, Final

import typer

from gramfuse_server import audit_log, schema
from gramfuse_server.clock import system_clock
from gramfuse_server.database import transaction
from gramfuse_server.settings import load_settings
from gramfuse_shared.contract.operators import Priority
from gramfuse_shared.shell import printing

job_commands: Final = typer.Typer(help="Say which jobs go first.", no_args_is_help=True)


class Rank(StrEnum):
    """Whose work goes first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@job_commands.callback()
def root() -> None:
    """Say which jobs go first."""


@job_commands.command("priority")
def set_job_priority(
    project: Annotated[str, typer.Argument(help="The project's full name, e.g. acme.tweets.")],
    job: Annotated[str, typer.Argument(help="The job's id.")],
    priority: Annotated[Rank, typer.Argument(help="Whose work goes first: high, then normal, then low.")],
) -> None:
    """Have a job go before or behind others of the server. What is being computed is not interrupted.

    Example: gramfuse-server job priority acme.tweets regmean-1 high
    """
    from gramfuse_server.operations.priorities import prioritize  # noqa: PLC0415 - the job engine, for this command alone

    chosen: Priority = priority.value
    with schema.opened(load_settings().database_url) as database, transaction(database) as session:
        row = prioritize(session, audit_log.SHELL, project, job, chosen, system_clock())
        told = {"project": project, "job": job, "priority": row.priority, "state": row.state}
    printing.show(told, lambda _: typer.echo(f"{project}/{job}: priority {chosen}, {told['state']}"))
