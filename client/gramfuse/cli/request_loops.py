"""`gramfuse request refine` and `request sum`: commands that last over several requests and jobs."""

from pathlib import Path
from typing import Annotated

import typer

from gramfuse.cli import output, session
from gramfuse.cli.arguments import ProjectArgument
from gramfuse.cli.jobs import choose_recipe
from gramfuse.cli.loops import DaysOption, WeightingOption, chosen_block, describe_answers, seconds_of, shown_loop
from gramfuse.naming import name_patterns
from gramfuse.refining.planning import RefiningMethod
from gramfuse.refining.running import RefinementProgress
from gramfuse.securing.summing import SumProgress
from gramfuse_shared.contract.policy import SUMMED_METHODS
from gramfuse_shared.contract.withholding import IN_SHORT

SUMMED = sorted(SUMMED_METHODS)


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

    Layers of which nothing may leave one of the organizations stay as they are; the end tells which, and whose.

    Examples: gramfuse request refine acme.tweets regmean-1 --id regmean-pp · gramfuse request refine acme.tweets
    regmean-1 --method refit --id regmean-refit
    """
    left: dict[int, str] = {}
    with session.open_client() as client, shown_loop(project, "Refining") as shown:

        def show(seen: RefinementProgress) -> None:
            if seen.left:
                left[seen.step.number] = _describe_left(seen)
            shown.show(seen.share, _describe_refinement(seen), seen.request)

        job = client.refine(
            project,
            model,
            result=identifier,
            blocks_at_once=None if all_at_once else blocks_at_once,
            block=chosen_block(block),
            weighting=weighting,
            alpha=alpha,
            method=method,
            ridge=ridge,
            seconds=seconds_of(days),
            keep=keep,
            on_request=shown.wait_for,
            on_known=shown.known.append,
            on_progress=show,
        )
    rows = [
        ("model", job.id),
        ("begun with", model),
        ("organizations", ", ".join(member.organization for member in job.cohort)),
        *(("left as it was", told) for told in left.values()),
    ]
    output.show(job, output.table(("", ""), rows))


def sum_command(
    project: ProjectArgument,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A recipe, YAML or JSON.")] = None,
    method: Annotated[
        str | None, typer.Option("--method", help=f"{', '.join(SUMMED)}, with default parameters.")
    ] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="RegMean's alpha, at most 0.95; default 0.9.")] = None,
    anew: Annotated[
        str | None, typer.Option("--anew", help="Of head and calibration: the merged model whose head is changed.")
    ] = None,
    identifier: Annotated[
        str, typer.Option("--id", help="The model's id; requests begin with it. The same id again goes on.")
    ] = "summed",
    days: DaysOption = 7.0,
) -> None:
    """Merge what the server sees the sum of alone (coordinator), where the policy says aggregation: secure.

    Five requests to everybody, one after the other, then the merge. Participants answer best by `gramfuse participate
    --watch`; each asks its person before it joins. Ctrl-C leaves the open request open; the same command again goes on
    where it was, and asks a stage anew that somebody missed.

    With --anew everybody is first asked to measure for the merged model's head, or its biases, and the sum is of that.

    Example: gramfuse request sum acme.tweets --method regmean --alpha 0.9 --id regmean-1
    Example: gramfuse request sum acme.tweets --method head --anew regmean-1 --id head-1
    """
    chosen = choose_recipe(recipe, method, alpha, anew=anew, request=None if anew is None else f"{identifier}-answers")
    with session.open_client() as client, shown_loop(project, "Summing") as shown:
        job = client.sum(
            project,
            chosen,
            result=identifier,
            seconds=seconds_of(days),
            on_request=shown.wait_for,
            on_known=shown.known.append,
            on_progress=lambda seen: shown.show(seen.share, _describe_sum(seen), seen.request),
        )
    rows = [
        ("model", job.id),
        ("merged by", job.recipe.merge_method),
        ("the sum of", ", ".join(member.organization for member in job.cohort)),
    ]
    output.show(job, output.table(("", ""), rows))


def _describe_sum(progress: SumProgress) -> str:
    if progress.stage is None and progress.request is None:
        return "merging"
    answered = "" if progress.request is None else f" · {describe_answers(progress.request)}"
    return f"{progress.stage or 'measuring'}{answered}"


def _describe_refinement(progress: RefinementProgress) -> str:
    step = f"step {progress.step.number} of {progress.step.total}"
    if progress.request is not None:
        return f"{step} · {describe_answers(progress.request)}"
    if progress.left and progress.job is None:
        return f"{step} · left as it was"
    return f"{step} · merging" if progress.job is not None else step


def _describe_left(progress: RefinementProgress) -> str:
    layers = ", ".join(name_patterns(progress.step.layers))
    whose = "; ".join(
        f"{organization}: {', '.join(IN_SHORT[reason] for reason in reasons)}"
        for organization, reasons in sorted(progress.left.items())
    )
    return f"{layers} ({whose})"
