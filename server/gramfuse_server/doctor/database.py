"""Checks of the database: whether it answers, its schema, its clock, and what it says of workers and waiting work."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from gramfuse_server import jobs, schema
from gramfuse_server.auth import is_valid
from gramfuse_server.clock import Clock
from gramfuse_server.database import Database, reading, require_answer, transaction
from gramfuse_server.doctor.clocks import check_clock
from gramfuse_server.doctor.findings import Finding, failed, ok, warning
from gramfuse_server.heartbeats import is_alive
from gramfuse_server.tables import JobRow, TokenRow, UploadRow, WorkerRow
from gramfuse_shared.errors import ConfigurationError

LISTED_WORKERS: Final = 5
OPERATORS_WARNED: Final = timedelta(days=14)
"""Before the last token of an operator ends."""


def check_database(database: Database) -> Finding:
    """The database answers and takes a transaction that writes."""
    name = "database"
    kind = database.write.dialect.name
    try:
        require_answer(database)
        with transaction(database) as session:
            if kind == "sqlite":  # the transaction has taken the lock of writers
                version = session.scalar(text("SELECT sqlite_version()"))
                return ok(name, f"SQLite {version}, can be written")
            version = session.scalar(text("SHOW server_version"))
            if session.scalar(text("SHOW transaction_read_only")) == "on":
                advice = "name the primary server in GRAMFUSE_DATABASE_URL, not a replica"
                return failed(name, f"PostgreSQL {version} takes no writes", advice)
            found = f"PostgreSQL {version}, can be written"
            if session.scalar(text("SHOW is_superuser")) == "on":
                advice = (
                    "give gramfuse a role that owns its database alone: whoever has a superuser's password may do "
                    'everything there (docs/deployment.md, "The database\'s role")'
                )
                return warning(name, f"{found}, by a role that is a superuser of that server", advice)
            return ok(name, found)
    except ConfigurationError as error:
        advice = "start it, or correct GRAMFUSE_DATABASE_URL; a password belongs into that URL or into ~/.pgpass"
        return failed(name, error.message, advice)
    except DBAPIError as error:
        reason = str(error.orig).strip().partition("\n")[0]
        return failed(name, f"it answers and cannot be written: {reason}", "let this user write the database's file")


def check_schema(found: str | None, newest: str) -> Finding:
    """The schema is the one that this version knows."""
    name = "migrations"
    if found is None:
        return failed(name, f"the database is empty, this version needs {newest}", "run `gramfuse-server init`")
    if found < newest:
        advice = "stop API and workers, back the database up, then run `gramfuse-server db upgrade`"
        return failed(name, f"at revision {found}, this version needs {newest}", advice)
    if found > newest:
        advice = "install the version of gramfuse that made it, here too: an older one cannot use it"
        return failed(name, f"at revision {found}, newer than the {newest} that this version knows", advice)
    return ok(name, f"at {found}, this version's")


def check_job_engine(database: Database) -> Finding:
    """The job engine's own tables are there."""
    if not jobs.is_migrated(database):
        return failed("job engine", "its tables are missing", "run `gramfuse-server db upgrade`")
    return ok("job engine", "its tables are there")


def check_database_clock(database: Database, clock: Clock) -> Finding:
    """The database's clock is this machine's."""
    name = "clock, database"
    if database.read.dialect.name == "sqlite":
        return ok(name, "the database is a file, so there is one clock")
    with reading(database) as session:
        session.connection()  # opening it takes its time, and is none of the clock's
        began = clock()
        theirs = session.scalar(text("SELECT clock_timestamp()"))
        ended = clock()
    return check_clock(name, theirs.astimezone(UTC), began + (ended - began) / 2)


@dataclass(frozen=True, slots=True)
class Work:
    """What the database says of workers, and of what waits for them."""

    workers: Sequence[WorkerRow]
    """Those that have not ended in good order, the last sign of life first."""
    waiting: int
    """Uploads that are to be inspected and jobs that are not finished."""


