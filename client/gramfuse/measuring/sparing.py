"""Spares what a model computes behind the last layer that is watched: nobody would look at it."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gramfuse.measuring.layers import Layer, is_linear
from gramfuse_shared.errors import WiringChangedError


class Sparing:
    """Lets linear layers that run behind the last watched one compute zeros, from the second pass on.

    Which these are the first pass shows. What is not linear still runs, so shapes and the flow of control stay. Of the
    first of six blocks a pass costs a sixth, then; without it all layers of a model, for the sake of a few.
    """

    def __init__(self, model: nn.Module, watched: Collection[Layer]) -> None:
        """Take the model, and its layers whose inputs or outputs somebody wants."""
        self._model = model
        self._watched = {module for layer in watched for module in layer.modules}
        self._others = {module for module in model.modules() if is_linear(module)} - self._watched
        self._early, self._behind = set[nn.Module](), set[nn.Module]()
        self._spared: set[nn.Module] | None = None

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """Learn from the first pass within, spare in the others. Enter it behind whoever probes the model."""
        hooks = [
            self._model.register_forward_pre_hook(self._begin),
            *(module.register_forward_pre_hook(self._meet_watched) for module in self._watched),
            *(module.register_forward_pre_hook(self._meet_other) for module in self._others),
            self._model.register_forward_hook(self._end),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for module in self._spared or ():
                del module.forward
            self._spared = None

    def _begin(self, *_: object) -> None:
        self._early.clear()
        self._behind.clear()

    def _meet_other(self, module: nn.Module, _: object) -> None:
        self._behind.add(module)

    def _meet_watched(self, _module: nn.Module, _: object) -> None:
        if self._spared is not None and not self._spared.isdisjoint(self._behind):
            msg = (
                "a layer that is measured ran behind one that only ran after it before: the model does not run its "
                "layers in one order; measure all of its layers"
            )
            raise WiringChangedError(msg)
        self._early |= self._behind
        self._behind.clear()

    def _end(self, *_: object) -> None:
        if self._spared is None:
            # what somebody else has put in the place of a module's forward is not ours to take away
            self._spared = {module for module in self._behind - self._early if "forward" not in vars(module)}
            vocabulary = output_layer(self._model)
            for module in self._spared:
                compute_nothing(module, outputs=1 if module is vocabulary else _outputs(module))


def output_layer(model: nn.Module) -> nn.Linear | None:
    """Return the layer that makes logits of a vocabulary; nobody measures them."""
    found = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator] # transformers' method
    return found if isinstance(found, nn.Linear) else None


def compute_nothing(module: nn.Module, *, outputs: int) -> None:
    """Let a linear module return so many zeros a row in place of its product; `del module.forward` undoes it."""

    def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name for it
        return input.new_zeros(*input.shape[:-1], outputs)

    module.forward = forward


def _outputs(module: nn.Module) -> int:
    weight: Any = module.weight  # [outputs, inputs], of a Conv1D [inputs, outputs]
    return int(weight.shape[0 if isinstance(module, nn.Linear) else 1])
