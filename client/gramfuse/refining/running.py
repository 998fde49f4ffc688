"""Runs the steps of a refinement: ask, wait for everybody, merge, go on with the new model. A rerun resumes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gramfuse.connection import named
from gramfuse.refining.blocks import plan_blocks
from gramfuse.refining.planning import Step, plan_steps, recipe_of_step
from gramfuse_shared.contract.http_api import Job
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import MeasuredBlock, RequestCreate, RequestInfo, require_request_allowed
from gramfuse_shared.errors import ConfigurationError, ConflictError, NotFoundError
from gramfuse_shared.identifiers import JOB_PATTERN

if TYPE_CHECKING:
    from gramfuse.participation import Client

_ENDED_BADLY: Final = frozenset({"failed", "cancelled"})
_LONGEST_SUFFIX: Final = "-999-retry-99"


@dataclass(frozen=True, slots=True)
class RefinementProgress:
    """How far a refinement is: its step, with the request while that is open, and with the job once there is one."""

    step: Step
    request: RequestInfo | None = None
    job: Job | None = None

    @property
    def share(self) -> float:
        """How much of all steps is done, from 0 to 1: the answers are one half of a step, the merge the other."""
        within = 0.0
        if self.request is not None and self.request.asked:
            answered = sum(place.state == "accepted" for place in self.request.asked)
            within = answered / len(self.request.asked) / 2
        if self.job is not None:
            within = 0.5 + self.job.progress / 2
        return (self.step.number - 1 + within) / self.step.total


@dataclass(frozen=True, slots=True)
class Refinement:
    """What is to be done, and how; see `Client.refine`."""

    client: "Client"
    project: str
    model: str
    result: str
    blocks_at_once: int | None
    block: MeasuredBlock
    alpha: float | None
    seconds: int
    keep: bool
    on_request: Callable[[RequestInfo], None]
    on_progress: Callable[[RefinementProgress], None]

    def run(self) -> Job:
        """Carry out what is not done yet, and return the last job.

        Raises:
            GramfuseError: see `Client.refine`.
        """
        named("job", self.result + _LONGEST_SUFFIX, JOB_PATTERN)
        steps = self._plan()
        first = self.client.job(self.project, self.model).recipe
        job = None
        for step in steps:
            request = self._measure(step)
            job = self._merge(step, recipe_of_step(step, request, first, alpha=self.alpha))
            if step.number > 1 and not self.keep:
                self.client.delete_model(self.project, step.origin)  # behind the job that read it
        if job is None:  # pragma: no cover - a plan has a step
            msg = "a refinement without steps"
            raise AssertionError(msg)
        return job

    def _plan(self) -> tuple[Step, ...]:
        policy = self.client.policy(self.project).policy
        require_request_allowed(RequestCreate(kind="gram", models=(self.model,)), policy)
        blocks = plan_blocks(self.client.base_manifest(self.project), policy)
        return plan_steps(self.model, self.result, blocks, at_once=self.blocks_at_once)

    def _measure(self, step: Step) -> str:
        """See to it that everybody has measured; return the id of the request that is complete."""
        request = self._find_or_ask(step)
        if request.state == "open":
            self.on_request(request)
            request = self.client.wait_for_request(
                self.project, request.id, on_progress=lambda seen: self.on_progress(RefinementProgress(step, seen))
            )
        return request.id

    def _find_or_ask(self, step: Step) -> RequestInfo:
        for name in step.request_names():
            try:
                found = self.client.request(self.project, name)
            except NotFoundError:
                return self.client.ask(
                    self.project,
                    "gram",
                    step.origin,
                    layers=step.layers,
                    block=self.block,
                    seconds=self.seconds,
                    request=name,
                )
            if (found.kind, found.models, found.layers, found.block) != (
                "gram",
                (step.origin,),
                step.layers,
                self.block,
            ):
                msg = f"request {name} asks something else than this refinement would; choose another id for the result"
                raise ConflictError(msg)
            if found.state not in _ENDED_BADLY:
                return found
        msg = "names of requests do not end"  # pragma: no cover
        raise AssertionError(msg)  # pragma: no cover

    def _merge(self, step: Step, recipe: Recipe) -> Job:
        job = self.client.submit(self.project, recipe, job=step.job)
        if job.state in _ENDED_BADLY:
            self.client.retry(self.project, step.job)
        return self.client.wait(
            self.project, step.job, on_progress=lambda seen: self.on_progress(RefinementProgress(step, job=seen))
        )


def measured_block(block: MeasuredBlock | None, blocks_at_once: int | None) -> MeasuredBlock:
    """Return whose weights a measured block has: by default its organization's, but of all blocks at once the merged.

    Raises:
        ConfigurationError: all blocks are to be measured at once, each with the organization's own weights.
    """
    if blocks_at_once is None:
        if block == "own":
            msg = "with all blocks its own the model would be the organization's alone; measure fewer blocks at once"
            raise ConfigurationError(msg)
        return "merged"
    return block or "own"
