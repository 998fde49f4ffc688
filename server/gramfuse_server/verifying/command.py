"""The command `gramfuse-server verify`: print what is there and what is not, for people or for programs."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from gramfuse_server.doctor.command import tell
from gramfuse_server.settings import load_settings

FORMAT: Final = "gramfuse/verify/1"


def verify(
    digests: Annotated[
        bool, typer.Option("--digests", help="Read every file and compare its SHA-256; takes as long as reading all.")
    ] = False,
    head: Annotated[
        Path | None,
        typer.Option(help="A file of `audit head`, or - for standard input: the log has to go on from there."),
    ] = None,
) -> None:
    """Check that database, blob store and receipt key belong together, as after a restore. Nothing is changed.

    The audit log's chain, the signature of every receipt, and every file that the database names: that it is there,
    with its length, and with --digests its bytes. Exit code 1 if something is missing or other.

    Examples: gramfuse-server verify --digests · gramfuse-server verify --head head-2026-11-27.txt
    """
    from gramfuse_server import audit_log  # noqa: PLC0415 - for this command alone, as all below
    from gramfuse_server.database import open_database  # noqa: PLC0415
    from gramfuse_server.doctor.findings import masked, secrets_of  # noqa: PLC0415
    from gramfuse_server.verifying.checks import verify_contents  # noqa: PLC0415

    noted = None if head is None else audit_log.read_head(head)
    settings = load_settings()
    database = open_database(settings.database_url)
    try:
        verified = verify_contents(settings, database, digests=digests, head=noted)
    finally:
        database.close()
    findings = masked(verified.findings, secrets_of(os.environ, settings))
    losses = [
        asdict(loss.named) | {"trouble": loss.trouble, "found": loss.found, "models": loss.models}
        for loss in verified.losses
    ]
    tell(findings, FORMAT, {"digests": digests, "losses": losses})
