"""Measures a model's Fisher information on texts: what `gramfuse stats fisher` and `gramfuse.collect_fisher` do."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

from torch import nn

from gramfuse.contributing.loading import is_adapter, open_model_folder
from gramfuse.evaluating.labels import Label, require_as_many
from gramfuse.evaluating.targets import given_labels
from gramfuse.measuring.batching import tokenize
from gramfuse.measuring.example_losses import ExampleLoss, SampledLabels
from gramfuse.measuring.fisher import Fisher
from gramfuse.measuring.inference import Progress, open_model, ready_to_run
from gramfuse.measuring.layers import checkpoint_names
from gramfuse.measuring.resuming import ResumableRun, run_digest, seed_of_run
from gramfuse.measuring.squared_gradients import SquaredGradients
from gramfuse.measuring.texts import Text
from gramfuse_shared.contract.manifest import FisherSettings, Labels
from gramfuse_shared.errors import ArchitectureMismatchError, ConfigurationError
from gramfuse_shared.version import __version__


def collect_fisher(
    model: nn.Module | str | Path,
    texts: Sequence[Text],
    *,
    labels: Labels | Sequence[Label] = "sampled",
    tokenizer: Any = None,  # noqa: ANN401 - any transformers tokenizer
    batch_size: int = 32,
    max_length: int | None = None,
    device: str = "auto",
    base: str | None = None,
    seed: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: timedelta = timedelta(minutes=1),
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Fisher:
    """Run the model over the texts, longest first, and return the diagonal of its Fisher information, or the empirical.

    The Fisher information is of labels that are drawn from the model's own predictions, by example, so neither the
    batch size nor the order of batches changes the result. With given labels it is the sum of the squared gradients of
    the training loss, which is another thing (docs/methods.md); a text of which no label is known is no example.

    How gradients are told apart is tried on two texts, against a pass over each alone; where that fails, as with
    architectures that use one tensor for several examples, all texts are passed alone, and a warning says so.

    Memory: the model, a float32 for each of its parameters, a batch's activations and some megabytes of gradients.

    Args:
        model: a `from_pretrained` folder, or a transformers model in memory (moved to `device` and back).
        texts: each a text, a pair of texts, or a list of words, as `collect` takes them.
        labels: "sampled"; or one per text, as `evaluate` takes them; or, of a language model, "given": the texts' own
            tokens, of a model that writes a target from a source those of the target.
        tokenizer: for a model in memory; a folder brings its own.
        batch_size: examples per pass.
        max_length: tokens after which a text is cut; default: what the model takes, 512 at most.
        device: "auto", "cpu", "cuda", "cuda:1", …
        base: fingerprint of the project's base model, written into the file.
        seed: what the drawing of labels begins with; the same draws the same. None: what nobody can guess, and a run
            that goes on keeps it. Whoever knows it draws the labels of known texts again.
        checkpoint: file to go on from, and to keep the progress in, as large as the model in float32; remove it once
            the result is saved. On a CPU a run that went on gives the same bytes as one that was not interrupted.
        checkpoint_every: how often it is written.
        on_progress: called after each batch.
        is_cancelled: asked after each batch but the last; if so, the checkpoint is written and the call ends.

    Raises:
        ConfigurationError: the model is an adapter or has no head, or a model in memory has no tokenizer; labels are
            missing, spare, unknown to the model, or of a task whose labels are not known.
        CancelledError: `is_cancelled` said so; the message names the checkpoint.
        ArchitectureMismatchError: the model's parameters have no names in its checkpoint.
        ConflictError: the checkpoint belongs to another run.
    """
    if not isinstance(model, nn.Module) and is_adapter(Path(model)):
        msg = f"{model} is an adapter, of which none is measured: merge it into its base model, and save that"
        raise ConfigurationError(msg)
    kind: Labels = "sampled" if labels == "sampled" else "given"
    given = _require_given(texts, labels) if kind == "given" else None
    opened = open_model(model, tokenizer=tokenizer, device=device)
    tokenized = tokenize(opened.tokenizer, texts, opened.max_tokens(max_length), generates=opened.generates)
    loss: ExampleLoss
    if kind == "given":
        seed, loss = None, given_labels(opened, texts, tokenized, given)
    else:
        seed = seed_of_run(seed, checkpoint)
        loss = SampledLabels(seed, opened.device, getattr(opened.model.config, "problem_type", None))
    examples = [(number, text) for number, text in enumerate(tokenized) if text.ids and loss.has_labels(number)]
    # Sorted, so that a batch holds little padding; longest first, so that too large a batch fails at once.
    examples.sort(key=lambda numbered: numbered[1].length, reverse=True)
    run = ResumableRun(
        None if checkpoint is None else Path(checkpoint),
        run_digest(
            [] if opened.folder is None else [opened.folder],
            opened.model,
            [text for _, text in examples],
            ["fisher", batch_size, base, loss.identity, [number for number, _ in examples]],
        ),
        every=checkpoint_every,
        seed=seed,
    )
    batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    with ready_to_run(opened):
        squares = SquaredGradients(opened, names_of(opened.model, opened.folder), loss)
        squares.try_batches(examples)
        if run.kept is not None:
            squares.restore(run.kept)
        for _, batch in run.over(
            batches,
            [sum(text.tokens for _, text in batch) for batch in batches],
            measured=squares.keep,
            on_progress=on_progress,
            is_cancelled=is_cancelled,
        ):
            squares.add(batch)
        values = {squares.names[parameter]: value.cpu() for parameter, value in squares.sums.items()}
    return Fisher(
        values,
        examples=len(examples),
        seen=(text.content_hash() for _, text in examples),
        sources=squares.sources,
        settings=FisherSettings(collector_version=__version__, labels=kind),
        base=base,
    )


def names_of(model: nn.Module, folder: Path | None) -> dict[nn.Parameter, str]:
    """Name the floating-point parameters as the checkpoint does."""
    names = checkpoint_names(model)
    found: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in names and parameter.is_floating_point():
            found.setdefault(parameter, names[name])
    saved = found.values() if folder is None else open_model_folder(folder).tensors
    missing = [name for name in found.values() if name not in saved]
    if missing or not found:
        what = f"{folder} does not hold {missing[0]!r}" if missing else f"{type(model).__name__} has no parameters"
        msg = f"{what}: save the model with save_pretrained, and measure it from that folder"
        raise ArchitectureMismatchError(msg, missing=missing[:20])
    return found


def _require_given(texts: Sequence[Text], labels: Labels | Sequence[Label]) -> Sequence[Label] | None:
    """Return the labels that came with the texts, one for each; None where the texts themselves are meant."""
    given = None if labels == "given" else labels
    if isinstance(given, str):
        msg = f"labels are {' or '.join(get_args(Labels))}, or one for each text; {given!r} is none of these"
        raise ConfigurationError(msg)
    require_as_many(texts, given)
    return given
