"""Finds out which taps the embeddings feed directly: there, a Gram matrix reveals which tokens the texts hold.

One example is run beside a copy of itself in which every token but the first and the last is another. A row at one
of the kept positions that stays the same knows of no other token: its tap's source is `embeddings`. One that changes
has been mixed. The last position is looked at, so that a causal model has mixed too.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

from gramfuse.measuring.layers import Layer
from gramfuse.measuring.masking import Frame, main_input
from gramfuse.measuring.masks import Mask
from gramfuse.measuring.stream import worst_source
from gramfuse_shared.contract.manifest import Source

PROBES_PER_MODULE: Final = 8
"""Forward passes whose examples are tried before a module's taps stay `unknown`."""

_DROPPED: Final = frozenset({"labels", "past_key_values", "cache_position", "use_cache", "num_items_in_batch"})
_KEPT_IDS: Final = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id")
_MATRIX: Final = 2
_SEQUENCES: Final = 3
_IMAGES: Final = 4
_ROUNDING_STEPS: Final = 8
"""Differences up to this many steps of the dtype come from the order of additions, not from other tokens."""


@dataclass(slots=True)
class Probe:
    """What was found out so far, by layer, and how often each module was tried."""

    sources: dict[str, Source] = field(default_factory=dict)
    attempts: Counter[nn.Module] = field(default_factory=Counter)


def probe_sources(
    module: nn.Module, bound: Mapping[str, Any], frame: Frame, layers: tuple[Layer, ...]
) -> dict[str, Source]:
    """Run the probe on the longest example of a call's arguments; return the source per layer that was reached.

    Gradients, random numbers, training mode and autocast's cache are as before. Empty where there is nothing to probe
    with: fewer than three tokens, no other token to put in, no batch axis, or a model that does not take the example.
    """
    found: dict[str, list[Source]] = {}
    try:
        pair = _pair(module, bound, frame)
        if pair is None:
            return {}
        arguments, lengths = pair

        def look(layer: Layer, tensor: torch.Tensor) -> None:
            source = _source(tensor, lengths)
            if source is not None:
                found.setdefault(layer.weight, []).append(source)

        with _undisturbed(module, layers, look):
            module(**arguments)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError):
        # A model that wants other arguments than these stays unprobed; `unknown` taps are withheld like `embeddings`.
        return {}
    return {layer: worst_source(sources) for layer, sources in found.items()}


def _source(tensor: torch.Tensor, lengths: tuple[int | None, ...]) -> Source | None:
    """Compare the row of the example with that of its altered copy; None where the tensor holds no pair of them."""
    known = [length for length in lengths if length is not None]
    if tensor.dim() == _SEQUENCES and tensor.shape[0] == 2:  # noqa: PLR2004 - a pair
        # Images have as many rows as the model makes of them; the kept patch is the last.
        if known and tensor.shape[1] not in known:
            return None
        one, other = tensor[0, -1], tensor[1, -1]
    elif tensor.dim() == _MATRIX and tensor.shape[0] in {2 * length for length in known}:
        half = tensor.shape[0] // 2
        one, other = tensor[half - 1], tensor[-1]
    elif tensor.dim() == _MATRIX and tensor.shape[0] == 2:  # noqa: PLR2004 - a pair
        one, other = tensor[0], tensor[1]
    else:
        return None
    limit = _ROUNDING_STEPS * torch.finfo(tensor.dtype).eps
    size = torch.maximum(one.float().abs(), other.float().abs())
    changed = (one - other).float().abs() > limit * (size + size.mean())
    # A few features may round otherwise; another token's influence reaches most of those that are not zero in both.
    return "mixed" if int(changed.sum()) * 2 > int((size > 0).sum()) else "embeddings"


def _pair(
    module: nn.Module, bound: Mapping[str, Any], frame: Frame
) -> tuple[dict[str, Any], tuple[int | None, ...]] | None:
    main = main_input(bound)
    if main is None or not frame.batch:
        return None
    name, values = main
    arguments: dict[str, Any] = {}
    mask = frame.encoder_mask if frame.two_sided else frame.mask
    example, kept = _longest(mask, frame.batch, values)
    for key, value in bound.items():
        if key in _DROPPED:
            continue
        arguments[key] = _twice(value, example, kept, frame.batch) if isinstance(value, torch.Tensor) else value
    altered = _altered(module, arguments[name], values)
    if altered is None:
        return None
    arguments[name] = altered
    lengths = [altered.shape[1] if altered.dim() in {_MATRIX, _SEQUENCES} else None]
    if frame.two_sided:
        decoder = _decoder_pair(module, bound, frame)
        if decoder is None:
            return None
        arguments |= decoder
        lengths.append(decoder["decoder_input_ids"].shape[1])
        arguments.pop("decoder_attention_mask", None)
    return arguments, tuple(lengths)


