"""Gives the current report of a contribution: the one that is kept, else a new audit, else what headers alone say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gramfuse.auditing.drafting import headers_alone
from gramfuse.auditing.kept import KeptReports, Wanted
from gramfuse.auditing.report import AuditReport, Effort
from gramfuse.auditing.subject import digest_of_texts, subject_of
from gramfuse.auditing.summarizing import shared_summary
from gramfuse.auditing.thresholds import Thresholds
from gramfuse.config import Home
from gramfuse.contributing.draft import Draft
from gramfuse.extras import EXTRAS
from gramfuse.measuring.texts import Text
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import AuditRefusedError, ExtraMissingError
from gramfuse_shared.extras import requiring_extras


@dataclass(frozen=True, slots=True)
class Auditing:
    """How a contribution is audited.

    Attributes:
        texts: the texts that were measured, all of them, for the attacks that need them; None: not given.
        texts_file: what the report calls them.
        public: others' texts of a like kind; None: those that come with gramfuse.
        effort: "quick" loads no model, "bounded" leaves out what takes many minutes or stays at home, "all" nothing.
        thresholds: what warns and what refuses.
        device: where the attacks run the model.
        on_step: told the share that is done, and what comes.
        on_report: shown the report before anything is refused or asked.
    """

    texts: Sequence[Text] | None = None
    texts_file: str | None = None
    public: Sequence[Text] | None = None
    effort: Effort = "bounded"
    thresholds: Thresholds = field(default_factory=Thresholds)
    device: str = "auto"
    on_step: Callable[[float, str], None] = lambda _share, _what: None
    on_report: Callable[[AuditReport], None] = lambda _report: None


USUAL: Final = Auditing()
"""Attacks without texts, the usual thresholds; nobody is told what merely warns."""


def current_report(
    home: Home,
    draft: Draft,
    base: BaseManifest,
    policy: Policy,
    base_folder: Path | None,
    auditing: Auditing,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AuditReport:
    """Return the report of a contribution as it lies on the disk, judged by the thresholds that are given.

    A kept one is current where weights, statistics, Fisher information, policy, base and gramfuse's version are the
    same, and it was made with no less effort and, where texts are given, on the same.

    Raises:
        ExtraMissingError: texts are given, and attacks need what is not installed.
        GramfuseError: see `gramfuse.audit`.
    """
    subject = subject_of(draft, base, policy, base_folder)
    texts, public = auditing.texts, auditing.public
    wanted = Wanted(
        auditing.effort,
        None if texts is None else digest_of_texts(texts),
        None if public is None else digest_of_texts(public),
    )
    kept = KeptReports(home)
    kept.prepare()
    found = kept.find(subject, wanted)
    if found is not None:
        return _told_anew(found.model_copy(update={"is_kept": True}), draft, policy, auditing.thresholds)
    try:
        with requiring_extras("attacking one's own statistics", EXTRAS):
            from gramfuse.privacy.audit import audit_draft  # noqa: PLC0415 - torch is an extra
    except ExtraMissingError as error:
        if texts is not None:
            raise
        report = headers_alone(draft, subject, base, policy, error.message)
        return _told_anew(report, draft, policy, auditing.thresholds)
    report = audit_draft(draft, subject, base=base, policy=policy, base_folder=base_folder, auditing=auditing)
    report = report.model_copy(update={"made_at": clock()})
    kept.keep(report)
    return _told_anew(report, draft, policy, auditing.thresholds)


def _told_anew(report: AuditReport, draft: Draft, policy: Policy, thresholds: Thresholds) -> AuditReport:
    """Judge a report and tell its plan: what that warns of, and says of the audit, hangs on more than the bytes."""
    plan = draft.plan
    judged = report.model_copy(update={"plan": plan.to_json()}).judged(thresholds)
    plan = replace(plan, audit=shared_summary(judged, policy))
    return judged.model_copy(update={"plan": plan.to_json(), "plan_told": str(plan)})


def require_not_refused(report: AuditReport) -> None:
    """Require that nothing which would leave passes a threshold that refuses.

    Raises:
        AuditRefusedError: something does; the message names the first, the facts each.
    """
    refused = [finding for finding in report.findings if finding.verdict == "refuse"]
    if refused:
        more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise AuditRefusedError(
            f"{refused[0].told}{more}; whoever means to send it raises {refused[0].threshold} with --thresholds FILE",
            findings=[finding.model_dump(mode="json") for finding in refused],
        )
