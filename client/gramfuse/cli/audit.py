"""`gramfuse audit`: what a push would send, what stays and why, how statistics look, and what attacks find in them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gramfuse.cli import output, session
from gramfuse.cli.measuring import DeviceOption, PairFieldOption, TextFieldOption, TokensOption
from gramfuse.cli.policies import read_policy
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.measuring.texts import Fields, read_texts
from gramfuse.naming import folded, name_pattern
from gramfuse.privacy.attacking import COHORTS, Attacks, MembershipTold, TokensFound, VocabularyTold
from gramfuse.privacy.audit import NO_GUARANTEE, AuditReport, TapReport, audit
from gramfuse.whole_files import written_whole
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import AuditRefusedError, ConfigurationError

app = typer.Typer(add_completion=False)

_EXAMPLES = """[b]Examples[/b]

gramfuse audit --project acme.tweets --model tuned --statistics statistics.safetensors

gramfuse audit --policy policy.yaml --base base --model tuned --statistics statistics.safetensors --out audit.json

gramfuse audit --project acme.tweets --model tuned --statistics s.safetensors --texts mine.jsonl --refuse-above 0.8
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
        Path | None, typer.Option(help="The texts that were measured, all of them: attack statistics and embeddings.")
    ] = None,
    public: Annotated[
        Path | None, typer.Option(help="Others' texts of a like kind: they make the membership attack stronger.")
    ] = None,
    refuse_above: Annotated[
        float | None,
        typer.Option(min=0.5, max=1.0, help="Fail if an attack on what would leave reaches a higher AUC than this."),
    ] = None,
    text_field: TextFieldOption = None,
    pair_field: PairFieldOption = None,
    tokens: TokensOption = None,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON to this file, too.")] = None,
) -> None:
    """Report what your statistics hold and what of model and statistics would leave. Sends nothing.

    The report applies the project's policy and counts rows; with --texts it attacks your own statistics. It is no
    guarantee of privacy: better attacks find more.
    """
    if refuse_above is not None and texts is None:
        msg = "--refuse-above judges attacks, which need the texts that were measured: give --texts"
        raise ConfigurationError(msg)
    fields = Fields(text=text_field, pair=pair_field, tokens=tokens)
    rules, manifest, pulled = _rules(project, policy, base)
    report = audit(
        model,
        statistics=statistics,
        fisher=fisher,
        policy=rules,
        base=manifest,
        base_folder=base or pulled,
        texts=None if texts is None else read_texts(texts, fields),
        public=() if public is None else read_texts(public, fields),
        device=device,
    )
    if out is not None:
        with written_whole(out) as stream:
            stream.write(json.dumps(report.to_json(), indent=2, ensure_ascii=False).encode() + b"\n")
    output.show(report.to_json(), lambda console: _render(report, console))
    worst = None if report.attacks is None else report.attacks.worst_leaving()
    if refuse_above is not None and worst is not None and worst[1] > refuse_above:
        msg = f"{worst[0]} would leave, and an attack on it has AUC {worst[1]:.3f}, above {refuse_above:g}"
        raise AuditRefusedError(msg, attack=worst[0], auc=worst[1])


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
        columns = ("statistics of", "width", "distinct rows", "per dim.", "eff. rank", "fed by", "")
        output.table(columns, _folded_rows(report.taps), right=(1, 2, 3, 4))(console)
        console.print()
    console.print(str(report.plan), markup=False)
    console.print()
    if report.attacks is not None:
        _render_attacks(report.attacks, console)
        console.print()
    console.print(NO_GUARANTEE, markup=False)


def _render_attacks(attacks: Attacks, console: Console) -> None:
    rows = [("token counts", one.tap, one.leaves, one.auc, _tokens_told(one)) for one in attacks.tokens]
    rows += [("membership", one.tap, one.leaves, one.auc, _membership_told(one)) for one in attacks.membership]
    rows += [("vocabulary", one.tensor, one.leaves, one.auc, _vocabulary_told(one)) for one in attacks.vocabulary]
    cells = [(kind, on, _fate(leaves=leaves), f"{auc:.3f}", told) for kind, on, leaves, auc, told in rows]
    output.table(("attack", "on", "", "AUC", "which"), cells, right=(3,))(console)
    for what in attacks.left_out:
        console.print(f"Not attacked: {what}", markup=False)


def _tokens_told(found: TokensFound) -> str:
    return (
        f"names {found.named:,} tokens, {found.right:,} of the {found.present:,} that occur; of {found.singletons:,} "
        f"that one text alone holds, {found.singletons_named:,}"
    )


def _membership_told(told: MembershipTold) -> str:
    sums = ", ".join(f"{told.sums[members]:.2f} of {members}" for members in COHORTS)
    return f"estimated in a sum {sums}; {told.alone:.0%} of texts have a row that carries a direction alone"


def _vocabulary_told(told: VocabularyTold) -> str:
    return f"{told.moved:,} rows were trained, {told.right:,} of them of tokens of your texts"


def _fate(*, leaves: bool) -> str:
    return "leaves" if leaves else "stays"


def _folded_rows(taps: Sequence[TapReport]) -> list[tuple[str, ...]]:
    """Make a row of the taps whose names differ only in layer numbers and that share a fate; the JSON has each."""
    alike: dict[tuple[object, ...], list[TapReport]] = {}
    for tap in taps:
        key = (name_pattern(tap.info.name), tap.info.width, tap.info.source, tap.stays_because is None)
        alike.setdefault(key, []).append(tap)
    return [
        (
            folded([tap.info.name for tap in members]),
            str(members[0].info.width),
            _span([tap.info.distinct_rows for tap in members], ",.0f"),
            _span([tap.rows_per_dimension for tap in members], ",.1f"),
            _span([tap.effective_rank for tap in members], ",.0f"),
            members[0].info.source,
            _fate(leaves=members[0].stays_because is None),
        )
        for members in alike.values()
    ]


def _span(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}–{high}"
