"""Push a contribution: look, decide, ask, and only then read and send."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.contributing.draft import Draft, draft_contribution
from gramfuse.contributing.packaging import Package, build_package, leaving_files
from gramfuse.contributing.plan import ContributionPlan
from gramfuse.contributing.sent_before import Sent, SentBefore
from gramfuse.progress import ByteCount, OnProgress
from gramfuse.transfer.transport import Transport
from gramfuse.transfer.uploads import send_missing_parts
from gramfuse_shared.contract.audit_summary import AuditSummary
from gramfuse_shared.contract.http_api import ContributionDetail, Project
from gramfuse_shared.contract.identity import SIGNATURE_HEADER, statement_of
from gramfuse_shared.contract.manifest import BaseManifest, TapInfo, TensorInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    ConflictError,
    ContributionRejectedError,
    DigestMismatchError,
    PolicyNotAcceptedError,
    StateError,
)

if TYPE_CHECKING:
    from gramfuse.identity import Identity

_GONE: Final = frozenset({"expired", "withdrawn"})
_MAX_GENERATIONS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Prepared:
    """A push that was decided and not yet confirmed: headers have been read, and beginnings of tensors.

    `sent` is what the home remembers of it once it is confirmed.
    """

    project: Project
    organization: str
    base: BaseManifest
    policy: Policy
    draft: Draft
    base_folder: Path | None
    sent: Sent

    @property
    def plan(self) -> ContributionPlan:
        """What leaves and what stays."""
        return self.draft.plan

    def with_audit(self, summary: AuditSummary | None) -> Self:
        """Return the same push with what leaves of its audit."""
        return replace(self, draft=replace(self.draft, plan=replace(self.plan, audit=summary)))

    def package(self, on_progress: OnProgress | None = None) -> Package:
        """Read what leaves once, for its digests; write the manifest.

        Raises:
            ArchitectureMismatchError: what an adapter was added to is not the project's base.
            FileUnreadableError: a source is gone or was changed since it was planned.
        """
        if self.draft.model.left_out == "base" and self.base_folder is not None:
            _require_base_folder(self.base_folder, self.base)
        statistics, fisher = self.draft.statistics, self.draft.fisher
        files = leaving_files(self.plan, self.draft.model, statistics, fisher)
        count = ByteCount("digest", sum(file.length for file in files), on_progress)
        return build_package(
            self.plan,
            files,
            encoding=self.draft.model.encoding,
            measured=statistics.metadata if statistics else None,
            fisher=fisher.metadata if fisher else None,
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
    labels: Sequence[int] | None = None,
    fisher: Path | None = None,
    before: SentBefore,
    url: str,
) -> Prepared:
    """Plan a push, for a project at `url` that is ready and whose policy is accepted; warn of pushes `before`.

    Raises:
        StateError: the project is not ready.
        PolicyNotAcceptedError: the organization has not accepted the project's current policy.
        GramfuseError: see `draft_contribution` and `SentBefore.prepare`.
    """
    require_ready(project)
    require_accepted(project, organization)
    require_announced_policy(project, policy)
    if base.content_digest() != project.base:
        msg = f"the server's base model of {project.id} does not have the announced digest"
        raise ArchitectureMismatchError(msg)
    draft = draft_contribution(model, statistics, base, policy, base_folder=base_folder, labels=labels, fisher=fisher)
    draft, sent = before.prepare(draft, url, project.id)
    return Prepared(project, organization, base, policy, draft, base_folder, sent)


def may_be(prepared: Prepared, known: ContributionDetail) -> bool:
    """Tell whether a contribution may hold what a push would send, as far as can be said without reading its bytes."""
    if known.manifest is None or known.policy != prepared.project.policy:
        return False
    weights, statistics = known.manifest.weights, known.manifest.statistics
    taps = () if statistics is None else statistics.taps
    return _by_name(weights.tensors) == _by_name(decision.info for decision in prepared.plan.leaving_weights) and (
        _by_name(taps) == _by_name(decision.info for decision in prepared.plan.leaving_taps)
    )


def is_same(package: Package, known: ContributionDetail) -> bool:
    """Tell whether a contribution is what a package would be, of whichever generation."""
    manifest = known.manifest
    return manifest is not None and package.manifest == manifest.model_copy(
        update={"generation": package.manifest.generation}
    )


def send(
    transport: Transport,
    package: Package,
    *,
    audit: AuditSummary | None = None,
    identity: "Identity",
    parallel: int,
    on_progress: OnProgress | None = None,
) -> ContributionDetail:
    """Announce the contribution, signed, say how its audit came out where `audit` does, send the parts that are
    missing, and seal it.

    A contribution that expired, was withdrawn or was replaced by a newer one is sent again under the next generation;
    one that is sealed already, or counts, is returned as it is.

    Raises:
        ContributionRejectedError: the server's checks refused this same content before.
        GramfuseError: what the server answers.
    """
    contribution, path = _announce(transport, package, identity)
    if contribution.state == "open":
        if audit is not None:
            transport.call("PUT", f"{path}/audit", json=audit.model_dump(mode="json"))
        if contribution.files:  # else the manifest is all, and the rest is summed in secret
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
    if project.deleted_at is not None:
        msg = f"{project.id} was deleted on {project.deleted_at:%Y-%m-%d %H:%M} UTC"
        raise StateError(msg, state="deleted")
    reason = f": {project.reason}" if project.reason else ""
    next_step = {
        "open": "the coordinator's `gramfuse project create` has not sent the whole base model yet",
        "sealed": "a worker is checking the base model; try again in a moment",
        "rejected": f"the base model was rejected{reason}",
    }[project.state]
    msg = f"{project.id} is not ready: {next_step}"
    raise StateError(msg, state=project.state)


def require_announced_policy(project: Project, policy: Policy) -> None:
    """Require that a policy is the one that the project names, and that was accepted.

    Raises:
        DigestMismatchError: the server sent another.
    """
    if policy.content_digest() != project.policy.digest:
        msg = f"the server's policy of {project.id} does not have the announced digest"
        raise DigestMismatchError(msg)


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
        raise PolicyNotAcceptedError(msg, project=project.id, **project.policy.model_dump())


def _by_name(described: Iterable[TensorInfo | TapInfo]) -> dict[str, TensorInfo | TapInfo]:
    return {one.name: one for one in described}


def _require_base_folder(folder: Path, base: BaseManifest) -> None:
    found = build_base_manifest(folder).content_digest()
    if found != base.content_digest():
        msg = (
            f"{folder} is not the project's base model (its fingerprint is {found[:12]}…, the project's "
            f"{base.content_digest()[:12]}…), and the adapter would be added to the wrong weights: pull it again"
        )
        raise ArchitectureMismatchError(msg)


def _announce(transport: Transport, package: Package, identity: "Identity") -> tuple[ContributionDetail, str]:
    manifest = package.manifest
    for generation in range(1, _MAX_GENERATIONS):
        manifest = manifest.model_copy(update={"generation": generation})
        path = f"v1/projects/{manifest.project}/contributions/{manifest.content_digest()}"
        signed = {SIGNATURE_HEADER: identity.sign(statement_of(manifest, identity.public))}
        document = manifest.model_dump(mode="json")
        contribution = ContributionDetail.parse(transport.call("PUT", path, json=document, headers=signed))
        replaced = contribution.state == "accepted" and not contribution.counts
        if contribution.state not in _GONE and not replaced:
            return require_accepted_by_server(contribution), path
    msg = f"the same content was sent {_MAX_GENERATIONS} times and withdrawn each time"
    raise ConflictError(msg)
