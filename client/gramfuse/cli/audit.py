"""`gramfuse audit`: what a push would send, what stays and why, how statistics look, and what attacks find in them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gramfuse.auditing import telling
from gramfuse.auditing.kept import KeptReports
from gramfuse.auditing.report import AuditReport
from gramfuse.auditing.running import current_report, require_not_refused
from gramfuse.cli import bars, output, session
from gramfuse.cli.auditing import AttacksOption, Effort, PublicOption, ThresholdsOption, chosen_auditing
from gramfuse.cli.measuring import DeviceOption, PairFieldOption, TextFieldOption, TokensOption
from gramfuse.cli.policies import read_policy
from gramfuse.config import Home
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.contributing.draft import draft_contribution
from gramfuse.extras import EXTRAS
from gramfuse.measuring.texts import Fields
from gramfuse.whole_files import written_whole
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import ConfigurationError
from gramfuse_shared.extras import requiring_extras

app = typer.Typer(add_completion=False)

_EXAMPLES = """Examples:

    gramfuse audit --project acme.tweets --model tuned --statistics statistics.safetensors
    gramfuse audit --policy policy.yaml --base base --model tuned --statistics statistics.safetensors --out audit.json
    gramfuse audit --project acme.tweets --model tuned --statistics s.safetensors --texts mine.jsonl --html audit.html
    gramfuse audit --project acme.tweets --model tuned --statistics s.safetensors --texts mine.jsonl --refuse-above 0.8

Exit codes: 0 nothing refuses, warnings or not · 3 a threshold refuses
"""


@app.command("audit", epilog=_EXAMPLES)
def audit_command(
    model: Annotated[Path, typer.Option(help="Your fine-tuned from_pretrained folder, or a PEFT LoRA adapter's.")],
    statistics: Annotated[Path | None, typer.Option(help="The statistics file of `gramfuse stats collect`.")] = None,
    fisher: Annotated[Path | None, typer.Option(help="The file of `gramfuse stats fisher`.")] = None,
    project: Annotated[str | None, typer.Option(help="Take policy and base from this project.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Or a policy file (YAML or JSON).")] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="The base's folder, to see whether embeddings were tuned; default: where it was pulled to."),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="The texts that were measured, all of them: tell how much of them is found.")
    ] = None,
    public: PublicOption = None,
    attacks: AttacksOption = Effort.ALL,
    refuse_above: Annotated[
        float | None,
        typer.Option(min=0.5, max=1.0, help="Fail if an attack on what would leave reaches a higher AUC than this."),
    ] = None,
    thresholds: ThresholdsOption = None,
    text_field: TextFieldOption = None,
    pair_field: PairFieldOption = None,
    tokens: TokensOption = None,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON to this file, too.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the report as one self-contained page with plots, too.")
    ] = None,
) -> None:
    """Report what your statistics hold and what of model and statistics would leave. Sends nothing.

    The report applies the project's policy, counts rows, and attacks what can be attacked; with --texts it tells how
    much is found. It is no guarantee of privacy: better attacks find more.
    """
    if refuse_above is not None and texts is None:
        msg = "--refuse-above judges attacks, which need the texts that were measured: give --texts"
        raise ConfigurationError(msg)
    with requiring_extras("`gramfuse audit`", EXTRAS):
        import gramfuse.privacy.audit  # noqa: PLC0415 - torch is an extra
    if html is not None:
        with requiring_extras("`gramfuse audit --html`", EXTRAS):
            import gramfuse.auditing.page  # noqa: PLC0415 - matplotlib is an extra
    fields = Fields(text=text_field, pair=pair_field, tokens=tokens)
    auditing = chosen_auditing(
        texts=texts, public=public, fields=fields, attacks=attacks, thresholds=thresholds, device=device
    )
    if refuse_above is not None:
        auditing = replace(auditing, thresholds=auditing.thresholds.refusing_above(refuse_above))
    rules, manifest, pulled = _rules(project, policy, base)
    folder, home = base or pulled, Home.default()
    draft = draft_contribution(model, statistics, manifest, rules, base_folder=folder, fisher=fisher)
    with bars.steps("Auditing") as on_step:
        report = current_report(home, draft, manifest, rules, folder, replace(auditing, on_step=on_step))
    if out is not None:
        with written_whole(out) as stream:
            stream.write(json.dumps(report.to_json(), indent=2, ensure_ascii=False).encode() + b"\n")
    if html is not None:
        gramfuse.auditing.page.write_page(report, html)
    output.show(report.to_json(), lambda console: _render(report, console))
    output.note(f"Kept in {KeptReports(home).place(report.subject)}. {telling.kept_told(report)}")
    require_not_refused(report)


def _rules(project: str | None, policy: Path | None, base: Path | None) -> tuple[Policy, BaseManifest, Path | None]:
    """Return the policy, the base's manifest, and where the project's base was pulled to, if it was."""
    if project is not None and policy is None:
        with session.open_client() as client:
            manifest = client.base_manifest(project)
            return client.policy(project).policy, manifest, client.home.base_folder(manifest.content_digest())
    if project is None and policy is not None and base is not None:
        return read_policy(policy), build_base_manifest(base), None
    msg = "say whose rules apply: either --project PROJECT, or --policy FILE and --base DIR"
    raise ConfigurationError(msg)


def _render(report: AuditReport, console: Console) -> None:
    if report.taps:
        output.table(telling.TAP_COLUMNS, telling.tap_rows(report.taps), right=(1, 2, 3, 4, 5))(console)
        console.print(telling.SUMS_NOTE, markup=False)
        console.print()
    console.print(report.plan_told, markup=False)
    console.print()
    rows = telling.attack_rows(report)
    if rows:
        output.table(telling.ATTACK_COLUMNS, rows, right=(3,))(console)
        console.print()
    reference = telling.reference_told(report)
    for line in (*([reference] if reference else []), *telling.sums_told(report), *telling.summary(report)):
        console.print(line, markup=False)
    console.print()
    console.print(report.notice, markup=False)
