"""Projects in the SDK: create one, invite to it, agree on its policy, fetch its base model, leave or delete it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gramfuse.connection import Connection, named
from gramfuse.contributing.base_model import open_base_folder
from gramfuse.contributing.project_scales import open_scales, with_scales
from gramfuse.progress import OnProgress, begin_check
from gramfuse.transfer import pulling, pushing
from gramfuse.transfer.uploads import send_missing_parts
from gramfuse.transfer.watching import Deadline, poll
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import Acceptance, PolicyVersion, Project, ProjectCreate
from gramfuse_shared.contract.identity import PolicyAcceptance, SignedAcceptance
from gramfuse_shared.contract.manifest import PolicyReference
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import ConfigurationError, DigestMismatchError, IdentityChangedError, PolicyNotAcceptedError
from gramfuse_shared.identifiers import DIGEST_PATTERN, PROJECT_PATTERN, SLUG_PATTERN

if TYPE_CHECKING:
    from gramfuse.trust import RosterEntry

StrPath = str | Path


class Projects(Connection):
    """What a connection can do with projects."""

    def create_project(
        self,
        name: str,
        *,
        base: StrPath,
        policy: Policy | None = None,
        scales: StrPath | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> Project:
        """Create a project with a base model and a policy; a rerun after an interruption sends what is missing.

        `scales` is the project's scales file; the policy that is sent names its digest.

        Raises:
            HeaderMalformedError, ScalesMalformedError, ArchitectureMismatchError: it is none, or of another base model.
            PolicyViolationError: the policy names another, or one where none is given.
            ContributionRejectedError: the server's checks refused the base model.
            ConflictError: the name stands for another base model or policy.
        """
        folder = open_base_folder(Path(base), part_bytes=limits.DEFAULT_PART_BYTES)
        project = named("project", name if "." in name else f"{self.organization}.{name}", PROJECT_PATTERN)
        sent = None if scales is None else open_scales(Path(scales), folder.manifest)
        rules = with_scales(policy or Policy(), None if sent is None else sent.entry)
        body = ProjectCreate(base=folder.manifest, policy=rules, scales=None if sent is None else sent.entry)
        path = f"v1/projects/{project}"
        created = Project.parse(self._transport.call("PUT", path, json=body.model_dump(mode="json")))
        if created.state == "open":
            send_missing_parts(
                self._transport,
                f"{path}/base",
                (*folder.files, *(() if sent is None else (sent.file,))),
                created.files,
                parallel=self._parallel,
                on_progress=on_progress,
            )
            self._transport.call("POST", f"{path}/base/seal")
            begin_check(on_progress)
        ready = poll(
            lambda: self._project(project),
            lambda seen: seen.state in {"ready", "rejected"},
            what=f"the check of {project}",
            deadline=Deadline(timeout),
            sleep=self._sleep,
            workers=self._workers(),
        )
        pushing.require_ready(ready)
        self.home.remember_base(ready.base, Path(base))
        return ready

    def project(self, name: str) -> Project:
        """Return a project."""
        return self._project(self._resolve(name))

    def invite(self, project: str, organization: str) -> Project:
        """Make an organization a participant; the coordinator's right."""
        path = f"{self._path(project)}/participants/{named('organization', organization, SLUG_PATTERN)}"
        return Project.parse(self._transport.call("PUT", path))

    def uninvite(self, project: str, organization: str) -> Project:
        """Take an invitation back that was not accepted; the coordinator's right.

        Raises:
            StateError: the organization has joined.
        """
        return self._end(project, organization, joined=False)

    def remove(self, project: str, organization: str) -> Project:
        """End a member's part in a project, joined or not: what it gave is withdrawn; the coordinator's right.

        Raises:
            StateError: the organization coordinates the project.
        """
        return self._end(project, organization, joined=True)

    def leave(self, project: str) -> Project:
        """End the caller's organization's part in a project: what it gave is withdrawn, the project is not seen again.

        Raises:
            StateError: the organization coordinates the project, and can delete it instead.
        """
        return self._end(project, self.organization, joined=True)

    def delete_project(self, project: str) -> Project:
        """Delete a project for everybody; the coordinator's right. Its receipts and what was signed stay."""
        return Project.parse(self._transport.call("DELETE", self._path(project)))

    def _end(self, project: str, organization: str, *, joined: bool) -> Project:
        path = f"{self._path(project)}/participants/{named('organization', organization, SLUG_PATTERN)}"
        return Project.parse(self._transport.call("DELETE", path, query={"joined": "true"} if joined else None))

    def policy(self, project: str, version: int | None = None) -> PolicyVersion:
        """Return a version of a project's policy; the current one by default.

        Raises:
            DigestMismatchError: what the server shows does not have the digest that it says.
        """
        found = self.project(project)
        number = version or found.policy.version
        shown = PolicyVersion.parse(self._transport.call("GET", f"v1/projects/{found.id}/policies/{number}"))
        if shown.policy.content_digest() != shown.digest:
            msg = f"the server shows a policy of {found.id} under a digest that is not its own; accept nothing"
            raise DigestMismatchError(msg)
        return shown

    def set_policy(self, project: str, policy: Policy) -> PolicyVersion:
        """Publish the next version of a project's policy; every participant has to accept it anew."""
        found = self.project(project)
        if found.policy.digest == policy.content_digest():
            return self.policy(found.id)
        path = f"v1/projects/{found.id}/policies/{found.policy.version + 1}"
        return PolicyVersion.parse(self._transport.call("PUT", path, json=policy.model_dump(mode="json")))

    def accept_policy(self, project: str, digest: str) -> Acceptance:
        """Accept the project's current policy for the caller's organization, by its digest.

        Signed by the home's identity key, which the first acceptance makes where there is none, and registers.

        Raises:
            ConflictError: the digest is not the current policy's, or another participant has this identity key.
            IdentityChangedError: another key is registered for the organization.
        """
        from gramfuse.identity import create_identity  # noqa: PLC0415 - cryptography takes its time to load

        found = self.project(project)
        identity, _ = create_identity(self.home)
        acceptance = PolicyAcceptance(
            project=found.id,
            organization=self.organization,
            policy=PolicyReference(version=found.policy.version, digest=named("digest", digest, DIGEST_PATTERN)),
            identity=identity.public,
        )
        body = SignedAcceptance(acceptance=acceptance, signature=identity.sign(acceptance))
        path = f"v1/projects/{found.id}/acceptances/{digest}"
        recorded = Acceptance.parse(self._transport.call("PUT", path, json=body.model_dump(mode="json")))
        self._trust(found).remember_accepted(found.policy.version)
        return recorded

    def has_accepted(self, project: Project) -> bool:
        """Tell whether the home's identity key signed for the current policy; the server's word is not enough."""
        try:
            self._trust(project).require_accepted(project, self.organization)
        except (PolicyNotAcceptedError, IdentityChangedError, ConfigurationError):
            return False
        return True

    def roster(self, project: str) -> "tuple[RosterEntry, ...]":
        """Return every member's identity key, and how it stands here: verified, changed, or not compared yet."""
        found = self.project(project)
        return self._trust(found).roster(found, self.organization)

    def verify_roster(self, project: str, entries: "Sequence[RosterEntry]") -> "tuple[RosterEntry, ...]":
        """Keep keys that people compared out of band; from then on another key of these members is an error."""
        found = self.project(project)
        keys = {entry.organization: entry.identity for entry in entries if entry.identity is not None}
        return self._trust(found).verify(keys).roster(found, self.organization)

    def reset_identity(self, project: str, organization: str) -> Project:
        """Forget a member's identity key, so that it joins again with another; the coordinator's right."""
        member = named("organization", organization, SLUG_PATTERN)
        path = f"{self._path(project)}/participants/{member}/identity"
        return Project.parse(self._transport.call("DELETE", path))

    def scales(self, project: str, *, on_progress: OnProgress | None = None) -> Path:
        """Return where the project's scales file lies in the client's home; fetched there where it is not yet.

        Raises:
            NotFoundError: the project's policy names none.
            DigestMismatchError: the server sent another policy or another file than was announced.
        """
        found = self.project(project)
        pushing.require_ready(found)
        policy = self.policy(found.id).policy
        pushing.require_announced_policy(found, policy)
        return pulling.pull_scales(self._transport, found, policy, self.home.folder("scales"), on_progress=on_progress)

    def pull_base(self, project: str, folder: StrPath, *, on_progress: OnProgress | None = None) -> Path:
        """Fetch a project's base model into a new folder; a rerun resumes.

        Raises:
            StateError: the base model is not there yet.
            DigestMismatchError: bytes are not what the fingerprint says.
            ConflictError: the folder holds something else.
        """
        found = self.project(project)
        pushing.require_ready(found)
        manifest = self.base_manifest(found.id)
        pulling.pull_base(self._transport, found, manifest, Path(folder), on_progress=on_progress)
        self.home.remember_base(found.base, Path(folder))
        return Path(folder)
