"""Inspect a sealed upload: assemble its parts, check digests and numbers, accept it or reject it with the reason.

The worker's side of intake. The numerical check is passed in, because it needs torch and this package never does.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from gramfuse_server import audit_log
from gramfuse_server.blobs import Blobs, blob_key
from gramfuse_server.clock import Clock
from gramfuse_server.database import Database, insert_if_absent, reading, transaction
from gramfuse_server.intake.parts import PartedFile
from gramfuse_server.intake.sealing import complete_files, reject
from gramfuse_server.intake.uploads import lock_upload
from gramfuse_server.tables import BlobRow, ContributionRow, ProjectRow, UploadFileRow, UploadRow
from gramfuse_shared import limits
from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest
from gramfuse_shared.errors import DigestMismatchError, GramfuseError

Kind = Literal["base", "contribution"]
Manifest = BaseManifest | ContributionManifest

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

    def inspect(self, kind: Kind, subject: str) -> str | None:
        """Bring a sealed upload to accepted or rejected; return its state, None where nothing was to be done.

        Safe to repeat: until the transaction at the end, nothing but content-addressed blobs has been written.
        """
        found = self._find(kind, subject)
        if found is None:
            return None
        upload, manifest, files, digests = found
        try:
            with self._assembled(files, digests) as paths:
                self.check(manifest, paths)
                for name, path in paths.items():
                    self.blobs.put_file(blob_key(digests[name]), path)
        except GramfuseError as error:
            return self._decide(upload, kind, subject, digests, f"{error.code}: {error.message}")
        return self._decide(upload, kind, subject, digests, None)

    def abandon(self, kind: Kind, subject: str, reason: str) -> None:
        """Reject a sealed upload that could not be inspected."""
        found = self._find(kind, subject)
        if found is not None:
            self._decide(found[0], kind, subject, found[3], reason)

    def _find(self, kind: Kind, subject: str) -> tuple[str, Manifest, dict[str, PartedFile], dict[str, str]] | None:
        with reading(self.database) as session:
            manifest: Manifest
            if kind == "base":
                project = session.get_one(ProjectRow, subject)
                upload, manifest = project.base_upload, BaseManifest.parse(project.base_manifest)
            else:
                contribution = session.get_one(ContributionRow, subject)
                upload, manifest = contribution.upload, ContributionManifest.parse(contribution.manifest)
            row = session.get_one(UploadRow, upload)
            if row.state != "sealed":
                return None
            return upload, manifest, complete_files(session, self.blobs, row), _digests(session, upload)

    @contextmanager
    def _assembled(self, files: Mapping[str, PartedFile], digests: Mapping[str, str]) -> Iterator[dict[str, Path]]:
        """Put the parts of each file together in scratch; raises DigestMismatchError where they are not the file."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(dir=self.scratch, prefix="inspection-")))
            paths = {}
            for name, file in files.items():
                paths[name] = folder / name
                found = _assemble(file, paths[name])
                if found != digests[name]:
                    msg = f"the parts of {name} make a file with SHA-256 {found}, the manifest says {digests[name]}"
                    raise DigestMismatchError(msg, file=name)
            yield paths

    def _decide(self, upload: str, kind: Kind, subject: str, digests: Mapping[str, str], reason: str | None) -> str:
        now = self.clock()
        with transaction(self.database) as session:
            row = lock_upload(session, upload)
            if row.state != "sealed":  # withdrawn meanwhile, or decided by another worker
                return row.state
            if reason is None:
                row.state, row.decided_at = "accepted", now
                for file in session.scalars(select(UploadFileRow).where(UploadFileRow.upload == upload)):
                    insert_if_absent(session, BlobRow, {"sha256": file.sha256, "bytes": file.bytes, "created_at": now})
            else:
                reject(row, reason[:MAX_REASON_CHARACTERS], now)
            state = row.state
            audit_log.append(
                session,
                at=now,
                organization=None,
                token=None,
                action=f"{kind}.{'accept' if reason is None else 'reject'}",
                subject=subject if kind == "base" else f"{row.project}/{subject}",
                details={"files": dict(digests)} | ({"reason": reason} if reason else {}),
            )
        _log.info("inspected", kind=kind, subject=subject, state=state, reason=reason)
        self.blobs.delete_prefix(f"uploads/{upload}/")  # the sweep does it, should the process end here
        return state


def _digests(session: Session, upload: str) -> dict[str, str]:
    rows = session.execute(select(UploadFileRow.name, UploadFileRow.sha256).where(UploadFileRow.upload == upload))
    return {row.name: row.sha256 for row in rows}


def _assemble(file: PartedFile, target: Path) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as assembled:
        for key in file.keys:
            for chunk in file.blobs.chunks(key):
                digest.update(chunk)
                assembled.write(chunk)
    return digest.hexdigest()
