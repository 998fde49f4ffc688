"""The commands of `gramfuse-server`: set up, serve, work, and what an administrator does at the shell.

The job engine, the logs' library and cryptography load only in the commands that need them.
"""

import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from sqlalchemy import func, select

from gramfuse_server import audit_log, schema, tokens
from gramfuse_server.access_commands import organization_commands, token_commands
from gramfuse_server.clock import system_clock
from gramfuse_server.database import open_database, reading, require_answer, snapshot, transaction
from gramfuse_server.doctor.command import doctor
from gramfuse_server.doctor.worker_health import worker_health
from gramfuse_server.job_commands import job_commands
from gramfuse_server.key_commands import key_commands
from gramfuse_server.project_commands import project_commands
from gramfuse_server.settings import Settings, load_settings
from gramfuse_server.tables import TokenRow
from gramfuse_server.verifying.command import verify
from gramfuse_shared.creating import replace_file
from gramfuse_shared.errors import ConfigurationError
from gramfuse_shared.imports import imports_kept
from gramfuse_shared.shell import printing
from gramfuse_shared.shell.commands import declare_format, finish
from gramfuse_shared.version import __version__

OPERATOR_DAYS: Final = 365
SWITCH_SECONDS: Final = 0.0005
"""A tenth of Python's own: after so long a thread that computes lets the event loop answer somebody else."""

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
database_commands = typer.Typer(help="The database's schema.", no_args_is_help=True)
audit_commands = typer.Typer(help="The audit log.", no_args_is_help=True)
cli.add_typer(database_commands, name="db")
cli.add_typer(token_commands, name="token")
cli.add_typer(organization_commands, name="org")
cli.add_typer(audit_commands, name="audit")
cli.add_typer(key_commands, name="key")
cli.add_typer(job_commands, name="job")
cli.add_typer(project_commands, name="project")


def command() -> Any:  # noqa: ANN401 - click moved between Typer's versions
    """Return the program's command line, with the options and the help that all commands have."""
    return finish(typer.main.get_command(cli), declare_format)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"gramfuse-server {__version__}")
        raise typer.Exit


@cli.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Run and administer a gramfuse server.

    A first set-up, step by step:

        gramfuse-server init
        gramfuse-server serve --port 8080
        gramfuse-server worker
        gramfuse-server org create acme globex initech
        gramfuse-server token create --org acme --role coordinator
        gramfuse-server doctor

    Everything lies in `.gramfuse-server` until GRAMFUSE_SERVER_HOME, GRAMFUSE_DATABASE_URL and GRAMFUSE_BLOBS say
    otherwise.
    """


@cli.command()
def init() -> None:
    """Set up the server: database, receipt key, and the first operator token, printed this once. Safe to repeat.

    Example: gramfuse-server init
    """
    from gramfuse_server import database_key  # noqa: PLC0415 - see above

    settings = _settings_with_logs()
    migrate(settings)
    with closing(open_database(settings.database_url, create=True)) as database:
        with reading(database) as session:
            new_key = database_key.settle_key(session, settings.receipt_key)
        with transaction(database) as session:
            schema.exclude_others(session.connection())
            # before the token: an unreadable key must not end this with a token that was made and never shown
            public_key = database_key.note_key(session, settings.receipt_key, now=system_clock()).present
            operators = session.scalar(select(func.count()).select_from(TokenRow).where(TokenRow.role == "operator"))
            token = None
            if not operators:
                _, token = tokens.issue(
                    session,
                    audit_log.SHELL,
                    role="operator",
                    organization=None,
                    days=OPERATOR_DAYS,
                    now=system_clock(),
                )
    lines = [
        f"database     {schema.head()} (up to date)",
        f"receipt key  {public_key}",
        f"             in {settings.receipt_key} ({'created' if new_key else 'kept'})",
        *([] if token is None else [f"operator     {token}"]),
    ]
    told = {"database": schema.head(), "receipt_key": public_key, "receipt_key_file": str(settings.receipt_key)}
    printing.show(told | {"operator_token": token}, lambda _: typer.echo("\n".join(lines)))
    if token is not None:
        printing.note("This token is shown once. `gramfuse-server token create --operator` makes another.")


@database_commands.command("upgrade")
def upgrade() -> None:
    """Bring the database to this version's schema. Safe to repeat; run it before the new version starts.

    Example: gramfuse-server db upgrade
    """
    migrate(_settings_with_logs())
    head = schema.head()
    printing.show({"database": head}, lambda _: typer.echo(f"database     {head} (up to date)"))


def migrate(settings: Settings) -> None:
    """Upgrade our tables, then the job engine's."""
    from gramfuse_server import jobs  # noqa: PLC0415 - see above

    database = open_database(settings.database_url, create=True)
    try:
        require_answer(database)
        schema.upgrade(database)
    finally:
        database.close()
    jobs.migrate(settings)


