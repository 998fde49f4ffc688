"""`gramfuse dp`: measure with differential privacy, see what noise would cost before, and what was spent."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from gramfuse.cli import output, session
from gramfuse.cli.measuring import (
    BaseOption,
    DeviceOption,
    ExamplesOption,
    MaxLengthOption,
    ModelOption,
    OutOption,
    OverwriteOption,
    PairFieldOption,
    SplitOption,
    TextFieldOption,
    TextsOption,
    TokensOption,
    require_writable,
    watched,
)
from gramfuse.measuring.texts import Fields, read_texts
from gramfuse.privacy.collecting import collect_privately
from gramfuse.privacy.curve import EPSILONS, measure_member, privacy_curve
from gramfuse.privacy.gaussian import epsilon_of, mu_of
from gramfuse.privacy.ledger import Ledger, Release, spent
from gramfuse_shared.contract.document import describe_validation
from gramfuse_shared.contract.privacy import COVERS, Noised, PrivacyBudget
from gramfuse_shared.errors import ConfigurationError
from gramfuse_shared.merging.scales import load_scales
from gramfuse_shared.units import format_bytes

app = typer.Typer(add_completion=False, no_args_is_help=True, help=f"Differential privacy of Gram matrices. {COVERS}.")

DEFAULT_DELTA = 1e-5

_COLLECT_EXAMPLES = """Examples:

    gramfuse dp collect --project acme.tweets --model tuned --texts mine.jsonl
    gramfuse dp collect --scales scales.safetensors --epsilon 8 --delta 1e-6 --model tuned --texts mine.jsonl
"""

_CURVE_EXAMPLES = """Example: your own model and texts beside the base model and public ones

    gramfuse dp curve scales.safetensors --model tuned --texts mine.jsonl --model base --texts public.jsonl
"""


@dataclass(frozen=True, slots=True)
class _Terms:
    """For what noise is drawn, and by which scales."""

    scales: Path
    budget: PrivacyBudget
    project: str | None
    limit: PrivacyBudget | None


@app.command("collect", epilog=_COLLECT_EXAMPLES)
def collect_command(
    model: ModelOption,
    texts: TextsOption,
    out: OutOption = Path("statistics.safetensors"),
    project: Annotated[
        str | None, typer.Option(help="Take scales and budget from this project; its releases are counted together.")
    ] = None,
    scales: Annotated[Path | None, typer.Option(help="Or a scales file of `gramfuse scales collect`.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(min=0, help="ε of this release; default: all that the project's policy gives.")
    ] = None,
    delta: Annotated[float | None, typer.Option(min=0, help="δ; default: the policy's, else 1e-5.")] = None,
    examples: ExamplesOption = None,
    max_length: MaxLengthOption = None,
    device: DeviceOption = "auto",
    text_field: TextFieldOption = None,
    pair_field: PairFieldOption = None,
    tokens: TokensOption = None,
    split: SplitOption = None,
    base: BaseOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure a model's layer inputs, and write them with noise. Every run spends from the budget.

    One text is one example; how many there are is public. No statistics without noise reach the disk, so an interrupted
    run begins anew. It covers the Grams, not the weights.
    """
    found = read_texts(texts, Fields(text=text_field, pair=pair_field, tokens=tokens), split=split, limit=examples)
    require_writable(out, overwrite=overwrite)
    terms = _terms(project, scales, epsilon, delta)
    output.note(_announced(terms, len(found)))
    with watched() as run:
        noised = collect_privately(
            model,
            found,
            out,
            scales=terms.scales,
            budget=terms.budget,
            ledger=Ledger.of_home(),
            project=terms.project,
            limit=terms.limit,
            max_length=max_length,
            device=device,
            base_folder=base,
            **run,
        )
    result = {"file": str(out), "bytes": out.stat().st_size, "notice": COVERS, **noised.model_dump(mode="json")}

    def render(console: Console) -> None:
        console.print(f"{out}: {_told(noised)}, {format_bytes(out.stat().st_size)}", markup=False)
        console.print("`gramfuse dp ledger` shows what is spent; `gramfuse audit`, what would leave.")

    output.show(result, render)


