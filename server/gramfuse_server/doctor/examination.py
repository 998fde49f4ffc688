"""All checks, one after the other: the only place that knows them all."""

import os
from collections.abc import Callable, Mapping
from contextlib import closing

from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError

from gramfuse_server.clock import Clock, system_clock
from gramfuse_server.database import Database, database_url, open_database, reading
from gramfuse_server.database_key import find_key
from gramfuse_server.doctor.configuration import check_key, check_settings
from gramfuse_server.doctor.database import examine_database
from gramfuse_server.doctor.device import check_device
from gramfuse_server.doctor.findings import Finding, failed, masked, secrets_of
from gramfuse_server.doctor.storage import examine_contents, examine_direct, examine_disks, examine_store
from gramfuse_server.settings import Settings
from gramfuse_shared.errors import ConfigurationError
from gramfuse_shared.version import __version__

CONNECT_SECONDS = 5


def examine(
    load: Callable[[], Settings], variables: Mapping[str, str], *, clock: Clock = system_clock
) -> list[Finding]:
    """Make every check that can be made. Nothing is changed; a blob is written and removed.

    Args:
        load: reads the settings; may raise ConfigurationError.
        variables: the environment; names are looked at, and values of secrets, to mask them.
        clock: this machine's.
    """
    try:
        settings = load()
    except ConfigurationError as error:
        finding = failed("settings", error.message, "correct the variables that are named; nothing else was checked")
        return masked([finding], secrets_of(variables))
    of_database, own_key = _examine_database(settings, clock)
    findings = [
        check_settings(settings, variables),
        *of_database,
        *examine_store(settings, clock),
        *examine_direct(settings),
        check_key(settings.receipt_key, user=os.geteuid(), own=own_key),
        check_device(settings.device),
        *examine_disks(settings),
    ]
    return masked(findings, secrets_of(variables, settings))


def _examine_database(settings: Settings, clock: Clock) -> tuple[list[Finding], str | None]:
    """Examine the database; return the receipt key that it belongs to, too, where nothing failed and it says so."""
    try:
        database = open_database(_impatient(settings.database_url))
    except ConfigurationError as error:
        advice = "run `gramfuse-server init` for a new server, or correct GRAMFUSE_DATABASE_URL"
        return [failed("database", error.message, advice)], None
    with closing(database):
        findings = examine_database(database, clock, lease=settings.worker_lease, version=__version__)
        failures = {finding.name for finding in findings if finding.verdict == "failed"}
        if failures & {"database", "migrations"}:
            return findings, None
        contents = examine_contents(database, settings)
        sound = not failures and all(finding.verdict != "failed" for finding in contents)
        return [*findings, *contents], _own_key(database) if sound else None


def _own_key(database: Database) -> str | None:
    try:
        with reading(database) as session:
            return find_key(session)
    except SQLAlchemyError:  # it has gone away meanwhile
        return None


def _impatient(url: SecretStr) -> SecretStr:
    """Do not wait minutes for a server whose machine does not answer."""
    parsed = database_url(url)
    if parsed.get_backend_name() == "sqlite" or "connect_timeout" in parsed.query:
        return url
    patient = parsed.update_query_dict({"connect_timeout": str(CONNECT_SECONDS)})
    return SecretStr(patient.render_as_string(hide_password=False))
