"""Commands about jobs: submit, wait, show, logs, cancel, retry, list."""

import json
from pathlib import Path
from typing import Annotated, Final, get_args

import typer

from gramfuse.cli import output, session
from gramfuse.cli.arguments import ProjectArgument
from gramfuse_shared.contract.http_api import Job, SubmittedJob
from gramfuse_shared.contract.policy import MergeMethod
from gramfuse_shared.contract.recipe import Recipe, parse_recipe
from gramfuse_shared.errors import ConfigurationError, RecipeInvalidError

_METHODS: Final = ", ".join(get_args(MergeMethod))

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Submit, watch, cancel and retry merges.")


@app.command()
def submit(
    project: ProjectArgument,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A recipe, YAML or JSON.")] = None,
    method: Annotated[str | None, typer.Option("--method", help=f"{_METHODS}, with default parameters.")] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="RegMean's alpha, 0 to 1; default 0.9.")] = None,
    anew: Annotated[
        str | None, typer.Option("--anew", metavar="MODEL", help="With --request: the merged model to merge anew.")
    ] = None,
    request: Annotated[
        str | None, typer.Option("--request", help="The request about that model whose answers are merged.")
    ] = None,
    identifier: Annotated[
        str | None, typer.Option("--id", help="The job's id: the same id again is the same job. Default: made up.")
    ] = None,
    wait_: Annotated[bool, typer.Option("--wait", help="Wait for its end.")] = False,
) -> None:
    """Submit a merge (coordinator).

    Examples: gramfuse job submit acme.tweets --method regmean --alpha 0.9 --id regmean-1 --wait · gramfuse job submit
    acme.tweets --recipe recipe.yaml · gramfuse job submit acme.tweets --method head --anew regmean-1 --request head-1
    """
    chosen = choose_recipe(recipe, method, alpha, anew=anew, request=request)
    with session.open_client() as client:
        submitted = client.submit(project, chosen, job=identifier)
    if not submitted.new:
        output.note(describe_known(submitted))
    if wait_:
        ended = _wait(project, submitted.id, None)
        submitted = SubmittedJob(**dict(ended), new=submitted.new, outdated=submitted.outdated)
    _show(submitted)


@app.command()
def wait(
    project: ProjectArgument,
    job: JobArgument,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds to wait at most.")] = None,
) -> None:
    """Wait for a job's end with a progress bar; exits 5 if it failed or was cancelled.

    Example: gramfuse job wait acme.tweets regmean-1
    """
    _show(_wait(project, job, timeout))


@app.command()
def show(project: ProjectArgument, job: JobArgument) -> None:
    """Show a job: state, progress, cohort.

    Example: gramfuse job show acme.tweets regmean-1
    """
    with session.open_client() as client:
        _show(client.job(project, job))


@app.command()
def logs(project: ProjectArgument, job: JobArgument) -> None:
    """Show a job's history.

    Example: gramfuse job logs acme.tweets regmean-1
    """
    with session.open_client() as client:
        entries = client.logs(project, job)
    rows = [(f"{entry.at:%Y-%m-%d %H:%M:%S}", str(entry.attempt), entry.message) for entry in entries]
    output.show(entries, output.table(("at", "attempt", "message"), rows, right=(1,)))


@app.command()
def report(project: ProjectArgument, job: JobArgument) -> None:
    """Show what a job tells of its layers: condition, gain over the average, distances, what went another way.

    Of distances you see your own organization's, and of the cohort the smallest, the median and the largest.

    Example: gramfuse job report acme.tweets regmean-1
    """
    from gramfuse.cli.layers import show_layers  # noqa: PLC0415 - only where this command runs

    with session.open_client() as client:
        found = client.diagnostics(project, job)
    output.show(found, lambda console: show_layers(found, console))


@app.command()
def cancel(project: ProjectArgument, job: JobArgument) -> None:
    """Stop a job within its shard (coordinator).

    Example: gramfuse job cancel acme.tweets regmean-1
    """
    with session.open_client() as client:
        _show(client.cancel(project, job))


