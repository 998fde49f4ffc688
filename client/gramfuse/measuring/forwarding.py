"""Runs a model over texts and measures it: what `gramfuse stats collect` and `gramfuse.collect` do."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from gramfuse.measuring.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from gramfuse.measuring.collection import Collector
from gramfuse.measuring.layers import require_saved_layers
from gramfuse.measuring.model_loading import load_model, load_tokenizer
from gramfuse.measuring.sampled_loss import sampled_loss
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.texts import Text
from gramfuse_shared.contract.manifest import Weighting
from gramfuse_shared.digest import seed_of
from gramfuse_shared.errors import CancelledError, ConfigurationError

DEFAULT_MAX_TOKENS: Final = 512
_UNLIMITED: Final = 1_000_000
"""Tokenizers without a limit of their own announce a huge one."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a measurement is, in tokens; `resumed` of them were done by an earlier run."""

    tokens: int
    total: int
    resumed: int


@dataclass(frozen=True, slots=True)
class _Example:
    ids: list[int]
    types: list[int] | None
    target: list[int] | None

    @property
    def tokens(self) -> int:
        return len(self.ids) + len(self.target or ())


def collect(
    model: nn.Module | str | Path,
    texts: Sequence[Text],
    *,
    tokenizer: Any = None,  # noqa: ANN401 - any transformers tokenizer
    batch_size: int = 32,
    max_length: int | None = None,
    device: str = "auto",
    base: str | None = None,
    padding: Literal["dropped", "counted"] = "dropped",
    share_inputs: bool = True,
    weighting: Weighting = "none",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: timedelta = timedelta(minutes=1),
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Statistics:
    """Run the model over the texts, longest first, and return the statistics.

    Args:
        model: a `from_pretrained` folder, or a transformers model in memory (moved to `device` and back).
        texts: each a text, a pair of texts, or a list of words. A model that generates from a source text takes a pair
            as source and target; without a target, the source itself is what its decoder reads.
        tokenizer: for a model in memory; a folder brings its own.
        batch_size: examples per forward pass.
        max_length: tokens after which a text is cut; default: what the model takes, 512 at most.
        device: "auto", "cpu", "cuda", "cuda:1", …
        base: fingerprint of the project's base model, written into the file.
        padding: "counted" keeps padded rows, as the published RegMean code does.
        share_inputs: False measures each layer for itself.
        weighting: "output_gradient" lets a row count by the square of the loss's gradient at its layer's output, with
            labels drawn from the model's predictions; takes a backward pass, and measures each layer for itself.
        seed: what the drawing of labels begins with.
        checkpoint: file to go on from, and to keep the progress in; remove it once the statistics are saved.
        checkpoint_every: how often it is written.
        on_progress: called after each batch.
        is_cancelled: asked after each batch; if so, the checkpoint is written and the call ends.

    Raises:
        ConfigurationError: gradients are to weigh the rows of a model without a head or without embeddings.
        CancelledError: `is_cancelled` said so; the message names the checkpoint.
        ArchitectureMismatchError: the folder's weights are named otherwise than the loaded model's.
        ConflictError: the checkpoint belongs to another run.
    """
    folder = None if isinstance(model, nn.Module) else Path(model)
    target = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    loaded = model if isinstance(model, nn.Module) else load_model(Path(model), target)
    tokenizer = tokenizer or (load_tokenizer(folder) if folder is not None else None)
    if tokenizer is None:
        msg = "a model in memory needs its tokenizer: collect(model, texts, tokenizer=…)"
        raise ConfigurationError(msg)
    examples = _tokenize(tokenizer, texts, _max_tokens(loaded, tokenizer, max_length), generates=_generates(loaded))
    # Sorted, so that a batch holds little padding; longest first, so that too large a batch fails at once.
    examples.sort(key=lambda example: (len(example.ids), len(example.target or ())), reverse=True)
    path = Path(checkpoint) if checkpoint is not None else None
    run = (
        _run_digest(folder, loaded, examples, [batch_size, base, padding, share_inputs, weighting, seed])
        if path is not None
        else ""
    )
    known = read_checkpoint(path, run) if path is not None else None
    collector = Collector(
        loaded,
        base=base,
        padding=padding,
        share_inputs=share_inputs,
        weighting=weighting,
        resume=known.statistics if known is not None else None,
    )
    if folder is not None:
        require_saved_layers(collector.layers, folder)
    done = known.batches if known is not None else 0
    total = sum(example.tokens for example in examples)
    tokens = resumed = sum(example.tokens for example in examples[: done * batch_size])
    batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    written = time.monotonic()
    gradients = weighting != "none"
    with collector as statistics, _ready_for_forward(loaded, target, _pad_token(tokenizer), gradients=gradients):
        for number, batch in enumerate(batches[done:], start=done + 1):
            inputs = _batch(loaded, batch, _pad_token(tokenizer), target)
            predicted = loaded(**inputs)
            if gradients:
                # by batch, so that a resumed run draws as one that was not interrupted
                drawn = torch.Generator(target).manual_seed(seed_of(f"{seed} {number}"))
                problem = getattr(loaded.config, "problem_type", None)
                sampled_loss(predicted, inputs, drawn, problem=problem).backward()  # type: ignore[no-untyped-call] # torch's own
            tokens += sum(example.tokens for example in batch)
            on_progress(Progress(tokens=tokens, total=total, resumed=resumed))
            cancelled = is_cancelled()
            if path is not None and (cancelled or time.monotonic() - written >= checkpoint_every.total_seconds()):
                write_checkpoint(path, Checkpoint(run=run, batches=number, statistics=statistics))
                written = time.monotonic()
            if cancelled:
                kept = f"; {number} of {len(batches)} batches are kept in {path}" if path is not None else ""
                msg = f"the measurement was interrupted{kept}"
                raise CancelledError(msg)
    return statistics


def _tokenize(tokenizer: Any, texts: Sequence[Text], max_tokens: int, *, generates: bool) -> list[_Example]:  # noqa: ANN401 - any transformers tokenizer
    examples = []
    for text in texts:
        options: dict[str, Any] = {
            "truncation": True,
            "max_length": max_tokens,
            "is_split_into_words": isinstance(text, list),
        }
        first, second = text if isinstance(text, tuple) else (text, None)
        target = None
        if generates:
            target = tokenizer(text_target=second if second is not None else first, **options)["input_ids"]
            second = None
        encoded = tokenizer(first, second, **options) if second is not None else tokenizer(first, **options)
        if encoded["input_ids"]:
            examples.append(_Example(encoded["input_ids"], encoded.get("token_type_ids"), target))
    return examples


def _batch(model: nn.Module, batch: Sequence[_Example], pad: int, device: torch.device) -> dict[str, Any]:
    inputs: dict[str, Any] = _padded([example.ids for example in batch], pad, device)
    if all(example.types is not None for example in batch):
        inputs["token_type_ids"] = _padded([example.types or [] for example in batch], 0, device)["input_ids"]
    if batch[0].target is not None:
        config: Any = model.config
        shifted = _padded(
            [[config.decoder_start_token_id, *(example.target or [])[:-1]] for example in batch], pad, device
        )
        inputs |= {f"decoder_{name}": tensor for name, tensor in shifted.items()}
    if hasattr(model.config, "use_cache"):
        inputs["use_cache"] = False
    return inputs


def _padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])  # [B, T]
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])  # [B, T]
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _pad_token(tokenizer: Any) -> int:  # noqa: ANN401 - any transformers tokenizer
    # The mask says what padding is; a model without a padding token gets one that it knows.
    return next((int(token) for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def _max_tokens(model: nn.Module, tokenizer: Any, wanted: int | None) -> int:  # noqa: ANN401 - any transformers tokenizer
    if wanted is not None:
        return wanted
    config: Any = model.config
    announced = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    return min(DEFAULT_MAX_TOKENS, *(int(limit) for limit in announced if limit and 0 < limit < _UNLIMITED), _UNLIMITED)


def _generates(model: nn.Module) -> bool:
    """Tell whether a model writes a target text from a source text."""
    return bool(getattr(model.config, "is_encoder_decoder", False)) and hasattr(
        model, "prepare_decoder_input_ids_from_labels"
    )


@contextmanager
def _ready_for_forward(model: nn.Module, device: torch.device, pad: int, *, gradients: bool) -> Iterator[None]:
    """On the device, in evaluation mode; then as before.

    Without gradients also without the product with the vocabulary. With them, they flow through the layers' outputs
    and stop at the embeddings: no parameter gets one.
    """
    before = next(model.parameters()).device
    training = [module for module in model.modules() if module.training]
    config: Any = model.config
    no_padding = getattr(config, "pad_token_id", None) is None
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator] # transformers' method
    model.to(device).eval()
    if no_padding:
        config.pad_token_id = pad
    spared = output if isinstance(output, nn.Linear) and not gradients else None
    if spared is not None:
        # Its input is measured by a hook; what it would compute is thrown away.
        spared.forward = _computing_nothing  # type: ignore[method-assign] # for this pass
    try:
        with _gradients_of_layers(model) if gradients else torch.no_grad():
            yield
    finally:
        if spared is not None:
            del spared.forward
        if no_padding:
            config.pad_token_id = None
        for module in training:
            module.training = True
        model.to(before)


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


def _computing_nothing(input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name for it
    return input.new_zeros(*input.shape[:-1], 1)


def _run_digest(folder: Path | None, model: nn.Module, examples: Sequence[_Example], settings: list[Any]) -> str:
    """Identify a run by model, tokens and settings, so that a checkpoint of another one is not continued."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    if folder is not None:
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    else:
        for name, parameter in model.named_parameters():
            sample = parameter.detach().flatten()[:64].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)} {sample.tolist()}\n".encode())
    for example in examples:
        digest.update(json.dumps([example.ids, example.types, example.target]).encode())
    return digest.hexdigest()
