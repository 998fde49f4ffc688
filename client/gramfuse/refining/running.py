"""Runs the steps of a refinement: ask, wait for everybody, merge, go on with the new model. A rerun resumes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from gramfuse.connection import named
from gramfuse.refining.blocks import plan_blocks
from gramfuse.refining.groups import plan_groups
from gramfuse.refining.planning import RefiningMethod, Step, plan_steps, recipe_of_step
from gramfuse.resuming import LONGEST_RETRY, find_or_ask, run_job, wait_for_answers
from gramfuse_shared.contract.http_api import Job
from gramfuse_shared.contract.manifest import Weighting
from gramfuse_shared.contract.policy import RequestKind
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.refits import layers_that_may_be_refit
from gramfuse_shared.contract.requests import MeasuredBlock, RequestCreate, RequestInfo, require_request_allowed
from gramfuse_shared.contract.withholding import Withheld
from gramfuse_shared.errors import ConfigurationError, RequestFailedError
from gramfuse_shared.identifiers import JOB_PATTERN

if TYPE_CHECKING:
    from gramfuse.loops import Loops

_LONGEST_NUMBER: Final = "-999"


@dataclass(frozen=True, slots=True)
class RefinementProgress:
    """How far a refinement is: its step, with the request while that is open, and with the job once there is one.

    `left` says, by organization, why the step's layers stay as they are: nothing of them may leave somebody.
    """

    step: Step
    request: RequestInfo | None = None
    job: Job | None = None
    left: Mapping[str, Withheld] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """How much of all steps is done, from 0 to 1: the answers are one half of a step, the merge the other."""
        within = 1.0 if self.left else 0.0
        if self.request is not None and self.request.asked:
            answered = sum(place.state == "accepted" for place in self.request.asked)
            within = answered / len(self.request.asked) / 2
        if self.job is not None:
            within = 0.5 + self.job.progress / 2
        return (self.step.number - 1 + within) / self.step.total


@dataclass(frozen=True, slots=True)
class Refinement:
    """What is to be done, and how; see `Client.refine`."""

    client: "Loops"
    project: str
    model: str
    result: str
    blocks_at_once: int | None
    block: MeasuredBlock
    weighting: Weighting
    alpha: float | None
    seconds: int
    keep: bool
    method: RefiningMethod
    ridge: float | None
    on_request: Callable[[RequestInfo], None]
    on_progress: Callable[[RefinementProgress], None]
    on_known: Callable[[str], None]

    def run(self) -> Job:
        """Carry out what is not done yet, and return the last job.

        Raises:
            GramfuseError: see `Client.refine`.
        """
        named("job", self.result + _LONGEST_NUMBER + LONGEST_RETRY, JOB_PATTERN)
        steps = self._plan()
        first = self._first_recipe()
        job: Job | None = None
        withholding: set[str] = set()
        for planned in steps:
            step = replace(planned, origin=self.model if job is None else job.id)
            request = self._measure(step)
            left = {place.organization: place.withheld for place in request.asked if place.withheld}
            withholding |= left.keys()
            if left:
                self.on_progress(RefinementProgress(step, left=left))
            # the last step is merged all the same, so that the result bears its name
            if not left or (job is not None and step.number == step.total):
                job = self._merge(step, request, first, left)
        if job is None:
            msg = f"nothing of what was asked for may leave {', '.join(sorted(withholding))}; the model stays as it is"
            raise RequestFailedError(msg)
        return job

    def _merge(self, step: Step, request: RequestInfo, first: Recipe, left: Mapping[str, Withheld]) -> Job:
        """Merge the answers, and delete the model in between that was read for it."""
        recipe = recipe_of_step(step, request.id, first, method=self.method, alpha=self.alpha, ridge=self.ridge)
        job = run_job(
            self.client,
            self.project,
            step.job,
            recipe,
            on_known=self.on_known,
            on_progress=lambda seen: self.on_progress(RefinementProgress(step, job=seen, left=left)),
        )
        if step.origin != self.model and not self.keep:
            self.client.delete_model(self.project, step.origin)  # behind the job that read it
        return job

    def _plan(self) -> tuple[Step, ...]:
        policy = self.client.policy(self.project).policy
        require_request_allowed(self._kind, policy)
        base = self.client.base_manifest(self.project)
        blocks = plan_blocks(base, policy)
        if self.method == "refit":
            blocks = plan_groups(blocks, layers_that_may_be_refit(base, policy), policy)
        return plan_steps(self.model, self.result, blocks, at_once=self.blocks_at_once)

    @property
    def _kind(self) -> RequestKind:
        return "gram" if self.method == "regmean" else "refit"

    def _first_recipe(self) -> Recipe:
        """Return the recipe that the model was merged by, before its head or biases were refit."""
        recipe = self.client.job(self.project, self.model).recipe
        while recipe.merge_method != "regmean" and recipe.request is not None and recipe.base_model is not None:
            recipe = self.client.job(self.project, recipe.base_model).recipe
        return recipe

    def _measure(self, step: Step) -> RequestInfo:
        """See to it that everybody has measured; return the request that is complete."""
        body = RequestCreate(
            kind=self._kind,
            models=(step.origin,),
            layers=step.layers,
            block=self.block,
            weighting=self.weighting,
            seconds=self.seconds,
        )
        return wait_for_answers(
            self.client,
            self.project,
            find_or_ask(self.client, self.project, step.request, body),
            on_request=self.on_request,
            on_progress=lambda seen: self.on_progress(RefinementProgress(step, seen)),
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


def require_options_of_method(
    method: RefiningMethod,
    *,
    blocks_at_once: int | None,
    block: MeasuredBlock | None,
    weighting: Weighting,
    alpha: float | None,
    ridge: float | None,
) -> None:
    """Require that nothing was chosen that belongs to the other method.

    Raises:
        ConfigurationError: it was.
    """
    chosen = {
        "regmean": {"ridge": ridge is not None},
        "refit": {
            "blocks at once": blocks_at_once != 1,
            "block": block is not None,
            "weighting": weighting != "none",
            "alpha": alpha is not None,
        },
    }[method]
    other = [option for option, is_set in chosen.items() if is_set]
    if other:
        msg = f"a refinement by {method} has no {other[0]}; that is the other method's"
        raise ConfigurationError(msg)
