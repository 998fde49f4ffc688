"""Commands about requests: create, list, show, wait, cancel."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from gramfuse.cli import output, session
from gramfuse.cli.projects import ProjectArgument
from gramfuse.refining.planning import RefiningMethod
from gramfuse.refining.running import RefinementProgress
from gramfuse_shared.contract.manifest import Weighting
from gramfuse_shared.contract.metrics import MetricName
from gramfuse_shared.contract.policy import RequestKind
from gramfuse_shared.contract.requests import DAY_SECONDS, MeasuredBlock, RequestInfo
from gramfuse_shared.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

RequestArgument = Annotated[str, typer.Argument(metavar="REQUEST", help="The request's id.")]

WeightingOption = Annotated[
    Weighting, typer.Option(help="Of gram: output_gradient counts a row by the loss's gradient at its layer's output.")
]
DaysOption = Annotated[float, typer.Option("--days", min=0.001, max=365, help="Until the deadline of a request.")]

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Ask participants to evaluate or measure merged models."
)


@app.command()
def create(
    project: ProjectArgument,
    kind: Annotated[str, typer.Argument(metavar="KIND", help=", ".join(get_args(RequestKind)))],
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="Merged models; one, except for evaluate.")],
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Of gram and refit: a linear weight; repeat it. Default: all.")
    ] = None,
    block: Annotated[
        str | None,
        typer.Option(
            "--block",
            help="Of gram with --layer: own measures with each organization's own blocks in the merged model.",
        ),
    ] = None,
    weighting: WeightingOption = "none",
    days: DaysOption = 7.0,
    identifier: Annotated[
        str | None, typer.Option("--id", help="The request's id: the same id again is the same request.")
    ] = None,
    wait_: Annotated[bool, typer.Option("--wait", help="Wait until everybody has answered.")] = False,
) -> None:
    """Ask every organization whose contribution is in the models (coordinator). Each answers by `gramfuse participate`.

    evaluate: metrics on held-out texts · gram: Gram matrices of layers · head: what the model's head is refit from ·
    refit: what its linear layers are refit from · calibration: how its scores are spread, by label. With the last
    four's answers `job submit --anew` merges the model anew.

    Examples: gramfuse request create acme.tweets evaluate regmean-1 average-1 --id eval-1 --wait · gramfuse request
    create acme.tweets gram regmean-1 --layer encoder.layer.0.output.dense.weight · gramfuse request create acme.tweets
    head regmean-1 --id head-1
    """
    if kind not in get_args(RequestKind):
        msg = f"{kind!r} is no kind of request; there are {', '.join(get_args(RequestKind))}"
        raise ConfigurationError(msg)
    chosen = _chosen_block(block) or "merged"
    with session.open_client() as client:
        made = client.ask(
            project,
            cast("RequestKind", kind),
            models,
            layers=layer or (),
            block=chosen,
            weighting=weighting,
            seconds=seconds_of(days),
            request=identifier,
        )
    _show(_wait(project, made.id, None) if wait_ else made)


@app.command(name="list")
def list_(project: ProjectArgument) -> None:
    """List a project's requests.

    Example: gramfuse request list acme.tweets
    """
    with session.open_client() as client:
        requests = client.requests(project)
    rows = [
        (
            request.id,
            request.kind,
            ", ".join(request.models),
            request.state,
            f"{_answered(request)} of {len(request.asked)}",
            f"{request.deadline:%Y-%m-%d %H:%M}",
        )
        for request in requests
    ]
    output.show(requests, output.table(("request", "kind", "models", "state", "answers", "deadline"), rows))


@app.command()
def show(project: ProjectArgument, request: RequestArgument) -> None:
    """Show a request: who has answered, and of an evaluation everybody's metrics.

    Example: gramfuse request show acme.tweets eval-1
    """
    with session.open_client() as client:
        _show(client.request(project, request))


@app.command()
def wait(
    project: ProjectArgument,
    request: RequestArgument,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds to wait at most.")] = None,
) -> None:
    """Wait until a request is complete; exits 5 if it failed or was taken back.

    Example: gramfuse request wait acme.tweets eval-1
    """
    _show(_wait(project, request, timeout))


@app.command()
def cancel(project: ProjectArgument, request: RequestArgument) -> None:
    """Take a request back (coordinator).

    Example: gramfuse request cancel acme.tweets eval-1
    """
    with session.open_client() as client:
        _show(client.cancel_request(project, request))


@app.command()
def refine(
    project: ProjectArgument,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The merged model to begin with.")],
    identifier: Annotated[
        str | None, typer.Option("--id", help="The new model's id; default: MODEL-refined. The same id again goes on.")
    ] = None,
    blocks_at_once: Annotated[int, typer.Option("--blocks-at-once", min=1, help="Blocks per step.")] = 1,
    all_at_once: Annotated[
        bool, typer.Option("--all-at-once", help="One step for all layers: an iteration of RegMean, not RegMean++.")
    ] = False,
    block: Annotated[
        str | None,
        typer.Option(
            "--block", help="own or merged: whose weights a block has while it is measured. Default: own, as published."
        ),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", min=0, max=1, help="Of the merges; default: as MODEL was merged.")
    ] = None,
    weighting: WeightingOption = "none",
    method: Annotated[
        RefiningMethod, typer.Option(help="refit: fit the layers to what everybody's own give, group by group.")
    ] = "regmean",
    ridge: Annotated[float | None, typer.Option("--ridge", min=0, help="Of --method refit; default 0.01.")] = None,
    days: DaysOption = 7.0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the models in between; default: delete them.")] = False,
) -> None:
    """Merge a model anew block by block (RegMean++, coordinator): ask everybody to measure, merge, go on.

    Participants answer best by `gramfuse participate --watch`. Ctrl-C leaves the open request open; the same command
    again goes on where it was, asks anew what failed, and retries a job that did.

    With --method refit each step fits a group of layers to what everybody's own give, in forward order, four groups a
    block.

    Examples: gramfuse request refine acme.tweets regmean-1 --id regmean-pp · gramfuse request refine acme.tweets
    regmean-1 --method refit --id regmean-refit
    """
    from gramfuse.cli.loops import shown_loop  # noqa: PLC0415 - only where this command runs

    with session.open_client() as client, shown_loop(project, "Refining") as shown:
        job = client.refine(
            project,
            model,
            result=identifier,
            blocks_at_once=None if all_at_once else blocks_at_once,
            block=_chosen_block(block),
            weighting=weighting,
            alpha=alpha,
            method=method,
            ridge=ridge,
            seconds=seconds_of(days),
            keep=keep,
            on_request=shown.wait_for,
            on_progress=lambda seen: shown.show(seen.share, _describe_refinement(seen), seen.request),
        )
    rows = [
        ("model", job.id),
        ("begun with", model),
        ("organizations", ", ".join(member.organization for member in job.cohort)),
    ]
    output.show(job, output.table(("", ""), rows))


def _describe_refinement(progress: RefinementProgress) -> str:
    step = f"step {progress.step.number} of {progress.step.total}"
    if progress.request is not None:
        return f"{step} · {describe_answers(progress.request)}"
    return f"{step} · merging" if progress.job is not None else step


def _chosen_block(block: str | None) -> MeasuredBlock | None:
    if block is not None and block not in get_args(MeasuredBlock):
        msg = f"--block is {block!r}; it is one of {', '.join(get_args(MeasuredBlock))}"
        raise ConfigurationError(msg)
    return cast("MeasuredBlock | None", block)


def seconds_of(days: float) -> int:
    """Return the seconds until a deadline that is given in days."""
    return max(60, round(days * DAY_SECONDS))


def _wait(project: str, request: str, timeout: float | None) -> RequestInfo:
    told: set[str] = set()

    def tell(seen: RequestInfo) -> None:
        for place in seen.asked:
            if place.state == "accepted" and place.organization not in told:
                told.add(place.organization)
                output.note(f"{place.organization} has answered ({_answered(seen)} of {len(seen.asked)})")

    with session.open_client() as client:
        return client.wait_for_request(project, request, on_progress=tell, timeout=timeout)


def describe_answers(request: RequestInfo) -> str:
    """Write how many have answered."""
    return f"{_answered(request)} of {len(request.asked)} have answered"


def _answered(request: RequestInfo) -> int:
    return sum(place.state == "accepted" for place in request.asked)


def _show(request: RequestInfo) -> None:
    output.show(request, lambda console: _render(request, console))


def _render(request: RequestInfo, console: "Console") -> None:
    state = request.state + (f": {request.reason}" if request.reason else "")
    facts = [
        ("request", f"{request.id} ({request.kind} of {', '.join(request.models)})"),
        ("state", state),
        ("deadline", f"{request.deadline:%Y-%m-%d %H:%M} UTC"),
    ]
    output.table(("", ""), facts)(console)
    columns, rows = _scores(request) if request.kind == "evaluate" else _places(request)
    console.print()
    output.table(columns, rows, right=range(1, len(columns)) if request.kind == "evaluate" else ())(console)


def _places(request: RequestInfo) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    return ("organization", "answer", ""), [
        (place.organization, place.state, place.reason or "") for place in request.asked
    ]


def _scores(request: RequestInfo) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Make a row of each organization: the main metric of its own model and of each merged one, and their mean."""
    columns: list[tuple[str, Callable[[str | None], bool]]] = [("own model", lambda model: model is None)]
    columns += [(name, lambda model, name=name: model == name) for name in request.models]  # type: ignore[misc] # bound by the default
    rows: list[tuple[str, ...]] = []
    values: list[list[float]] = [[] for _ in columns]
    metric = _main_metric(request)
    for place in request.asked:
        cells = []
        for number, (_, is_meant) in enumerate(columns):
            found = [
                score.metrics[metric] for score in place.scores if is_meant(score.model) and metric in score.metrics
            ]
            values[number] += found
            cells.append(f"{found[0]:.4f}" if found else "–" if place.scores else place.state)
        rows.append((place.organization, *cells))
    complete = [len(column) == len(request.asked) for column in values]
    means = [f"{sum(column) / len(column):.4f}" if full else "–" for column, full in zip(values, complete, strict=True)]
    return (metric.replace("_", " "), *(name for name, _ in columns)), [*rows, ("mean", *means)]


def _main_metric(request: RequestInfo) -> MetricName:
    metrics = [score.metrics for place in request.asked for score in place.scores]
    return "f1" if any("f1" in found for found in metrics) else "loss"