@app.command("curve", epilog=_CURVE_EXAMPLES)
def curve_command(
    scales: Annotated[Path, typer.Argument(help="The project's scales file.")],
    model: Annotated[list[Path], typer.Option("--model", help="A fine-tuned model's folder; two or more.")],
    texts: Annotated[list[Path], typer.Option("--texts", help="The texts of each model, in the same order.")],
    examples: Annotated[
        int | None, typer.Option(min=1, help="n, as if each had so many texts; default: as many as there are.")
    ] = None,
    epsilon: Annotated[
        list[float] | None, typer.Option("--epsilon", min=0, help="ε; several times for several.")
    ] = None,
    delta: Annotated[float, typer.Option(min=0, help="δ.")] = DEFAULT_DELTA,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="RegMean's α.")] = 0.9,
    max_length: MaxLengthOption = None,
    device: DeviceOption = "auto",
    text_field: TextFieldOption = None,
    tokens: TokensOption = None,
) -> None:
    """Simulate which share of RegMean's gain is kept at each ε, before anything is noised for good.

    Spends nothing and writes nothing. What it prints was computed from your texts without noise: keep it to yourself.
    """
    if len(model) != len(texts):
        msg = f"{len(model)} models and {len(texts)} files of texts: name --texts once for each --model"
        raise ConfigurationError(msg)
    for value in epsilon or EPSILONS:
        _budget(value, delta)  # before hours are spent
    read = load_scales(scales)
    fields = Fields(text=text_field, tokens=tokens)
    members = []
    with watched() as run:
        for folder, file in zip(model, texts, strict=True):
            found = read_texts(file, fields)
            members.append(measure_member(folder, found, read, max_length=max_length, device=device, **run))
    points = tuple(privacy_curve(members, delta=delta, epsilons=epsilon or EPSILONS, examples=examples, alpha=alpha))
    counts = [member.clipped.examples if examples is None else examples for member in members]
    rows = [(f"{point.epsilon:g}", f"{point.kept:.0%}") for point in points]
    result = {
        "examples": counts,
        "delta": delta,
        "alpha": alpha,
        "notice": COVERS,
        "points": [{"epsilon": point.epsilon, "kept": round(point.kept, 4)} for point in points],
    }

    def render(console: Console) -> None:
        output.table(("ε", "share of RegMean's gain kept"), rows, right=(0, 1))(console)
        console.print(
            f"at δ = {delta:g}, one release of {', '.join(f'{count:,}' for count in counts)} texts; below 0 % the "
            f"merge is worse than the average. {COVERS}.",
            markup=False,
        )

    output.show(result, render)


@app.command("ledger")
def ledger_command(
    project: Annotated[str | None, typer.Option(help="Show this project's releases alone.")] = None,
) -> None:
    """Show every release of noised statistics from this machine, and what a project's come to together.

    Example: gramfuse dp ledger --project acme.tweets
    """
    releases = Ledger.of_home().releases(project)
    totals = [
        {"project": name, "delta": delta, "epsilon": epsilon_of(spent(members), delta)}
        for name, delta, members in _by_project(releases)
    ]
    result = {"notice": COVERS, "totals": totals, "releases": [_document(release) for release in releases]}

    def render(console: Console) -> None:
        rows = [
            (release.project or "–", f"{release.at:%Y-%m-%d %H:%M}", f"{release.budget.epsilon:g}",
             f"{release.budget.delta:g}", f"{release.examples:,}", release.id[:12])
            for release in releases
        ]  # fmt: skip
        output.table(("project", "at (UTC)", "ε", "δ", "texts", "release"), rows, right=(2, 3, 4))(console)
        for total in totals:
            name = total["project"] or "for no project yet"
            console.print(f"{name}: together ε = {total['epsilon']:.3g} at δ = {total['delta']:g}", markup=False)
        console.print(f"{COVERS}.", markup=False)

    output.show(result, render)


def _terms(project: str | None, scales: Path | None, epsilon: float | None, delta: float | None) -> _Terms:
    if (project is None) == (scales is None):
        msg = "say by which scales: either --project PROJECT, or --scales FILE"
        raise ConfigurationError(msg)
    if project is None and scales is not None:
        if epsilon is None:
            msg = "say how much may be spent (--epsilon); `gramfuse dp curve` shows what each ε costs"
            raise ConfigurationError(msg)
        return _Terms(scales, _budget(epsilon, DEFAULT_DELTA if delta is None else delta), None, None)
    with session.open_client() as client:
        found = client.project(project or "")
        limit = client.policy(found.id).policy.differential_privacy
        chosen = client.scales(found.id)
    if limit is None:
        if epsilon is None:
            msg = f"the policy of {found.id} asks for no differential privacy: say how much may be spent (--epsilon)"
            raise ConfigurationError(msg)
        return _Terms(chosen, _budget(epsilon, DEFAULT_DELTA if delta is None else delta), found.id, None)
    spend = _budget(limit.epsilon if epsilon is None else epsilon, limit.delta if delta is None else delta)
    return _Terms(chosen, spend, found.id, limit)


def _budget(epsilon: float, delta: float) -> PrivacyBudget:
    try:
        return PrivacyBudget(epsilon=epsilon, delta=delta)
    except ValidationError as error:
        raise ConfigurationError(describe_validation("budget", error.errors())) from error


def _announced(terms: _Terms, texts: int) -> str:
    return f"Noise for {terms.budget} over {texts:,} texts (μ = {mu_of(terms.budget):.3g}). {COVERS}."


def _told(noised: Noised) -> str:
    return f"noised for {noised.budget} over {noised.examples:,} texts. {COVERS}"


def _by_project(releases: Sequence[Release]) -> list[tuple[str | None, float, list[Release]]]:
    """Group releases by project; the δ at which a total is told is the largest of its releases."""
    groups: dict[str | None, list[Release]] = {}
    for release in releases:
        groups.setdefault(release.project, []).append(release)
    return [(name, max(r.budget.delta for r in members), members) for name, members in groups.items()]


def _document(release: Release) -> dict[str, object]:
    return {
        "id": release.id,
        "project": release.project,
        "at": release.at.isoformat(),
        "examples": release.examples,
        **release.budget.model_dump(mode="json"),
    }
