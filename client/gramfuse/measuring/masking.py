"""Which rows of a layer's input are tokens of which example, and which are padding.

A `Frame` stands for one call of a module that takes an attention mask: it says what masks the tensors inside. An
encoder-decoder has several: encoder layers, and cross-attention keys and values, which read the encoder's output, go
by the encoder's mask; the decoder's other layers by the decoder's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from gramfuse.measuring.masks import Mask, RowCount

_MAIN_INPUTS: Final = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features", "hidden_states")
_LATER_INPUTS: Final = ("decoder_input_ids", "attention_mask")
DECODER_CONTENT: Final = ("decoder_input_ids", "decoder_inputs_embeds", "labels")
_IGNORED_LABEL: Final = -100
MATRIX: Final = 2
_SEQUENCES: Final = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """What is known inside of one module's call.

    `mask` and `length` are those of the layers that stand in it directly; within an encoder-decoder's own call these
    are the decoder's (its output layer is there), and `two_sided` is set. `encoder` is the encoder's output inside of
    a decoder. `cached` says that a key-value cache holds earlier positions.
    """

    batch: int | None
    length: int | None = None
    mask: Mask | None = None
    encoder: torch.Tensor | None = None
    encoder_mask: Mask | None = None
    cached: bool = False
    two_sided: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows [n, d] of a tensor that count; on a device padded ones are zeros. `count` says how many there are."""

    rows: torch.Tensor
    count: RowCount


def frame_of(bound: Mapping[str, Any], outer: Frame | None, *, two_sided: bool) -> Frame:
    """Return the frame inside of a module that was called with these arguments; often it is `outer` itself.

    Args:
        bound: the arguments by the names of the module's parameters.
        outer: the frame around the call; None for the outermost.
        two_sided: whether the module is an encoder-decoder, that is, takes decoder inputs of its own.
    """
    batch = outer.batch if outer is not None else _batch(bound)
    cached = (outer is not None and outer.cached) or _is_cached(bound)
    mask = _mask_of(bound.get("attention_mask"), batch, outer)
    if two_sided:
        decoder = _first(bound, DECODER_CONTENT)
        length = decoder.shape[1] if decoder is not None and decoder.dim() >= MATRIX else None
        decoder_mask = _mask_of(bound.get("decoder_attention_mask"), batch, outer) or _mask_of_labels(bound)
        if decoder_mask is None and outer is not None and outer.two_sided and outer.length == length:
            decoder_mask = outer.mask
        return Frame(batch, length, decoder_mask, encoder_mask=mask, cached=cached, two_sided=True)
    own = _first(bound, ("input_ids", "inputs_embeds"))
    length = own.shape[1] if own is not None and own.dim() >= MATRIX else None
    encoder = bound.get("encoder_hidden_states")
    if isinstance(encoder, torch.Tensor) and (outer is None or outer.encoder is None):
        encoder_mask = _mask_of(bound.get("encoder_attention_mask"), batch, outer)
        if outer is not None and outer.two_sided:
            encoder_mask = encoder_mask or outer.encoder_mask
            mask = mask or (outer.mask if outer.length == length else None)
        return Frame(batch, length, mask, encoder, encoder_mask, cached)
    if outer is None:
        main = main_input(bound)
        length = _length(main) if main is not None else None
        return Frame(batch, length, mask, cached=cached)
    if own is not None:
        return Frame(batch, length, mask, outer.encoder, outer.encoder_mask, cached)
    if mask is not None and mask is not outer.mask:
        return replace(outer, mask=mask, cached=cached)
    return outer


def select(tensor: torch.Tensor, frame: Frame, *, drop_padding: bool) -> Selection:
    """Return the rows of a layer's input that are not padding, without waiting for a device.

    [B, T, d] and [B·T, d] go by the mask; [B, d] has a row per example; [B, …, d] without mask counts whole. A tensor
    of another first dimension (relative embeddings, routed tokens) belongs to no example that could be told. Takes the
    very tensor that the layer read, since an encoder's output is told by identity; the rows have no gradient.
    """
    rows = tensor.detach().reshape(-1, tensor.shape[-1])  # [n, d]
    batch, total = frame.batch, rows.shape[0]
    if batch is None or tensor.dim() < MATRIX or batch == 0:
        return Selection(rows, RowCount(total))
    mask, length = _mask_for(tensor, frame)
    positions = _positions(tensor, batch, mask, length, cached=frame.cached)
    if positions is None:
        return Selection(rows, RowCount(total))
    if not drop_padding or mask is None or not _fits(mask, positions, cached=frame.cached):
        return Selection(rows, RowCount(total, batch))
    return Selection(mask.drop_padding(rows, positions), RowCount(total, batch, mask, positions))


