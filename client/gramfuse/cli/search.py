"""Commands that look for the best merge: grid, random, greedy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from gramfuse.cli import output, session
from gramfuse.cli.arguments import ProjectArgument
from gramfuse.cli.jobs import choose_recipe
from gramfuse.cli.loops import DaysOption, describe_answers, seconds_of
from gramfuse.searching.judging import Averaging
from gramfuse.searching.results import SearchProgress, SearchResult, Trial
from gramfuse.searching.running import DEFAULT_MODELS_PER_REQUEST
from gramfuse.searching.strategies import GreedySearch, GridSearch, RandomSearch, Strategy
from gramfuse_shared import limits
from gramfuse_shared.contract.metrics import LOWER_IS_BETTER, MetricName
from gramfuse_shared.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

IdOption = Annotated[
    str, typer.Option("--id", help="What the names of its jobs and requests begin with. The same id again goes on.")
]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="The recipe that is varied, YAML or JSON.")]
MethodOption = Annotated[str | None, typer.Option("--method", help="Or a method, with default parameters.")]
MetricOption = Annotated[str, typer.Option("--metric", help=", ".join(get_args(MetricName)))]
AveragingOption = Annotated[
    str, typer.Option("--mean-over", help="organizations, which count alike, or their held-out examples.")
]
PerRequestOption = Annotated[
    int,
    typer.Option(
        "--models-per-request",
        min=1,
        max=limits.MAX_REQUEST_MODELS,
        help="Merges that everybody fetches and evaluates at once.",
    ),
]
KeepOption = Annotated[bool, typer.Option("--keep", help="Keep the models that were beaten; default: delete them.")]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Look for the merge that everybody's evaluations find best. Open projects only: each trial tells more.",
)


@app.command()
def grid(
    project: ProjectArgument,
    identifier: IdOption,
    values: Annotated[
        list[str], typer.Option("--values", help="A parameter and its values: alpha=0.5,0.7,0.9; repeat it.")
    ],
    recipe: RecipeOption = None,
    method: MethodOption = None,
    metric: MetricOption = "f1",
    averaging: AveragingOption = "organizations",
    models_per_request: PerRequestOption = DEFAULT_MODELS_PER_REQUEST,
    days: DaysOption = 7.0,
    keep: KeepOption = False,
) -> None:
    """Try every combination of the given values (coordinator).

    Example: gramfuse search grid acme.tweets --id alphas --method regmean --values alpha=0.5,0.9 --values ridge=0,0.1
    """
    chosen = choose_recipe(recipe, method, None)
    strategy = GridSearch(chosen, {name: _numbers(text) for name, text in map(_named, values)})
    _search(project, strategy, identifier, metric, averaging, models_per_request, days, keep=keep)


@app.command()
def random(
    project: ProjectArgument,
    identifier: IdOption,
    count: Annotated[int, typer.Option("--count", min=1, help="How many merges are tried.")],
    seed: Annotated[int, typer.Option("--seed", help="The same seed tries the same.")] = 0,
    ranges: Annotated[
        list[str] | None, typer.Option("--range", help="A parameter and its ends: alpha=0.5,1; repeat it.")
    ] = None,
    same_weights: Annotated[
        bool, typer.Option("--same-weights", help="Leave the weights; default: draw them, adding up to 1.")
    ] = False,
    recipe: RecipeOption = None,
    method: MethodOption = None,
    metric: MetricOption = "f1",
    averaging: AveragingOption = "organizations",
    models_per_request: PerRequestOption = DEFAULT_MODELS_PER_REQUEST,
    days: DaysOption = 7.0,
    keep: KeepOption = False,
) -> None:
    """Try weights of organizations, and parameters, that chance draws (coordinator).

    Example: gramfuse search random acme.tweets --id draws --method regmean --count 16 --range alpha=0.5,1
    """
    chosen = choose_recipe(recipe, method, None)
    ends = {name: _ends(text) for name, text in map(_named, ranges or ())}
    strategy = RandomSearch(chosen, count, seed=seed, ranges=ends, weights=not same_weights)
    _search(project, strategy, identifier, metric, averaging, models_per_request, days, keep=keep)


@app.command()
def greedy(
    project: ProjectArgument,
    identifier: IdOption,
    start: Annotated[
        list[str] | None,
        typer.Option("--start", help="An organization to begin with; repeat it. Default: the best smallest cohort."),
    ] = None,
    at_most: Annotated[int | None, typer.Option("--at-most", min=2, help="Organizations at most.")] = None,
    recipe: RecipeOption = None,
    method: MethodOption = None,
    metric: MetricOption = "f1",
    averaging: AveragingOption = "organizations",
    models_per_request: PerRequestOption = DEFAULT_MODELS_PER_REQUEST,
    days: DaysOption = 7.0,
    keep: KeepOption = False,
) -> None:
    """Begin with the best small cohort and add whoever helps most, until nobody does (coordinator).

    Example: gramfuse search greedy acme.tweets --id subset --method regmean
    """
    strategy = GreedySearch(choose_recipe(recipe, method, None), start=tuple(start or ()), at_most=at_most)
    _search(project, strategy, identifier, metric, averaging, models_per_request, days, keep=keep)


def _search(
    project: str,
    strategy: Strategy,
    identifier: str,
    metric: str,
    averaging: str,
    models_per_request: int,
    days: float,
    *,
    keep: bool,
) -> None:
    from gramfuse.cli.loops import shown_loop  # noqa: PLC0415 - only where this command runs

    for option, value, known in (
        ("--metric", metric, get_args(MetricName)),
        ("--mean-over", averaging, get_args(Averaging)),
    ):
        if value not in known:
            msg = f"{option} is {value!r}; it is one of {', '.join(known)}"
            raise ConfigurationError(msg)
    with session.open_client() as client, shown_loop(project, "Searching") as shown:
        result = client.search(
            project,
            strategy,
            name=identifier,
            metric=cast("MetricName", metric),
            averaging=cast("Averaging", averaging),
            models_per_request=models_per_request,
            seconds=seconds_of(days),
            keep=keep,
            on_request=shown.wait_for,
            on_known=shown.known.append,
            on_progress=lambda seen: shown.show(seen.judged / seen.proposed, _describe(seen), seen.request),
        )
    output.show(result.to_json(), lambda console: _render(result, console))


def _render(result: SearchResult, console: "Console") -> None:
    names = sorted({name for trial in result.trials for name in trial.by_organization})
    better = sorted(result.trials, key=lambda trial: trial.value if result.metric in LOWER_IS_BETTER else -trial.value)
    rows = [_row(trial, names) for trial in better]
    columns = ("job", "tried", "mean", *names)
    output.table(columns, rows, right=range(2, len(columns)))(console)
    console.print()
    best = f"the best {result.metric.replace('_', ' ')} has {result.best.job} ({result.best.words})"
    console.print(f"{best}; it was chosen on these texts, so judge it on others", markup=False)


def _row(trial: Trial, names: list[str]) -> tuple[str, ...]:
    values = (f"{trial.by_organization[name]:.4f}" for name in names)
    return (trial.job, trial.words, f"{trial.value:.4f}", *values)


def _describe(progress: SearchProgress) -> str:
    words = f"round {progress.round} · {progress.judged} of {progress.proposed} judged"
    if progress.request is not None:
        return f"{words} · {describe_answers(progress.request)}"
    return f"{words} · merging {progress.job.id}" if progress.job is not None else words


def _named(text: str) -> tuple[str, str]:
    name, separator, rest = text.partition("=")
    if not separator or not name or not rest:
        msg = f"{text!r} does not name a parameter and its values; write alpha=0.5,0.9"
        raise ConfigurationError(msg)
    return name.strip(), rest


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        msg = f"{text!r} is not a list of numbers; write 0.5,0.7,0.9"
        raise ConfigurationError(msg) from error


def _ends(text: str) -> tuple[float, float]:
    numbers = _numbers(text)
    if len(numbers) != 2 or numbers[0] > numbers[1]:  # noqa: PLR2004 - a range has two ends
        msg = f"{text!r} is not a range; write its least and its largest value, 0.5,1"
        raise ConfigurationError(msg)
    return numbers[0], numbers[1]
