"""How the audit of a contribution came out, in words: what leaves of it where a policy says so. No number, no name.

The report itself never travels. A summary is an organization's own word, which nobody can check.
"""

from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from gramfuse_shared.contract.document import Document
from gramfuse_shared.identifiers import VERSION_PATTERN

AuditEffort = Literal["headers", "quick", "bounded", "all"]
"""headers: no matrix was looked at, since torch is missing; quick: nothing that loads the model; bounded: nothing that
takes many minutes, nor what stays at home; all: everything."""

AuditOutcome = Literal["pass", "warn", "not_run"]
"""pass: judged, and nothing warned. not_run: nothing of it was judged, because the attack was not run, nothing of it
leaves, or a threshold of the organization's own never judges it."""

AuditKind = Literal[
    "rows_per_dimension", "membership_auc", "lone_texts", "token_auc", "tokens_explained", "vocabulary_auc"
]
KINDS: Final[tuple[AuditKind, ...]] = get_args(AuditKind)


class AuditOutcomes(Document):
    """What each kind of finding came to, by the name of the threshold that judges it; none may be left out."""

    rows_per_dimension: AuditOutcome
    membership_auc: AuditOutcome
    lone_texts: AuditOutcome
    token_auc: AuditOutcome
    tokens_explained: AuditOutcome
    vocabulary_auc: AuditOutcome

    def of(self, kind: AuditKind) -> AuditOutcome:
        """What one kind came to."""
        found: AuditOutcome = getattr(self, kind)
        return found


class AuditSummary(Document):
    """How an audit came out. None is of an audit that refused: that ends a push, and nothing leaves.

    Attributes:
        gramfuse: the version that made the audit.
        effort: how much of what leaves was attacked at most.
        texts_given: whether the attacks were given the texts; those of membership need them.
        thresholds: whether the usual ones judged, or the organization's own.
        outcomes: what each kind of finding came to.
    """

    format: Literal["gramfuse/audit-summary/1"] = "gramfuse/audit-summary/1"
    gramfuse: Annotated[str, Field(pattern=VERSION_PATTERN)]
    effort: AuditEffort
    texts_given: bool
    thresholds: Literal["usual", "own"]
    outcomes: AuditOutcomes

    def kinds(self, outcome: AuditOutcome) -> tuple[AuditKind, ...]:
        """The kinds that came to this."""
        return tuple(kind for kind in KINDS if self.outcomes.of(kind) == outcome)

    @property
    def verdict(self) -> Literal["pass", "warn"]:
        """The gravest of the outcomes."""
        return "warn" if self.kinds("warn") else "pass"