@cli.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    port_file: Annotated[Path | None, typer.Option(help="Write the port here once it is known.")] = None,
) -> None:
    """Serve the API. Its URL is the first line on standard output.

    Example: gramfuse-server serve --port 8080
    """
    with imports_kept():
        from gramfuse_server.app import create_app  # noqa: PLC0415 - the other commands need no web server
        from gramfuse_server.belonging import require_own_key_and_store  # noqa: PLC0415
        from gramfuse_server.metrics.serving import serving_metrics  # noqa: PLC0415
        from gramfuse_server.serving import http_server  # noqa: PLC0415
        from gramfuse_server.tracing import start_tracing  # noqa: PLC0415

        settings = _settings_with_logs()
        require_own_key_and_store(settings)
        app = create_app(settings, traced=start_tracing("gramfuse-api"))
    server = http_server(app, settings)
    listening = _listen(host, port)
    bound = listening.getsockname()[1]
    if port_file is not None:
        replace_file(port_file, f"{bound}\n".encode())
    typer.echo(f"http://{f'[{host}]' if ':' in host else host}:{bound}")
    sys.setswitchinterval(SWITCH_SECONDS)
    with serving_metrics(settings, app.state.registry):
        server.run(sockets=[listening])


@cli.command()
def worker() -> None:
    """Run one worker: checks uploads and merges.

    Examples: gramfuse-server worker · GRAMFUSE_DEVICE=cuda:1 gramfuse-server worker
    """
    with imports_kept():
        from gramfuse_server.worker import run_worker  # noqa: PLC0415 - needs torch

    run_worker(_settings_with_logs())


cli.command()(doctor)
cli.command()(worker_health)
cli.command()(verify)


@audit_commands.command("head")
def show_audit_head() -> None:
    """Verify the audit log and print its head, `ROWS DIGEST`. Keep it where the database's owner cannot write.

    Example: gramfuse-server audit head > head-2026-11-27.txt
    """
    with schema.opened(load_settings().database_url) as database, snapshot(database) as session:
        rows, digest = audit_log.verify(session)
    printing.show({"rows": rows, "digest": digest}, lambda _: typer.echo(f"{rows} {digest}"))


@audit_commands.command("verify")
def verify_audit_log(
    head: Annotated[
        Path | None,
        typer.Option(
            help="A file of `audit head`, or - for standard input: rows of then that are gone or other are found."
        ),
    ] = None,
) -> None:
    """Walk the audit log's hash chain: no row was edited, removed or reordered. Print its length and last digest.

    Without --head, rows cut off at the end and a chain that was written anew as a whole are not found.

    Example: gramfuse-server audit verify --head head-2026-11-27.txt
    """
    noted = None if head is None else audit_log.read_head(head)
    with schema.opened(load_settings().database_url) as database, snapshot(database) as session:
        rows, digest = audit_log.verify(session, noted=noted)
    since = (
        "" if head is None or noted is None else f", and {noted[0]} of them are those of {audit_log.head_name(head)}"
    )
    told = {"rows": rows, "digest": digest, "since": None if noted is None else noted[0]}
    printing.show(told, lambda _: typer.echo(f"{rows} rows, intact{since}; the last digest is {digest}"))


def _settings_with_logs() -> Settings:
    from gramfuse_server.logs import configure_logs  # noqa: PLC0415 - see above

    settings = load_settings()
    configure_logs(settings)
    return settings


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        msg = f"cannot listen on {host}:{port}: {error}; choose another with --port"
        raise ConfigurationError(msg) from error
