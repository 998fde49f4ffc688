"""Audits a contribution: measures what its statistics hold, attacks them, and writes the report."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from gramfuse.auditing.drafting import draft_report
from gramfuse.auditing.reference_texts import reference_texts
from gramfuse.auditing.report import Attacks, AuditReport, Effort, Subject, TapReport, TextsGiven
from gramfuse.auditing.running import Auditing
from gramfuse.auditing.subject import digest_of_texts, subject_of
from gramfuse.auditing.thresholds import Thresholds
from gramfuse.contributing.draft import Draft, draft_contribution
from gramfuse.measuring.statistics_io import read_statistics
from gramfuse.measuring.texts import Text
from gramfuse.privacy.attacking import Known, OnStep, attack
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.fusion import packing


def audit(
    model: str | Path,
    *,
    policy: Policy,
    base: BaseManifest,
    statistics: str | Path | None = None,
    fisher: str | Path | None = None,
    base_folder: str | Path | None = None,
    texts: Sequence[Text] | None = None,
    public: Sequence[Text] | None = None,
    device: str = "auto",
    effort: Effort = "all",
    thresholds: Thresholds | None = None,
    on_step: OnStep = lambda _share, _what: None,
) -> AuditReport:
    """Say what a push of this model and these statistics would send under the policy, and what that reveals.

    Args:
        model: the fine-tuned `from_pretrained` folder.
        policy: the project's policy.
        base: manifest of the project's base model.
        statistics: the statistics file; None to look at the weights alone.
        fisher: the file of Fisher information, if there is one.
        base_folder: the base model's folder, to tell whether the embeddings were tuned.
        texts: the texts that were measured, for the attacks that need them; without, the others are run.
        public: others' texts of a like kind, which make the membership attack stronger; default: those that come with
            gramfuse; an empty sequence for none.
        device: where the attacks run the model.
        effort: "quick" loads no model, "bounded" leaves out what takes long or stays at home, "all" does everything.
        thresholds: what warns and what refuses; the report is judged, nothing is raised.
        on_step: told the share that is done, and what comes.

    Raises:
        FileUnreadableError, HeaderMalformedError, StatisticsMalformedError: a file.
        ArchitectureMismatchError: model or statistics do not belong to the base.
        PolicyViolationError: the policy lets nothing leave.
        ConfigurationError: the statistics were not measured on these texts.
    """
    folder = None if base_folder is None else Path(base_folder)
    draft = draft_contribution(
        Path(model),
        None if statistics is None else Path(statistics),
        base,
        policy,
        base_folder=folder,
        fisher=None if fisher is None else Path(fisher),
    )
    return audit_draft(
        draft,
        subject_of(draft, base, policy, folder),
        base=base,
        policy=policy,
        base_folder=folder,
        auditing=Auditing(
            texts=texts,
            public=public,
            effort=effort,
            thresholds=thresholds or Thresholds(),
            device=device,
            on_step=on_step,
        ),
    )


def audit_draft(
    draft: Draft,
    subject: Subject,
    *,
    base: BaseManifest,
    policy: Policy,
    base_folder: Path | None,
    auditing: Auditing,
) -> AuditReport:
    """Audit a contribution that was planned already. Errors as `audit`."""
    begin = time.monotonic()
    texts, public, on_step = auditing.texts, auditing.public, auditing.on_step
    on_step(0.0, "reading the statistics")
    report = draft_report(draft, subject, base, policy)
    if draft.statistics is not None:
        looked = _look_at_taps(draft.statistics.path, report.taps, lambda share, what: on_step(share / 10, what))
        report = report.model_copy(update={"taps": looked})
    known = Known(base, base_folder, texts, reference_texts() if public is None else public, auditing.device)
    found = attack(draft.model.path, draft, known, effort=auditing.effort, on_step=on_step)
    used = bool(known.public) and texts is not None
    attacks = Attacks(
        tokens=found.tokens,
        membership=found.membership,
        vocabulary=found.vocabulary,
        not_run=found.not_run,
        reference="none" if not used else "shipped" if public is None else "given",
        texts=None if texts is None else digest_of_texts(texts),
        texts_given=None if texts is None else TextsGiven(count=len(texts), file=auditing.texts_file),
        public=digest_of_texts(known.public) if used else None,
    )
    seconds = round(time.monotonic() - begin, 1)
    made = report.model_copy(update={"attacks": attacks, "effort": auditing.effort, "seconds": seconds})
    return made.judged(auditing.thresholds)


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


def _look_at_taps(
    path: Path, taps: Sequence[TapReport], on_step: Callable[[float, str], None]
) -> tuple[TapReport, ...]:
    """Look at the matrices one at a time: whatever the model's size, one of them is in memory."""
    looked = []
    _, grams = read_statistics(path)
    for place, (tap, gram) in enumerate(zip(taps, grams, strict=True)):
        on_step(place / len(taps), f"reading the statistics, {place + 1} of {len(taps)} taps")
        looked.append(_look(tap, gram))
    return tuple(looked)


def _look(tap: TapReport, gram: torch.Tensor) -> TapReport:
    if not bool(gram.isfinite().all()):
        return tap  # no matrix of second moments: the server's own check refuses it
    rank, dead = effective_rank(gram, tap.width)
    live = tap.width - dead
    bound = min(live, tap.distinct_rows) if tap.distinct_rows else live
    rounded = round(rank, 2) if rank < tap.width + 1 else None
    return tap.model_copy(update={"effective_rank": rounded, "dead_features": dead, "rank_bound": bound})