def main_input(bound: Mapping[str, Any]) -> tuple[str, torch.Tensor] | None:
    """Find the input that holds the batch: by its usual names, else the first tensor."""
    for name in _MAIN_INPUTS:
        if isinstance(bound.get(name), torch.Tensor):
            return name, bound[name]
    if _first(bound, _LATER_INPUTS) is not None:
        return None  # a later step of generation: the encoder ran before
    return next(((name, value) for name, value in bound.items() if isinstance(value, torch.Tensor)), None)


def _first(bound: Mapping[str, Any], names: Sequence[str]) -> torch.Tensor | None:
    return next((bound[name] for name in names if isinstance(bound.get(name), torch.Tensor)), None)


def _batch(bound: Mapping[str, Any]) -> int | None:
    main = main_input(bound)
    tensor = main[1] if main is not None else _first(bound, _LATER_INPUTS)
    return tensor.shape[0] if tensor is not None and tensor.dim() else None


def _mask_of(value: Any, batch: int | None, outer: Frame | None) -> Mask | None:  # noqa: ANN401 - whatever the model was called with
    if not isinstance(value, torch.Tensor) or value.dim() != MATRIX or value.shape[0] != batch:
        return None
    known = (outer.mask, outer.encoder_mask) if outer is not None else ()
    return next((mask for mask in known if mask is not None and mask.origin is value), None) or Mask(value)


def _mask_of_labels(bound: Mapping[str, Any]) -> Mask | None:
    """Decoder inputs are the labels shifted by one, so where the labels are padding, the inputs are."""
    labels = bound.get("labels")
    if bound.get("decoder_input_ids") is not None or not isinstance(labels, torch.Tensor) or labels.dim() != MATRIX:
        return None
    return Mask(labels, labels != _IGNORED_LABEL)


def _mask_for(tensor: torch.Tensor, frame: Frame) -> tuple[Mask | None, int | None]:
    if frame.encoder is not None:
        length = frame.encoder.shape[1] if frame.encoder.dim() == _SEQUENCES else None
        is_encoders = tensor is frame.encoder
        # A tensor derived from the encoder's output still has its length; where both have the same, the decoder's wins.
        looks_like_it = tensor.dim() == _SEQUENCES and tensor.shape[1] == length != frame.length
        if is_encoders or looks_like_it:
            return frame.encoder_mask, length
    return frame.mask, frame.length


def _positions(tensor: torch.Tensor, batch: int, mask: Mask | None, length: int | None, *, cached: bool) -> int | None:
    """How many rows each example has in this tensor, or None where it has no batch axis."""
    if tensor.dim() > MATRIX:
        positions = tensor.shape[1:-1].numel()
        # A batch of one is no evidence of a batch axis: relative embeddings are [1, 2k, d].
        stray = batch == 1 and length is not None and not cached and positions != length
        return positions if tensor.shape[0] == batch and not stray else None
    rows = tensor.shape[0]
    total = length if length is not None else mask.keep.shape[1] if mask is not None else None
    if total is not None and rows == batch * total:
        return total
    return 1 if rows == batch else None


def _fits(mask: Mask, positions: int, *, cached: bool) -> bool:
    total = mask.keep.shape[1]
    return positions == total or (cached and positions < total)


def _length(main: tuple[str, torch.Tensor]) -> int | None:
    """Sequence length of the main input; images have none."""
    name, tensor = main
    if tensor.dim() == MATRIX and not tensor.is_floating_point():
        return tensor.shape[1]
    if tensor.dim() == _SEQUENCES and name in {"inputs_embeds", "hidden_states"}:
        return tensor.shape[1]
    return None


def _is_cached(bound: Mapping[str, Any]) -> bool:
    cache = bound.get("past_key_values")
    if cache is None:
        return False
    length = getattr(cache, "get_seq_length", None)
    return bool(length()) if callable(length) else True
