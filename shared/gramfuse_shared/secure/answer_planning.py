"""Plan what a session sums of announced answers to a request about a merged model, from documents alone. No torch."""

from collections.abc import Sequence
from typing import Final

from gramfuse_shared.contract.calibration import BINS, HOLDERS_SUM, LABELLED_SUM, OTHERS_SUM, CalibrationHistograms
from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest, StatisticsSection
from gramfuse_shared.contract.recipe import Overridable, Recipe, values_of
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.contract.secure_session import SessionManifest, SessionMember, SummedTensor, threshold_of
from gramfuse_shared.contract.statistics_file import tensors_of_statistics
from gramfuse_shared.errors import RecipeInvalidError
from gramfuse_shared.secure.planning import fraction_bits

LARGEST_MEAN: Final = 2.0**16
"""Of the mean over rows of a feature's square, or of its product with a logit: features and logits of up to 256."""

LARGEST_COUNT: Final = 2.0**40
"""Of texts, or words, in one bin."""


def plan_answer_session(
    session: str,
    recipe: Recipe,
    members: Sequence[tuple[ContributionManifest, str, Overridable, Answer]],
    base: BaseManifest,
) -> SessionManifest:
    """Plan a session that sums what was announced.

    Args:
        session: the id of its first request.
        recipe: `head` or `calibration`, with the request that was answered.
        members: contributions, each with its organization's identity key (base64), its weight, and its answer.
        base: the project's base model.

    Raises:
        RecipeInvalidError: the answers are of different layers, labels or scores, or a member trained some labels only,
            where a head is refit.
    """
    manifests = [manifest for manifest, _, _, _ in members]
    joined = [
        SessionMember(
            organization=manifest.organization,
            contribution=manifest.content_digest(),
            answer=answer.content_digest(),
            identity=identity,
            weight=weight,
        )
        for manifest, identity, weight, answer in members
    ]
    partly = sorted(manifest.organization for manifest in manifests if manifest.labels is not None)
    if recipe.merge_method == "head" and partly:
        msg = (
            f"{', '.join(partly)} trained some labels only: each row of a head is refit from those that trained it, "
            "and a sum has one set of members"
        )
        raise RecipeInvalidError(msg, organizations=partly)
    answers = [answer for _, _, _, answer in members]
    if len({_shape(answer) for answer in answers}) != 1:
        msg = "the announced answers are of different layers, labels or scores, and do not add up"
        raise RecipeInvalidError(msg)
    largest = max(value for member in joined for value in values_of(member.weight))
    return SessionManifest(
        project=manifests[0].project,
        session=session,
        policy=manifests[0].policy,
        base=base.content_digest(),
        recipe=recipe,
        members=tuple(sorted(joined, key=lambda member: member.organization)),
        threshold=threshold_of(len(joined)),
        sums=summed_of_answers(answers, recipe, largest_weight=largest),
    )


def summed_of_answers(answers: Sequence[Answer], recipe: Recipe, *, largest_weight: float) -> tuple[SummedTensor, ...]:
    """Return the tensors that answers like these are summed in, whose rows are at most the largest of theirs."""
    announced, count = answers[0], len(answers)
    if announced.histograms is not None:
        bins = (announced.histograms.labels, BINS)
        counts = ((LABELLED_SUM, bins), (OTHERS_SUM, bins), (HOLDERS_SUM, bins[:1]))
        return tuple(_tensor(name, shape, LARGEST_COUNT, count) for name, shape in counts)
    sections = [answer.statistics for answer in answers if answer.statistics is not None]
    rows = max((tap.rows for section in sections for tap in section.taps), default=1)
    bound = LARGEST_MEAN * largest_weight * (rows if recipe.parameters.normalize == "rows" else 1)
    return tuple(_tensor(name, shape, bound, count) for name, _, shape in tensors_of_statistics(sections[0]))


def _tensor(name: str, shape: tuple[int, ...], bound: float, members: int) -> SummedTensor:
    return SummedTensor(name=name, shape=shape, fraction_bits=fraction_bits(bound, members), bound=bound)


def _shape(answer: Answer) -> tuple[object, ...]:
    """What has to be the same in all answers: everything but rows, digests and whose they are."""
    return (_shape_of_histograms(answer.histograms), _shape_of_statistics(answer.statistics))


def _shape_of_histograms(histograms: CalibrationHistograms | None) -> tuple[object, ...] | None:
    return None if histograms is None else (histograms.score, histograms.labels)


def _shape_of_statistics(section: StatisticsSection | None) -> tuple[object, ...] | None:
    if section is None:
        return None
    return section.labels, *((tap.name, tap.width, tap.layers) for tap in section.taps)