@app.command()
def retry(project: ProjectArgument, job: JobArgument) -> None:
    """Begin a new attempt of a failed or cancelled job (coordinator).

    Example: gramfuse job retry acme.tweets regmean-1
    """
    with session.open_client() as client:
        _show(client.retry(project, job))


@app.command(name="list")
def list_(project: ProjectArgument) -> None:
    """List a project's jobs.

    Example: gramfuse job list acme.tweets
    """
    with session.open_client() as client:
        jobs = client.jobs(project)
    rows = [
        (
            job.id,
            job.recipe.merge_method,
            job.state,
            f"{job.progress:.0%}",
            str(job.attempt),
            f"{job.created_at:%Y-%m-%d %H:%M}",
        )
        for job in jobs
    ]
    columns = ("job", "method", "state", "progress", "attempt", "created")
    output.show(jobs, output.table(columns, rows, right=(3, 4)))


def choose_recipe(
    path: Path | None, method: str | None, alpha: float | None, *, anew: str | None = None, request: str | None = None
) -> Recipe:
    """Return the recipe of a file, or of a method's name, and of a model that is merged anew with a request's answers.

    Raises:
        ConfigurationError: both or neither are given, or of model and request only one.
        RecipeInvalidError: an unknown method, or values out of range.
    """
    if (path is None) == (method is None):
        msg = f"give either --recipe FILE or --method METHOD, one of {_METHODS}"
        raise ConfigurationError(msg)
    if (anew is None) != (request is None):
        msg = "a model is merged anew with the answers to a request about it: give both --anew MODEL and --request ID"
        raise ConfigurationError(msg)
    if path is not None:
        if anew is not None:
            msg = "--anew and --request go with --method; in a recipe they are base_model and request"
            raise ConfigurationError(msg)
        if alpha is not None:
            msg = "--alpha goes with --method; in a recipe it is parameters.alpha"
            raise ConfigurationError(msg)
        return parse_recipe(_read_text(path))
    lines = [f"merge_method: {method}"]
    if alpha is not None:
        lines.append(f"parameters: {{alpha: {alpha!r}}}")
    if anew is not None:
        lines += [f"base_model: {json.dumps(anew)}", f"request: {json.dumps(request)}"]
    return parse_recipe("\n".join(lines))


def describe_known(submitted: SubmittedJob) -> str:
    """Say that a job was there before it was submitted, of what, and what is another by now."""
    cohort = ", ".join(member.organization for member in submitted.cohort)
    known = f"job {submitted.id} is there already, submitted {submitted.created_at:%Y-%m-%d %H:%M:%S} UTC, of {cohort}"
    if not submitted.outdated:
        return f"{known}; nothing has changed since"
    changed = ", ".join(submitted.outdated)
    return (
        f"{known}. Since then contributions were added, replaced or withdrawn, or the policy changed ({changed}); this "
        "job holds the old ones: submit under another --id for a new merge"
    )


def _read_text(path: Path) -> str:
    from gramfuse.contributing.loading import read_document  # noqa: PLC0415 - only where a recipe is read

    try:
        return read_document(path).decode()
    except UnicodeDecodeError as error:
        msg = f"{path} is not text"
        raise RecipeInvalidError(msg) from error


def _wait(project: str, job: str, timeout: float | None) -> Job:
    from gramfuse.cli import bars  # noqa: PLC0415 - only where this command runs

    with session.open_client() as client, bars.job() as on_progress:
        return client.wait(project, job, on_progress=on_progress, timeout=timeout)


def _show(job: Job) -> None:
    from gramfuse.cli.bars import describe_job, describe_layers  # noqa: PLC0415 - only where this command runs

    rows = [
        ("job", f"{job.id} ({job.recipe.merge_method})"),
        ("state", describe_job(job)),
        ("progress", f"{job.progress:.0%}"),
        *([("layers", describe_layers(job, job.layers))] if job.layers else []),
        ("cohort", ", ".join(member.organization for member in job.cohort)),
    ]
    if job.error is not None:
        rows.append(("error", f"[{job.error.code}] {job.error.message}"))
    output.show(job, output.table(("", ""), rows))
