"""How similar the units of two models are: by their weights, as inner products."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from safetensors import safe_open

from gramfuse.contributing.loading import open_model_folder
from gramfuse.matching.groups import Attention, Intermediate, Place
from gramfuse_shared.errors import ArchitectureMismatchError

Similarities = Callable[[tuple[Place, ...]], torch.Tensor]
"""Returns the similarity [n, n] of the units at some places, the other model's as rows."""


class Weights:
    """The tensors of a model folder, read singly."""

    def __init__(self, folder: Path) -> None:
        opened = open_model_folder(folder)
        if opened.encoding != "stored":
            msg = f"{folder} holds differences from a base model, not weights; give the model's own folder"
            raise ArchitectureMismatchError(msg)
        self.folder = folder
        self.files = opened.files
        self.shapes = {name: tuple(stored.info.shape) for name, stored in opened.tensors.items()}
        self._paths = {name: stored.path for name, stored in opened.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor as it is stored."""
        with safe_open(self._paths[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def rows(self, place: Place) -> torch.Tensor:
        """Return what belongs to each unit of a place: [units, rest], fp32."""
        tensor = self.read(place.tensor).narrow(place.axis, place.start, place.length)
        return tensor.movedim(place.axis, 0).reshape(place.length, -1).float()


@dataclass(frozen=True, slots=True)
class ByWeights:
    """S = Σ BAᵀ over places, A this model's rows and B the other's: what is largest where Σ‖B − PA‖² is smallest."""

    model: Weights
    other: Weights

    def __call__(self, places: tuple[Place, ...]) -> torch.Tensor:
        """Return the similarity [n, n] of the units at some places."""
        return reduce(torch.add, (self.other.rows(place) @ self.model.rows(place).T for place in places))

    def scale(self, group: Intermediate | Attention) -> float:
        """Return ‖A‖‖B‖ over all places of a group, by which a score becomes a cosine."""
        norms = [
            sum(float(weights.rows(place).double().square().sum()) for place in group.places)
            for weights in (self.model, self.other)
        ]
        return float((norms[0] * norms[1]) ** 0.5)
