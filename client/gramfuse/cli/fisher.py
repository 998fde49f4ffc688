"""`gramfuse stats fisher`: measure a model's Fisher information on texts."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gramfuse.cli import output
from gramfuse.cli.measuring import (
    BatchSizeOption,
    CheckpointEveryOption,
    DeviceOption,
    ExamplesOption,
    LabelFieldOption,
    MaxLengthOption,
    PairFieldOption,
    SeedOption,
    SplitOption,
    TagsOption,
    TextFieldOption,
    TextsOption,
    TokensOption,
    require_writable,
    watched,
)
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.evaluating.labelled_texts import LabelFields, read_texts_of_task
from gramfuse.evaluating.tasks import task_of
from gramfuse.measuring.fisher_collection import collect_fisher
from gramfuse.measuring.texts import Fields, read_texts
from gramfuse.naming import folded, name_pattern
from gramfuse_shared.contract.fisher_file import FisherMetadata
from gramfuse_shared.contract.manifest import FisherParameter, Labels
from gramfuse_shared.errors import ConfigurationError
from gramfuse_shared.units import format_bytes

EXAMPLES = """Examples:

    gramfuse stats fisher --model tuned --texts mine.jsonl --out fisher.safetensors
    gramfuse stats fisher --model tuned --texts ner.jsonl --tokens tokens --examples 5000 --base base
    gramfuse stats fisher --model tuned --texts labelled.jsonl --labels given --label-field sentiment
"""


def fisher_command(
    model: Annotated[Path, typer.Option(help="Folder of the fine-tuned model, as save_pretrained wrote it.")],
    texts: TextsOption,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("fisher.safetensors"),
    examples: ExamplesOption = None,
    batch_size: BatchSizeOption = 32,
    max_length: MaxLengthOption = None,
    device: DeviceOption = "auto",
    text_field: TextFieldOption = None,
    pair_field: PairFieldOption = None,
    tokens: TokensOption = None,
    split: SplitOption = None,
    base: Annotated[
        Path | None, typer.Option(help="Folder of the project's base model; its fingerprint is noted in the file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    labels: Annotated[
        Labels,
        typer.Option(
            help="sampled: drawn from the model's own predictions, so the texts need none. given: those of the texts "
            "(the empirical Fisher information); a language model's are the texts themselves."
        ),
    ] = "sampled",
    label_field: LabelFieldOption = None,
    tags: TagsOption = None,
    seed: SeedOption = None,
    checkpoint_every: CheckpointEveryOption = 60.0,
) -> None:
    """Measure how much the model's predictions hang on each single weight: the Fisher information's diagonal.

    The merge method fisher weighs every element by it. The file is as large as the model in float32. Nothing leaves
    this machine.
    """
    fields = Fields(text=text_field, pair=pair_field, tokens=tokens)
    label_fields = LabelFields(label=label_field, tags=tags)
    if labels == "given":
        found, given = read_texts_of_task(task_of(model), texts, fields, label_fields, split=split, limit=examples)
    else:
        _require_no_label_fields(label_fields)
        found, given = read_texts(texts, fields, split=split, limit=examples), None
    checkpoint = out.with_name(f"{out.name}.partial")
    require_writable(out, overwrite=overwrite)
    start = time.monotonic()
    with _warnings_as_notes(), watched() as run:
        fisher = collect_fisher(
            model,
            found,
            labels=labels if given is None else given,
            batch_size=batch_size,
            max_length=max_length,
            device=device,
            base=None if base is None else build_base_manifest(base).content_digest(),
            seed=seed,
            checkpoint=checkpoint,
            checkpoint_every=timedelta(seconds=checkpoint_every),
            **run,
        )
    fisher.save(out)
    checkpoint.unlink(missing_ok=True)
    result = {
        "file": str(out),
        "bytes": out.stat().st_size,
        "labels": labels,
        "examples": fisher.examples,
        "distinct_examples": fisher.distinct_examples,
        "parameters": len(fisher.values),
        "seconds": round(time.monotonic() - start, 3),
    }

    def render(console: Console) -> None:
        console.print(
            f"{out}: {result['parameters']} parameters, {fisher.examples:,} texts "
            f"({fisher.distinct_examples:,} distinct) in {result['seconds']:.1f} s, {format_bytes(out.stat().st_size)}"
        )
        console.print("Nothing has left this machine. `gramfuse audit --fisher FILE` says what would leave.")

    output.show(result, render)


def render_fisher(metadata: FisherMetadata, console: Console) -> None:
    """Show what a file of Fisher information says."""
    alike: dict[tuple[object, ...], list[FisherParameter]] = {}
    for parameter in metadata.parameters:
        alike.setdefault((name_pattern(parameter.name), parameter.shape, parameter.source), []).append(parameter)
    rows = [
        (
            folded([parameter.name for parameter in members]),
            " × ".join(map(str, members[0].shape)),
            _span([parameter.norm / metadata.examples for parameter in members]),
            members[0].source,
        )
        for members in alike.values()
    ]
    output.table(("Fisher information of", "shape", "norm per example", "fed by"), rows, right=(1, 2))(console)
    console.print(
        f"gramfuse {metadata.collector.collector_version}, {metadata.examples:,} examples "
        f"({metadata.distinct_examples:,} distinct), labels {metadata.collector.labels}, base "
        f"{metadata.base or 'not noted'}"
    )


def _require_no_label_fields(named: LabelFields) -> None:
    if named != LabelFields():
        msg = "labels are drawn from the model, and --label-field and --tags name given ones: add --labels given"
        raise ConfigurationError(msg)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Tell people at once, beside the bar, what the measurement warns of."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: output.note(f"Warning: {message}")
        yield


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low}–{high}"
