"""The entry point `gramfuse-server`: the commands, or, where the server's packages are missing, what to install."""

import sys
from types import MappingProxyType
from typing import Final

import typer

from gramfuse_shared.errors import GramfuseError
from gramfuse_shared.extras import requiring_extras
from gramfuse_shared.imports import imports_kept

_WORKER: Final = ("torch", "numpy", "safetensors")
_SERVER: Final = (
    *("alembic", "dbos", "fastapi", "httptools", "jinja2", "obstore", "prometheus_client"),
    *(
        "psycopg",
        "pydantic_settings",
        "sqlalchemy",
        "structlog",
        "uvicorn",
        "uvloop",
    ),
)
EXTRAS: Final = MappingProxyType(dict.fromkeys(_SERVER, "server") | dict.fromkeys(_WORKER, "worker"))


def run() -> None:
    """Run the command; an error of ours is one line on standard error and exit code 1."""
    try:
        with requiring_extras("gramfuse-server", EXTRAS):
            with imports_kept():
                from gramfuse_server.commands import cli  # noqa: PLC0415 - may be missing parts

            cli()
    except GramfuseError as error:
        typer.echo(f"error: {error.message} [{error.code}]", err=True)
        sys.exit(1)
