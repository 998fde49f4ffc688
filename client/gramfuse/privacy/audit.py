"""Reports what a statistics file holds, what would leave under a policy, and what attacks find, before anything does.

Numbers, not a guarantee: how much a Gram matrix reveals depends on texts and attackers that no report knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from gramfuse.contributing.draft import draft_contribution
from gramfuse.contributing.loading import StatisticsFile
from gramfuse.contributing.plan import ContributionPlan, TapDecision
from gramfuse.measuring.statistics_io import read_statistics
from gramfuse.measuring.texts import Text
from gramfuse.privacy.attacking import Attacks, attack
from gramfuse_shared.contract.manifest import BaseManifest, TapInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.fusion import packing

NO_GUARANTEE: Final = (
    "This report is no guarantee of privacy. It applies the project's rules and counts rows; given your texts, it also "
    "runs some attacks, and better ones find more. Gram matrices of few texts give rows back exactly, those of 1,000 "
    "texts still tell who was in them better than chance, what Fisher information tells has not been measured, and "
    "fine-tuned weights have seen your texts too. Send nothing whose disclosure you could not bear."
)


@dataclass(frozen=True, slots=True)
class TapReport:
    """One tap: what was measured, how the matrix looks, and whether it leaves (`stays_because` is None) or why not.

    `effective_rank` is (tr C)² / ‖C‖²_F of the Gram matrix scaled to a unit diagonal: the number of directions, of the
    width's, that the rows spread over evenly. `rank_bound` is the largest rank that so many distinct rows can have; one
    below the width says that the rows lie in a known subspace.
    """

    info: TapInfo
    effective_rank: float
    dead_features: int
    rank_bound: int
    stays_because: str | None

    @property
    def rows_per_dimension(self) -> float:
        """Distinct rows per feature."""
        return self.info.distinct_rows / self.info.width

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "tap": self.info.name,
            "layers": [layer.weight for layer in self.info.layers],
            "width": self.info.width,
            "rows": self.info.rows,
            "distinct_rows": self.info.distinct_rows,
            "rows_per_dimension": round(self.rows_per_dimension, 3),
            "source": self.info.source,
            "effective_rank": round(self.effective_rank, 2),
            "dead_features": self.dead_features,
            "rank_bound": self.rank_bound,
            "leaves": self.stays_because is None,
            "stays_because": self.stays_because,
        }


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What would leave, what stays and why, how each measured tap looks, and what attacks found (None: not run)."""

    plan: ContributionPlan
    taps: tuple[TapReport, ...]
    attacks: Attacks | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "format": "gramfuse/audit/1",
            "guarantee": False,
            "notice": NO_GUARANTEE,
            "plan": self.plan.to_json(),
            "taps": [tap.to_json() for tap in self.taps],
            "attacks": None if self.attacks is None else self.attacks.to_json(),
        }


def audit(
    model: str | Path,
    *,
    policy: Policy,
    base: BaseManifest,
    statistics: str | Path | None = None,
    fisher: str | Path | None = None,
    base_folder: str | Path | None = None,
    texts: Sequence[Text] | None = None,
    public: Sequence[Text] = (),
    device: str = "auto",
) -> AuditReport:
    """Say what a push of this model and these statistics would send under the policy, and how the statistics look.

    Args:
        model: the fine-tuned `from_pretrained` folder.
        policy: the project's policy.
        base: manifest of the project's base model.
        statistics: the statistics file; None to look at the weights alone.
        fisher: the file of Fisher information, if there is one.
        base_folder: the base model's folder, to tell whether the embeddings were tuned.
        texts: the texts that were measured, to attack the statistics and the embeddings; None to run no attack.
        public: others' texts of a like kind, which make the membership attack stronger.
        device: where the attacks run the model.

    Raises:
        FileUnreadableError, HeaderMalformedError, StatisticsMalformedError: a file.
        ArchitectureMismatchError: model or statistics do not belong to the base.
        PolicyViolationError: the policy lets nothing leave.
        ConfigurationError: the statistics were not measured on these texts.
    """
    draft = draft_contribution(
        Path(model),
        None if statistics is None else Path(statistics),
        base,
        policy,
        base_folder=None if base_folder is None else Path(base_folder),
        fisher=None if fisher is None else Path(fisher),
    )
    taps = _look_at_taps(draft.statistics, draft.plan) if draft.statistics else ()
    found = None
    if texts is not None:
        folder = None if base_folder is None else Path(base_folder)
        found = attack(Path(model), draft, texts, base_folder=folder, public=public, device=device)
    return AuditReport(plan=draft.plan, taps=taps, attacks=found)


def effective_rank(gram: torch.Tensor, width: int) -> tuple[float, int]:
    """Return (tr C)² / ‖C‖²_F of C = D^-½ G D^-½ over the live features, and the number of dead ones.

    `gram` is packed, fp32; D is its diagonal. Of n rows that spread evenly over k directions it is k.
    """
    scale = packing.diagonal(gram, width).double()
    alive = scale > 0
    # dead features: a zero diagonal, so they have no correlation with anything
    inverse = torch.where(alive, scale.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), 0.0)
    squares = 0.0
    for start, end, block in packing.block_rows(gram, width):
        scaled = block.double() * inverse[start:end, None] * inverse[None, :end]
        # Left of the diagonal tile every value stands for its mirror image too.
        squares += float(scaled.square().sum()) + float(scaled[:, :start].square().sum())
    live = int(alive.sum())
    return (live * live / squares if squares else 0.0), width - live


def _look_at_taps(measured: StatisticsFile, plan: ContributionPlan) -> tuple[TapReport, ...]:
    decisions = {decision.info.name: decision for decision in plan.taps}
    metadata, grams = read_statistics(measured.path)
    return tuple(_look(tap, gram, decisions[tap.name]) for tap, gram in zip(metadata.taps, grams, strict=True))


def _look(tap: TapInfo, gram: torch.Tensor, decision: TapDecision) -> TapReport:
    rank, dead = effective_rank(gram, tap.width)
    return TapReport(
        info=tap,
        effective_rank=rank,
        dead_features=dead,
        rank_bound=min(tap.width - dead, tap.distinct_rows) if tap.distinct_rows else tap.width - dead,
        stays_because=decision.stays_because,
    )
