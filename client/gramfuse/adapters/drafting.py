"""Decides how an adapter holds each tensor that a merge changed, and says so in PEFT's configuration."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from gramfuse.adapters.adapter import KEY_PREFIX
from gramfuse.adapters.exported import ExportedLayer, LeftOut
from gramfuse.adapters.factorizing import factorize
from gramfuse.adapters.structure import Structure
from gramfuse_shared.merging.streaming import TensorFiles


@dataclass(frozen=True, slots=True)
class Truncation:
    """How far linear layers are truncated, to a rank or to a share of ‖Δ‖²_F, and where they are decomposed."""

    rank: int | None
    energy: float | None
    device: torch.device


@dataclass(slots=True)
class Draft:
    """What has been found so far: PEFT's keys and values, and sums of squares over all tensors."""

    structure: Structure
    layers: list[ExportedLayer] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)  # tensor to its key
    biases: bool = False
    transposed: bool = False
    left_out: list[LeftOut] = field(default_factory=list)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    lost: float = 0.0
    size: float = 0.0

    @property
    def error(self) -> float:
        """‖Δ − Δ′‖_F / ‖Δ‖_F over all tensors."""
        return math.sqrt(self.lost / self.size) if self.size else 0.0

    def add(self, name: str, before: torch.Tensor, after: torch.Tensor, truncation: Truncation) -> None:
        """Take a changed tensor: truncated, whole, or left out."""
        kind, module = self.structure.kinds.get(name), self.structure.modules.get(name)
        difference = after.double() - before.double()
        self.size += float(difference.square().sum())
        reason = _why_left_out(self.structure, name, after)
        if reason is not None or module is None:
            self.left_out.append(LeftOut(name, reason or ""))
            self.lost += float(difference.square().sum())
        elif kind in ("linear", "conv1d"):
            self.transposed |= kind == "conv1d"
            self._truncate(name, module, difference.T if kind == "conv1d" else difference, truncation)
        else:
            self.whole[name] = f"{KEY_PREFIX}{self.structure.paths[name]}"
            self.values[self.whole[name]] = after.contiguous()

    def _truncate(self, name: str, module: str, difference: torch.Tensor, truncation: Truncation) -> None:
        """Hold Δ, [out, in], as BA."""
        factors = factorize(
            difference.float(), rank=truncation.rank, energy=truncation.energy, device=truncation.device
        )
        self.values[f"{KEY_PREFIX}{module}.lora_A.weight"] = factors.a
        self.values[f"{KEY_PREFIX}{module}.lora_B.weight"] = factors.b
        error = math.sqrt(factors.lost / factors.size)
        self.layers.append(ExportedLayer(name, module, factors.rank, min(difference.shape), error))
        self.lost += factors.lost

    def complete_modules(self, ours: TensorFiles) -> None:
        """Complete the modules that are saved whole; a bias of an adapted layer is saved with the layer."""
        adapted, saved = self._adapted(), self._saved()
        for name in [name for name in self.whole if self.structure.modules[name] in adapted]:
            module, leaf = self.structure.modules[name], self.structure.paths[name].rpartition(".")[2]
            self.biases = True
            values = self.values.pop(self.whole[name])
            self.whole[name] = f"{KEY_PREFIX}{module}.base_layer.{leaf}"
            self.values[self.whole[name]] = values
        for name, module in self.structure.modules.items():
            key = f"{KEY_PREFIX}{self.structure.paths[name]}"
            if module in saved and key not in self.values and name in ours.tensors:
                self.values[key] = ours.read(name)

    def configuration(self) -> dict[str, Any]:
        """Return the values of `adapter_config.json`."""
        ranks = Counter(layer.rank for layer in self.layers)
        usual = max(ranks, key=lambda rank: (ranks[rank], rank), default=1)
        # PEFT matches patterns as regular expressions from the start or behind a dot; anchored, they mean one module
        patterns = {f"^{_escaped(layer.module)}": layer.rank for layer in self.layers if layer.rank != usual}
        return {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": None,
            "inference_mode": True,
            "r": usual,
            "lora_alpha": usual,
            "rank_pattern": patterns,
            "alpha_pattern": patterns,
            "target_modules": target_modules(self.structure, self._adapted()),
            "modules_to_save": sorted(self._saved()) or None,
            "bias": "lora_only" if self.biases else "none",
            "fan_in_fan_out": self.transposed,
            "lora_dropout": 0.0,
        }

    def _adapted(self) -> set[str]:
        return {layer.module for layer in self.layers}

    def _saved(self) -> set[str]:
        return {self.structure.modules[name] for name in self.whole} - self._adapted()


def target_modules(structure: Structure, adapted: set[str]) -> list[str] | str:
    """Name the modules by their paths; by one regular expression where a path is the end of another module's."""
    others = set(structure.modules.values()) - adapted
    if adapted and not any(other.endswith(f".{module}") for other in others for module in adapted):
        return sorted(adapted)
    if not adapted:
        return "dummy-target-modules"  # PEFT's own word for none: what matches no module is refused otherwise
    return "|".join(_escaped(module) for module in sorted(adapted))


def _why_left_out(structure: Structure, name: str, values: torch.Tensor) -> str | None:
    module = structure.modules.get(name)
    if name in structure.tied:
        return "it is tied to another weight"
    if not values.is_floating_point():
        return "it holds integers"
    if not module:
        return "no module of the model holds it"
    if any(other.startswith(f"{module}.") for other in structure.modules.values()):
        return "the module that holds it has modules within, and PEFT saves whole modules only"
    return None


def _escaped(module: str) -> str:
    return module.replace(".", r"\.")
