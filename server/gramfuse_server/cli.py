"""The entry point `gramfuse-server`: the commands, or, where the server's packages are missing, what to install."""

import os
import sys
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from gramfuse_shared.errors import GramfuseError
from gramfuse_shared.extras import requiring_extras
from gramfuse_shared.imports import imports_kept
from gramfuse_shared.shell.commands import run_command
from gramfuse_shared.shell.printing import tell_error

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


PRIVATE: Final = 0o077
"""No file that the server writes is readable by other users of the machine: weights and statistics lie there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code. An error of ours is one line on standard error and exit code 1."""
    try:
        with requiring_extras("gramfuse-server", EXTRAS):
            with imports_kept():
                from gramfuse_server.commands import command  # noqa: PLC0415 - may be missing parts

            return run_command(command(), sys.argv[1:] if arguments is None else arguments)
    except GramfuseError as error:
        tell_error(error)
        return 1


def run() -> None:
    """Run the command line of this process."""
    os.umask(PRIVATE)
    sys.exit(main())
