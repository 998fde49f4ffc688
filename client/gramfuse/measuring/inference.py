"""Opens a model with its tokenizer, and runs it over texts: in evaluation mode, then as it was before."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gramfuse.measuring.batching import TokenizedText, batch_inputs, generates_text, max_tokens_of, pad_token
from gramfuse.measuring.model_loading import load_model, load_tokenizer
from gramfuse_shared.errors import CancelledError, ConfigurationError


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run over texts is, in tokens; `resumed` of them were done by an earlier run."""

    tokens: int
    total: int
    resumed: int


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model, its tokenizer, and where it is to be run; `folder` is None of a model in memory."""

    model: nn.Module
    tokenizer: Any
    device: torch.device
    folder: Path | None

    @property
    def pad(self) -> int:
        """The id that padding is made of."""
        return pad_token(self.tokenizer)

    @property
    def generates(self) -> bool:
        """Whether it writes a target text from a source text."""
        return generates_text(self.model)

    def max_tokens(self, wanted: int | None) -> int:
        """After how many tokens a text is cut."""
        return max_tokens_of(self.model, self.tokenizer, wanted)


def open_model(
    model: nn.Module | str | Path,
    *,
    tokenizer: Any = None,  # noqa: ANN401 - any transformers tokenizer
    device: str = "auto",
) -> OpenModel:
    """Open a `from_pretrained` folder, or a transformers model in memory together with its tokenizer.

    Raises:
        ConfigurationError: a model in memory comes without a tokenizer.
        FileUnreadableError, ArchitectureMismatchError: see `load_model`.
    """
    target = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(model, nn.Module):
        if tokenizer is None:
            msg = f"a model in memory needs its tokenizer: pass tokenizer=… beside the {type(model).__name__}"
            raise ConfigurationError(msg)
        return OpenModel(model, tokenizer, target, None)
    folder = Path(model)
    loaded = load_model(folder, target)
    return OpenModel(loaded, tokenizer or load_tokenizer(folder), target, folder)


@contextmanager
def ready_to_run(opened: OpenModel) -> Iterator[None]:
    """On the device, in evaluation mode, with a padding token; behind the block as before."""
    model = opened.model
    before = next(model.parameters()).device
    training = [module for module in model.modules() if module.training]
    config: Any = model.config
    no_padding = getattr(config, "pad_token_id", None) is None
    model.to(opened.device).eval()
    if no_padding:
        config.pad_token_id = opened.pad
    try:
        yield
    finally:
        if no_padding:
            config.pad_token_id = None
        for module in training:
            module.training = True
        model.to(before)


@dataclass(frozen=True, slots=True)
class RunBatch:
    """One forward pass: which texts it read, what the model was called with, and what it returned."""

    positions: tuple[int, ...]
    inputs: Mapping[str, Any]
    output: Any


def run(
    opened: OpenModel,
    texts: Sequence[TokenizedText],
    *,
    batch_size: int = 32,
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[RunBatch]:
    """Run a model over texts without gradients, longest first; texts without a token are left out.

    Raises:
        CancelledError: `is_cancelled`, asked behind each batch, said so.
    """
    # Sorted, so that a batch holds little padding; longest first, so that too large a batch fails at once.
    order = sorted((at for at, text in enumerate(texts) if text.ids), key=lambda at: texts[at].length, reverse=True)
    total, tokens = sum(text.tokens for text in texts), 0
    with ready_to_run(opened):
        for start in range(0, len(order), batch_size):
            positions = tuple(order[start : start + batch_size])
            batch = [texts[at] for at in positions]
            inputs = batch_inputs(opened.model, batch, opened.pad, opened.device)
            with torch.no_grad():  # not around the yield, where it would hold for the caller too
                output = opened.model(**inputs)
            yield RunBatch(positions, inputs, output)
            tokens += sum(text.tokens for text in batch)
            on_progress(Progress(tokens=tokens, total=total, resumed=0))
            if is_cancelled():
                msg = f"interrupted behind {start + len(batch)} of {len(order)} texts"
                raise CancelledError(msg)
