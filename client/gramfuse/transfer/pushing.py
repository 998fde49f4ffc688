"""Push a contribution: look, decide, ask, and only then read and send."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gramfuse.contributing.loading import ModelFolder, StatisticsFile, open_model_folder, open_statistics_file
from gramfuse.contributing.packaging import Package, build_package, changed_tensors, leaving_files
from gramfuse.contributing.plan import ContributionPlan
from gramfuse.contributing.planning import embedding_names, plan_contribution
from gramfuse.progress import ByteCount, OnProgress
from gramfuse.transfer.transport import Transport
from gramfuse.transfer.uploads import send_missing_parts
from gramfuse_shared.contract.http_api import ContributionDetail, Project
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    ConflictError,
    ContributionRejectedError,
    PolicyNotAcceptedError,
    StateError,
)

_GONE: Final = frozenset({"expired", "withdrawn"})
_MAX_GENERATIONS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Prepared:
    """A push that was decided and not yet confirmed: nothing but headers has been read."""

    project: Project
    organization: str
    base: BaseManifest
    policy: Policy
    model: ModelFolder
    statistics: StatisticsFile | None
    plan: ContributionPlan

    def package(self, on_progress: OnProgress | None = None) -> Package:
        """Read what leaves once, for its digests; write the manifest."""
        files = leaving_files(self.plan, self.model, self.statistics)
        count = ByteCount("digest", sum(file.length for file in files), on_progress)
        return build_package(
            self.plan,
            files,
            collector=self.statistics.metadata.collector if self.statistics else None,
            project=self.project.id,
            organization=self.organization,
            base=self.base,
            policy=self.policy,
            policy_version=self.project.policy.version,
            on_bytes=count.add,
        )


def prepare(
    project: Project,
    organization: str,
    base: BaseManifest,
    policy: Policy,
    *,
    model: Path,
    statistics: Path | None,
    base_folder: Path | None,
) -> Prepared:
    """Plan a push from headers; embeddings are compared with the base's where its folder is known.

    Raises:
        StateError: the project is not ready.
        PolicyNotAcceptedError: the organization has not accepted the project's current policy.
        ArchitectureMismatchError, PolicyViolationError: see `plan_contribution`.
        FileUnreadableError, HeaderMalformedError, StatisticsMalformedError: the model or the statistics.
    """
    require_ready(project)
    require_accepted(project, organization)
    if base.content_digest() != project.base or policy.content_digest() != project.policy.digest:
        msg = f"the server's base model or policy of {project.id} does not have the announced digest"
        raise ArchitectureMismatchError(msg)
    folder = open_model_folder(model)
    measured = None if statistics is None else open_statistics_file(statistics)
    tensors = [tensor.info for tensor in folder.tensors.values()]
    changed = None
    if base_folder is not None:
        changed = changed_tensors(embedding_names(tensors, base, policy), folder, base_folder)
    plan = plan_contribution(tensors, measured.metadata if measured else None, base, policy, changed=changed)
    return Prepared(project, organization, base, policy, folder, measured, plan)


def send(
    transport: Transport,
    package: Package,
    *,
    parallel: int,
    on_progress: OnProgress | None = None,
) -> ContributionDetail:
    """Announce the contribution, send the parts that are missing, and seal it.

    A contribution that expired or was withdrawn is sent again under the next generation; one that is sealed or
    accepted already is returned as it is.

    Raises:
        ContributionRejectedError: the server's checks refused this same content before.
        GramfuseError: what the server answers.
    """
    contribution, path = _announce(transport, package)
    if contribution.state == "open":
        send_missing_parts(
            transport, path, package.files, contribution.files, parallel=parallel, on_progress=on_progress
        )
        transport.call("POST", f"{path}/seal")
        contribution = ContributionDetail.parse(transport.call("GET", path))
    return contribution


def require_accepted_by_server(contribution: ContributionDetail) -> ContributionDetail:
    """Require that the server's checks accepted a contribution.

    Raises:
        ContributionRejectedError: they refused it; the message holds the reason.
        StateError: it was withdrawn or has expired meanwhile.
    """
    if contribution.state == "rejected":
        msg = f"the server refused the contribution {contribution.id[:12]}…: {contribution.reason or 'no reason given'}"
        raise ContributionRejectedError(msg, contribution=contribution.id, reason=contribution.reason)
    if contribution.state in _GONE:
        msg = f"the contribution {contribution.id[:12]}… is {contribution.state}; push again"
        raise StateError(msg, contribution=contribution.id)
    return contribution


def require_ready(project: Project) -> None:
    """Require that a project's base model is there and was checked.

    Raises:
        StateError: it is not.
    """
    if project.state == "ready":
        return
    reason = f": {project.reason}" if project.reason else ""
    next_step = {
        "open": "the coordinator's `gramfuse project create` has not sent the whole base model yet",
        "sealed": "a worker is checking the base model; try again in a moment",
        "rejected": f"the base model was rejected{reason}",
    }[project.state]
    msg = f"{project.id} is not ready: {next_step}"
    raise StateError(msg, state=project.state)


def require_accepted(project: Project, organization: str) -> None:
    """Require that an organization has accepted the project's current policy.

    Raises:
        PolicyNotAcceptedError: it has not.
    """
    accepted = next((p.accepted_policy for p in project.participants if p.organization == organization), None)
    if accepted != project.policy:
        had = "none" if accepted is None else f"version {accepted.version}"
        current = project.policy.version
        msg = f"{organization} has accepted {had} of the policies of {project.id}; version {current} is current"
        raise PolicyNotAcceptedError(msg, version=project.policy.version, digest=project.policy.digest)


def _announce(transport: Transport, package: Package) -> tuple[ContributionDetail, str]:
    manifest = package.manifest
    for generation in range(1, _MAX_GENERATIONS):
        manifest = manifest.model_copy(update={"generation": generation})
        path = f"v1/projects/{manifest.project}/contributions/{manifest.content_digest()}"
        contribution = ContributionDetail.parse(transport.call("PUT", path, json=manifest.model_dump(mode="json")))
        if contribution.state not in _GONE:
            return require_accepted_by_server(contribution), path
    msg = f"the same content was sent {_MAX_GENERATIONS} times and withdrawn each time"
    raise ConflictError(msg)
