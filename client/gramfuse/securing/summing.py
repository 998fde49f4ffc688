"""The coordinator's side of a secure sum: one stage after the other, then the job that merges what they came to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gramfuse.connection import named
from gramfuse.resuming import LONGEST_RETRY, find_or_ask, run_job, wait_for_answers
from gramfuse_shared.contract.http_api import Job
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import MERGED_BY, RequestCreate, RequestInfo
from gramfuse_shared.contract.secure import STAGES, Stage
from gramfuse_shared.errors import ConflictError
from gramfuse_shared.identifiers import JOB_PATTERN

if TYPE_CHECKING:
    from gramfuse.loops import Loops

_LONGEST_STAGE: Final = max((f"-{stage}" for stage in STAGES), key=len)


@dataclass(frozen=True, slots=True)
class SumProgress:
    """How far a sum is: in which stage, and who has answered; before the first, who announced an answer; or the job."""

    stage: Stage | None = None
    request: RequestInfo | None = None
    job: Job | None = None

    @property
    def share(self) -> float:
        """From 0 to 1: all stages and the job count alike."""
        parts = len(STAGES) + 1
        if self.stage is None and self.request is not None:
            return 0.0
        if self.stage is None:
            return (len(STAGES) + (self.job.progress if self.job is not None else 0.0)) / parts
        asked = () if self.request is None else self.request.asked
        answered = sum(place.state == "accepted" for place in asked)
        return (STAGES.index(self.stage) + answered / max(len(asked), 1)) / parts


@dataclass(frozen=True, slots=True)
class Summation:
    """A sum and the merge of it; see `Client.sum`."""

    client: "Loops"
    project: str
    recipe: Recipe
    result: str
    seconds: int
    on_request: Callable[[RequestInfo], None]
    on_progress: Callable[[SumProgress], None]
    on_known: Callable[[str], None]

    def run(self) -> Job:
        """Carry out what is not done yet, and return the job.

        Raises:
            GramfuseError: see `Client.sum`.
        """
        named("job", self.result + _LONGEST_STAGE + LONGEST_RETRY, JOB_PATTERN)
        summed = self._answered()
        before: str | None = None
        for stage in STAGES:
            before = self._ask(stage, before, summed)
        recipe = summed.model_copy(update={"request": before})
        return run_job(
            self.client,
            self.project,
            self.result,
            recipe,
            on_known=self.on_known,
            on_progress=lambda seen: self.on_progress(SumProgress(job=seen)),
        )

    def _answered(self) -> Recipe:
        """Return the recipe; where it is of answers, everybody has announced one to the request that it names."""
        if self.recipe.request is None or self.recipe.base_model is None:
            return self.recipe
        kind = next(kind for kind, method in MERGED_BY.items() if method == self.recipe.merge_method)
        body = RequestCreate(kind=kind, models=(self.recipe.base_model,), seconds=self.seconds)
        found = find_or_ask(self.client, self.project, self.recipe.request, body)
        answered = wait_for_answers(
            self.client,
            self.project,
            found,
            on_request=self.on_request,
            on_progress=lambda seen: self.on_progress(SumProgress(request=seen)),
        )
        return self.recipe.model_copy(update={"request": answered.id})

    def _ask(self, stage: Stage, before: str | None, summed: Recipe) -> str:
        """See to it that everybody has spoken in a stage; return its request."""
        recipe = summed if before is None else None
        body = RequestCreate(kind=stage, recipe=recipe, after=before, seconds=self.seconds)
        found = find_or_ask(self.client, self.project, f"{self.result}-{stage}", body)
        if recipe is not None and self.client.session(self.project, found.id).recipe != recipe:
            msg = f"request {found.id} sums by another recipe; choose another id"
            raise ConflictError(msg)
        return wait_for_answers(
            self.client,
            self.project,
            found,
            on_request=self.on_request,
            on_progress=lambda seen: self.on_progress(SumProgress(stage, seen)),
        ).id