def read_work(database: Database) -> Work:
    """Read who works and what waits."""
    with reading(database) as session:
        workers = session.scalars(
            select(WorkerRow).where(WorkerRow.stopped_at.is_(None)).order_by(WorkerRow.heartbeat_at.desc())
        ).all()
        sealed = session.scalar(select(func.count()).select_from(UploadRow).where(UploadRow.state == "sealed"))
        unfinished = session.scalar(select(func.count()).select_from(JobRow).where(JobRow.state.in_(jobs.UNFINISHED)))
    return Work(workers=workers, waiting=(sealed or 0) + (unfinished or 0))


def check_workers(work: Work, now: datetime, lease: timedelta) -> Finding:
    """Some worker is alive; it is an error that none is only where work waits."""
    name = "workers"
    alive = [row for row in work.workers if is_alive(row, now, lease)]
    waits = f"{work.waiting} uploads or jobs wait" if work.waiting != 1 else "1 upload or job waits"
    if alive:
        shown = ", ".join(f"{row.id} on {row.device}" for row in alive[:LISTED_WORKERS])
        more = f" and {len(alive) - LISTED_WORKERS} more" if len(alive) > LISTED_WORKERS else ""
        return ok(name, f"{len(alive)} alive: {shown}{more}; {waits}")
    last = f"; the last sign of life was of {work.workers[0].id}, {_ago(now, work.workers[0])}" if work.workers else ""
    advice = "start one with `gramfuse-server worker`; if it runs, it has another database or another clock"
    if work.waiting:
        return failed(name, f"none is alive, and {waits}{last}", advice)
    return warning(name, f"none is alive, and nothing waits{last}", advice)


def check_versions(work: Work, now: datetime, lease: timedelta, *, version: str) -> Finding:
    """The workers that are alive are of this version."""
    alive = {row.version for row in work.workers if is_alive(row, now, lease)}
    others = sorted(alive - {version})
    if not alive:
        return ok("versions", f"this is {version}; no worker is alive to compare it with")
    if others:
        advice = (
            "install one version everywhere and restart: newer recipes and tables may mean nothing to older workers"
        )
        return warning("versions", f"this is {version}, workers run {', '.join(others)}", advice)
    return ok("versions", f"this is {version}, and so is every worker that is alive")


def check_operators(ends: Sequence[datetime | None], now: datetime) -> Finding:
    """Some operator's token will open the dashboard for a while yet; `ends` are those of the valid ones."""
    name = "operators"
    advice = "make another: `gramfuse-server token create --operator`"
    if not ends:
        return warning(name, "no token of an operator is valid: nobody can sign in to the operators' dashboard", advice)
    tokens = f"{len(ends)} valid token{'' if len(ends) == 1 else 's'}"
    moments = [end for end in ends if end is not None]
    if len(moments) < len(ends):
        return ok(name, f"{tokens}, of which one never ends")
    found = f"{tokens}, the last until {max(moments):%Y-%m-%d}"
    return warning(name, found, advice) if max(moments) - now < OPERATORS_WARNED else ok(name, found)


def read_operators(database: Database, now: datetime) -> list[datetime | None]:
    """Read when each valid token of an operator ends."""
    with reading(database) as session:
        rows = session.scalars(select(TokenRow).where(TokenRow.role == "operator")).all()
    return [row.expires_at for row in rows if is_valid(row, now)]


def examine_database(database: Database, clock: Clock, *, lease: timedelta, version: str) -> list[Finding]:
    """Make all of these checks, as far as one allows the next."""
    findings = [check_database(database)]
    if findings[0].verdict == "failed":
        return findings
    try:
        findings.append(check_database_clock(database, clock))
        findings.append(check_schema(schema.current(database), schema.head()))
        if findings[-1].verdict == "failed":
            return findings
        findings.append(check_job_engine(database))
        work, now = read_work(database), clock()
        findings += [check_workers(work, now, lease), check_versions(work, now, lease, version=version)]
        findings.append(check_operators(read_operators(database, now), now))
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).strip().partition("\n")[0]
        findings.append(failed("database", f"it stopped answering: {reason}", "run the doctor again"))
    return findings


def _ago(now: datetime, row: WorkerRow) -> str:
    return f"{max(0, round((now - row.heartbeat_at).total_seconds()))} s ago"
