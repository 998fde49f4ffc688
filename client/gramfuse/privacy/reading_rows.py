"""Reads the rows that texts bring to a model's taps: what an attacker who holds the model computes of any text."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Final, Self

import torch

from gramfuse.measuring.batching import TokenizedText
from gramfuse.measuring.inference import OpenModel, ready_to_run, run
from gramfuse.measuring.layers import find_layers
from gramfuse_shared.errors import ArchitectureMismatchError

_SEQUENCES: Final = 3
_MATRIX: Final = 2


class _ReachedError(Exception):
    """The tap was read, and what follows it need not be computed."""


class _Reader:
    """Keeps the last input of each named linear layer."""

    def __init__(self, opened: OpenModel, layers: Sequence[str], *, stop: bool = False) -> None:
        known = {layer.weight: layer for layer in find_layers(opened.model)}
        missing = [weight for weight in layers if weight not in known]
        if missing:
            msg = f"the model has no linear layer {missing[0]!r}, of which there are statistics"
            raise ArchitectureMismatchError(msg, missing=missing[:20])
        self.seen: dict[str, torch.Tensor] = {}
        self._stop = stop
        self._hooks = ExitStack()
        for weight in layers:
            hook = known[weight].modules[0].register_forward_pre_hook(self._look(weight), with_kwargs=True)
            self._hooks.callback(hook.remove)

    def _look(self, weight: str) -> Any:  # noqa: ANN401 - a hook of torch
        def look(_: object, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self.seen[weight] = (arguments[0] if arguments else next(iter(keywords.values()))).detach()
            if self._stop:
                raise _ReachedError

        return look

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()


def rows_of_texts(
    opened: OpenModel, texts: Sequence[TokenizedText], layers: Sequence[str], *, batch_size: int = 32
) -> Iterator[tuple[int, Mapping[str, torch.Tensor]]]:
    """Yield, for each text that has a token, its place and the rows that each layer reads of it: [k, d] fp32, CPU.

    Layers whose inputs are neither a row per position nor a row per text are left out. Padded positions are dropped.

    Raises:
        ArchitectureMismatchError: the model has no such linear layer.
    """
    with _Reader(opened, layers) as reader:
        for batch in run(opened, texts, batch_size=batch_size):
            keep = batch.inputs["attention_mask"].bool()
            for place, position in enumerate(batch.positions):
                rows = {weight: _own(tensor, keep, place) for weight, tensor in reader.seen.items()}
                yield position, {weight: own.float().cpu() for weight, own in rows.items() if own is not None}
            reader.seen.clear()


def rows_of_tokens(opened: OpenModel, layer: str, sequences: torch.Tensor) -> torch.Tensor:
    """Return what reaches a layer, [n, T, d] fp32 on the CPU, for sequences of token ids [n, T]. Nothing behind the
    layer is computed.

    Raises:
        ArchitectureMismatchError: the model has no such layer, or it reads something other than a row per position.
    """
    parts = []
    with ready_to_run(opened), torch.no_grad(), _Reader(opened, (layer,), stop=True) as reader:
        for chunk in torch.split(sequences, 128):
            ids = chunk.to(opened.device)
            with suppress(_ReachedError):
                opened.model(input_ids=ids, attention_mask=torch.ones_like(ids))
            found = reader.seen.pop(layer, None)
            if found is None or found.shape[:2] != chunk.shape:
                msg = f"{layer} does not read a row per token"
                raise ArchitectureMismatchError(msg, tensor=layer)
            parts.append(found.float().cpu())
    return torch.cat(parts)


def _own(tensor: torch.Tensor, keep: torch.Tensor, place: int) -> torch.Tensor | None:
    if tensor.dim() == _SEQUENCES and tensor.shape[:2] == keep.shape:
        return tensor[place][keep[place]]
    if tensor.dim() == _MATRIX and tensor.shape[0] == len(keep):
        return tensor[place : place + 1]
    return None
