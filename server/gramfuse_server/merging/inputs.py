"""What a merge reads: the plan of an attempt, and its tensors by ranges from the blob store. Imports torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

from gramfuse_server.blobs import Blobs, blob_key
from gramfuse_server.merging.attempts import Attempt
from gramfuse_server.merging.blob_source import BlobSource
from gramfuse_server.merging.cohort import CohortMember
from gramfuse_server.merging.members import cohort_of
from gramfuse_server.merging.refinement import Refined, find_refined
from gramfuse_server.merging.summing import KEY, Summed, find_summed, open_sums
from gramfuse_server.tables import ContributionRow, JobRow, PolicyRow, ProjectRow
from gramfuse_shared.contract.labels import label_parameters
from gramfuse_shared.contract.manifest import (
    BaseManifest,
    ContributionManifest,
    FileEntry,
    PolicyReference,
    StatisticsSection,
    TensorInfo,
)
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import ModelEntry, ModelParameters, Recipe
from gramfuse_shared.contract.refits import bias_of_labels
from gramfuse_shared.contract.release_gate import ReleaseGate
from gramfuse_shared.errors import RecipeInvalidError
from gramfuse_shared.merging.decoding import decode_statistics, decode_weights, decoded_tensors
from gramfuse_shared.merging.execution import MemberReader
from gramfuse_shared.merging.parameters import output_tensor
from gramfuse_shared.merging.plan import LabelRows, Member, MergePlan
from gramfuse_shared.merging.planning import plan_merge
from gramfuse_shared.merging.ready_sums import plan_sums
from gramfuse_shared.merging.refit_planning import plan_calibration, plan_head, plan_layers
from gramfuse_shared.merging.refit_steps import SummedHistograms
from gramfuse_shared.merging.streaming import TensorFile, TensorFiles
from gramfuse_shared.merging.summed_refits import plan_summed_calibration, plan_summed_head

_WEIGHTS_SUFFIX: Final = ".safetensors"


@dataclass(frozen=True, slots=True)
class MergeInputs:
    """Everything that decides an attempt's result.

    `recipe` is the submitted one made explicit: the base by its digest, the cohort by contribution ids with weights.
    `signatures` are the contributions' `identity` and `signature`, of those that have them.
    `refined` is the model that is merged anew; None where the project's base is merged around. `summed` is the session
    whose sum is merged in place of contributions. `gate` is the policy's release gate, if it has one.
    """

    attempt: Attempt

    recipe: Recipe
    base_digest: str
    base: BaseManifest
    policy: PolicyReference
    cohort: tuple[CohortMember, ...]
    manifests: Mapping[str, ContributionManifest]
    signatures: Mapping[str, Mapping[str, str]]
    plan: MergePlan
    refined: Refined | None = None
    summed: Summed | None = None
    gate: ReleaseGate | None = None

    @property
    def companions(self) -> tuple[FileEntry, ...]:
        """The files beside the weights: of the refined model, else of the base."""
        if self.refined is not None:
            return tuple(file for file in self.refined.files if not file.name.endswith(_WEIGHTS_SUFFIX))
        return tuple(
            FileEntry(name=file.name, bytes=file.bytes, sha256=file.sha256)
            for file in self.base.files
            if file.tensors is None
        )

    def statistics(self, contribution: str) -> StatisticsSection | None:
        """The statistics that a contribution is merged with: its own, or those of its organization's answer."""
        return _statistics(self.refined, contribution, self.manifests)


def load_inputs(session: Session, attempt: Attempt, *, shard_bytes: int) -> MergeInputs:
    """Read an attempt's documents and plan it. The same on every worker.

    Raises:
        RecipeInvalidError, ArchitectureMismatchError: see `plan_merge`.
    """
    job = session.get_one(JobRow, (attempt.project, attempt.job))
    project = session.get_one(ProjectRow, attempt.project)
    policy = session.get_one(PolicyRow, (attempt.project, job.policy_version))
    base = BaseManifest.parse(project.base_manifest)
    cohort = cohort_of(session, job)
    rows = {member.contribution: session.get_one(ContributionRow, member.contribution) for member in cohort}
    manifests = {contribution: ContributionManifest.parse(row.manifest) for contribution, row in rows.items()}
    signatures = {
        contribution: {"identity": row.identity, "signature": row.signature}
        for contribution, row in rows.items()
        if row.identity is not None and row.signature is not None
    }
    recipe = Recipe.parse(job.recipe)
    summed = find_summed(session, job, recipe)
    answered = recipe.request if summed is None else summed.session.recipe.request
    refined = find_refined(session, job, recipe.model_copy(update={"request": answered}), cohort)
    explicit = recipe.model_copy(
        update={
            "request": answered,
            "base_model": project.base_digest if refined is None else refined.model,
            "models": tuple(
                ModelEntry(model=member.contribution, parameters=ModelParameters(weight=member.weight))
                for member in cohort
            ),
        }
    )
    rules = Policy.parse(policy.document)
    members = [
        _member(
            member,
            manifests[member.contribution],
            _statistics(refined, member.contribution, manifests),
            base,
            rules,
        )
        for member in cohort
    ]
    return MergeInputs(
        attempt=attempt,
        recipe=explicit,
        base_digest=project.base_digest,
        base=base,
        policy=PolicyReference(version=policy.version, digest=policy.digest),
        cohort=cohort,
        manifests=manifests,
        signatures=signatures,
        plan=(
            _plan(members, recipe, base, rules, refined, shard_bytes)
            if summed is None
            else _plan_sums(summed, recipe, base, rules, refined, shard_bytes)
        ),
        refined=refined,
        summed=summed,
        gate=rules.release,
    )


