"""`gramfuse scales`: measure a base model on public text, for all of a project alike; show such a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gramfuse.cli import output
from gramfuse.cli.measuring import (
    BatchSizeOption,
    DeviceOption,
    ExamplesOption,
    MaxLengthOption,
    PairFieldOption,
    SplitOption,
    TextFieldOption,
    TokensOption,
    require_writable,
    watched,
)
from gramfuse.measuring.scales import DEFAULT_CLIP_PERCENTILE, collect_scales, save_scales
from gramfuse.measuring.texts import Fields, read_texts
from gramfuse.naming import folded, name_pattern
from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.contract.scales_file import SCALES_FILE_NAME
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.merging.scales import Scales, load_scales

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="How large a base model's features are on public text."
)

_EXAMPLES = """Examples:

    gramfuse scales collect base public.jsonl -o scales.safetensors
    gramfuse project create tweets --base base --policy policy.yaml --scales scales.safetensors
"""


@app.command("collect", epilog=_EXAMPLES)
def collect_command(
    base: Annotated[Path, typer.Argument(help="The base model's folder, as save_pretrained wrote it.")],
    texts: Annotated[Path, typer.Argument(help="PUBLIC texts: what is measured of them is given to everybody.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The scales file to write.")] = Path(SCALES_FILE_NAME),
    percentile: Annotated[
        float, typer.Option(min=0, max=100, help="Which percentile of the examples' norms the clip is.")
    ] = DEFAULT_CLIP_PERCENTILE,
    examples: ExamplesOption = None,
    batch_size: BatchSizeOption = 32,
    max_length: MaxLengthOption = None,
    device: DeviceOption = "auto",
    text_field: TextFieldOption = None,
    pair_field: PairFieldOption = None,
    tokens: TokensOption = None,
    split: SplitOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a scales file that is there.")] = False,
) -> None:
    """Measure a base model on public text: the scale of each feature, and the bound on what one example may weigh.

    Secure sums and differential privacy need it. The coordinator sends it with `project create --scales`.
    """
    found = read_texts(texts, Fields(text=text_field, pair=pair_field, tokens=tokens), split=split, limit=examples)
    require_writable(out, overwrite=overwrite)
    with watched() as run:
        scales = collect_scales(
            base,
            found,
            clip_percentile=percentile,
            batch_size=batch_size,
            max_length=max_length,
            device=device,
            **run,
        )
    save_scales(scales, out)
    output.show(_told(out, scales), _rendering(out, scales))


@app.command("show")
def show_command(file: Annotated[Path, typer.Argument(help="A scales file.")]) -> None:
    """Show what a scales file says: its base model, its taps, the clip.

    Example: gramfuse scales show scales.safetensors
    """
    scales = load_scales(file)
    output.show(_told(file, scales), _rendering(file, scales))


def _told(path: Path, scales: Scales) -> dict[str, object]:
    metadata = scales.metadata.model_dump(mode="json")
    return {"file": str(path), "sha256": sha256_hex(path.read_bytes()), **metadata}


def _rendering(path: Path, scales: Scales) -> Callable[[Console], None]:
    metadata = scales.metadata
    alike: dict[tuple[object, ...], list[TapInfo]] = {}
    for tap in metadata.taps:
        alike.setdefault((name_pattern(tap.name), tap.width), []).append(tap)
    rows = [
        (folded([tap.name for tap in members]), str(members[0].width), f"{members[0].rows:,}", _span(members, scales))
        for members in alike.values()
    ]

    def render(console: Console) -> None:
        output.table(("scales of", "width", "rows", "root mean squares"), rows, right=(1, 2, 3))(console)
        console.print(
            f"{path}: {len(metadata.taps)} taps, {metadata.examples:,} public texts, clip {metadata.clip:.4g} "
            f"(percentile {metadata.clip_percentile:g} of their norms), base {metadata.base}"
        )
        console.print(f"digest {sha256_hex(path.read_bytes())}", markup=False)

    return render


def _span(taps: list[TapInfo], scales: Scales) -> str:
    values = [scales.root_mean_squares(tap.name) for tap in taps]
    return f"{min(float(v.min()) for v in values):.2g}–{max(float(v.max()) for v in values):.2g}"
