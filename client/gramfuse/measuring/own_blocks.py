"""Puts an organization's own blocks into a merged model, so that it is measured as RegMean++ was published."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from gramfuse.adapters.adapter import open_adapter, require_base_folder
from gramfuse.adapters.weights import AdaptedWeights
from gramfuse.contributing.loading import is_adapter, weight_file_names
from gramfuse.measuring.layers import checkpoint_names
from gramfuse.refining.blocks import parameters_of_blocks
from gramfuse_shared.errors import ArchitectureMismatchError
from gramfuse_shared.merging.streaming import LocalFile, TensorFile, TensorFiles, TensorReader


def put_own_blocks(model: nn.Module, own: Path, layers: Sequence[str], *, base_folder: Path | None = None) -> None:
    """Give the blocks of `model` that hold the layers the weights of `own`: all parameters, norms and biases too.

    Algorithm 1 of RegMean++ (arXiv 2508.03121): the inputs of block l are the merged model's, X⁽ˡ⁾ = f_M⁽ˡ⁻¹⁾(X⁽ˡ⁻¹⁾),
    and what the linear layers within it read is what the organization's own f_i⁽ˡ⁾ makes of them.

    Args:
        model: the merged model, loaded.
        own: the organization's fine-tuned folder, or an adapter.
        layers: weights by the checkpoint's names.
        base_folder: the base model's folder, which an adapter is added to.

    Raises:
        ConfigurationError: `own` is an adapter, and the base model's folder is not known.
        ArchitectureMismatchError: `own` lacks a parameter of these blocks, or has it in another shape.
        GramfuseError: see `open_adapter` and `weight_file_names`.
    """
    names = {saved: name for name, saved in checkpoint_names(model).items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with ExitStack() as stack, torch.no_grad():
        weights = _open(own, base_folder, stack)
        for saved in parameters_of_blocks(layers, names):
            target = parameters[names[saved]]
            found = weights.tensors.get(saved)
            if found is None or tuple(found.shape) != tuple(target.shape):
                shape = "not there" if found is None else str(list(found.shape))
                msg = f"{saved} is {list(target.shape)} in the merged model, and {shape} in {own}"
                raise ArchitectureMismatchError(msg, parameter=saved)
            target.copy_(weights.read(saved))


def _open(own: Path, base_folder: Path | None, stack: ExitStack) -> TensorReader:
    if not is_adapter(own):
        files = [stack.enter_context(LocalFile(own / name)) for name in weight_file_names(own)]
        return TensorFiles([TensorFile.open(file) for file in files])
    return AdaptedWeights.open(open_adapter(own, require_base_folder(own, base_folder)), stack)
