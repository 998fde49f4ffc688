"""Checks of what the server is told: its settings, and the key that it signs receipts with."""

import os
import stat
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from gramfuse_server.belonging import describe_store
from gramfuse_server.database import database_url
from gramfuse_server.database_key import HOW_TO_BRING_IT, HOW_TO_FINISH
from gramfuse_server.doctor.findings import Finding, failed, ok, warning
from gramfuse_server.receipt_key import load_public_keys, next_path, next_public_key
from gramfuse_server.settings import Settings
from gramfuse_shared.errors import ConfigurationError

_NOT_THE_SERVERS: Final = frozenset(
    {
        *("GRAMFUSE_HOME", "GRAMFUSE_URL", "GRAMFUSE_TOKEN", "GRAMFUSE_ALLOW_HTTP", "GRAMFUSE_AUDIT_THRESHOLDS"),
        *("GRAMFUSE_THROUGH_SERVER", "GRAMFUSE_S3_ENDPOINT", "GRAMFUSE_S3_REGION"),
        *("GRAMFUSE_S3_ACCESS_KEY", "GRAMFUSE_S3_SECRET_KEY"),
        "GRAMFUSE_DB_PASSWORD",  # the compose file's, as GRAMFUSE_S3_… are
    }
)
_SIMILAR: Final = 0.85  # as difflib counts: GRAMFUSE_BLOB and GRAMFUSE_BLOBS are, GRAMFUSE_URL and any setting are not


def check_settings(settings: Settings, variables: Iterable[str]) -> Finding:
    """Say where everything lies; warn of variables that look like a setting and are none.

    Args:
        settings: as they were read.
        variables: the names in the environment.
    """
    places = f"home {settings.server_home}, database {describe_database(settings)}, blobs {describe_store(settings)}"
    known = {f"GRAMFUSE_{name.upper()}" for name in Settings.model_fields}
    unknown = sorted({name for name in variables if name.startswith("GRAMFUSE_")} - known - _NOT_THE_SERVERS)
    meant = {name: get_close_matches(name, known, n=1, cutoff=_SIMILAR) for name in unknown}
    misspelt = [f"{name} is no setting, {near[0]} is" for name, near in meant.items() if near]
    if misspelt:
        return warning("settings", f"{places}; {', '.join(misspelt)}", "correct the variable's name, or remove it")
    return ok("settings", places)


def describe_database(settings: Settings) -> str:
    """Name the database without its password."""
    try:
        url = database_url(settings.database_url)
        return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)
    except ConfigurationError:
        return "unreadable"


def check_key(path: Path, *, user: int, own: str | None = None) -> Finding:
    """The receipt key is there, can be read, is the database's, and nobody but its owner may read or change it.

    Args:
        path: where it should lie.
        user: the id of the user whom the server runs as.
        own: the key that the database's receipts are signed by, if it says one.
    """
    name = "receipt key"
    try:
        status = path.stat()
        keys = load_public_keys(path)
    except FileNotFoundError:
        signed = f"; this database's receipts are signed by {own}" if own else ""
        advice = HOW_TO_BRING_IT if own else "run `gramfuse-server init`, or correct GRAMFUSE_RECEIPT_KEY"
        return failed(name, f"{path} is not there{signed}", advice)
    except OSError as error:
        return failed(name, f"{path} cannot be read: {error.strerror}", _run_as_owner())
    except ConfigurationError as error:
        advice = (
            "restore the key from a backup: a new one is another identity, which clients that pinned this one refuse"
        )
        return failed(name, error.message, advice)
    found = f"{keys.present} in {path}, mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}"
    if own is not None and own not in {keys.present, *keys.former}:
        advice = HOW_TO_FINISH if own == next_public_key(path) else HOW_TO_BRING_IT
        return failed(name, f"{found}: this database's receipts are signed by another one, {own}", advice)
    return _check_key_file(path, status, found, user=user)


def _check_key_file(path: Path, status: os.stat_result, found: str, *, user: int) -> Finding:
    name = "receipt key"
    if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        return failed(name, f"{found}: others than its owner may read or change it", f"run `chmod 600 {path}`")
    if status.st_mode & stat.S_IRGRP:
        return warning(name, f"{found}: its group may read it", f"run `chmod 600 {path}`, unless the group is meant")
    if next_path(path).exists():
        return warning(name, f"{found}; another key was about to take its place", HOW_TO_FINISH)
    if status.st_uid not in {user, 0}:
        return warning(name, f"{found}, while this runs as {user}", "run the doctor as the server's user")
    return ok(name, found)


def _run_as_owner() -> str:
    return f"give the file to the server's user (this is {os.geteuid()}), or run the doctor as that user"
