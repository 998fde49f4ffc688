"""Commands about contributions: push, list, withdraw."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gramfuse.auditing.telling import told_in_push
from gramfuse.cli import output, session
from gramfuse.cli.arguments import ProjectArgument
from gramfuse.cli.asking import is_confirmed, require_confirmed, tell_before_asking
from gramfuse.cli.auditing import AttacksOption, Effort, PublicOption, ThresholdsOption, chosen_auditing
from gramfuse.cli.measuring import DeviceOption, PairFieldOption, TextFieldOption, TokensOption
from gramfuse.extras import EXTRAS
from gramfuse.measuring.texts import Fields
from gramfuse_shared.contract.statistics_file import INT16_MOST_ALPHA
from gramfuse_shared.extras import requiring_extras
from gramfuse_shared.reporting.audits import audit_told
from gramfuse_shared.reporting.contributions import why_passed_over
from gramfuse_shared.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from gramfuse.auditing.report import AuditReport
    from gramfuse.contributing.plan import ContributionPlan

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Push, list and withdraw contributions.")


@app.command()
def push(
    project: ProjectArgument,
    model: Annotated[
        Path, typer.Option("--model", help="Your fine-tuned from_pretrained folder, or a PEFT LoRA adapter's.")
    ],
    statistics: Annotated[
        Path | None, typer.Option("--statistics", help="The statistics file of `gramfuse stats collect`.")
    ] = None,
    fisher: Annotated[
        Path | None,
        typer.Option("--fisher", help="The file of `gramfuse stats fisher`, where the project merges by it."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            help="The base's folder, which an adapter is added to, and to see whether embeddings were tuned; default: "
            "where it was pulled to.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            help="The label ids that you trained, e.g. 0,2,5; default: all. Other rows of a shared head are left out.",
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option("--texts", help="The texts that were measured, for the audit: it attacks with them. Never sent."),
    ] = None,
    public: PublicOption = None,
    attacks: AttacksOption = Effort.BOUNDED,
    thresholds: ThresholdsOption = None,
    text_field: TextFieldOption = None,
    pair_field: PairFieldOption = None,
    tokens: TokensOption = None,
    device: DeviceOption = "auto",
    yes: Annotated[bool, typer.Option("--yes", help="Send without being asked.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would leave, and send nothing.")] = False,
) -> None:
    """Show what of your model leaves and what stays, audit it, ask, and send it. Running it again sends only what is
    missing; what is there already is told, and nothing is asked.

    The policy is enforced here first: what it forbids stays at home. Texts never leave. The audit is that of `gramfuse
    audit`, or its kept report where nothing has changed; warnings are shown before you are asked, and a threshold that
    refuses ends the push with exit code 3, also with --yes. Where the policy says audit: shared, what leaves of the
    audit is told with the rest.

    Examples: gramfuse contribution push acme.tweets --model tuned --statistics statistics.safetensors · the same with
    --dry-run · the same with --labels 0,2,5 --yes · the same with --texts mine.jsonl
    """
    from gramfuse.cli import bars  # noqa: PLC0415 - only where this command runs

    fields = Fields(text=text_field, pair=pair_field, tokens=tokens)
    chosen = chosen_auditing(
        texts=texts, public=public, fields=fields, attacks=attacks, thresholds=thresholds, device=device
    )
    sources: dict[str, Any] = {"model": model, "statistics": statistics, "fisher": fisher, "base": base}
    sources["labels"] = None if labels is None else _label_ids(labels)
    reports: list[AuditReport] = []
    with session.open_client() as client, ExitStack() as showing:

        def on_report(report: "AuditReport") -> None:
            showing.close()  # the bar of the audit, before anybody is asked or another begins
            reports.append(report)
            if dry_run or report.verdict == "refuse":
                output.note(told_in_push(report))

        auditing = replace(chosen, on_step=showing.enter_context(bars.steps("Auditing")), on_report=on_report)
        if dry_run:
            report = client.audit(project, **sources, auditing=auditing)
            on_report(report)
            told = report.plan | {"audit": report.to_json()}
            output.show(told, lambda console: console.print(report.plan_told, markup=False))
            return
        with bars.transfer() as on_progress:

            def confirm(plan: "ContributionPlan") -> bool:
                tell_before_asking(str(plan), yes=yes)
                tell_before_asking(told_in_push(reports[-1]), yes=yes)
                return is_confirmed(f"Send this to {client.url} for {project}?", yes=yes)

            sent = client.push(project, **sources, auditing=auditing, confirm=confirm, on_progress=on_progress)
    told = output.to_json(sent.model_copy(update={"manifest": None}))
    told |= {"audit": reports[-1].to_json() if reports else None, "audit_summary": told["audit"], "new": bool(reports)}
    known = "" if reports else "; it was there already, so nothing was sent"
    words = f"{sent.state}: contribution {sent.id} of {sent.organization}{known}"
    output.show(told, lambda console: console.print(words, markup=False))


def _label_ids(text: str) -> list[int]:
    """Read `0,2,5`; nothing between commas is no label at all."""
    try:
        return [int(label) for label in text.split(",") if label.strip()]
    except ValueError as error:
        msg = f"{text!r} is no list of label ids such as 0,2,5"
        raise typer.BadParameter(msg, param_hint="--labels") from error


@app.command()
def compress(
    model: Annotated[Path, typer.Option("--model", help="Your fine-tuned from_pretrained folder.")],
    base: Annotated[Path, typer.Option("--base", help="The base model's folder.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the compressed contribution.")],
    statistics: Annotated[
        Path | None, typer.Option("--statistics", help="The statistics file of `gramfuse stats collect`.")
    ] = None,
) -> None:
    """Halve what a push sends, and say what is lost: weights as bfloat16 differences from the base, int16 statistics.

    Sends nothing. Where a megabyte costs more than a rounding error, push the result in place of the model.

    Examples: gramfuse contribution compress --model tuned --base base --statistics statistics.safetensors --out small ·
    gramfuse contribution push acme.tweets --model small --statistics small/statistics.safetensors
    """
    from gramfuse.cli import bars  # noqa: PLC0415 - only where this command runs

    with requiring_extras("`gramfuse contribution compress`", EXTRAS):
        from gramfuse.contributing.compressing import compress as run  # noqa: PLC0415 - torch is an extra

    with bars.reading("Rounding") as on_progress:
        done = run(model, base, out, statistics=statistics, on_progress=on_progress)

    def render(console: "Console") -> None:
        console.print(
            f"{done.folder}: {format_bytes(done.bytes_after)} in place of {format_bytes(done.bytes_before)}\n"
            f"  weights: differences from the base in bfloat16, off by {done.weights_error:.2g} of what was tuned",
            markup=False,
        )
        if done.statistics_error is not None:
            console.print(
                f"  statistics: int16, each matrix off by at most {done.statistics_error:.2g} of its size; a merge "
                f"with alpha above {INT16_MOST_ALPHA:g} will refuse them",
                markup=False,
            )
        console.print("Nothing has left this machine.", markup=False)

    output.show(
        {
            "folder": str(done.folder),
            "bytes_before": done.bytes_before,
            "bytes_after": done.bytes_after,
            "weights_error": done.weights_error,
            "statistics_error": done.statistics_error,
        },
        render,
    )


@app.command(name="list")
def list_(
    project: ProjectArgument,
    organization: Annotated[str | None, typer.Option("--organization", help="Of one organization only.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="In one state only, e.g. accepted.")] = None,
) -> None:
    """List a project's contributions; `counts` marks the one of each organization that merges take, `audit` says how
    its audit came out, where the policy shares that.

    Example: gramfuse contribution list acme.tweets --state accepted
    """
    with session.open_client() as client:
        found = client.contributions(project, organization=organization, state=state)
    rows = [
        (
            c.id[:16],
            c.organization,
            c.state,
            "yes" if c.counts else "",
            format_bytes(c.bytes),
            audit_told(c),
            f"{c.created_at:%Y-%m-%d %H:%M}",
            c.reason or why_passed_over(c) or "",
        )
        for c in found
    ]
    columns = ("contribution", "organization", "state", "counts", "size", "audit", "created", "reason")
    output.show(found, output.table(columns, rows, right=(4,)))


@app.command()
def withdraw(
    project: ProjectArgument,
    contribution: Annotated[str, typer.Argument(help="Its id, or a unique beginning of it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Withdraw without being asked.")] = False,
) -> None:
    """Withdraw a contribution: no new merge takes it, its bytes are deleted after 24 hours; published models stay.

    The files and histograms of your answers to requests go with it; scores that others have seen stay. An older
    contribution of yours does not come back in its place: push again to take part. It is kept, though, until it is
    withdrawn itself: the end names those that there are.

    Example: gramfuse contribution withdraw acme.tweets 5f2c01
    """
    with session.open_client() as client:
        found = client.own_contribution(project, contribution)
        require_confirmed(
            f"Withdraw contribution {found.id[:16]} ({found.state}, of {found.created_at:%Y-%m-%d %H:%M} UTC) from "
            f"{project}, and with it the files of your answers to requests?",
            yes=yes,
        )
        withdrawn = client.withdraw(project, found.id)
        mine = client.contributions(project, organization=found.organization, state="accepted")
    output.show(withdrawn, lambda console: console.print(f"{withdrawn.state}: {withdrawn.id}", markup=False))
    if mine:
        kept = ", ".join(one.id[:16] for one in mine)
        output.note(f"the server keeps other contributions of yours still: {kept}; withdraw each of them, too")
