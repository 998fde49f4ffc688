"""The audit's one document, which the table, the JSON and the page are all made of. Needs no torch to be read.

Numbers, not a guarantee: how much statistics reveal depends on texts and attackers that no report knows.
"""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field

from gramfuse.auditing.thresholds import Finding, Thresholds, Verdict
from gramfuse_shared.contract.audit_summary import AuditEffort
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.manifest import Source
from gramfuse_shared.identifiers import Digest

NO_GUARANTEE: Final = (
    "This report is no guarantee of privacy. It applies the project's rules and counts rows; given your texts, it also "
    "runs some attacks, and better ones find more. Gram matrices of few texts give rows back exactly, those of 1,000 "
    "texts still tell who was in them better than chance, what Fisher information tells has not been measured, and "
    "fine-tuned weights have seen your texts too. Send nothing whose disclosure you could not bear."
)

KEPT_PRIVATE: Final = (
    "The report itself tells of your texts. It is kept in this machine's home, and a copy wherever --out or --html "
    "wrote one: each readable by you alone (0600), none ever sent. Keep them from others like the texts."
)

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Effort = AuditEffort

Reference = Literal["none", "shipped", "given"]
"""Which public texts the membership attack was calibrated by: none, those that come with gramfuse, or the caller's."""


class Subject(Document):
    """What was audited, by digest; a report is current as long as all of it is the same."""

    weights: Digest
    statistics: Digest | None = None
    fisher: Digest | None = None
    policy: Digest
    base: Digest
    base_at_hand: bool = Field(default=False, description="embeddings could be compared with the base's own")


class TapReport(Document):
    """One tap: what was measured, how the matrix looks, whether it leaves, and what sums over members would give away.

    `effective_rank` is (tr C)² / ‖C‖²_F of the Gram matrix scaled to a unit diagonal: the number of directions, of the
    width's, that the rows spread over evenly. `rank_bound` is the largest rank that so many distinct rows can have; one
    below the width says that the rows lie in a known subspace. Both are null where the matrix was not looked at, or is
    none. `separates_up_to`: in cohorts of up to about so many members, sums of G and GW give every single G to who
    knows the members' weights; 0 where they do not.
    """

    tap: str
    layers: tuple[str, ...]
    width: Count
    outputs: Count
    rows: Count
    distinct_rows: Count
    rows_per_dimension: float
    source: Source
    effective_rank: float | None = None
    dead_features: Count | None = None
    rank_bound: Count | None = None
    leaves: bool
    stays_because: str | None = None
    separates_up_to: Count


class TokensFound(Document):
    """What a tap that embeddings feed tells: `explained` of the matrix, tokens named, and how many of these about once.

    With the texts at hand also how many are named rightly, the AUC of present tokens, and of the tokens that one text
    alone holds how many are named. Where texts are few and short, and positions weigh as much as tokens, the fit fails:
    a low AUC there says nothing of a better attack.
    """

    tap: str
    leaves: bool
    explained: float
    named: Count
    named_once: Count
    right: Count | None = None
    present: Count | None = None
    singletons: Count | None = None
    singletons_named: Count | None = None
    auc: Share | None = None


class MembershipTold(Document):
    """How well texts of one tap are told from the same texts left out (`auc`), by the stronger of two attacks, of
    which one is `calibrated` by public texts. `sums` estimates it for a cohort's sum, by the number of its members;
    `alone` is the share of texts with a row that carries most of some direction by itself.

    `against_public` tells them from public texts. Where these are of another kind it is high without any membership:
    then it says how well the matrix tells what kind of texts it was measured on.
    """

    tap: str
    leaves: bool
    texts: Count
    auc: Share
    calibrated: bool = False
    against_public: Share | None = None
    alone: Share
    sums: dict[int, Share] = Field(default_factory=dict)


class VocabularyTold(Document):
    """Rows of an embedding matrix that were trained; with the texts at hand also how many are tokens of theirs, and
    the AUC of these.
    """

    tensor: str
    leaves: bool
    moved: Count
    right: Count | None = None
    auc: Share | None = None


class NotRun(Document):
    """An attack that was not run, or something that this audit does not attack: never a sign that there is nothing."""

    what: str
    because: str
    remedy: str | None = None


class TextsGiven(Document):
    """The texts that the attacks were given: how many, and the name of their file where it is known."""

    count: Count
    file: str | None = None


class Attacks(Document):
    """What was found, and what was not attacked and why."""

    tokens: tuple[TokensFound, ...] = ()
    membership: tuple[MembershipTold, ...] = ()
    vocabulary: tuple[VocabularyTold, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    reference: Reference = "none"
    texts: Digest | None = Field(default=None, description="of the private texts, where they were given")
    texts_given: TextsGiven | None = None
    public: Digest | None = Field(default=None, description="of the public texts, where they were used")

    @property
    def given_public(self) -> str | None:
        """The digest of public texts that were given; None for those that come with gramfuse."""
        return None if self.reference == "shipped" else self.public


class Cohort(Document):
    """What the policy says of the sums that this contribution enters."""

    aggregation: Literal["plain", "secure"]
    cohorts: Literal["frozen", "open"]
    minimum_cohort: Count


class AuditReport(Document):
    """What would leave, what stays and why, how each measured tap looks, what attacks found, and how that is judged.

    `is_kept` says of one that was made before, at `made_at`, that it was taken again; it is not written.
    """

    format: Literal["gramfuse/audit/2"] = "gramfuse/audit/2"
    gramfuse: str
    guarantee: Literal[False] = False
    notice: str = NO_GUARANTEE
    subject: Subject
    plan: dict[str, Any]
    plan_told: str
    taps: tuple[TapReport, ...] = ()
    cohort: Cohort
    attacks: Attacks = Attacks()
    effort: Effort = "headers"
    seconds: Annotated[float, Field(ge=0)] = 0.0
    thresholds: Thresholds = Thresholds()
    findings: tuple[Finding, ...] = ()
    made_at: datetime | None = None
    is_kept: bool = Field(default=False, exclude=True)

    @property
    def verdict(self) -> Verdict:
        """The gravest of the findings."""
        grades = {finding.verdict for finding in self.findings}
        return "refuse" if "refuse" in grades else "warn" if "warn" in grades else "pass"

    def worst_leaving(self) -> tuple[str, float] | None:
        """Return what leaves and tells most, and its AUC; None if nothing that leaves was attacked."""
        attacks = self.attacks
        found = [(f"token counts at {one.tap}", one.auc) for one in attacks.tokens if one.leaves]
        found += [(f"membership at {one.tap}", one.auc) for one in attacks.membership if one.leaves]
        found += [(f"vocabulary in {one.tensor}", one.auc) for one in attacks.vocabulary if one.leaves]
        return max(((what, auc) for what, auc in found if auc is not None), key=lambda pair: pair[1], default=None)

    def judged(self, thresholds: Thresholds) -> Self:
        """Return the same report under other thresholds; nothing is measured anew."""
        from gramfuse.auditing.judging import judge  # noqa: PLC0415 - judging reads this document

        return self.model_copy(update={"thresholds": thresholds, "findings": judge(self, thresholds)})

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, with the verdict."""
        return self.model_dump(mode="json") | {"verdict": self.verdict}
