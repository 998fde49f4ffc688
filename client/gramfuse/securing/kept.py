"""What a member keeps of its secure sessions: files that are written once, before anything that hangs on them is sent.

A folder for each session, named by the manifest's digest: its secret, and for each stage what was shown and what was
answered. No file is ever replaced: of two processes, or of two tries with a crash between them, the first decides.
"""

import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from gramfuse.whole_files import private_folder
from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.policy import MergeMethod
from gramfuse_shared.contract.recipe import MethodParameters, Overridable
from gramfuse_shared.contract.secure import STAGES, SignedMessage, Stage
from gramfuse_shared.creating import create_once, sync_folder
from gramfuse_shared.errors import FileUnreadableError, FileUnwritableError, SecureSessionRefusedError
from gramfuse_shared.identifiers import Digest, OrganizationName

_ROOT: Final = "root"
_COMPLETED: Final = "completed"


class Step(Document):
    """What one stage showed, and the answer to it."""

    format: Literal["gramfuse/secure-step/1"] = "gramfuse/secure-step/1"
    shown: Annotated[tuple[SignedMessage, ...], Field(max_length=limits.MAX_SECURE_COHORT)] = ()
    sent: SignedMessage


class Completed(Document):
    """A session in which this member let the masks be taken off: whom it was summed with, and how."""

    format: Literal["gramfuse/secure-completed/1"] = "gramfuse/secure-completed/1"
    session: Digest
    weights: dict[OrganizationName, Overridable]
    method: MergeMethod
    parameters: MethodParameters


@dataclass(frozen=True, slots=True)
class KeptSession:
    """One session's folder."""

    folder: Path

    def secret(self, length: int) -> bytes:
        """Return the session's secret, which is drawn when it is first asked for.

        Raises:
            SecureSessionRefusedError: it was removed: another would not be the one that was spoken of.
        """
        if self._place("keys").exists() and not self.holds_secrets:
            msg = "the secret of this session was removed when the session ended; begin another"
            raise SecureSessionRefusedError(msg)
        return _kept(self.folder / _ROOT, lambda: secrets.token_bytes(length))

    @property
    def holds_secrets(self) -> bool:
        """Whether the secret lies here: the session did not end."""
        return (self.folder / _ROOT).exists()

    @property
    def began(self) -> datetime:
        """When the secret was drawn."""
        return datetime.fromtimestamp((self.folder / _ROOT).stat().st_mtime, UTC)

    def step(self, stage: Stage) -> Step | None:
        """Return what was kept of a stage; None where it was not answered."""
        raw = _read(self._place(stage))
        return None if raw is None else Step.parse(raw)

    def keep(self, stage: Stage, step: Step) -> Step:
        """Keep the answer to a stage, unless there is one; return the one that is kept."""
        return Step.parse(_kept(self._place(stage), step.canonical))

    def words(self, sha256: str) -> Path:
        """Return where a file of masked words lies, or will."""
        return self.folder / f"{sha256}.safetensors"

    def forget_secrets(self) -> None:
        """Remove the secret, the masked words and what a killed process left of a session that ended.

        What was said stays. Safe to repeat. The secret goes last, since it tells that something may be left.
        """
        said = {self._place(stage) for stage in STAGES} | {self.folder / _ROOT}
        for path in self.folder.iterdir():
            if path in said:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        (self.folder / _ROOT).unlink(missing_ok=True)

    def _place(self, stage: Stage) -> Path:
        return self.folder / f"{stage}.json"


@dataclass(frozen=True, slots=True)
class KeptSessions:
    """The folder of one project's secure sessions, readable by its owner only."""

    folder: Path

    def session(self, digest: str) -> KeptSession:
        """Return the session's folder, which is made if needed; raises FileUnwritableError."""
        return KeptSession(private_folder(private_folder(self.folder) / digest))

    def unended(self) -> dict[str, KeptSession]:
        """Return the sessions whose secrets lie here, by their digests."""
        return {path.parent.name: KeptSession(path.parent) for path in sorted(self.folder.glob(f"*/{_ROOT}"))}

    def completed(self) -> tuple[Completed, ...]:
        """List the sessions that were completed."""
        paths = sorted((self.folder / _COMPLETED).glob("*.json"))
        return tuple(Completed.parse(raw) for raw in map(_read, paths) if raw is not None)

    def complete(self, claim: str, completed: Completed) -> Completed:
        """Record under a claim which session was completed, unless one was; return the one that was."""
        place = private_folder(private_folder(self.folder) / _COMPLETED) / f"{claim}.json"
        return Completed.parse(_kept(place, completed.canonical))

    def completed_under(self, claim: str) -> Completed | None:
        """Return the session that was completed under a claim; None where none was."""
        raw = _read(self.folder / _COMPLETED / f"{claim}.json")
        return None if raw is None else Completed.parse(raw)


def _kept(path: Path, content: Callable[[], bytes]) -> bytes:
    """Return a file's bytes; where there is none, create it, and have it on the disk before this returns.

    Raises:
        FileUnwritableError: the folder cannot be written.
        FileUnreadableError: the file cannot be read.
    """
    found = _read(path)
    if found is not None:
        return found
    try:
        create_once(path, content)
        sync_folder(path.parent)  # also where another process created it, whose folder may not be there yet
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror or error}"
        raise FileUnwritableError(msg) from error
    return path.read_bytes()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise FileUnreadableError(msg) from error
