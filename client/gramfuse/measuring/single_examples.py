"""Runs a model over texts one at a time, and tells what the linear layers at each tap read of each."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from gramfuse.measuring.batching import TokenizedText, batch_inputs
from gramfuse.measuring.forwarding import ready_to_measure
from gramfuse.measuring.inference import OpenModel, Progress
from gramfuse.measuring.layers import find_layers
from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.errors import ArchitectureMismatchError, CancelledError

Rows = Mapping[str, torch.Tensor]
"""By tap, the rows [n, width] that one example brought, as the model computed them; n may be 0."""


def visit_examples(
    opened: OpenModel,
    texts: Sequence[TokenizedText],
    taps: Sequence[TapInfo],
    visit: Callable[[Rows], None],
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Show each text's rows at the taps, in the order of the texts; a text without a token has none.

    Every text has a forward pass of its own. So its rows are a function of it and of the model alone, to the last bit:
    in a batch, rounding depends on the others' lengths and number.

    Raises:
        ArchitectureMismatchError: a tap's layers are not the model's.
        CancelledError: `is_cancelled`, asked behind each text, said so.
    """
    model = opened.model
    total, tokens = sum(text.tokens for text in texts), 0
    read: dict[str, list[torch.Tensor]] = {}
    with ExitStack() as stack:
        for tap, readers in _modules_of_taps(model, taps).items():
            for module in readers:
                hook = module.register_forward_pre_hook(partial(_keep, read, tap), with_kwargs=True)
                stack.callback(hook.remove)
        stack.enter_context(ready_to_measure(opened, gradients=False))
        for position, text in enumerate(texts, start=1):
            read.clear()
            if text.ids:
                model(**batch_inputs(model, [text], opened.pad, opened.device))
            visit({tap.name: _joined(read.get(tap.name, []), tap.width) for tap in taps})
            tokens += text.tokens
            on_progress(Progress(tokens=tokens, total=total, resumed=0))
            if is_cancelled():
                msg = f"interrupted behind {position} of {len(texts)} texts; nothing of them was kept"
                raise CancelledError(msg)


def _modules_of_taps(model: nn.Module, taps: Sequence[TapInfo]) -> dict[str, tuple[nn.Module, ...]]:
    """Return, of each tap, the modules of its first layer: what one of its layers reads, all of them read."""
    layers = {layer.weight: layer for layer in find_layers(model)}
    found = {}
    for tap in taps:
        layer = layers.get(tap.layers[0].weight)
        if layer is None or layer.width != tap.width:
            has = "lacks such a layer" if layer is None else f"reads {layer.width} features there"
            msg = f"tap {tap.name} is the input of {tap.layers[0].weight}, {tap.width} wide, and this model {has}"
            raise ArchitectureMismatchError(msg, tap=tap.name)
        found[tap.name] = layer.modules
    return found


def _keep(
    read: dict[str, list[torch.Tensor]],
    tap: str,
    _module: nn.Module,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
) -> None:
    tensor = arguments[0] if arguments else next(iter(keywords.values()))
    # a copy: a model may go on to write into what a layer read
    read.setdefault(tap, []).append(tensor.detach().reshape(-1, tensor.shape[-1]).clone())


def _joined(parts: list[torch.Tensor], width: int) -> torch.Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, width)
