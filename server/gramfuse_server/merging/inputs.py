"""What a merge reads: the plan of an attempt, and its tensors by ranges from the blob store. Imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import obstore
from obstore.exceptions import BaseError
from sqlalchemy.orm import Session

from gramfuse_server.blobs import Blobs, blob_key
from gramfuse_server.merging.attempts import Attempt
from gramfuse_server.merging.cohort import CohortMember
from gramfuse_server.merging.submission import cohort_of
from gramfuse_server.tables import ContributionRow, JobRow, PolicyRow, ProjectRow
from gramfuse_shared.contract.labels import label_parameters
from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest, FileEntry, PolicyReference
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import ModelEntry, ModelParameters, Recipe
from gramfuse_shared.errors import FileUnreadableError
from gramfuse_shared.merging.decoding import decode_statistics, decode_weights, decoded_tensors
from gramfuse_shared.merging.execution import MemberReader
from gramfuse_shared.merging.plan import LabelRows, Member, MergePlan
from gramfuse_shared.merging.planning import plan_merge
from gramfuse_shared.merging.streaming import LOCAL_READS, TensorFile, TensorFiles

_REMOTE_READS: Final = 8
"""Ranges of an object store asked for at once: each waits for the network, none for a core."""


@dataclass(frozen=True, slots=True)
class BlobSource:
    """A blob as the engine's `ByteSource`."""

    blobs: Blobs
    sha256: str
    size: int

    @property
    def parallel(self) -> int:
        """Reads that are worth having on their way at once."""
        return LOCAL_READS if self.blobs.is_local else _REMOTE_READS

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `start` on.

        Raises:
            FileUnreadableError: the blob is gone, or the store does not answer, or with other bytes.
        """
        try:
            end = start + len(target)
            content = memoryview(obstore.get_range(self.blobs.store, blob_key(self.sha256), start=start, end=end))
        except (BaseError, OSError) as error:
            msg = f"blob {self.sha256} cannot be read: {str(error).partition(chr(10))[0]}"
            raise FileUnreadableError(msg) from error
        if len(content) != len(target):
            msg = f"blob {self.sha256}: {len(content)} bytes came of {len(target)}"
            raise FileUnreadableError(msg)
        target[:] = content


@dataclass(frozen=True, slots=True)
class MergeInputs:
    """Everything that decides an attempt's result.

    `recipe` is the submitted one made explicit: the base by its digest, the cohort by contribution ids with weights.
    """

    recipe: Recipe
    base_digest: str
    base: BaseManifest
    policy: PolicyReference
    cohort: tuple[CohortMember, ...]
    manifests: Mapping[str, ContributionManifest]
    plan: MergePlan


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
    manifests = {
        member.contribution: ContributionManifest.parse(session.get_one(ContributionRow, member.contribution).manifest)
        for member in cohort
    }
    recipe = Recipe.parse(job.recipe)
    explicit = recipe.model_copy(
        update={
            "base_model": project.base_digest,
            "models": tuple(
                ModelEntry(model=member.contribution, parameters=ModelParameters(weight=member.weight))
                for member in cohort
            ),
        }
    )
    rules = Policy.parse(policy.document)
    plan = plan_merge(
        [_member(member, manifests[member.contribution], base, rules) for member in cohort],
        {tensor.name: tensor for tensor in base.tensors},
        recipe,
        shard_bytes=shard_bytes,
        minimum_holders=rules.minimum_cohort,
        embedding_parameters=rules.embedding_parameters,
    )
    return MergeInputs(
        recipe=explicit,
        base_digest=project.base_digest,
        base=base,
        policy=PolicyReference(version=policy.version, digest=policy.digest),
        cohort=cohort,
        manifests=manifests,
        plan=plan,
    )


def open_base(blobs: Blobs, base: BaseManifest) -> TensorFiles:
    """Open the base model's tensors; raises FileUnreadableError."""
    return TensorFiles(_open(blobs, file) for file in base.files if file.tensors is not None)


def open_members(
    blobs: Blobs, manifests: Mapping[str, ContributionManifest], base: TensorFiles
) -> dict[str, MemberReader]:
    """Open every contribution's files; raises FileUnreadableError."""
    return {
        contribution: MemberReader(
            decode_weights(
                _open(blobs, manifest.weights.file), manifest.weights.encoding, base, manifest.weights.left_out
            ),
            decode_statistics(_open(blobs, manifest.statistics.file), manifest.statistics.encoding)
            if manifest.statistics
            else None,
            _open(blobs, manifest.fisher.file) if manifest.fisher else None,
        )
        for contribution, manifest in manifests.items()
    }


def _open(blobs: Blobs, file: FileEntry) -> TensorFile:
    return TensorFile.open(BlobSource(blobs, file.sha256, file.bytes))


def _member(member: CohortMember, manifest: ContributionManifest, base: BaseManifest, policy: Policy) -> Member:
    labels = None
    if manifest.labels is not None:
        rows = label_parameters(base.tensors, base.vocabulary_size, policy, manifest.labels.count)
        labels = LabelRows(rows, frozenset(manifest.labels.trained))
    return Member(
        key=member.contribution,
        label=member.organization,
        weight=member.weight,
        tensors=decoded_tensors(manifest.weights.tensors, manifest.weights.encoding),
        taps=manifest.statistics.taps if manifest.statistics else (),
        encoding=manifest.statistics.encoding if manifest.statistics else "float32",
        weighting=manifest.statistics.collector.weighting if manifest.statistics else "none",
        labels=labels,
        left_out=manifest.weights.left_out,
        fisher=manifest.fisher,
    )
