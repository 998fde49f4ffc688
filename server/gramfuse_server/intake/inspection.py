"""Inspect a sealed upload: assemble its parts, check digests and numbers, accept it or reject it with the reason.

The worker's side of intake. The numerical check is passed in, because it needs torch and this package never does.
"""

import errno
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log, keeping
from gramfuse_server.blobs import Blobs
from gramfuse_server.clock import Clock
from gramfuse_server.database import Database, reading, transaction
from gramfuse_server.intake.parts import PartedFile
from gramfuse_server.intake.sealing import complete_files, reject
from gramfuse_server.intake.subjects import Manifest, subject_of
from gramfuse_server.intake.uploads import lock_upload
from gramfuse_server.metrics.work import WorkMetrics
from gramfuse_server.patience import Patience
from gramfuse_server.tables import UploadFileRow, UploadRow
from gramfuse_shared import limits
from gramfuse_shared.errors import DigestMismatchError, GramfuseError, StorageFullError

Check = Callable[[Manifest, Mapping[str, Path]], None]
"""Raises what is numerically wrong with the assembled files of a manifest."""

MAX_REASON_CHARACTERS: Final = 2_000
_CHUNK_BYTES: Final = 4 * limits.MIB

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Inspector:
    """Inspects uploads; `scratch` is a local folder that holds one upload's files at a time."""

    database: Database
    blobs: Blobs
    scratch: Path
    check: Check
    clock: Clock
    metrics: WorkMetrics = field(default_factory=WorkMetrics)
    patience: Patience = field(default_factory=Patience)

    def inspect(self, upload: str) -> str | None:
        """Bring a sealed upload to accepted or rejected; return its state, None where nothing was to be done.

        Safe to repeat: until the transaction at the end, nothing but content-addressed blobs has been written. Where
        scratch or store are full it waits: an upload is not sent again for want of room on the server.
        """
        return self.patience.for_room(lambda: self._inspect(upload))

    def _inspect(self, upload: str) -> str | None:
        began = time.monotonic()
        reason: str | None = None
        found = self.patience(lambda: self._find(upload))
        if found is None:
            return None
        try:
            with self._assembled(found) as paths:
                self.check(found.manifest, paths)
                files: dict[str, Path | bytes] = {found.digests[name]: path for name, path in paths.items()}
                self.patience(lambda: keeping.keep(self.database, self.blobs, files, clock=self.clock))
        except StorageFullError:
            raise
        except GramfuseError as error:
            reason = f"{error.code}: {error.message}"
        state = self.patience(lambda: self._decide(found, reason))
        self.metrics.inspected(state, seconds=time.monotonic() - began)
        return state

    def abandon(self, upload: str, reason: str) -> None:
        """Reject a sealed upload that could not be inspected."""
        found = self._find(upload)
        if found is not None:
            self._decide(found, reason)

    def _find(self, upload: str) -> "_Sealed | None":
        with reading(self.database) as session:
            row = session.get_one(UploadRow, upload)
            subject = subject_of(session, row)
            if row.state != "sealed" or subject is None:
                return None
            files = complete_files(session, self.blobs, row)
            return _Sealed(upload, row.kind, subject.name, subject.manifest, files, _digests(session, upload))

    @contextmanager
    def _assembled(self, sealed: "_Sealed") -> Iterator[dict[str, Path]]:
        """Put the parts of each file together in scratch; raises DigestMismatchError where they are not the file."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(dir=self.scratch, prefix="inspection-")))
            paths = {}
            for name, file in sealed.files.items():
                paths[name] = folder / name
                found, expected = _assemble(file, paths[name]), sealed.digests[name]
                if found != expected:
                    msg = f"the parts of {name} make a file with SHA-256 {found}, the manifest says {expected}"
                    raise DigestMismatchError(msg, file=name)
            yield paths

    def _decide(self, sealed: "_Sealed", reason: str | None) -> str:
        now = self.clock()
        with transaction(self.database) as session:
            row = lock_upload(session, sealed.upload)
            if row.state != "sealed":  # withdrawn meanwhile, or decided by another worker
                keeping.let_go(session, sealed.digests.values())
                return row.state
            if reason is None:
                row.state, row.decided_at = "accepted", now
                keeping.name(session, sealed.digests.values())
            else:
                reject(row, reason[:MAX_REASON_CHARACTERS], now)
            state = row.state
            audit_log.append(
                session,
                at=now,
                organization=None,
                token=None,
                action=f"{sealed.kind}.{'accept' if reason is None else 'reject'}",
                subject=sealed.subject,
                details={"files": dict(sealed.digests)} | ({"reason": reason} if reason else {}),
            )
        _log.info("inspected", kind=sealed.kind, subject=sealed.subject, state=state, reason=reason)
        self.blobs.delete_prefix(f"uploads/{sealed.upload}/")  # the sweep does it, should the process end here
        return state


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A sealed upload: what it carries, its files by name, and the digests that they shall have."""

    upload: str
    kind: str
    subject: str
    manifest: Manifest
    files: Mapping[str, PartedFile]
    digests: Mapping[str, str]


def _digests(session: Session, upload: str) -> dict[str, str]:
    rows = session.execute(select(UploadFileRow.name, UploadFileRow.sha256).where(UploadFileRow.upload == upload))
    return {row.name: row.sha256 for row in rows}


def _assemble(file: PartedFile, target: Path) -> str:
    digest = hashlib.sha256()
    try:
        with target.open("wb") as assembled:
            for key in file.keys:
                for chunk in file.blobs.chunks(key):
                    digest.update(chunk)
                    assembled.write(chunk)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        msg = f"the worker's scratch folder has no room for {target.name}; its operator has to make some"
        raise StorageFullError(msg) from error
    return digest.hexdigest()
