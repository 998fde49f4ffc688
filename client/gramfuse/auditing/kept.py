"""Reports that are kept in the client's home: a push takes a current one in place of a new audit.

They tell of private texts: their folder and files are for their owner only, and nothing sends them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gramfuse.auditing.report import AuditReport, Effort, Subject
from gramfuse.config import Home
from gramfuse_shared.errors import DocumentMalformedError, FileUnreadableError
from gramfuse_shared.version import __version__

_FOLDER: Final = "audits"
_EFFORTS: Final[tuple[Effort, ...]] = ("headers", "quick", "bounded", "all")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a report has to have attacked: by how much effort, and by which texts, of which the digests are given.

    Without texts any report will do: one that attacked more says more. `public` None: those that come with gramfuse.
    """

    effort: Effort
    texts: str | None = None
    public: str | None = None

    def is_met_by(self, report: AuditReport) -> bool:
        """Tell whether a report of the same subject need not be made anew."""
        if report.gramfuse != __version__ or _EFFORTS.index(report.effort) < _EFFORTS.index(self.effort):
            return False
        if self.texts is None:
            return True
        attacks = report.attacks
        return attacks.texts == self.texts and attacks.given_public == self.public


@dataclass(frozen=True, slots=True)
class KeptReports:
    """The reports of one home, by what they are of."""

    home: Home

    def prepare(self) -> None:
        """Make the folder, for its owner only, before any work is done whose result could not be kept.

        Raises:
            ConfigurationError: the home cannot be written.
        """
        self.home.folder(_FOLDER)

    def find(self, subject: Subject, wanted: Wanted) -> AuditReport | None:
        """Return the current report; None if there is none, or what is kept is not enough or of another version."""
        try:
            report = AuditReport.parse(self.place(subject).read_bytes())
        except FileNotFoundError:
            return None
        except DocumentMalformedError:
            return None  # an older gramfuse wrote it, or somebody else: it is made anew
        except OSError as error:
            msg = f"{self.place(subject)} cannot be read: {error.strerror}"
            raise FileUnreadableError(msg) from error
        return report if report.subject == subject and wanted.is_met_by(report) else None

    def keep(self, report: AuditReport) -> Path:
        """Keep a report, in place of an earlier one of the same subject; return where.

        Raises:
            ConfigurationError: the home cannot be written.
        """
        self.home.write(self._name(report.subject), report.model_dump_json(indent=2) + "\n")
        return self.place(report.subject)

    def place(self, subject: Subject) -> Path:
        """Return where the report of a subject lies, or will."""
        return self.home.path / self._name(subject)

    def _name(self, subject: Subject) -> str:
        return f"{_FOLDER}/{subject.content_digest()}.json"
