"""Which linear layers of a model are measured, and under which names their weights are saved."""

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from gramfuse.contributing.loading import open_model_folder
from gramfuse_shared.errors import ArchitectureMismatchError


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer: the checkpoint's key of its weight, its input width, how the weight is stored, and the modules
    that compute with it (several where modules share one weight).
    """

    weight: str
    width: int
    layout: Literal["out_in", "in_out"]
    modules: tuple[nn.Module, ...]


def find_layers(model: nn.Module) -> tuple[Layer, ...]:
    """List every nn.Linear and Conv1D whose weight is no embedding's, in the model's order.

    A weight tied to an embedding is merged as that embedding, so nothing needs to be measured at it. Linear modules
    with a packed (quantized) or sharded weight are left out, since no merge could use their statistics.

    Raises:
        ArchitectureMismatchError: the model holds no such layer.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    names = checkpoint_names(model)
    found: dict[int, tuple[list[str], int, Literal["out_in", "in_out"], list[nn.Module]]] = {}
    for path, module in model.named_modules():
        layout = _layout(module)
        weight = getattr(module, "weight", None)
        if layout is None or weight is None or id(weight) in embeddings:
            continue
        name = names.get(f"{path}.weight" if path else "weight")
        width = weight.shape[1 if layout == "out_in" else 0]
        entry = found.setdefault(id(weight), ([], width, layout, []))
        if name is not None:
            entry[0].append(name)
        entry[3].append(module)
    layers = tuple(
        Layer(weight=candidates[0], width=width, layout=layout, modules=tuple(modules))
        for candidates, width, layout, modules in found.values()
        if candidates
    )
    if not layers:
        msg = f"{type(model).__name__} holds no nn.Linear or Conv1D of its own, so there is nothing to measure"
        raise ArchitectureMismatchError(msg)
    return layers


def choose_layers(layers: tuple[Layer, ...], weights: Collection[str] | None) -> tuple[Layer, ...]:
    """Return those layers whose weights are named; None: all.

    Raises:
        ArchitectureMismatchError: none is.
    """
    if weights is None:
        return layers
    chosen = tuple(layer for layer in layers if layer.weight in weights)
    if not chosen:
        msg = (
            f"none of the layers that are asked for ({', '.join(sorted(weights)[:3])}, …) is an nn.Linear or Conv1D of "
            f"this model, whose first is {layers[0].weight}"
        )
        raise ArchitectureMismatchError(msg)
    return chosen


def checkpoint_names(model: nn.Module) -> dict[str, str]:
    """Map the model's parameter names to the keys that `save_pretrained` writes them under.

    They differ where transformers renames parameters on loading, and restores the old names on saving. Parameters that
    it fuses or splits on the way, and duplicates of tied weights that it leaves out, have no entry.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    # Parameters without storage stand for the real ones: a renamed one comes back as the very same object.
    stand_ins = {name: torch.empty_like(parameter, device="meta") for name, parameter in own.items()}
    saved: Mapping[str, torch.Tensor] = stand_ins
    if hasattr(model, "save_pretrained"):
        from transformers.modeling_utils import PreTrainedModel  # noqa: PLC0415 - plain torch models need none of it

        if isinstance(model, PreTrainedModel):
            saved = _reverted(model, stand_ins)
    new_names = {id(tensor): name for name, tensor in saved.items()}
    left_out = set(getattr(model, "all_tied_weights_keys", None) or ())
    return {
        name: new_names[id(tensor)]
        for name, tensor in stand_ins.items()
        if id(tensor) in new_names and name not in left_out
    }


def require_saved_layers(layers: tuple[Layer, ...], folder: Path) -> None:
    """Require that the folder's safetensors files hold the weight of every layer, in its shape.

    Raises:
        ArchitectureMismatchError: a weight is missing; the message names it and what to do.
        FileUnreadableError: no checkpoint in safetensors files, or one cannot be read.
    """
    saved = open_model_folder(folder).tensors
    missing = [layer.weight for layer in layers if layer.weight not in saved]
    if missing:
        msg = (
            f"{folder} does not hold {missing[0]!r} ({len(missing)} of {len(layers)} measured weights are missing): "
            "the loaded model names its weights otherwise. Load it with the class it is used with, save it with "
            "save_pretrained, and collect from that folder"
        )
        raise ArchitectureMismatchError(msg, missing=missing[:20])


def _reverted(model: nn.Module, tensors: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    try:
        from transformers.core_model_loading import revert_weight_conversion  # noqa: PLC0415 - transformers 5 only
    except ImportError:
        return tensors
    reverted: Mapping[str, torch.Tensor] = revert_weight_conversion(model, tensors)  # type: ignore[arg-type] # a PreTrainedModel, as the caller checked
    return reverted


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is an nn.Linear or Conv1D that computes with its weight as it is."""
    return _layout(module) is not None


def _layout(module: nn.Module) -> Literal["out_in", "in_out"] | None:
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not weight.is_floating_point():  # noqa: PLR2004 - a matrix
        return None
    if isinstance(module, nn.Linear):
        return "out_in" if weight.shape == (module.out_features, module.in_features) else None
    # Looked up, not imported: whoever has a Conv1D has imported transformers.
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return "in_out" if conv1d is not None and isinstance(module, conv1d) else None
