"""What modules a base model has, and under which names their parameters are saved; no weight is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from gramfuse.measuring.layers import checkpoint_names
from gramfuse.measuring.model_loading import empty_model

Kind = Literal["linear", "conv1d", "embedding", "other"]
"""nn.Linear stores [out, in], Conv1D [in, out], nn.Embedding [tokens, width]."""


@dataclass(frozen=True, slots=True)
class Structure:
    """A model without its values.

    Attributes:
        saved_as: parameter path in the model to the checkpoint's tensor; tied duplicates are not saved.
        paths: checkpoint's tensor to the parameter's path, the reverse.
        kinds: checkpoint's tensor to the kind of the module whose `weight` it is.
        modules: checkpoint's tensor to the path of the module that it belongs to.
        tied: tensors that several modules share.
    """

    saved_as: Mapping[str, str]
    paths: Mapping[str, str]
    kinds: Mapping[str, Kind]
    modules: Mapping[str, str]
    tied: frozenset[str]


def read_structure(base: Path) -> Structure:
    """Build the model that the base's config names, without weights.

    Raises:
        FileUnreadableError, ConfigurationError: see `empty_model`.
    """
    model = empty_model(base)
    saved_as = checkpoint_names(model)
    kinds: dict[str, Kind] = {}
    modules: dict[str, str] = {}
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            saved = saved_as.get(f"{path}.{name}" if path else name)
            if saved is None:
                continue
            modules[saved] = path
            if name == "weight":
                kinds[saved] = _kind(module)
    paths = {saved: path for path, saved in saved_as.items()}
    return Structure(saved_as, paths, kinds, modules, frozenset(_tied(model, saved_as)))


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    return "embedding" if isinstance(module, nn.Embedding) else "other"


def _tied(model: nn.Module, saved_as: Mapping[str, str]) -> list[str]:
    """Name the saved tensors of which another parameter is a duplicate that is not saved."""
    sources = getattr(model, "all_tied_weights_keys", None) or {}
    found = [saved_as[source] for source in set(sources.values()) if source in saved_as]
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return found + [saved_as[name] for names in owners.values() if len(names) > 1 for name in names if name in saved_as]
