"""`gramfuse evaluate`: score a model on one's own labelled texts."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gramfuse.cli import bars, output
from gramfuse.cli.measuring import (
    BatchSizeOption,
    DeviceOption,
    ExamplesOption,
    LabelFieldOption,
    MaxLengthOption,
    PairFieldOption,
    SplitOption,
    TagsOption,
    TextFieldOption,
    TokensOption,
)
from gramfuse.evaluating.evaluation import evaluate
from gramfuse.evaluating.labelled_texts import LabelFields, read_texts_of_task
from gramfuse.evaluating.tasks import task_of
from gramfuse.measuring.texts import Fields

app = typer.Typer(add_completion=False)

_EXAMPLES = """Examples:

    gramfuse evaluate --model merged --texts held-out.jsonl
    gramfuse evaluate --model merged --texts ner.jsonl --tokens tokens --tags tags
    gramfuse evaluate --model nli --texts folder --split test --text-field premise --pair-field hypothesis
"""


@app.command("evaluate", epilog=_EXAMPLES)
def evaluate_command(
    model: Annotated[Path, typer.Option(help="Folder of the model: your own, or a merged one that was pulled.")],
    texts: Annotated[
        Path,
        typer.Option(
            help="Labelled texts that it was not trained on: *.jsonl (also as *.gz), or a `datasets` folder. "
            "A language model takes texts alone."
        ),
    ],
    label_field: LabelFieldOption = None,
    tokens: TokensOption = None,
    tags: TagsOption = None,
    text_field: TextFieldOption = None,
    pair_field: PairFieldOption = None,
    split: SplitOption = None,
    examples: ExamplesOption = None,
    batch_size: BatchSizeOption = 32,
    max_length: MaxLengthOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a model on your own held-out texts. Nothing leaves this machine."""
    start = time.monotonic()
    fields = Fields(text=text_field, pair=pair_field, tokens=tokens)
    label_fields = LabelFields(label=label_field, tags=tags)
    found, labels = read_texts_of_task(task_of(model), texts, fields, label_fields, split=split, limit=examples)
    with bars.measurement("Evaluating") as show_progress:
        evaluation = evaluate(
            model,
            found,
            labels,
            batch_size=batch_size,
            max_length=max_length,
            device=device,
            on_progress=show_progress,
        )
    result = {
        "model": str(model),
        "task": evaluation.task,
        "examples": evaluation.examples,
        "distinct_examples": evaluation.distinct_examples,
        "metrics": dict(evaluation.metrics),
        "seconds": round(time.monotonic() - start, 3),
    }

    def render(console: Console) -> None:
        counted = f"{evaluation.examples:,} texts"
        if evaluation.distinct_examples != evaluation.examples:
            counted += f" ({evaluation.distinct_examples:,} distinct)"
        console.print(f"{model}: {evaluation.task} on {counted}, {result['seconds']:.1f} s")
        rows = [(name.replace("_", " "), f"{value:,.4f}") for name, value in evaluation.metrics.items()]
        output.table(("", ""), rows, right=(1,))(console)

    output.show(result, render)
