"""Commands about requests: create, list, show, wait, cancel."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from gramfuse.cli import output, session
from gramfuse.cli.arguments import ProjectArgument
from gramfuse.cli.loops import DaysOption, WeightingOption, chosen_block, count_answers, seconds_of
from gramfuse.cli.request_loops import refine, sum_command
from gramfuse_shared.contract.policy import RequestKind
from gramfuse_shared.contract.requests import RequestInfo
from gramfuse_shared.errors import ConfigurationError
from gramfuse_shared.reporting.evaluations import ScoreTable, score, score_tables

if TYPE_CHECKING:
    from rich.console import Console

    from gramfuse.participation import Client

RequestArgument = Annotated[str, typer.Argument(metavar="REQUEST", help="The request's id.")]


app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Ask participants to evaluate or measure merged models."
)
app.command()(refine)
app.command("sum")(sum_command)


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
    chosen = chosen_block(block) or "merged"
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
    _show(*(_wait(project, made.id, None) if wait_ else (made,)))


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
            f"{count_answers(request)} of {len(request.asked)}",
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
        seen = client.request(project, request)
        _show(seen, _releases(client, seen))


@app.command()
def wait(
    project: ProjectArgument,
    request: RequestArgument,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds to wait at most.")] = None,
) -> None:
    """Wait until a request is complete; exits 5 if it failed or was taken back.

    Example: gramfuse request wait acme.tweets eval-1
    """
    _show(*_wait(project, request, timeout))


@app.command()
def cancel(project: ProjectArgument, request: RequestArgument) -> None:
    """Take a request back (coordinator).

    Example: gramfuse request cancel acme.tweets eval-1
    """
    with session.open_client() as client:
        _show(client.cancel_request(project, request))


def _wait(project: str, request: str, timeout: float | None) -> tuple[RequestInfo, list[str]]:
    told: set[str] = set()

    def tell(seen: RequestInfo) -> None:
        for place in seen.asked:
            if place.state == "accepted" and place.organization not in told:
                told.add(place.organization)
                output.note(f"{place.organization} has answered ({count_answers(seen)} of {len(seen.asked)})")

    with session.open_client() as client:
        seen = client.wait_for_request(project, request, on_progress=tell, timeout=timeout)
        return seen, _releases(client, seen)


def _releases(client: "Client", request: RequestInfo) -> list[str]:
    """Say of each model of a complete evaluation how it stands to its policy's release gate, where that has one."""
    if request.kind != "evaluate" or request.state != "complete":
        return []
    told = []
    for model in request.models:
        release = client.model(request.project, model).release
        if release is not None and release.state == "released":
            told.append(f"{model} is released: {release.request} passed the policy's gate")
        elif release is not None:
            told.append(f"{model} stays a candidate: {release.reason}")
    return told


def _show(request: RequestInfo, releases: Sequence[str] = ()) -> None:
    output.show(request, lambda console: _render(request, releases, console))


def _render(request: RequestInfo, releases: Sequence[str], console: "Console") -> None:
    state = request.state + (f": {request.reason}" if request.reason else "")
    facts = [
        ("request", f"{request.id} ({_what(request)})"),
        ("state", state),
        ("deadline", f"{request.deadline:%Y-%m-%d %H:%M} UTC"),
    ]
    output.table(("", ""), facts)(console)
    tables = score_tables(request)
    for table in tables:
        columns = (table.title, *table.columns)
        console.print()
        output.table(columns, _scores(table, request), right=range(1, len(columns)))(console)
    if not tables:
        console.print()
        output.table(*_places(request))(console)
    for told in releases:
        console.print(told, markup=False)


def _what(request: RequestInfo) -> str:
    if request.session is None:
        return f"{request.kind} of {', '.join(request.models)}"
    return f"{request.kind}, a stage of the secure sum {request.session[:12]}"


def _places(request: RequestInfo) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    return ("organization", "answer", ""), [
        (place.organization, place.state, place.reason or "") for place in request.asked
    ]


def _scores(table: ScoreTable, request: RequestInfo) -> list[tuple[str, ...]]:
    """Make a row of each organization, and one of the means; who has not answered is told so."""
    silent = {place.organization: place.state for place in request.asked if not place.scores}
    rows = [
        (name, *([silent[name]] * len(values) if name in silent else [score(table.metric, value) for value in values]))
        for name, values in table.rows
    ]
    return [*rows, ("mean", *(score(table.metric, value) for value in table.means))]