def _decoder_pair(module: nn.Module, bound: Mapping[str, Any], frame: Frame) -> dict[str, torch.Tensor] | None:
    ids = bound.get("decoder_input_ids")
    if ids is None and isinstance(bound.get("labels"), torch.Tensor):
        shift = getattr(module, "prepare_decoder_input_ids_from_labels", None)
        ids = shift(labels=bound["labels"]) if callable(shift) else None
    if not isinstance(ids, torch.Tensor) or ids.dim() != _MATRIX:
        return None
    example, kept = _longest(frame.mask, ids.shape[0], ids)
    altered = _altered(module, _twice(ids, example, kept, ids.shape[0]), ids)
    return None if altered is None else {"decoder_input_ids": altered}


def _longest(mask: Mask | None, batch: int, values: torch.Tensor) -> tuple[int, torch.Tensor | None]:
    """Return the example with the most unpadded positions, and these positions (None: all)."""
    if mask is None or mask.keep.shape[0] != batch or mask.keep.shape[1:] != values.shape[1:2]:
        return 0, None
    example = int(mask.keep.sum(dim=1).argmax())
    return example, mask.keep[example].nonzero().squeeze(1)


def _twice(value: torch.Tensor, example: int, kept: torch.Tensor | None, batch: int) -> torch.Tensor:
    if value.dim() == 0 or value.shape[0] != batch:
        return value
    row = value[example : example + 1].detach()
    if kept is not None and len(kept) and row.dim() >= _MATRIX and row.shape[1] > int(kept[-1]):
        row = row.index_select(1, kept.to(row.device))
    return torch.cat([row, row])


def _altered(module: nn.Module, pair: torch.Tensor, values: torch.Tensor) -> torch.Tensor | None:
    """Put something else everywhere into the second of the pair, but for the first and the last position."""
    if pair.shape[0] != 2 or pair.dim() < _MATRIX:  # noqa: PLR2004 - a pair
        return None
    if pair.dim() == _MATRIX and not pair.is_floating_point():
        return _with_other_tokens(module, pair, values)
    altered = pair.clone()
    if pair.dim() == _SEQUENCES and pair.shape[1] >= 3:  # noqa: PLR2004 - first, last, and one between
        altered[1, 1:-1] = altered[1, 1:-1].flip(0) + 1
        return altered
    patch = getattr(getattr(module, "config", None), "patch_size", None)
    if pair.dim() == _IMAGES and isinstance(patch, int) and min(pair.shape[2:]) > patch:
        last = altered[1, :, -patch:, -patch:].clone()
        altered[1] = altered[1].flip(-1) + 1
        altered[1, :, -patch:, -patch:] = last
        return altered
    return None


def _with_other_tokens(module: nn.Module, pair: torch.Tensor, values: torch.Tensor) -> torch.Tensor | None:
    """Exchange tokens for others of the batch, which the model certainly knows; special ones stay, since models count
    padding and ends of sentences.
    """
    config = getattr(module, "config", None)
    special: set[int] = set()
    for name in _KEPT_IDS:
        value = getattr(config, name, None)
        special.update(value if isinstance(value, list) else [value] if isinstance(value, int) else [])
    ids = [int(token) for token in sorted(set(values.flatten().tolist())) if token >= 0]
    usable = [token for token in ids if token not in special]
    length = pair.shape[1]
    if len(usable) < 2 or length < 3:  # noqa: PLR2004 - nothing to exchange, or nothing between first and last
        return None
    successor = dict(zip(usable, usable[1:] + usable[:1], strict=True))
    between = [successor.get(token, token) for token in pair[1, 1:-1].tolist()]
    altered = pair.clone()
    altered[1, 1:-1] = torch.tensor(between, dtype=pair.dtype, device=pair.device)
    return altered if not torch.equal(altered[0], altered[1]) else None


@contextmanager
def _undisturbed(module: nn.Module, layers: tuple[Layer, ...], look: Any) -> Iterator[None]:  # noqa: ANN401 - called with a layer and a tensor
    """Evaluation mode, no gradients, random state and autocast cache kept, nobody's hooks but `look` at every layer."""
    training = [inner for inner in module.modules() if inner.training]
    devices = {parameter.device for parameter in module.parameters() if parameter.device.type == "cuda"}
    cache = torch.is_autocast_cache_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        # Casts cached without gradients would be used, without gradients, by the caller's own forward pass.
        torch.set_autocast_cache_enabled(False)
        stack.callback(torch.set_autocast_cache_enabled, cache)
        stack.callback(_set_training, training, training=True)
        _set_training(training, training=False)
        stack.enter_context(_without_hooks(module))
        for layer in layers:
            for linear in layer.modules:
                hook = linear.register_forward_pre_hook(
                    lambda _, arguments, keywords, layer=layer: look(
                        layer, arguments[0] if arguments else next(iter(keywords.values()))
                    ),
                    with_kwargs=True,
                )
                stack.callback(hook.remove)
        yield


def _set_training(modules: list[nn.Module], *, training: bool) -> None:
    for module in modules:
        module.training = training


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Silence all hooks, the caller's and the collector's; those that the model itself adds meanwhile stay."""
    tables = [
        table
        for inner in module.modules()
        for table in (inner._forward_pre_hooks, inner._forward_hooks)  # noqa: SLF001 - no public way
    ]
    silenced = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, before in zip(tables, silenced, strict=True):
            added = dict(table)
            table.clear()
            table.update(before)
            table.update(added)
