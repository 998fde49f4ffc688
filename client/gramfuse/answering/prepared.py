"""An answer that is ready to be sent: the document, its file, what stays at home, and words to show it to a person."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gramfuse.contributing.loading import open_statistics_file
from gramfuse.contributing.packaging import file_of_taps
from gramfuse.contributing.plan import STATISTICS_FILE_NAME
from gramfuse.contributing.virtual_files import VirtualFile
from gramfuse.naming import name_patterns
from gramfuse.securing.describing import describe_stage
from gramfuse.whole_files import written_whole
from gramfuse_shared.contract.calibration import BINS, CalibrationHistograms
from gramfuse_shared.contract.manifest import BaseManifest, FileEntry, StatisticsSection, TapInfo
from gramfuse_shared.contract.metrics import MetricName
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.refits import heads_to_refit, layers_that_may_be_refit
from gramfuse_shared.contract.requests import Answer, ModelScore, RequestInfo
from gramfuse_shared.contract.rules import weights_that_may_leave, why_tap_stays
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.contract.withholding import IN_SHORT, Obstacle, explain_obstacle, find_obstacle
from gramfuse_shared.errors import ArchitectureMismatchError, PolicyViolationError
from gramfuse_shared.units import format_bytes

if TYPE_CHECKING:
    from gramfuse.measuring.head import HeadStatistics
    from gramfuse.measuring.refit import RefitStatistics


@dataclass(frozen=True, slots=True)
class PreparedAnswer:
    """An answer, its file, taps that stay at home with the reasons, the request that it answers, of which session."""

    answer: Answer
    file: Path | None = None
    stays: tuple[tuple[str, str], ...] = ()
    asked: RequestInfo | None = None
    session: SessionManifest | None = None

    @property
    def files(self) -> tuple[VirtualFile, ...]:
        """The files that leave, in the document's order; what was announced stays."""
        return (
            ()
            if self.file is None or not self.answer.files
            else (VirtualFile.of_path(self.file, self.answer.files[0].name),)
        )

    def __str__(self) -> str:
        """Tell people what is answered, all of what leaves, who will see it, and what stays."""
        lines = [] if self.asked is None else [f"Answers {self.asked.id}: {_describe_question(self.asked)}"]
        lines.append("Leaves this machine:")
        if self.answer.scores:
            lines += [f"  {_describe_score(score)}" for score in self.answer.scores]
            lines.append("  The members of the project will see these numbers under your organization's name.")
        if self.answer.announced:
            lines += [f"  {line}" for line in _describe_announced(self.answer)]
        elif self.answer.statistics is not None:
            lines += [f"  {line}" for line in _describe_statistics(self.answer.statistics)]
        if self.answer.withheld:
            reasons = ", ".join(IN_SHORT[reason] for reason in self.answer.withheld)
            lines.append(f"  that nothing of what is asked for may leave: {reasons}.")
            lines.append("  The members of the project will see this, and these layers of the model stay as they are.")
        if self.answer.histograms is not None and not self.answer.announced:
            lines += [f"  {line}" for line in _describe_histograms(self.answer.histograms)]
        if self.answer.message is not None and self.session is not None:
            return "\n".join([*lines, *describe_stage(self.answer.message.message, self.session)])
        lines.append("Stays here: your texts" + ("" if self.stays else ", and nothing else was measured"))
        for reason in dict.fromkeys(reason for _, reason in self.stays):
            names = [name for name, because in self.stays if because == reason]
            lines.append(f"  statistics of {', '.join(name_patterns(names))}: {reason}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the preview as JSON values."""
        return {
            "answer": self.answer.model_dump(mode="json"),
            "stays": [{"tap": name, "reason": reason} for name, reason in self.stays],
        }


@dataclass(frozen=True, slots=True)
class KeptStatistics:
    """What of measured statistics may leave, if anything, else for which reasons not; and what stays, and why."""

    section: StatisticsSection | None
    withheld: tuple[Obstacle, ...] = ()
    stays: tuple[tuple[str, str], ...] = ()


def keep_leaving_statistics(
    measured: Path, target: Path, layers: Sequence[str], policy: Policy, base: BaseManifest
) -> KeptStatistics:
    """Write those taps of a statistics file that are asked for and may leave, if any; say which stay and why.

    Args:
        measured: a statistics file of all taps.
        target: the file that may leave.
        layers: the weights that are asked for; none: all.
        policy: the project's policy.
        base: the project's base model, which says what is a head or an embedding.

    Raises:
        ArchitectureMismatchError: the model has no such layers.
        FileUnreadableError, StatisticsMalformedError, FileUnwritableError: a file.
    """
    opened = open_statistics_file(measured)
    wanted = set(layers)
    asked = [tap for tap in opened.metadata.taps if not wanted or any(layer.weight in wanted for layer in tap.layers)]
    if wanted:
        asked = [
            tap.model_copy(update={"layers": tuple(layer for layer in tap.layers if layer.weight in wanted)})
            for tap in asked
        ]
    sendable = weights_that_may_leave(base, policy)
    if not asked:
        msg = "nothing that is asked for was measured: this model has no such layers"
        raise ArchitectureMismatchError(msg)
    obstacles, stays = _what_stays(asked, sendable, policy)
    leaving = tuple(tap for tap in asked if tap.name not in obstacles)
    if not leaving:
        return KeptStatistics(None, _reasons(obstacles), stays)
    metadata = opened.metadata.model_copy(update={"taps": leaving})
    file = file_of_taps(opened, metadata)
    with written_whole(target) as stream:
        for chunk in file.chunks():
            stream.write(chunk)
    entry = FileEntry(name=STATISTICS_FILE_NAME, bytes=file.length, sha256=file.digest())
    section = StatisticsSection(file=entry, encoding=metadata.encoding, taps=leaving, collector=metadata.collector)
    return KeptStatistics(section, stays=stays)


def keep_head_statistics(
    found: "HeadStatistics", target: Path, policy: Policy, base: BaseManifest
) -> StatisticsSection:
    """Write what a head is refit from, if it may leave.

    Raises:
        PolicyViolationError: it may not; nothing is written.
        StatisticsInvalidError: a sum is not finite, or not within float32.
    """
    metadata = found.metadata
    (tap,) = metadata.taps
    reason = why_tap_stays(tap, heads_to_refit(base, policy), policy)
    if reason is not None:
        msg = f"what a head would be refit from may not leave: {reason}"
        raise PolicyViolationError(msg, refused=[tap.name])
    found.save(target)
    file = VirtualFile.of_path(target, STATISTICS_FILE_NAME)
    entry = FileEntry(name=STATISTICS_FILE_NAME, bytes=file.length, sha256=file.digest())
    return StatisticsSection(file=entry, taps=metadata.taps, collector=metadata.collector, labels=metadata.labels)


def keep_refit_statistics(found: "RefitStatistics", target: Path, policy: Policy, base: BaseManifest) -> KeptStatistics:
    """Write those taps that may leave, if any, with the products of their layers; say which stay and why.

    Raises:
        StateError: no text had a token.
        StatisticsInvalidError: a sum is not finite, or not within float32.
    """
    sendable = layers_that_may_be_refit(base, policy)
    measured = found.metadata().taps
    obstacles, stays = _what_stays(measured, sendable, policy)
    leaving = [tap.name for tap in measured if tap.name not in obstacles]
    if not leaving:
        return KeptStatistics(None, _reasons(obstacles), stays)
    metadata = found.metadata(leaving)
    found.save(target, leaving)
    file = VirtualFile.of_path(target, STATISTICS_FILE_NAME)
    entry = FileEntry(name=STATISTICS_FILE_NAME, bytes=file.length, sha256=file.digest())
    section = StatisticsSection(file=entry, taps=metadata.taps, collector=metadata.collector)
    return KeptStatistics(section, stays=stays)


def _what_stays(
    taps: Sequence[TapInfo], sendable: Collection[str], policy: Policy
) -> tuple[dict[str, Obstacle], tuple[tuple[str, str], ...]]:
    """Return of each tap that stays the obstacle, and in words."""
    found = {tap.name: find_obstacle(tap, sendable, policy, counts_rows=True) for tap in taps}
    obstacles = {name: obstacle for name, obstacle in found.items() if obstacle is not None}
    named = {tap.name: tap for tap in taps}
    stays = tuple((name, explain_obstacle(why, named[name], policy)) for name, why in obstacles.items())
    return obstacles, stays


def _reasons(obstacles: Mapping[str, Obstacle]) -> tuple[Obstacle, ...]:
    return tuple(sorted(set(obstacles.values())))


def _describe_statistics(section: StatisticsSection) -> list[str]:
    size = f"{section.file.name}, {format_bytes(section.file.bytes)}"
    seen = "The server sees them; members of the project do not."
    if section.kind == "refit":
        layers = [layer.weight for tap in section.taps for layer in tap.layers]
        rows = min(tap.rows for tap in section.taps)
        return [
            f"{size}: of {rows:,} rows or more the Gram matrices of what these layers of the merged model read, with a",
            "constant, and their products with what the layers' outputs lack to those of your own model:",
            *(f"  {pattern}" for pattern in name_patterns(layers)),
            "The two together tell your own layers, as your contribution does, and what your own embeddings and other",
            f"parts that stay at home make of these layers' outputs. {seen}",
        ]
    if section.labels is None:
        patterns = name_patterns([tap.name for tap in section.taps])
        return [f"{size}: Gram matrices of", *(f"  {pattern}" for pattern in patterns), seen]
    (tap,) = section.taps
    return [
        f"{size}: of {tap.rows:,} rows the Gram matrix of the {tap.width - 1} features that {tap.name} of the merged",
        f"model reads, with a constant, and its product with your own model's logits of {section.labels} labels.",
        "The two together tell your own head, as sharing it does. " + seen,
    ]


def _describe_announced(answer: Answer) -> list[str]:
    """Say what is announced now, and that numbers follow under masks alone, in a sum that people are asked to join."""
    later = [
        "The numbers stay here until you join a sum of everybody's, which you are asked before: then words leave that",
        "alone are random.",
    ]
    if answer.statistics is not None:
        (tap,) = answer.statistics.taps
        return [
            f"that of {tap.rows:,} rows, {tap.distinct_rows:,} of them distinct, there are the Gram matrix of the",
            f"{tap.width - 1} features that {tap.name} of the merged model reads, and its product with your own",
            f"model's logits of {answer.statistics.labels} labels; and the digest of their file.",
            *later,
        ]
    if answer.histograms is not None:
        labels, score = answer.histograms.labels, answer.histograms.score
        return [f"that scores of {labels} labels were counted ({score}); not of which, nor how many.", *later]
    return []


def _describe_histograms(histograms: CalibrationHistograms) -> list[str]:
    counted = f"{len(histograms.classes)} of {histograms.labels} labels"
    return [
        f"{BINS}-bin histograms of the merged model's scores of your texts, for {counted}:",
        *(
            f"  label {one.label}: {sum(one.labelled):,} that bear it, {sum(one.others):,} that do not"
            for one in histograms.classes
        ),
        "They tell how often each label occurs in your texts. The server sees them; members of the project do not.",
    ]


def _describe_question(asked: RequestInfo) -> str:
    models = ", ".join(asked.models)
    questions = {
        "evaluate": f"how well {models} and your own model, if you name it, do on your held-out texts",
        "gram": f"what layers of {models} read of your texts",
        "head": f"what the head of {models} would be refit from, to say what your own model says",
        "refit": f"what linear layers of {models} would be refit from, to give what your own model's give",
        "calibration": f"which scores {models} gives your labelled texts",
    }
    question = questions.get(asked.kind, f"the stage {asked.kind} of a secure sum")
    if asked.block == "own":
        question += ", the measured blocks being your own model's"
    if asked.weighting != "none":
        question += f", each row counted by {asked.weighting.replace('_', ' ')}"
    return question


def _describe_score(score: ModelScore) -> str:
    given = [(name, score.metrics[name]) for name in get_args(MetricName) if name in score.metrics]
    metrics = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given)
    return f"{score.model or 'your own model'} on {score.examples:,} of your held-out texts: {metrics}"
