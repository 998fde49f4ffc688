"""Loops of requests and jobs in the SDK: a coordinator's calls that last as long as everybody takes to answer."""

from collections.abc import Callable

from gramfuse.contributions import Contributions
from gramfuse.merges import Merges
from gramfuse.refining.planning import RefiningMethod
from gramfuse.refining.running import Refinement, RefinementProgress, measured_block, require_options_of_method
from gramfuse.searching.judging import Averaging
from gramfuse.searching.results import SearchProgress, SearchResult
from gramfuse.searching.running import DEFAULT_MODELS_PER_REQUEST, Search
from gramfuse.searching.strategies import Strategy
from gramfuse.securing.summing import Summation, SumProgress
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import Job
from gramfuse_shared.contract.manifest import Weighting
from gramfuse_shared.contract.metrics import MetricName
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.requests import DEFAULT_SECONDS, MeasuredBlock, RequestInfo
from gramfuse_shared.errors import ConfigurationError


class Loops(Contributions, Merges):
    """What a connection can do over many requests and jobs. Running a loop again resumes it."""

    def refine(
        self,
        project: str,
        model: str,
        *,
        result: str | None = None,
        blocks_at_once: int | None = 1,
        block: MeasuredBlock | None = None,
        weighting: Weighting = "none",
        alpha: float | None = None,
        method: RefiningMethod = "regmean",
        ridge: float | None = None,
        seconds: int = DEFAULT_SECONDS,
        keep: bool = False,
        on_request: Callable[[RequestInfo], None] = lambda _: None,
        on_progress: Callable[[RefinementProgress], None] = lambda _: None,
        on_known: Callable[[str], None] = lambda _: None,
    ) -> Job:
        """Merge a model anew block by block, each with Gram matrices of the model merged so far (RegMean++).

        Or, by the method `refit`, fit its layers to what everybody's own give, group by group in forward order: in each
        block queries with keys and values, the attention's output, up, down.

        A loop of requests to everybody and of jobs with their answers. All names follow from `result`, so the same call
        after an interruption goes on where it was: it asks anew what failed, and retries a job that did.

        Args:
            project: the project.
            model: the merged model to begin with.
            result: the id of the model that comes out; default `<model>-refined`. Models in between are `<result>-1` …
            blocks_at_once: of `regmean`, blocks per step; None: all layers in one, an iteration of RegMean.
            block: whose weights a measured block has: `own`, as published and by default, or `merged`, by default of
                all at once.
            weighting: what a row of the matrices counts by.
            method: `regmean`, or `refit`, which has of the parameters here the `ridge` alone.
            ridge: of `refit`; default 0.01.
            alpha: of the merges; by default, and all other parameters always, as in the model's own recipe.
            seconds: until the deadline of each request.
            keep: leave the models in between; by default each is deleted behind the job that read it.
            on_request: told each open request before it is waited for. Where one program holds everybody's clients, let
                them answer in it.
            on_progress: told how far it is.
            on_known: told each merge that was there already and is not made anew.

        Raises:
            PolicyViolationError: the policy does not let participants be asked.
            ConfigurationError: a parameter is the other method's.
            ArchitectureMismatchError: the model has no numbered blocks.
            RequestFailedError, CancelledError, JobFailedError: a request or a job ended; the same call tries it anew.
            ConflictError: `result` stands for something else.
        """
        require_options_of_method(
            method, blocks_at_once=blocks_at_once, block=block, weighting=weighting, alpha=alpha, ridge=ridge
        )
        return Refinement(
            client=self,
            project=project,
            model=model,
            result=result or f"{model}-refined",
            blocks_at_once=blocks_at_once,
            block="merged" if method == "refit" else measured_block(block, blocks_at_once),
            method=method,
            ridge=ridge,
            weighting=weighting,
            alpha=alpha,
            seconds=seconds,
            keep=keep,
            on_request=on_request,
            on_progress=on_progress,
            on_known=on_known,
        ).run()

    def sum(
        self,
        project: str,
        recipe: Recipe,
        *,
        result: str,
        seconds: int = DEFAULT_SECONDS,
        on_request: Callable[[RequestInfo], None] = lambda _: None,
        on_progress: Callable[[SumProgress], None] = lambda _: None,
        on_known: Callable[[str], None] = lambda _: None,
    ) -> Job:
        """Merge contributions of which the server sees their sum alone, where the policy says `aggregation: secure`.

        Five requests, one after the other, to everybody whose contribution counts, and the job that merges the sum; of
        a head or of biases a sixth stands before them, in which everybody announces its answer. All names follow from
        `result`, so the same call after an interruption goes on where it was; a stage that somebody missed is asked
        anew, and whoever spoke in it says the same again.

        Args:
            project: the project.
            recipe: `linear`, `regmean` or `fisher`, with organizations as models, or none for all; or `head` or
                `calibration` with a merged model as `base_model`, and as `request` the one to which answers are
                announced, which is made where there is none.
            result: the id of the model that comes out.
            seconds: until the deadline of each stage.
            on_request: told each open request before it is waited for, as `refine` does.
            on_progress: told how far it is.
            on_known: told each merge that was there already, as `refine` does.

        Raises:
            PolicyViolationError, CohortFrozenError: the policy does not sum in secret, or not this.
            RecipeInvalidError: what the recipe merges cannot be summed.
            RequestFailedError, CancelledError, JobFailedError: a stage or the job ended; the same call tries it anew.
            ConflictError: `result` stands for something else.
        """
        return Summation(
            client=self,
            project=project,
            recipe=recipe,
            result=result,
            seconds=seconds,
            on_request=on_request,
            on_progress=on_progress,
            on_known=on_known,
        ).run()

    def search(
        self,
        project: str,
        strategy: Strategy,
        *,
        name: str,
        metric: MetricName = "f1",
        averaging: Averaging = "organizations",
        models_per_request: int = DEFAULT_MODELS_PER_REQUEST,
        seconds: int = DEFAULT_SECONDS,
        keep: bool = False,
        on_request: Callable[[RequestInfo], None] = lambda _: None,
        on_progress: Callable[[SearchProgress], None] = lambda _: None,
        on_known: Callable[[str], None] = lambda _: None,
    ) -> SearchResult:
        """Look for the merge that everybody's evaluations find best, in an open project.

        A loop of jobs and of `evaluate` requests about them. All names begin with `name`, so the same call after an
        interruption goes on where it was; what was judged before under that name is not judged again.

        Args:
            project: the project.
            strategy: what is tried: a `GridSearch`, `RandomSearch` or `GreedySearch`.
            name: what the names of jobs and requests begin with.
            metric: what is compared; the largest is the best, of `loss` and `perplexity` the smallest.
            averaging: `organizations` all count alike, or by their held-out `examples`.
            models_per_request: merges that everybody evaluates at once; each is a model on their disks.
            seconds: until the deadline of each request.
            keep: leave the models that were beaten; by default they are deleted.
            on_request: told each open request before it is waited for, as `refine` does.
            on_progress: told how far it is.
            on_known: told each merge that was there already, as `refine` does.

        Raises:
            PolicyViolationError: the project is not open, or the policy allows no evaluations or not the method.
            RecipeInvalidError: the strategy proposes what cannot be merged.
            ConfigurationError: the evaluations do not have the metric.
            RequestFailedError, CancelledError, JobFailedError: a request or a job ended; the same call tries it anew.
        """
        if not 1 <= models_per_request <= limits.MAX_REQUEST_MODELS:
            msg = f"models_per_request is {models_per_request}; it is from 1 to {limits.MAX_REQUEST_MODELS}"
            raise ConfigurationError(msg)
        return Search(
            client=self,
            project=project,
            strategy=strategy,
            name=name,
            metric=metric,
            averaging=averaging,
            models_per_request=models_per_request,
            seconds=seconds,
            keep=keep,
            on_request=on_request,
            on_progress=on_progress,
            on_known=on_known,
        ).run()
