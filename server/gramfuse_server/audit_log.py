"""The audit log: an append-only chain in which every row's digest covers the row and the digest before it.

Append last in a transaction: it locks the chain's end until the commit.
"""

import json
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server.database import insert_if_absent
from gramfuse_server.tables import AuditHeadRow, AuditRow
from gramfuse_shared.contract.operators import AuditEntry
from gramfuse_shared.digest import canonical_json, document_digest
from gramfuse_shared.errors import AuditChainBrokenError, FileUnreadableError

GENESIS: Final = "0" * 64
STANDARD_INPUT: Final = Path("-")
_ROWS_AT_ONCE: Final = 1_000
_HEAD: Final = re.compile(r"\s*([0-9]{1,18})\s+([0-9a-f]{64})\s*")
_MAX_HEAD: Final = 200
"""Characters that are read of a file that should hold one."""


class Actor(Protocol):
    """Whoever acts: `auth.Caller`, seen from here, or `SHELL`."""

    @property
    def token(self) -> str | None:
        """The token's id, None for the shell."""

    @property
    def organization(self) -> str | None:
        """The token's organization, None for an operator."""


class _Shell:
    token = None
    organization = None


SHELL: Final[Actor] = _Shell()
"""Whoever types commands on the server's own machine, which needs no token."""


def append_for(
    session: Session,
    actor: Actor,
    *,
    at: datetime,
    action: str,
    subject: str,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Append what somebody did, by a token or by a command at the server's own shell."""
    append(
        session,
        at=at,
        organization=actor.organization,
        token=actor.token,
        action=action,
        subject=subject,
        details={**(details or {}), "by": "shell"} if actor is SHELL else details,
    )


def append(
    session: Session,
    *,
    at: datetime,
    organization: str | None,
    token: str | None,
    action: str,
    subject: str,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Append a row. `token` is a token's id, never its secret; None is the server itself."""
    insert_if_absent(session, AuditHeadRow, {"id": 1, "sequence": 0, "digest": GENESIS})
    head = session.scalars(
        select(AuditHeadRow).where(AuditHeadRow.id == 1).with_for_update().execution_options(populate_existing=True)
    ).one()
    row = AuditRow(
        sequence=head.sequence + 1,
        at=at,
        organization=organization,
        token=token,
        action=action,
        subject=subject,
        details=canonical_json(dict(details or {})).decode(),
        previous=head.digest,
    )
    row.digest = _digest(row)
    session.add(row)
    head.sequence, head.digest = row.sequence, row.digest
    session.flush()


def verify(session: Session, *, noted: tuple[int, str] | None = None) -> tuple[int, str]:
    """Walk the chain; return the number of rows and the last digest, to be noted elsewhere.

    `noted` is what an earlier walk returned: whoever can write the database can cut off the end or chain all rows anew,
    and only what was noted elsewhere tells. The session is a `snapshot` where others may append meanwhile.

    Raises:
        AuditChainBrokenError: a row was edited, removed, added or reordered; the message names the first one.
    """
    reached = GENESIS
    sequence, digest = 0, GENESIS
    query = select(AuditRow).order_by(AuditRow.sequence).execution_options(yield_per=_ROWS_AT_ONCE)
    with closing(session.scalars(query)) as rows:
        for row in rows:
            sequence += 1
            if row.sequence != sequence or row.previous != digest:
                msg = f"row {sequence} of the audit log is missing or out of order: row {row.sequence} was found there"
                raise AuditChainBrokenError(msg, sequence=sequence)
            if _digest(row) != row.digest:
                msg = f"row {sequence} of the audit log was edited: its content does not have its digest"
                raise AuditChainBrokenError(msg, sequence=sequence)
            digest = row.digest
            if noted is not None and sequence == noted[0]:
                reached = digest
    head = session.get(AuditHeadRow, 1)
    expected = (head.sequence, head.digest) if head else (0, GENESIS)
    if (sequence, digest) != expected:
        msg = (
            f"the audit log ends at row {sequence}, its head says {expected[0]}: rows were removed or added at the end"
        )
        raise AuditChainBrokenError(msg, sequence=sequence)
    if noted is not None and sequence < noted[0]:
        msg = f"the audit log ends at row {sequence}, but row {noted[0]} was noted: rows were removed at the end"
        raise AuditChainBrokenError(msg, sequence=sequence)
    if noted is not None and reached != noted[1]:
        msg = f"row {noted[0]} of the audit log is not the one that was noted: the chain was written anew"
        raise AuditChainBrokenError(msg, sequence=noted[0])
    return sequence, digest


def read_head(path: Path) -> tuple[int, str]:
    """Read a head that was noted by `gramfuse-server audit head`: its row's number and its digest.

    Raises:
        FileUnreadableError: the file is not there, cannot be read, or does not hold one.
    """
    try:
        noted = sys.stdin.read(_MAX_HEAD) if path == STANDARD_INPUT else _read_start(path)
    except FileNotFoundError as error:
        msg = f"{path} is not there: name a file that `gramfuse-server audit head` wrote, or - for standard input"
        raise FileUnreadableError(msg) from error
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise FileUnreadableError(msg) from error
    except UnicodeDecodeError:
        noted = ""
    match = _HEAD.fullmatch(noted)
    if match is None:
        msg = f"{head_name(path)} does not hold a head, `ROWS DIGEST`, as `gramfuse-server audit head` prints it"
        raise FileUnreadableError(msg)
    return int(match[1]), match[2]


def head_name(path: Path) -> str:
    """Name where a head was read from, in a sentence."""
    return "standard input" if path == STANDARD_INPUT else str(path)


def _read_start(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(_MAX_HEAD)


def entry_of(row: AuditRow) -> AuditEntry:
    """Return a row as it is shown to operators."""
    return AuditEntry(
        sequence=row.sequence,
        at=row.at,
        organization=row.organization,
        token=row.token,
        action=row.action,
        subject=row.subject,
        details=json.loads(row.details),
        previous=row.previous,
        digest=row.digest,
    )


def _digest(row: AuditRow) -> str:
    return document_digest(
        {
            "sequence": row.sequence,
            "at": row.at.isoformat(timespec="microseconds"),
            "organization": row.organization,
            "token": row.token,
            "action": row.action,
            "subject": row.subject,
            "details": row.details,
            "previous": row.previous,
        }
    )
