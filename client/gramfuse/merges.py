"""Merges in the SDK: the jobs that make them, and the models that come out."""

import secrets
from collections.abc import Callable
from pathlib import Path

from gramfuse import pinning
from gramfuse.model_report import ModelReport
from gramfuse.progress import OnProgress
from gramfuse.projects import StrPath
from gramfuse.rounds import Rounds
from gramfuse.transfer import pulling
from gramfuse.transfer.watching import Deadline, watch_job
from gramfuse.verification import require_statements
from gramfuse_shared.contract.diagnostics import JobDiagnostics
from gramfuse_shared.contract.http_api import Job, JobCreate, JobLogEntry, Model, Page, PolicyVersion, SubmittedJob
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.releases import explain_candidate
from gramfuse_shared.errors import ModelNotReleasedError, ReceiptInvalidError


class Merges(Rounds):
    """What a connection can do with jobs and models; what is known of a model includes what requests found."""

    # --- jobs --------------------------------------------------------------------------------------------------------

    def submit(self, project: str, recipe: Recipe, *, job: str | None = None) -> SubmittedJob:
        """Submit a merge. The same id with the same recipe is the same job; without an id a new one is made up.

        A job that was there already, `new` being false, merges what was there when it was submitted: its `outdated`
        names the organizations whose contribution is another one by now. For these, submit under another id.
        """
        identifier = job or f"{recipe.merge_method}-{secrets.token_hex(3)}"
        body = JobCreate(recipe=recipe).model_dump(mode="json")
        return SubmittedJob.parse(self._transport.call("PUT", self._job_path(project, identifier), json=body))

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
        return watch_job(
            self._transport,
            path,
            deadline=deadline,
            on_progress=on_progress,
            sleep=self._sleep,
            workers=self._workers(),
        )

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
        owner = self._project(self._resolve(project))
        rules = self._transport.call("GET", f"v1/projects/{owner.id}/policies/{owner.policy.version}")
        may_be_evaluated = "evaluate" in PolicyVersion.parse(rules).policy.requests
        return ModelReport(found, diagnostics, tuple(reversed(about)), may_be_evaluated=may_be_evaluated)

    def pull(
        self,
        project: str,
        model: str,
        folder: StrPath,
        *,
        to_answer: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Path:
        """Fetch a merged model into a new folder that `from_pretrained` loads; a rerun resumes.

        The folder appears only once the receipt's signature by the pinned key and every file's digest are verified.

        Args:
            project: the project.
            model: its id.
            folder: where it shall lie.
            to_answer: fetch a candidate, too, which the server hands out for answering an open request alone.
            on_progress: told the bytes that arrived.

        Raises:
            ModelNotReleasedError: the policy's release gate holds it back.
            ReceiptInvalidError: the receipt is not signed by the pinned key or one before it, or is another model's.
            DigestMismatchError: bytes are not what the receipt says; they are removed.
            ConflictError: the folder holds something else.
        """
        self.server_info()
        trusted = dict.fromkeys(pinning.keys_of(self.home, self.url), self.url)
        asked = self._resolve(project)
        found = self.model(asked, model)
        if (found.project, found.id) != (asked, model):
            msg = f"asked for {asked}/{model}, the server answered {found.project}/{found.id}"
            raise ReceiptInvalidError(msg)
        require_statements(found.receipt.receipt, self.home, self.url)
        if not to_answer:
            require_released(found)
        pulling.pull_model(self._transport, found, Path(folder), trusted_keys=trusted, on_progress=on_progress)
        return Path(folder)

    def delete_model(self, project: str, model: str) -> Model:
        """Delete a merged model's files; its receipt stays. The coordinator's right."""
        return Model.parse(self._transport.call("DELETE", self._model_path(project, model)))


def require_released(model: Model) -> None:
    """Require that no release gate holds a model back, as the server says.

    Raises:
        ModelNotReleasedError: it is a candidate.
    """
    if model.release is not None and model.release.state == "candidate":
        raise ModelNotReleasedError(explain_candidate(model.project, model.id, model.release))
