"""Weigh each row that a linear layer reads by how much the loss hangs on what the layer makes of it.

A row x counts ‖∂ℓ/∂y‖² times, y the layer's output for it and ℓ the loss of the row's example, so that its Gram matrix
becomes the input side of the Kronecker-factored Fisher matrix with the output side's trace in it (Martens and Grosse,
2015). The rows are known in the forward pass, their weights in the backward pass.
"""

from functools import partial
from typing import Final

import torch
from torch import nn

from gramfuse.measuring.layers import Layer
from gramfuse.measuring.masking import Selection
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.stream import Stream, exact_sums
from gramfuse_shared.errors import StateError

NO_GRADIENT: Final = (
    "gradient weighting needs a backward pass, and no gradient reaches the output of {}: run the forward pass with "
    "gradients enabled and without gradient checkpointing, or use gramfuse.collect, which does"
)


class GradientWeighting:
    """Holds the rows of a forward pass until their gradients come, and adds them weighted.

    Every layer has a stream of its own: layers that read the same rows weigh them differently.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._expected: dict[nn.Module, tuple[Layer, Selection]] = {}

    def expect(self, module: nn.Module, layer: Layer, selection: Selection) -> None:
        """Take the rows that a module is about to read."""
        self._expected[module] = (layer, selection)

    def follow(self, module: nn.Module, _arguments: object, output: object) -> None:
        """Wait for the gradient of what the module made of them; a forward hook.

        Raises:
            StateError: there will be none.
        """
        expected = self._expected.pop(module, None)
        if expected is None:
            return
        layer, selection = expected
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            raise StateError(NO_GRADIENT.format(layer.weight))
        output.register_hook(partial(self._add, layer, selection))  # type: ignore[no-untyped-call] # torch's own

    def forget(self) -> None:
        """Drop what is still expected."""
        self._expected.clear()

    def _add(self, layer: Layer, selection: Selection, gradient: torch.Tensor) -> None:
        with exact_sums(gradient.device):
            weights = gradient.detach().float().square().sum(dim=-1).reshape(-1, 1)  # [n, 1]
            mask = selection.count.mask
            if mask is not None:
                weights = mask.drop_padding(weights, selection.count.positions)
            stream = self._statistics.streams.setdefault((layer.weight,), Stream(layer.width))
            stream.add_weighted_rows(selection.rows, weights)
