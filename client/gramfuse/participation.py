"""Take part in projects: the SDK's client, synchronous and typed."""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from gramfuse.connection import named
from gramfuse.contributing.base_model import open_base_folder
from gramfuse.contributing.plan import ContributionPlan
from gramfuse.loops import Loops
from gramfuse.model_report import ModelReport
from gramfuse.progress import OnProgress, Progress
from gramfuse.transfer import pulling, pushing
from gramfuse.transfer.uploads import send_missing_parts
from gramfuse.transfer.watching import Deadline, poll, watch_job
from gramfuse_shared import limits
from gramfuse_shared.contract.diagnostics import JobDiagnostics
from gramfuse_shared.contract.http_api import (
    Acceptance,
    Contribution,
    ContributionDetail,
    Job,
    JobCreate,
    JobLogEntry,
    Model,
    Page,
    PolicyVersion,
    Project,
    ProjectCreate,
)
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import (
    NotConfirmedError,
    NotFoundError,
    ReceiptInvalidError,
)
from gramfuse_shared.identifiers import DIGEST_PATTERN, PROJECT_PATTERN, SLUG_PATTERN

StrPath = str | Path


class Client(Loops):
    """One organization's connection to one server.

    Args:
        url: the server; default GRAMFUSE_URL, else the one that `gramfuse login` kept.
        token: the organization's token; default GRAMFUSE_TOKEN, else the kept one.
        home: the client's home; default GRAMFUSE_HOME, else the platform's folder.
        allow_http: permit http:// to another machine than this one.
        parallel: parts on their way at once.
        transport: the way to the server, for tests.
        sleep: how to pass the time between two looks.

    Projects are named in full (`acme.tweets`) or, where only one visible project is called so, by the last word.
    Every method raises the class of the server's problem document, and TransportError where it cannot be reached.
    """

    # --- projects ----------------------------------------------------------------------------------------------------

    def create_project(
        self,
        name: str,
        *,
        base: StrPath,
        policy: Policy | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> Project:
        """Create a project with a base model and a policy; a rerun after an interruption sends what is missing.

        Raises:
            ContributionRejectedError: the server's checks refused the base model.
            ConflictError: the name stands for another base model or policy.
        """
        folder = open_base_folder(Path(base), part_bytes=limits.DEFAULT_PART_BYTES)
        project = named("project", name if "." in name else f"{self.organization}.{name}", PROJECT_PATTERN)
        body = ProjectCreate(base=folder.manifest, policy=policy or Policy())
        path = f"v1/projects/{project}"
        created = Project.parse(self._transport.call("PUT", path, json=body.model_dump(mode="json")))
        if created.state == "open":
            send_missing_parts(
                self._transport,
                f"{path}/base",
                folder.files,
                created.files,
                parallel=self._parallel,
                on_progress=on_progress,
            )
            self._transport.call("POST", f"{path}/base/seal")
            _begin_check(on_progress)
        ready = poll(
            lambda: self._project(project),
            lambda seen: seen.state in {"ready", "rejected"},
            what=f"the check of {project}",
            deadline=Deadline(timeout),
            sleep=self._sleep,
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

    def policy(self, project: str, version: int | None = None) -> PolicyVersion:
        """Return a version of a project's policy; the current one by default."""
        found = self.project(project)
        number = version or found.policy.version
        return PolicyVersion.parse(self._transport.call("GET", f"v1/projects/{found.id}/policies/{number}"))

    def set_policy(self, project: str, policy: Policy) -> PolicyVersion:
        """Publish the next version of a project's policy; every participant has to accept it anew."""
        found = self.project(project)
        if found.policy.digest == policy.content_digest():
            return self.policy(found.id)
        path = f"v1/projects/{found.id}/policies/{found.policy.version + 1}"
        return PolicyVersion.parse(self._transport.call("PUT", path, json=policy.model_dump(mode="json")))

    def accept_policy(self, project: str, digest: str) -> Acceptance:
        """Accept the project's current policy for the caller's organization, by its digest."""
        path = f"{self._path(project)}/acceptances/{named('digest', digest, DIGEST_PATTERN)}"
        return Acceptance.parse(self._transport.call("PUT", path))

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

    # --- contributions -----------------------------------------------------------------------------------------------

    def plan(
        self,
        project: str,
        *,
        model: StrPath,
        statistics: StrPath | None = None,
        fisher: StrPath | None = None,
        base: StrPath | None = None,
        labels: Sequence[int] | None = None,
    ) -> ContributionPlan:
        """Say what a push would send and what would stay, without sending anything."""
        return self._prepare(project, model, statistics, fisher, base, labels).plan

    def push(
        self,
        project: str,
        *,
        model: StrPath,
        statistics: StrPath | None = None,
        fisher: StrPath | None = None,
        confirm: Callable[[ContributionPlan], bool],
        base: StrPath | None = None,
        labels: Sequence[int] | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> ContributionDetail:
        """Send a fine-tuned model and its statistics; return the contribution once the server accepted it.

        Only what the project's policy allows is sent. A rerun sends only the parts that are missing.

        Args:
            project: the project.
            model: the fine-tuned `from_pretrained` folder.
            statistics: the statistics file, or None to contribute weights alone.
            fisher: the file of Fisher information, for projects that merge by it.
            confirm: shown what leaves and what stays; anything but True sends nothing.
            base: the base model's folder, to tell whether embeddings were tuned; default where it was pulled to.
            labels: the label ids that were trained, where these are not all: other rows of a shared head are left out.
            on_progress: told the bytes that were read, then sent.
            timeout: seconds to wait for the server's checks; None: as long as they take.

        Raises:
            NotConfirmedError: `confirm` did not return True.
            PolicyNotAcceptedError, PolicyViolationError: the policy.
            ArchitectureMismatchError, StatisticsMalformedError, FileUnreadableError: the model or the statistics.
            ContributionRejectedError: the server's checks refused it.
        """
        prepared = self._prepare(project, model, statistics, fisher, base, labels)
        if confirm(prepared.plan) is not True:
            msg = "nothing was sent: the contribution was not confirmed"
            raise NotConfirmedError(msg)
        package = prepared.package(on_progress)
        sent = pushing.send(self._transport, package, parallel=self._parallel, on_progress=on_progress)
        path = f"v1/projects/{prepared.project.id}/contributions/{sent.id}"
        if sent.state == "sealed":
            _begin_check(on_progress)
        checked = poll(
            lambda: ContributionDetail.parse(self._transport.call("GET", path)),
            lambda seen: seen.state not in {"open", "sealed"},
            what="the server's check of the contribution",
            deadline=Deadline(timeout),
            sleep=self._sleep,
        )
        return pushing.require_accepted_by_server(checked)

    def contributions(
        self, project: str, *, organization: str | None = None, state: str | None = None
    ) -> list[Contribution]:
        """List a project's contributions."""
        query = {"organization": organization, "state": state}
        return list(self._pages(f"{self._path(project)}/contributions", Page[Contribution], query))

    def withdraw(self, project: str, contribution: str) -> Contribution:
        """Withdraw a contribution, named by its id or by a unique beginning of it."""
        path = self._path(project)
        identifier = self._resolve_contribution(project, contribution)
        return Contribution.parse(self._transport.call("POST", f"{path}/contributions/{identifier}/withdraw"))

    # --- jobs --------------------------------------------------------------------------------------------------------

    def submit(self, project: str, recipe: Recipe, *, job: str | None = None) -> Job:
        """Submit a merge. The same id with the same recipe is the same job; without an id a new one is made up."""
        identifier = job or f"{recipe.merge_method}-{secrets.token_hex(3)}"
        body = JobCreate(recipe=recipe).model_dump(mode="json")
        return Job.parse(self._transport.call("PUT", self._job_path(project, identifier), json=body))

    def job(self, project: str, job: str) -> Job:
        """Return a job."""
        return Job.parse(self._transport.call("GET", self._job_path(project, job)))

    def jobs(self, project: str) -> list[Job]:
        """List a project's jobs."""
        return list(self._pages(f"{self._path(project)}/jobs", Page[Job]))

    def wait(
        self,
        project: str,
        job: str,
        *,
        on_progress: Callable[[Job], None] | None = None,
        timeout: float | None = None,
    ) -> Job:
        """Wait for a job's end and return it.

        Raises:
            JobFailedError: it failed.
            CancelledError: it was cancelled.
            UnavailableError: `timeout` seconds are over; the job goes on.
        """
        path = self._job_path(project, job)
        deadline = Deadline(timeout)
        return watch_job(self._transport, path, deadline=deadline, on_progress=on_progress, sleep=self._sleep)

    def logs(self, project: str, job: str) -> list[JobLogEntry]:
        """Return a job's history."""
        return list(self._pages(f"{self._job_path(project, job)}/log", Page[JobLogEntry]))

    def diagnostics(self, project: str, job: str) -> JobDiagnostics:
        """Return what a job tells of its layers, also while it runs; of distances, the caller's own by name."""
        return JobDiagnostics.parse(self._transport.call("GET", f"{self._job_path(project, job)}/diagnostics"))

    def cancel(self, project: str, job: str) -> Job:
        """Stop a job at its next task boundary; the coordinator's right."""
        return Job.parse(self._transport.call("POST", f"{self._job_path(project, job)}/cancel"))

    def retry(self, project: str, job: str) -> Job:
        """Begin a new attempt of a failed or cancelled job; the coordinator's right."""
        return Job.parse(self._transport.call("POST", f"{self._job_path(project, job)}/retry"))

    # --- models ------------------------------------------------------------------------------------------------------

    def models(self, project: str) -> list[Model]:
        """List a project's merged models."""
        return list(self._pages(f"{self._path(project)}/models", Page[Model]))

    def model(self, project: str, model: str) -> Model:
        """Return a merged model with its signed receipt."""
        return Model.parse(self._transport.call("GET", self._model_path(project, model)))

    def report(self, project: str, model: str) -> ModelReport:
        """Return what is known of a model: how it was made, its layers, and the complete evaluations of it."""
        found, diagnostics = self.model(project, model), self.diagnostics(project, model)
        about = [
            request
            for request in self.requests(project)
            if request.kind == "evaluate" and request.state == "complete" and model in request.models
        ]
        return ModelReport(found, diagnostics, tuple(reversed(about)))

    def pull(self, project: str, model: str, folder: StrPath, *, on_progress: OnProgress | None = None) -> Path:
        """Fetch a merged model into a new folder that `from_pretrained` loads; a rerun resumes.

        The folder appears only once the receipt's signature by the pinned key and every file's digest are verified.

        Raises:
            ReceiptInvalidError: the receipt is not signed by the pinned key, or speaks of another model.
            DigestMismatchError: bytes are not what the receipt says; they are removed.
            ConflictError: the folder holds something else.
        """
        trusted = {self.server_info().receipt_key: self.url}
        asked = self._resolve(project)
        found = self.model(asked, model)
        if (found.project, found.id) != (asked, model):
            msg = f"asked for {asked}/{model}, the server answered {found.project}/{found.id}"
            raise ReceiptInvalidError(msg)
        pulling.pull_model(self._transport, found, Path(folder), trusted_keys=trusted, on_progress=on_progress)
        return Path(folder)

    def delete_model(self, project: str, model: str) -> Model:
        """Delete a merged model's files; its receipt stays. The coordinator's right."""
        return Model.parse(self._transport.call("DELETE", self._model_path(project, model)))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _prepare(
        self,
        project: str,
        model: StrPath,
        statistics: StrPath | None,
        fisher: StrPath | None,
        base: StrPath | None,
        labels: Sequence[int] | None,
    ) -> pushing.Prepared:
        found = self.project(project)
        pushing.require_ready(found)
        return pushing.prepare(
            found,
            self.organization,
            self.base_manifest(found.id),
            self.policy(found.id).policy,
            model=Path(model),
            statistics=None if statistics is None else Path(statistics),
            base_folder=Path(base) if base is not None else self.home.base_folder(found.base),
            fisher=None if fisher is None else Path(fisher),
            labels=labels,
        )

    def _resolve_contribution(self, project: str, beginning: str) -> str:
        if len(beginning) == 64:  # noqa: PLR2004 - a whole digest
            return beginning
        mine = self.contributions(project, organization=self.organization)
        found = [contribution.id for contribution in mine if contribution.id.startswith(beginning)]
        if len(found) != 1:
            many = "no contribution" if not found else f"{len(found)} contributions"
            msg = f"{many} of yours begins with {beginning!r}; `gramfuse contribution list` shows the ids"
            raise NotFoundError(msg)
        return found[0]


def _begin_check(on_progress: OnProgress | None) -> None:
    if on_progress is not None:
        on_progress(Progress("check", 0, 0))
