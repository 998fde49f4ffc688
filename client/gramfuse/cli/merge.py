"""`gramfuse merge`: merge local folders by a recipe, without a server."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gramfuse.cli import bars, output
from gramfuse.cli.devices import Device
from gramfuse.local_merging import MergedModel, merge
from gramfuse.merge_report import describe_merge
from gramfuse.whole_files import written_whole
from gramfuse_shared.units import format_bytes

app = typer.Typer(add_completion=False)

_EXAMPLE = """Example:

    gramfuse merge recipe.yaml merged

with this recipe.yaml, whose paths start from its own folder:

    merge_method: regmean
    base_model: base
    models: [{model: tuned-a}, {model: tuned-b, parameters: {weight: 0.5}}]
    parameters: {alpha: 0.9}
"""


@app.command("merge", epilog=_EXAMPLE)
def merge_command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, YAML or JSON, with mergekit's keys.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it appears when it is complete.")],
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT where an earlier merge wrote it.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="A Markdown file to write what each layer got to; it is replaced.")
    ] = None,
    shard_size: Annotated[float, typer.Option(min=0.001, help="Largest weight file, in GB.")] = 2.0,
) -> None:
    """Merge local models by a recipe into a folder that from_pretrained loads.

    Each model is a from_pretrained folder; regmean needs statistics.safetensors in it, or in some of them and
    missing_statistics: estimate in the recipe; fisher needs fisher.safetensors.
    """
    start = time.monotonic()
    with bars.reading("Merging") as show_progress:
        model = merge(
            recipe,
            out,
            device=device.value,
            overwrite=overwrite,
            shard_bytes=int(shard_size * 1e9),
            on_progress=show_progress,
        )
    seconds = time.monotonic() - start
    if report is not None:
        with written_whole(report, private=False) as stream:
            stream.write(describe_merge(model).encode())
    result = {
        "path": str(model.path),
        "seconds": round(seconds, 3),
        "files": model.files,
        "diagnostics": model.diagnostics,
    }
    output.show(result, lambda console: _render(console, model, seconds))


def _render(console: Console, model: MergedModel, seconds: float) -> None:
    size = format_bytes(sum(file.bytes for file in model.files))
    console.print(f"{model.path}: {len(model.files)} weight file(s), {size}, in {seconds:.1f} s", markup=False)
    solved = len({name for entry in model.diagnostics if "width" in entry for name in entry["parameters"]})
    if solved:
        console.print(f"{solved} linear weights by least squares, everything else by the mean", markup=False)
    estimated = [entry for entry in model.diagnostics if "estimated" in entry]
    if estimated:
        count = sum(len(entry["parameters"]) for entry in estimated)
        labels = ", ".join(sorted({label for entry in estimated for label in entry["estimated"]}))
        console.print(f"  of {count} of them the precision of {labels} is an estimate from the weights", markup=False)
    for entry in model.fallbacks:
        names = ", ".join(entry["parameters"])
        console.print(f"  {entry['fallback']}: {names}: {entry['reason']}", markup=False)
