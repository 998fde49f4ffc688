"""`gramfuse match`: whether a model's hidden units are in another model's order, and a copy in which they are."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gramfuse.cli import bars, output
from gramfuse.cli.measuring import (
    BatchSizeOption,
    DeviceOption,
    ExamplesOption,
    MaxLengthOption,
    PairFieldOption,
    SplitOption,
    TextFieldOption,
    TokensOption,
)
from gramfuse.matching.alignment import align_model
from gramfuse.matching.matching import GroupMatching, Matching, match_models
from gramfuse.measuring.texts import Fields, read_texts
from gramfuse.naming import folded, name_pattern
from gramfuse_shared.errors import ConfigurationError

app = typer.Typer(add_completion=False)

_EXAMPLES = """Examples:

    gramfuse match tuned base
    gramfuse match tuned base --texts mine.jsonl --examples 500
    gramfuse match tuned merged --out aligned
"""


class By(StrEnum):
    """What says that two units are alike."""

    WEIGHTS = "weights"
    ACTIVATIONS = "activations"


@app.command("match", epilog=_EXAMPLES)
def match_command(
    model: Annotated[Path, typer.Argument(help="Your model's folder.")],
    other: Annotated[Path, typer.Argument(help="A folder of the same architecture: the base, a merged model.")],
    texts: Annotated[
        Path | None,
        typer.Option(help="Match by what units do on these texts as well: *.jsonl, text lines, a `datasets` folder."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write MODEL here with its units in OTHER's order; the same function.")
    ] = None,
    by: Annotated[By, typer.Option(help="What --out goes by.")] = By.WEIGHTS,
    text_field: TextFieldOption = None,
    pair_field: PairFieldOption = None,
    tokens: TokensOption = None,
    split: SplitOption = None,
    examples: ExamplesOption = None,
    batch_size: BatchSizeOption = 32,
    max_length: MaxLengthOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Tell whether MODEL's hidden units are in OTHER's order. Nothing leaves this machine.

    Merging averages unit by unit, so it needs one order; fine-tunes of one base are expected to share it. Collect
    statistics after aligning, from the folder that --out wrote: those of MODEL are in the old order.
    """
    if by is By.ACTIVATIONS and texts is None:
        msg = "--by activations needs texts to run the models on: add --texts FILE"
        raise ConfigurationError(msg)
    start = time.monotonic()
    matchings = [match_models(model, other)]
    if texts is not None:
        fields = Fields(text=text_field, pair=pair_field, tokens=tokens)
        found = read_texts(texts, fields, split=split, limit=examples)
        with bars.measurement("Comparing") as show_progress:
            matchings.append(
                match_models(
                    model,
                    other,
                    texts=found,
                    batch_size=batch_size,
                    max_length=max_length,
                    device=device,
                    on_progress=show_progress,
                )
            )
    aligned = None
    if out is not None:
        aligned = align_model(next(each for each in matchings if each.by == by.value), out)
    result = {
        "model": str(model),
        "other": str(other),
        "matchings": [_json(each) for each in matchings],
        "aligned": None if aligned is None else {"folder": str(aligned), "by": by.value},
        "seconds": round(time.monotonic() - start, 3),
    }

    def render(console: Console) -> None:
        for matching in matchings:
            _render(matching, console)
        if aligned is not None:
            console.print(
                f"{aligned}: the same model in the order of {other}, by {by.value}. Collect its statistics anew.",
                markup=False,
            )

    output.show(result, render)


def _json(matching: Matching) -> dict[str, Any]:
    return {
        "by": matching.by,
        "identity_is_best": matching.identity_is_best,
        "groups": [
            {
                "name": group.name,
                "identity_is_best": group.identity_is_best,
                "identity": group.identity,
                "best": group.best,
                "ratio": group.ratio,
                "parts": [{"kind": part.kind, "units": part.units, "stay": part.stay} for part in group.parts],
            }
            for group in matching.groups
        ],
    }


def _render(matching: Matching, console: Console) -> None:
    alike: dict[str, list[GroupMatching]] = {}
    for group in matching.groups:
        alike.setdefault(name_pattern(group.name), []).append(group)
    rows = []
    for groups in alike.values():
        worst = min(groups, key=lambda group: (1.0 if group.ratio is None else group.ratio, group.identity))
        for number, part in enumerate(worst.parts):
            units = sum(group.parts[number].units for group in groups)
            stay = sum(group.parts[number].stay for group in groups)
            first = number == 0
            rows.append(
                (
                    folded([group.name for group in groups]) if first else "",
                    f"{sum(group.identity_is_best for group in groups)} of {len(groups)}" if first else "",
                    f"{worst.identity:.4f}" if first else "",
                    f"{worst.best:.4f}" if first else "",
                    "" if not first else "–" if worst.ratio is None else f"{worst.ratio:.4f}",
                    part.kind,
                    f"{stay:,} of {units:,}",
                )
            )
    said = "the present order is the best" if matching.identity_is_best else "another order fits better"
    console.print(f"By {matching.by}: {said}", markup=False)
    columns = ("what reads the units", "present is best", "present", "best", "ratio", "of which", "stay")
    output.table(columns, rows, right=(2, 3, 4, 6))(console)
