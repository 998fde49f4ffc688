"""The commands of `gramfuse-server`: set up, serve, work, and what an administrator does at the shell.

The job engine, the logs' library and cryptography load only in the commands that need them.
"""

import json
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, cast

import typer
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log, schema
from gramfuse_server.auth import issue_token
from gramfuse_server.clock import system_clock
from gramfuse_server.database import (
    insert_if_absent,
    open_database,
    reading,
    require_answer,
    snapshot,
    transaction,
)
from gramfuse_server.doctor.command import doctor
from gramfuse_server.doctor.worker_health import worker_health
from gramfuse_server.key_commands import key_commands
from gramfuse_server.settings import Settings, load_settings
from gramfuse_server.tables import OrganizationRow, TokenRow
from gramfuse_server.verifying.command import verify
from gramfuse_shared.contract.http_api import OrganizationCreate, Role
from gramfuse_shared.creating import replace_file
from gramfuse_shared.errors import (
    ConfigurationError,
    NotFoundError,
    RequestMalformedError,
)
from gramfuse_shared.imports import imports_kept

OPERATOR_DAYS: Final = 365
SWITCH_SECONDS: Final = 0.0005
"""A tenth of Python's own: after so long a thread that computes lets the event loop answer somebody else."""

cli = typer.Typer(help="Run and administer a gramfuse server.", no_args_is_help=True, pretty_exceptions_enable=False)
database_commands = typer.Typer(help="The database's schema.", no_args_is_help=True)
token_commands = typer.Typer(help="Create, list and revoke tokens.", no_args_is_help=True)
organization_commands = typer.Typer(help="Create organizations.", no_args_is_help=True)
audit_commands = typer.Typer(help="The audit log.", no_args_is_help=True)
cli.add_typer(database_commands, name="db")
cli.add_typer(token_commands, name="token")
cli.add_typer(organization_commands, name="org")
cli.add_typer(audit_commands, name="audit")
cli.add_typer(key_commands, name="key")
cli.command()(doctor)
cli.command()(worker_health)
cli.command()(verify)


@cli.command()
def init() -> None:
    """Set up the server: database, receipt key, and the first operator token, printed this once. Safe to repeat."""
    from gramfuse_server import receipt_key  # noqa: PLC0415 - see above
    from gramfuse_shared import signatures  # noqa: PLC0415

    settings = _settings_with_logs()
    migrate(settings)
    new_key = receipt_key.create_key(settings.receipt_key)
    # before the token: an unreadable key must not end this with a token that was made and never shown
    public_key = signatures.public_key(receipt_key.load_key(settings.receipt_key))
    database = open_database(settings.database_url, create=True)
    now = system_clock()
    with transaction(database) as session:
        schema.exclude_others(session.connection())
        operators = session.scalar(select(func.count()).select_from(TokenRow).where(TokenRow.role == "operator"))
        token = None if operators else _create_token(session, role="operator", organization=None, days=OPERATOR_DAYS)
        if new_key:
            audit_log.append(
                session, at=now, organization=None, token=None, action="receipt-key.create", subject="server"
            )
    database.close()
    typer.echo(f"database     {schema.head()} (up to date)")
    typer.echo(f"receipt key  {public_key}")
    typer.echo(f"             in {settings.receipt_key} ({'created' if new_key else 'kept'})")
    if token is not None:
        typer.echo(f"operator     {token}")
        typer.echo("This token is shown once. `gramfuse-server token create --operator` makes another.", err=True)


@database_commands.command("upgrade")
def upgrade() -> None:
    """Bring the database to this version's schema. Safe to repeat; run it before the new version starts."""
    migrate(_settings_with_logs())
    typer.echo(f"database     {schema.head()} (up to date)")


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
    """Serve the API. Its URL is the first line on standard output."""
    with imports_kept():
        from gramfuse_server.app import create_app  # noqa: PLC0415 - the other commands need no web server
        from gramfuse_server.metrics.serving import serving_metrics  # noqa: PLC0415
        from gramfuse_server.serving import http_server  # noqa: PLC0415
        from gramfuse_server.tracing import start_tracing  # noqa: PLC0415

        settings = _settings_with_logs()
        app = create_app(settings, traced=start_tracing("gramfuse-api"))
    schema.require_current(app.state.services.database)
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
    """Run one worker: checks uploads and merges."""
    with imports_kept():
        from gramfuse_server.worker import run_worker  # noqa: PLC0415 - needs torch

    run_worker(_settings_with_logs())


