"""What a model's layers give short of another model's, layer by layer, and the products of that with what they read."""

from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gramfuse.measuring.layers import Layer, find_layers
from gramfuse.measuring.masking import Selection
from gramfuse.measuring.stream import exact_sums
from gramfuse_shared.errors import ArchitectureMismatchError


class OutputDifferences:
    """R = Σ x̃eᵀ for each layer: x̃ = (x, 1) a row that it reads, e = y − its own output, y the other model's output.

    The other model runs first on each batch, within `watching`; its outputs are kept until the same layers of the
    measured model have run, in the same order of calls.

    Attributes:
        products: R [d+1, outputs] by the layer's weight, fp32 on the model's device.
        layers: those of the other model.
    """

    def __init__(self, other: nn.Module, layers: Collection[str]) -> None:
        """Take the model whose outputs are wanted, and the weights of its layers.

        Raises:
            ArchitectureMismatchError: one of them is no linear layer's of that model.
        """
        found = {layer.weight: layer for layer in find_layers(other)}
        missing = sorted(set(layers) - found.keys())
        if missing:
            msg = f"{missing[0]} is no linear layer of your own model, so the merged model's cannot be refit to it"
            raise ArchitectureMismatchError(msg, layers=missing[:20])
        self.products: dict[str, torch.Tensor] = {}
        self.layers = tuple(found[weight] for weight in layers)
        self._outputs: dict[str, deque[torch.Tensor]] = {weight: deque() for weight in layers}
        self._expected: dict[nn.Module, tuple[Layer, Selection]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep what the other model's layers give, until the block ends."""

        def note(weight: str, output: torch.Tensor) -> None:
            self._outputs[weight].append(output.detach())

        hooks = [
            module.register_forward_hook(lambda _, __, output, weight=layer.weight: note(weight, output))
            for layer in self.layers
            for module in layer.modules
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def expect(self, module: nn.Module, layer: Layer, selection: Selection) -> None:
        """Take the rows, with their constant, that a module of the measured model is about to read."""
        self._expected[module] = (layer, selection)

    def follow(self, module: nn.Module, _arguments: object, output: torch.Tensor) -> None:
        """Add the product of these rows with what the module's output lacks; a forward hook.

        Raises:
            ArchitectureMismatchError: the other model's layer gave other rows, or none.
        """
        expected = self._expected.pop(module, None)
        if expected is None:  # the probe's pass
            return
        layer, selection = expected
        waiting = self._outputs[layer.weight]
        own = waiting.popleft() if waiting else None
        if own is None or own.shape != output.shape:
            raise _unlike(layer.weight)
        with exact_sums(output.device):
            rest = own.float() - output.detach().float()
            rest = rest.reshape(-1, rest.shape[-1])  # [n, outputs]
            mask = selection.count.mask
            if mask is not None:
                rest = mask.drop_padding(rest, selection.count.positions)
            rows = selection.rows.float()
            known = self.products.get(layer.weight)
            if known is None:
                known = self.products[layer.weight] = rows.new_zeros(rows.shape[1], rest.shape[1])
            known.addmm_(rows.T, rest)

    def require_met(self) -> None:
        """Require, behind a batch, that every output of the other model has met its layer.

        Raises:
            ArchitectureMismatchError: one is left.
        """
        left = next((weight for weight, waiting in self._outputs.items() if waiting), None)
        if left is not None:
            raise _unlike(left)


def with_constant(selection: Selection) -> Selection:
    """Append a 1 to every row that counts: [n, d+1]."""
    count = selection.count
    ones: Any = selection.rows.new_ones(count.total, 1)
    if count.mask is not None:
        ones = count.mask.drop_padding(ones, count.positions)  # on a device padded rows are zeros, all of them
    return Selection(torch.cat([selection.rows, ones], dim=1), count)


def _unlike(weight: str) -> ArchitectureMismatchError:
    msg = (
        f"{weight} computes other rows in your own model than in the merged one, as behind a routing of tokens, so it "
        "cannot be refit; leave it out of the request"
    )
    return ArchitectureMismatchError(msg, layers=[weight])
