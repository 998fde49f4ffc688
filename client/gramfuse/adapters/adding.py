"""Adds an adapter to a loaded base model, weight by weight, so that it can be measured."""

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from gramfuse.adapters.adapter import open_adapter
from gramfuse.adapters.weights import AdaptedWeights
from gramfuse.measuring.layers import checkpoint_names


def add_adapter(model: nn.Module, folder: Path, base: Path) -> None:
    """Give a model that was loaded from `base` the weights that the adapter makes of it.

    Raises:
        GramfuseError: see `open_adapter`.
        WeightsInvalidError: the adapter holds NaN or infinity.
    """
    adapter = open_adapter(folder, base)
    names = {saved: name for name, saved in checkpoint_names(model).items()}
    parameters = dict(model.named_parameters())
    with ExitStack() as stack, torch.no_grad():
        weights = AdaptedWeights.open(adapter, stack)
        for saved in adapter.changes:
            parameters[names[saved]].copy_(weights.read(saved))
