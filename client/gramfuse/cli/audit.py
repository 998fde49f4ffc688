"""`gramfuse audit`: what a push would send, what stays and why, and how the measured statistics look."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gramfuse.cli import output, session
from gramfuse.cli.policies import read_policy
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.measuring.statistics_io import written_whole
from gramfuse.privacy.audit import NO_GUARANTEE, AuditReport, audit
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import ConfigurationError

app = typer.Typer(add_completion=False)

_EXAMPLES = """[b]Examples[/b]

gramfuse audit --project acme.tweets --model tuned --statistics statistics.safetensors

gramfuse audit --policy policy.yaml --base base --model tuned --statistics statistics.safetensors --out audit.json
"""


@app.command("audit", epilog=_EXAMPLES)
def audit_command(
    model: Annotated[Path, typer.Option(help="Your fine-tuned from_pretrained folder.")],
    statistics: Annotated[Path | None, typer.Option(help="The statistics file of `gramfuse stats collect`.")] = None,
    project: Annotated[str | None, typer.Option(help="Take policy and base from this project.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Or a policy file (YAML or JSON).")] = None,
    base: Annotated[
        Path | None, typer.Option(help="The base model's folder; tells also whether embeddings were tuned.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON to this file, too.")] = None,
) -> None:
    """Report what your statistics hold and what of model and statistics would leave. Sends nothing.

    The report applies the project's policy and counts rows; it is no guarantee of privacy.
    """
    rules, manifest = _rules(project, policy, base)
    report = audit(model, statistics=statistics, policy=rules, base=manifest, base_folder=base)
    if out is not None:
        with written_whole(out) as stream:
            stream.write(json.dumps(report.to_json(), indent=2, ensure_ascii=False).encode() + b"\n")
    output.show(report.to_json(), lambda console: _render(report, console))


def _rules(project: str | None, policy: Path | None, base: Path | None) -> tuple[Policy, BaseManifest]:
    if project is not None and policy is None:
        with session.open_client() as client:
            return client.policy(project).policy, client.base_manifest(project)
    if project is None and policy is not None and base is not None:
        return read_policy(policy), build_base_manifest(base)
    msg = "say whose rules apply: either --project PROJECT, or --policy FILE and --base DIR"
    raise ConfigurationError(msg)


def _render(report: AuditReport, console: Console) -> None:
    if report.taps:
        rows = [
            (
                tap.info.name,
                str(tap.info.width),
                f"{tap.info.distinct_rows:,}",
                f"{tap.rows_per_dimension:,.1f}",
                f"{tap.effective_rank:,.0f}",
                tap.info.source,
                "leaves" if tap.stays_because is None else "stays",
            )
            for tap in report.taps
        ]
        columns = ("tap", "width", "distinct rows", "per dimension", "effective rank", "source", "decision")
        output.table(columns, rows, right=(1, 2, 3, 4))(console)
    console.print(str(report.plan), markup=False)
    console.print(NO_GUARANTEE, markup=False)
