"""What the commands that measure share: their options, the check of the file to write, and how Ctrl-C stops them."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from gramfuse.cli import bars, output
from gramfuse_shared.errors import CancelledError, FileUnwritableError

if TYPE_CHECKING:
    from gramfuse.measuring.inference import Progress

ModelOption = Annotated[
    Path,
    typer.Option("--model", help="Folder of the fine-tuned model, as save_pretrained wrote it, or of a PEFT adapter."),
]
TextsOption = Annotated[
    Path,
    typer.Option("--texts", help="*.jsonl, *.txt with a text per line (both also as *.gz), or a `datasets` folder."),
]
ExamplesOption = Annotated[int | None, typer.Option("--examples", min=1, help="Use the first N texts only.")]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, max=4096, help="Texts per forward pass.")]
MaxLengthOption = Annotated[
    int | None, typer.Option("--max-length", min=1, help="Tokens per text; default: what the model takes, at most 512.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, …")]
TextFieldOption = Annotated[
    str | None, typer.Option("--text-field", help="Field with the text; default: text, sentence, …")
]
PairFieldOption = Annotated[
    str | None,
    typer.Option("--pair-field", help="Field with the second text of a pair; of a generating model, the target."),
]
TokensOption = Annotated[str | None, typer.Option("--tokens", help="Field with a list of words instead of a text.")]
LabelFieldOption = Annotated[
    str | None,
    typer.Option("--label-field", help="Field with the label, its name or id, or a list; default: label, labels."),
]
TagsOption = Annotated[
    str | None, typer.Option("--tags", help="Field with a tag per word; default: tags, ner_tags, labels.")
]
SplitOption = Annotated[str | None, typer.Option("--split", help="Split of a saved DatasetDict.")]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="What the drawing of labels begins with; default: what nobody can guess. Whoever knows it draws the "
        "labels of texts that they know again.",
    ),
]
CheckpointEveryOption = Annotated[
    float,
    typer.Option(
        "--checkpoint-every", min=0, help="Seconds between checkpoints; the same command resumes from the last one."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="The statistics file to write.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a statistics file that is there.")]
BaseOption = Annotated[
    Path | None,
    typer.Option(
        "--base", help="Folder of the project's base model; its fingerprint is noted in the file. An adapter needs it."
    ),
]


def require_writable(out: Path, *, overwrite: bool) -> None:
    """Require that a file can be written where it is wanted.

    Raises:
        FileUnwritableError: it is there already and not given up, or its folder is not.
    """
    if out.is_file() and not overwrite:
        msg = f"{out} is there already; give another --out, or --overwrite to replace it"
        raise FileUnwritableError(msg)
    if not out.parent.is_dir() or out.is_dir():
        msg = f"{out} cannot be written: {out.parent} is no folder, or {out} is one"
        raise FileUnwritableError(msg)


class Watched(TypedDict):
    """What a measurement is called with, so that people see how far it is and can end it."""

    on_progress: Callable[["Progress"], None]
    is_cancelled: Callable[[], bool]


@contextmanager
def watched() -> Iterator[Watched]:
    """Show how far a measurement is, and let Ctrl-C end it.

    The first one ends it behind the present batch, so that no text counts half; the second, at once.
    """
    with (
        first_interrupt("stopping behind this batch; Ctrl-C again stops at once") as interrupted,
        bars.measurement() as show_progress,
    ):
        try:
            yield {"on_progress": show_progress, "is_cancelled": interrupted.is_set}
        except CancelledError as error:
            output.note(error.message)
            raise typer.Exit(output.EXIT_INTERRUPTED) from error


@contextmanager
def first_interrupt(note: str) -> Iterator[threading.Event]:
    """Let the first Ctrl-C set an event and tell a note; the second interrupts as ever."""
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        output.note(note)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
