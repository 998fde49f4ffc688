"""The command `gramfuse-server worker-health`: what a container's health check asks."""

import socket
from datetime import datetime, timedelta
from typing import Final

import typer
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server import heartbeats
from gramfuse_server.clock import system_clock
from gramfuse_server.database import open_database, reading
from gramfuse_server.settings import load_settings
from gramfuse_server.tables import WorkerRow
from gramfuse_shared.shell import printing

PATIENCE: Final = 6
"""Leases without a sign of life after which the worker is told ill: others took its work over after one."""


def worker_health() -> None:
    """Tell whether a worker on this host is alive, as the other workers see it: by its heartbeat in the database.

    Exit code 1 if none is, or if the database does not answer. Meant for a container, which holds one worker.

    Example: gramfuse-server worker-health
    """
    settings = load_settings()
    database = open_database(settings.database_url)
    try:
        with reading(database) as session:
            alive = find_alive(session, socket.gethostname(), system_clock(), settings.worker_lease * PATIENCE)
    finally:
        database.close()
    if not alive:
        typer.echo(f"no worker on {socket.gethostname()} gave a sign of life", err=True)
        raise typer.Exit(1)
    printing.show(alive, lambda _: typer.echo("\n".join(alive)))


def find_alive(session: Session, host: str, now: datetime, lease: timedelta) -> list[str]:
    """Return the workers of a host that gave a sign of life within the lease, the newest first."""
    rows = session.scalars(select(WorkerRow).where(WorkerRow.host == host).order_by(WorkerRow.started_at.desc()))
    return [row.id for row in rows if heartbeats.is_alive(row, now, lease)]
