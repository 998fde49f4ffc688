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
    from gramfuse_server.merging.documents import find_job  # noqa: PLC0415 - the job engine, for this command alone
    from gramfuse_server.merging.submission import set_priority  # noqa: PLC0415 - as above

    chosen: Priority = priority.value
    with schema.opened(load_settings().database_url) as database, transaction(database) as session:
        row = find_job(session, project, job, lock=True)
        if set_priority(session, row, chosen, system_clock()):
            audit_log.append_by_shell(
                session,
                at=system_clock(),
                action="job.prioritize",
                subject=f"{project}/{job}",
                details={"priority": chosen},
            )
        told = {"project": project, "job": job, "priority": row.priority, "state": row.state}
    printing.show(told, lambda _: typer.echo(f"{project}/{job}: priority {chosen}, {told['state']}"))