@token_commands.command("create")
def create_token(
    operator: Annotated[bool, typer.Option("--operator", help="A token that administers the server.")] = False,
    org: Annotated[str | None, typer.Option(help="The organization that the token speaks for.")] = None,
    role: Annotated[str, typer.Option(help="coordinator or participant")] = "participant",
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days until it expires.")] = 90,
) -> None:
    """Create a token and print it, this once."""
    if operator == (org is not None):
        msg = "give either --operator, or --org ORG with --role coordinator|participant"
        raise RequestMalformedError(msg)
    if role not in {"coordinator", "participant"}:
        msg = "the role is coordinator or participant"
        raise RequestMalformedError(msg)
    with schema.opened(load_settings().database_url) as database, transaction(database) as session:
        if org is not None and session.get(OrganizationRow, org) is None:
            msg = f"there is no organization {org}; `gramfuse-server org create {org}` creates it"
            raise NotFoundError(msg)
        chosen: Role = "operator" if operator else cast("Role", role)
        token = _create_token(session, role=chosen, organization=org, days=days)
    typer.echo(token)


@token_commands.command("list")
def list_tokens() -> None:
    """List all tokens, without their secrets, as JSON lines."""
    with schema.opened(load_settings().database_url) as database, reading(database) as session:
        for row in session.scalars(select(TokenRow).order_by(TokenRow.created_at, TokenRow.id)):
            line = {
                "id": row.id,
                "role": row.role,
                "organization": row.organization,
                "expires_at": row.expires_at.isoformat() if row.expires_at else None,
                "revoked_at": row.revoked_at.isoformat() if row.revoked_at else None,
            }
            typer.echo(json.dumps(line))


@token_commands.command("revoke")
def revoke_token(token: Annotated[str, typer.Argument(help="The token's id, the part after gf_.")]) -> None:
    """Revoke a token. Twice is the same as once."""
    with schema.opened(load_settings().database_url) as database, transaction(database) as session:
        row = session.get(TokenRow, token, with_for_update=True)
        if row is None:
            msg = f"there is no token {token}"
            raise NotFoundError(msg)
        if row.revoked_at is None:
            row.revoked_at = system_clock()
            audit_log.append_by_shell(session, at=system_clock(), action="token.revoke", subject=token)
    typer.echo(f"{token} is revoked")


@organization_commands.command("create")
def create_organizations(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Lower-case letters, digits, hyphens.")],
) -> None:
    """Create organizations: all of them, or, where a name is not one, none. Twice is the same as once."""
    organizations = [OrganizationCreate.parse(json.dumps({"name": name})) for name in names]
    with schema.opened(load_settings().database_url) as database, transaction(database) as session:
        for organization in organizations:
            values = {"name": organization.name, "created_at": system_clock()}
            if insert_if_absent(session, OrganizationRow, values):
                audit_log.append_by_shell(
                    session, at=system_clock(), action="organization.create", subject=organization.name
                )
    typer.echo("\n".join(organization.name for organization in organizations))


@audit_commands.command("head")
def show_audit_head() -> None:
    """Verify the audit log and print its head, `ROWS DIGEST`. Keep it where the database's owner cannot write.

    Example: gramfuse-server audit head > head-2026-11-27.txt
    """
    with schema.opened(load_settings().database_url) as database, snapshot(database) as session:
        rows, digest = audit_log.verify(session)
    typer.echo(f"{rows} {digest}")


@audit_commands.command("verify")
def verify_audit_log(
    head: Annotated[
        Path | None, typer.Option(help="A file of `audit head`: rows of then that are gone or other are found too.")
    ] = None,
) -> None:
    """Walk the audit log's hash chain: no row was edited, removed or reordered. Print its length and last digest.

    Without --head, rows cut off at the end and a chain that was written anew as a whole are not found.
    """
    noted = None if head is None else audit_log.read_head(head)
    with schema.opened(load_settings().database_url) as database, snapshot(database) as session:
        rows, digest = audit_log.verify(session, noted=noted)
    since = "" if noted is None else f", and {noted[0]} of them are those of {head}"
    typer.echo(f"{rows} rows, intact{since}; the last digest is {digest}")


def _create_token(session: Session, *, role: Role, organization: str | None, days: int) -> str:
    row, token = issue_token(
        session, role=role, organization=organization, now=system_clock(), lifetime=timedelta(days=days)
    )
    details = {"role": role, "organization": organization, "days": days}
    audit_log.append_by_shell(session, at=system_clock(), action="token.create", subject=row.id, details=details)
    return token


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
