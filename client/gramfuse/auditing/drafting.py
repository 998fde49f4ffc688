"""What headers alone say of a contribution: the beginning of every report, and all of it where torch is missing."""

import math

from gramfuse.auditing.report import Attacks, AuditReport, Cohort, NotRun, Subject, TapReport
from gramfuse.auditing.sums import separates_up_to
from gramfuse.contributing.draft import Draft
from gramfuse.contributing.plan import TapDecision
from gramfuse_shared.contract.manifest import BaseManifest, TensorInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.extras import how_to_install
from gramfuse_shared.version import __version__


def draft_report(draft: Draft, subject: Subject, base: BaseManifest, policy: Policy) -> AuditReport:
    """Report rows, and what sums over members would give away, of every tap; nothing is looked at or attacked yet."""
    shapes = {info.name: info for info in base.tensors}
    return AuditReport(
        gramfuse=__version__,
        subject=subject,
        plan=draft.plan.to_json(),
        plan_told=str(draft.plan),
        taps=tuple(_tap_report(decision, shapes) for decision in draft.plan.taps),
        cohort=Cohort(aggregation=policy.aggregation, cohorts=policy.cohorts, minimum_cohort=policy.minimum_cohort),
    )


def headers_alone(draft: Draft, subject: Subject, base: BaseManifest, policy: Policy, because: str) -> AuditReport:
    """Return a report on which nothing was looked at or attacked, and that says why; not judged yet."""
    remedy = how_to_install("collect")
    unrun = tuple(
        NotRun(what=what, because=because, remedy=remedy)
        for what in ("effective rank", "token counts, membership", "embeddings")
    )
    return draft_report(draft, subject, base, policy).model_copy(update={"attacks": Attacks(not_run=unrun)})


def _tap_report(decision: TapDecision, shapes: dict[str, TensorInfo]) -> TapReport:
    info = decision.info
    outputs = sum(
        math.prod(shapes[layer.weight].shape) // info.width for layer in info.layers if layer.weight in shapes
    )
    return TapReport(
        tap=info.name,
        layers=tuple(layer.weight for layer in info.layers),
        width=info.width,
        outputs=outputs,
        rows=info.rows,
        distinct_rows=info.distinct_rows,
        rows_per_dimension=round(info.distinct_rows / info.width, 3),
        source=info.source,
        leaves=decision.stays_because is None,
        stays_because=decision.stays_because,
        separates_up_to=separates_up_to(info.width, outputs),
    )