def open_base(blobs: Blobs, base: BaseManifest) -> TensorFiles:
    """Open the base model's tensors; raises FileUnreadableError."""
    return TensorFiles(_open(blobs, file) for file in base.files if file.tensors is not None)


def open_origin(blobs: Blobs, inputs: MergeInputs, base: TensorFiles) -> TensorFiles:
    """Open the tensors that the merge is around: the refined model's, else the base's; raises FileUnreadableError."""
    if inputs.refined is None:
        return base
    return TensorFiles(_open(blobs, file) for file in inputs.refined.files if file.name.endswith(_WEIGHTS_SUFFIX))


def open_members(blobs: Blobs, inputs: MergeInputs, base: TensorFiles) -> dict[str, MemberReader]:
    """Open every contribution's weights and statistics of both kinds, or their sums; raises FileUnreadableError."""
    if inputs.summed is not None:
        sums = open_sums(inputs.attempt, blobs)
        return {KEY: MemberReader(weights=sums, statistics=sums)}
    readers = {}
    for contribution, manifest in inputs.manifests.items():
        section = manifest.weights
        weights = decode_weights(_open(blobs, section.file), section.encoding, base, section.left_out)
        measured = inputs.statistics(contribution)
        statistics = None if measured is None else decode_statistics(_open(blobs, measured.file), measured.encoding)
        fisher = None if manifest.fisher is None else _open(blobs, manifest.fisher.file)
        readers[contribution] = MemberReader(weights, statistics, fisher)
    return readers


def _plan(
    members: Sequence[Member],
    recipe: Recipe,
    base: BaseManifest,
    policy: Policy,
    refined: Refined | None,
    shard_bytes: int,
) -> MergePlan:
    origin, holders = _origin_tensors(base, refined), policy.minimum_cohort
    if refined is not None and recipe.merge_method == "head":
        return plan_head(members, origin, recipe, shard_bytes=shard_bytes, minimum_holders=holders)
    if refined is not None and recipe.merge_method == "refit":
        return plan_layers(
            members, origin, recipe, only=refined.layers, shard_bytes=shard_bytes, minimum_holders=holders
        )
    if refined is not None and recipe.merge_method == "calibration":
        found = {key: answer.histograms for key, answer in refined.answers.items() if answer.histograms is not None}
        bias = bias_of_labels(base, policy, next(iter(found.values())).labels)
        return plan_calibration(
            found, members, bias.name, origin, recipe, shard_bytes=shard_bytes, minimum_holders=holders
        )
    return plan_merge(
        members,
        origin,
        recipe,
        shard_bytes=shard_bytes,
        minimum_holders=holders,
        embedding_parameters=policy.embedding_parameters,
        only=None if refined is None else refined.layers,
    )


def _plan_sums(
    summed: Summed, recipe: Recipe, base: BaseManifest, policy: Policy, refined: Refined | None, shard_bytes: int
) -> MergePlan:
    origin = _origin_tensors(base, refined)
    if refined is None:
        return plan_sums(summed.member(base), origin, recipe, shard_bytes=shard_bytes)
    announced = next(iter(refined.answers.values()))  # all are alike but for their rows
    if announced.statistics is not None:
        (tap,) = announced.statistics.taps
        return plan_summed_head(tap, summed.answers, origin, recipe, shard_bytes=shard_bytes)
    found = announced.histograms
    if found is None:
        msg = f"the answers that {summed.session.session} sums say of nothing what there is"
        raise RecipeInvalidError(msg)
    histograms = SummedHistograms(KEY, found.score, found.labels, policy.minimum_cohort)
    bias = bias_of_labels(base, policy, found.labels)
    return plan_summed_calibration(histograms, summed.answers, bias.name, origin, recipe, shard_bytes=shard_bytes)


def _statistics(
    refined: Refined | None, contribution: str, manifests: Mapping[str, ContributionManifest]
) -> StatisticsSection | None:
    announced = manifests[contribution] if refined is None else refined.answers[contribution]
    return announced.statistics


def _origin_tensors(base: BaseManifest, refined: Refined | None) -> dict[str, TensorInfo]:
    tensors = {tensor.name: tensor for tensor in base.tensors}
    for recipe in () if refined is None else reversed(refined.recipes):
        tensors = {name: output_tensor(tensor, recipe) for name, tensor in tensors.items()}
    return tensors


def _open(blobs: Blobs, file: FileEntry) -> TensorFile:
    return TensorFile.open(BlobSource(blobs, blob_key(file.sha256), file.bytes))


def _member(
    member: CohortMember,
    manifest: ContributionManifest,
    statistics: StatisticsSection | None,
    base: BaseManifest,
    policy: Policy,
) -> Member:
    labels = None
    if manifest.labels is not None:
        rows = label_parameters(base.tensors, base.vocabulary_size, policy, manifest.labels.count)
        labels = LabelRows(rows, frozenset(manifest.labels.trained))
    return Member(
        key=member.contribution,
        label=member.organization,
        weight=member.weight,
        tensors=decoded_tensors(manifest.weights.tensors, manifest.weights.encoding),
        taps=statistics.taps if statistics else (),
        encoding=statistics.encoding if statistics else "float32",
        weighting=statistics.collector.weighting if statistics else "none",
        labels=labels,
        left_out=manifest.weights.left_out,
        fisher=manifest.fisher,
    )
