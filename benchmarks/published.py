"""The published algorithm, as the paper and its code describe it, to measure against.

"Dataless Knowledge Fusion by Merging Weights of Language Models" (ICLR 2023): a forward hook on every Linear multiplies
its input with itself, padding included, and rescales the running mean with each batch; the merge holds all models and
Gram matrices in memory, scales the off-diagonal by a mask, adds up, and inverts, one Linear at a time.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

Weights = Mapping[str, torch.Tensor]


class PublishedHooks:
    """The statistics pass: `with PublishedHooks(model) as grams: …` fills a mean Gram matrix for each Linear."""

    def __init__(self, model: nn.Module) -> None:
        self.grams: dict[str, torch.Tensor] = {}
        self._model = model
        self._rows: dict[str, int] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> dict[str, torch.Tensor]:
        for name, module in self._model.named_modules():
            if isinstance(module, nn.Linear):
                self._hooks.append(module.register_forward_hook(self._hook(name)))
        return self.grams

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, name: str) -> Callable[..., None]:
        def add(_module: nn.Module, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            product, count, known = torch.matmul(rows.T, rows), rows.shape[0], self._rows.get(name, 0)
            before = self.grams.get(name)
            total = product if before is None else before * known + product
            self.grams[name] = total / (known + count)
            self._rows[name] = known + count

        return add


def merge_linear(weights: Sequence[torch.Tensor], grams: Sequence[torch.Tensor], alpha: float) -> torch.Tensor:
    """Return the merged weight [out, in] of one Linear: (Σ G̃ᵢWᵢᵀ inverse-multiplied)ᵀ, equation 2, in fp32."""
    left, right = [], []
    for weight, gram in zip(weights, grams, strict=True):
        diagonal = torch.diag(torch.ones(gram.shape[0], dtype=gram.dtype))
        scaled = gram * (torch.full_like(gram, alpha) * (1 - diagonal) + diagonal)
        left.append(scaled)
        right.append(torch.matmul(scaled, weight.T))
    return torch.matmul(torch.inverse(sum(left)), sum(right)).T


def merge(models: Sequence[Weights], grams: Sequence[Weights], alpha: float) -> dict[str, torch.Tensor]:
    """Merge models in memory: linear weights that have a Gram matrix by `merge_linear`, the rest by their mean."""
    merged = {}
    for name in models[0]:
        weights = [model[name] for model in models]
        if name in grams[0]:
            merged[name] = merge_linear(weights, [gram[name] for gram in grams], alpha)
        else:
            merged[name] = torch.stack(weights).mean(0)
    return merged
