"""Runs a model over texts and measures it: what `gramfuse stats collect` and `gramfuse.collect` do."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from gramfuse.adapters.adding import add_adapter
from gramfuse.contributing.loading import is_adapter
from gramfuse.contributing.origin import digest_of_weights
from gramfuse.measuring.batching import batch_inputs, tokenize
from gramfuse.measuring.collection import Collector
from gramfuse.measuring.inference import OpenModel, Progress, open_model, ready_to_run
from gramfuse.measuring.layers import require_saved_layers
from gramfuse.measuring.resuming import ResumableRun, run_digest, seed_of_run
from gramfuse.measuring.sampled_loss import sampled_loss
from gramfuse.measuring.sparing import Sparing, compute_nothing, output_layer
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.statistics_checkpoint import keep_statistics, restore_statistics
from gramfuse.measuring.texts import Text
from gramfuse_shared.contract.manifest import Weighting
from gramfuse_shared.digest import seed_of
from gramfuse_shared.errors import ConfigurationError


def collect(
    model: nn.Module | str | Path,
    texts: Sequence[Text],
    *,
    tokenizer: Any = None,  # noqa: ANN401 - any transformers tokenizer
    batch_size: int = 32,
    max_length: int | None = None,
    device: str = "auto",
    base: str | None = None,
    base_folder: str | Path | None = None,
    padding: Literal["dropped", "counted"] = "dropped",
    share_inputs: bool = True,
    weighting: Weighting = "none",
    layers: Collection[str] | None = None,
    seed: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: timedelta = timedelta(minutes=1),
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Statistics:
    """Run the model over the texts, longest first, and return the statistics.

    Args:
        model: a `from_pretrained` folder, a PEFT adapter's, or a transformers model in memory (moved to `device` and
            back).
        texts: each a text, a pair of texts, or a list of words. A model that generates from a source text takes a pair
            as source and target; without a target, the source itself is what its decoder reads.
        tokenizer: for a model in memory; a folder brings its own.
        batch_size: examples per forward pass.
        max_length: tokens after which a text is cut; default: what the model takes, 512 at most.
        device: "auto", "cpu", "cuda", "cuda:1", …
        base: fingerprint of the project's base model, written into the file.
        base_folder: the base model's folder, which an adapter is added to.
        padding: "counted" keeps padded rows, as the published RegMean code does.
        share_inputs: False measures each layer for itself.
        weighting: "output_gradient" lets a row count by the square of the loss's gradient at its layer's output, with
            labels drawn from the model's predictions; takes a backward pass, and measures each layer for itself.
        layers: weights to measure, as the folder names them; None: all. Those that are no linear layer's are left out.
        seed: what the drawing of labels for `weighting` begins with, see `collect_fisher`.
        checkpoint: file to go on from, and to keep the progress in; remove it once the statistics are saved.
        checkpoint_every: how often it is written.
        on_progress: called after each batch.
        is_cancelled: asked after each batch but the last; if so, the checkpoint is written and the call ends.

    Raises:
        ConfigurationError: gradients are to weigh the rows of a model without a head or without embeddings.
        CancelledError: `is_cancelled` said so; the message names the checkpoint.
        ArchitectureMismatchError: the folder's weights are named otherwise than the loaded model's, or none of `layers`
            is a linear layer's.
        ConflictError: the checkpoint belongs to another run.
    """
    opened, adapter = open_to_measure(model, base_folder, tokenizer=tokenizer, device=device)
    loaded, folder = opened.model, opened.folder
    examples = tokenize(opened.tokenizer, texts, opened.max_tokens(max_length), generates=opened.generates)
    # Sorted, so that a batch holds little padding; longest first, so that too large a batch fails at once.
    examples = sorted((text for text in examples if text.ids), key=lambda text: text.length, reverse=True)
    folders = [path for path in (folder, adapter) if path is not None]
    measured_on = digest_of_weights(folders[-1]) if folders else None  # before the run: a change meanwhile is seen
    gradients = weighting != "none"
    seed = seed_of_run(seed, checkpoint) if gradients else None
    settings = ["statistics", batch_size, base, padding, share_inputs, weighting, seed]
    settings += [] if layers is None else [sorted(layers)]
    run = ResumableRun(
        None if checkpoint is None else Path(checkpoint),
        run_digest(folders, loaded, examples, settings),
        every=checkpoint_every,
        seed=seed,
    )
    collector = Collector(
        loaded,
        base=base,
        padding=padding,
        share_inputs=share_inputs,
        weighting=weighting,
        layers=layers,
        resume=None if run.kept is None else restore_statistics(run.kept),
    )
    if folder is not None:
        require_saved_layers(collector.layers, folder)
    batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    # gradients come from the loss, for which everything is computed
    spared = nullcontext() if gradients or layers is None else Sparing(loaded, collector.layers).sparing()
    with collector as statistics, spared, ready_to_measure(opened, gradients=gradients):
        for number, batch in run.over(
            batches,
            [sum(example.tokens for example in batch) for batch in batches],
            measured=lambda: keep_statistics(statistics),
            on_progress=on_progress,
            is_cancelled=is_cancelled,
        ):
            inputs = batch_inputs(loaded, batch, opened.pad, opened.device)
            predicted = loaded(**inputs)
            if gradients:
                # by batch, so that a resumed run draws as one that was not interrupted
                drawn = torch.Generator(opened.device).manual_seed(seed_of(f"{seed} {number}"))
                problem = getattr(loaded.config, "problem_type", None)
                sampled_loss(predicted, inputs, drawn, problem=problem).backward()  # type: ignore[no-untyped-call] # torch's own
    statistics.measured_on = measured_on
    return statistics


def open_to_measure(
    model: nn.Module | str | Path,
    base_folder: str | Path | None,
    *,
    tokenizer: Any = None,  # noqa: ANN401 - any transformers tokenizer
    device: str = "auto",
) -> tuple[OpenModel, Path | None]:
    """Open a model, or a base model with an adapter added to it; also return the adapter's folder.

    Raises:
        ConfigurationError: an adapter comes without the folder of its base model, or a model without its tokenizer.
        FileUnreadableError, ArchitectureMismatchError: see `load_model`.
    """
    place, adapter = _places(model, base_folder)
    opened = open_model(place, tokenizer=tokenizer, device=device)
    if adapter is not None and opened.folder is not None:
        add_adapter(opened.model, adapter, opened.folder)
    return opened, adapter


def _places(model: nn.Module | str | Path, base_folder: str | Path | None) -> tuple[nn.Module | Path, Path | None]:
    """Return what the model is loaded from, and the adapter that is added to it."""
    if isinstance(model, nn.Module):
        return model, None
    folder = Path(model)
    if not is_adapter(folder):
        return folder, None
    if base_folder is None:
        msg = f"{folder} is an adapter: name the folder of the base model that it belongs to (--base, base_folder=…)"
        raise ConfigurationError(msg)
    return Path(base_folder), folder


@contextmanager
def ready_to_measure(opened: OpenModel, *, gradients: bool) -> Iterator[None]:
    """Let a model run within: without gradients, and without the product with the vocabulary; or with them.

    Gradients flow through the layers' outputs and stop at the embeddings: no parameter gets one.
    """
    model = opened.model
    spared = None if gradients else output_layer(model)
    with ready_to_run(opened), _gradients_of_layers(model) if gradients else torch.no_grad():
        if spared is not None:
            compute_nothing(spared, outputs=1)  # its input is measured by a hook; what it would compute is thrown away
        try:
            yield
        finally:
            if spared is not None:
                del spared.forward


@contextmanager
def _gradients_of_layers(model: nn.Module) -> Iterator[None]:
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if not embeddings:
        msg = f"{type(model).__name__} has no embeddings, where gradients could end; measure without weighting"
        raise ConfigurationError(msg)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad = False
    hooks = [module.register_forward_hook(_ask_for_gradient) for module in embeddings]
    try:
        with torch.enable_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.requires_grad = True


def _ask_for_gradient(_module: nn.Module, _arguments: object, embedded: torch.Tensor) -> torch.Tensor:
    return embedded.detach().requires_grad_().clone()  # a copy: models write into what they embedded
