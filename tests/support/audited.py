"""An audit's report with something in every part, for tests of its page."""

from gramfuse.auditing.report import (
    Attacks,
    AuditReport,
    Cohort,
    MembershipTold,
    NotRun,
    Subject,
    TapReport,
    TokensFound,
    VocabularyTold,
)
from gramfuse.auditing.thresholds import Thresholds

DIGEST = "ab" * 32


def report_of(name: str = "encoder.layer.1.query", *, auc: float = 0.7) -> AuditReport:
    tap = TapReport(
        tap=name,
        layers=("w",),
        width=10,
        outputs=30,
        rows=900,
        distinct_rows=800,
        rows_per_dimension=80,
        source="mixed",
        effective_rank=7.5,
        dead_features=0,
        rank_bound=10,
        leaves=True,
        separates_up_to=6,
    )
    return AuditReport(
        gramfuse="1",
        subject=Subject(weights=DIGEST, policy=DIGEST, base=DIGEST),
        plan={},
        plan_told=f"Leaves: {name}",
        taps=(tap, tap.model_copy(update={"leaves": False, "stays_because": name})),
        cohort=Cohort(aggregation="plain", cohorts="open", minimum_cohort=3),
        attacks=Attacks(
            tokens=(
                TokensFound(
                    tap=name,
                    leaves=False,
                    explained=0.9,
                    named=5,
                    named_once=1,
                    right=4,
                    present=6,
                    singletons=2,
                    singletons_named=1,
                    auc=0.99,
                ),
            ),
            membership=(MembershipTold(tap=name, leaves=True, texts=9, auc=auc, alone=0.0, sums={3: 0.6, 5: 0.55}),),
            vocabulary=(VocabularyTold(tensor=name, leaves=False, moved=12),),
            not_run=(NotRun(what=name, because=name, remedy=name),),
            reference="shipped",
        ),
    ).judged(Thresholds())
