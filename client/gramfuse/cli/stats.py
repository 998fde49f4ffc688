"""`gramfuse stats`: measure a model's layer inputs on texts, and show what a file of statistics says."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gramfuse.cli import output
from gramfuse.cli.fisher import EXAMPLES, fisher_command, render_fisher
from gramfuse.cli.measuring import (
    BaseOption,
    BatchSizeOption,
    CheckpointEveryOption,
    DeviceOption,
    ExamplesOption,
    MaxLengthOption,
    ModelOption,
    OutOption,
    OverwriteOption,
    PairFieldOption,
    SeedOption,
    SplitOption,
    TextFieldOption,
    TextsOption,
    TokensOption,
    require_writable,
    watched,
)
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.contributing.loading import open_fisher_file, open_statistics_file, read_header
from gramfuse.measuring.enough_texts import texts_needed
from gramfuse.measuring.forwarding import collect
from gramfuse.measuring.texts import Fields, read_texts
from gramfuse.naming import folded, name_pattern, name_patterns
from gramfuse_shared.contract.fisher_file import METADATA_KEY as FISHER_METADATA_KEY
from gramfuse_shared.contract.manifest import TapInfo, Weighting
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.privacy import COVERS
from gramfuse_shared.contract.statistics_file import StatisticsMetadata
from gramfuse_shared.units import format_bytes

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Measure a model on your own texts.")
app.command("fisher", epilog=EXAMPLES)(fisher_command)

_EXAMPLES = """Examples:

    gramfuse stats collect --model tuned --texts mine.jsonl --out statistics.safetensors
    gramfuse stats collect --model tuned --texts ner.jsonl --tokens tokens --examples 5000
    gramfuse stats collect --model nli --texts folder --split train --text-field premise --pair-field hypothesis
"""


@app.command("collect", epilog=_EXAMPLES)
def collect_command(
    model: ModelOption,
    texts: TextsOption,
    out: OutOption = Path("statistics.safetensors"),
    examples: ExamplesOption = None,
    batch_size: BatchSizeOption = 32,
    max_length: MaxLengthOption = None,
    device: DeviceOption = "auto",
    text_field: TextFieldOption = None,
    pair_field: PairFieldOption = None,
    tokens: TokensOption = None,
    split: SplitOption = None,
    base: BaseOption = None,
    count_padding: Annotated[
        bool, typer.Option("--count-padding", help="Count padded rows, as the published RegMean code does.")
    ] = False,
    overwrite: OverwriteOption = False,
    share_inputs: Annotated[
        bool, typer.Option(help="One sum for layers that read the same input; off: one for each layer.")
    ] = True,
    weighting: Annotated[
        Weighting,
        typer.Option(help="output_gradient: a row counts by the loss's gradient at its layer's output; slower."),
    ] = "none",
    seed: SeedOption = None,
    checkpoint_every: CheckpointEveryOption = 60.0,
) -> None:
    """Run a model over texts and measure the inputs of its linear layers. Nothing leaves this machine."""
    fields = Fields(text=text_field, pair=pair_field, tokens=tokens)
    found = read_texts(texts, fields, split=split, limit=examples)
    checkpoint = out.with_name(f"{out.name}.partial")
    require_writable(out, overwrite=overwrite)
    start = time.monotonic()
    with watched() as run:
        statistics = collect(
            model,
            found,
            batch_size=batch_size,
            max_length=max_length,
            device=device,
            base=None if base is None else build_base_manifest(base).content_digest(),
            base_folder=base,
            padding="counted" if count_padding else "dropped",
            share_inputs=share_inputs,
            weighting=weighting,
            seed=seed,
            checkpoint=checkpoint,
            checkpoint_every=timedelta(seconds=checkpoint_every),
            **run,
        )
    statistics.save(out)
    checkpoint.unlink(missing_ok=True)
    metadata = statistics.metadata
    rules = Policy()  # whose policy it will be is not known yet
    short = texts_needed(metadata.taps, len(found), rules)
    result = {
        "file": str(out),
        "bytes": out.stat().st_size,
        "examples": len(found),
        "seconds": round(time.monotonic() - start, 3),
        "taps": len(metadata.taps),
        "rows": max(tap.rows for tap in metadata.taps),
        "distinct_rows": max(tap.distinct_rows for tap in metadata.taps),
        "texts_needed": short,
    }

    def render(console: Console) -> None:
        console.print(
            f"{out}: {result['taps']} taps, up to {result['rows']:,} rows ({result['distinct_rows']:,} of distinct "
            f"texts) from {len(found):,} texts in {result['seconds']:.1f} s, {format_bytes(out.stat().st_size)}"
        )
        if short:
            console.print(
                f"Policies ask for {rules.minimum_rows_per_dimension:g} distinct rows per dimension unless they say "
                f"otherwise; too few for that, so many texts like these would do, and {len(found):,} were measured:",
                markup=False,
            )
            for needed in sorted(set(short.values())):
                names = ", ".join(name_patterns([name for name, texts in short.items() if texts == needed]))
                console.print(f"  {needed:,} texts: {names}", markup=False)
        console.print(
            "Nothing has left this machine. `gramfuse audit` says what the file reveals, and what would leave."
        )

    output.show(result, render)


@app.command("show")
def show_command(
    file: Annotated[Path, typer.Argument(help="A statistics file, or one of Fisher information.")],
) -> None:
    """Show what a statistics file says: its taps, their rows and their sources; or of which parameters it is.

    Example: gramfuse stats show statistics.safetensors
    """
    if FISHER_METADATA_KEY in read_header(file).metadata:
        fisher = open_fisher_file(file).metadata
        output.show(fisher, lambda console: render_fisher(fisher, console))
        return
    metadata = open_statistics_file(file).metadata
    output.show(metadata, lambda console: _render(metadata, console))


def _render(metadata: StatisticsMetadata, console: Console) -> None:
    alike: dict[tuple[object, ...], list[TapInfo]] = {}
    for tap in metadata.taps:
        key = (name_pattern(tap.name), tap.width, tap.rows, tap.distinct_rows, tap.source)
        alike.setdefault(key, []).append(tap)
    rows = [
        (
            folded([tap.name for tap in members]),
            ", ".join(_short(layer.weight) for layer in members[0].layers[:4])
            + (" …" if len(members[0].layers) > 4 else ""),  # noqa: PLR2004 - fits a line
            str(members[0].width),
            f"{members[0].rows:,}",
            f"{members[0].distinct_rows / members[0].width:,.1f}",
            members[0].source,
        )
        for members in alike.values()
    ]
    columns = ("statistics of", "read by", "width", "rows", "per dim.", "fed by")
    output.table(columns, rows, right=(2, 3, 4))(console)
    settings = metadata.collector
    console.print(
        f"gramfuse {settings.collector_version}, {settings.precision}, padding {settings.padding}, weighting "
        f"{settings.weighting}, base {metadata.base or 'not noted'}"
    )
    if settings.noised is not None:
        noised = settings.noised
        console.print(
            f"noised for {noised.budget} over {noised.examples:,} texts, which stand for rows above; release "
            f"{noised.release[:12]}. {COVERS}.",
            markup=False,
        )


def _short(weight: str) -> str:
    return weight.removesuffix(".weight").rpartition(".")[2]
