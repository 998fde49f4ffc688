"""Sums over examples of the squares of their gradients, from what a backward pass gives: never all gradients at once.

A parameter is used once or several times in a forward pass; an example's gradient is the sum over the uses, and only
then squared. A use is told by its factors: a weight's gradient by inputs and output gradients, [B, T, ·] each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch

CHUNK_BYTES: Final = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Of gradients in memory at once: on a CPU what its cache holds, so that squares are added where the product was."""


@dataclass(frozen=True, slots=True)
class Product:
    """Example b's gradient is Σ_t left[b, t] right[b, t]ᵀ: left [B, T, m], right [B, T, k], of a weight [m, k]."""

    left: torch.Tensor
    right: torch.Tensor

    def gradients(self, start: int, stop: int) -> torch.Tensor:
        """Return those of examples [start, stop), fp32 [b, m, k]."""
        return _product(self.left[start:stop], self.right[start:stop], None)


@dataclass(frozen=True, slots=True)
class Lookup:
    """Example b's gradient has Σ of those gradient[b, t] in row r for which rows[b, t] = r; of a table [V, d].

    rows [B, T]; gradient [B, T, d]. The row `skipped`, if any, has none.
    """

    rows: torch.Tensor
    gradient: torch.Tensor
    height: int
    skipped: int | None = None

    def gradients(self, start: int, stop: int) -> torch.Tensor:
        """Return those of examples [start, stop), fp32 [b, V, d]."""
        found, places = self._summed(start, stop)
        count, width = stop - start, found.shape[-1]
        table = found.new_zeros(count * self.height, width)
        return table.index_copy_(0, places, found).view(count, self.height, width)

    def add_squares(self, total: torch.Tensor) -> None:
        """Add the squares to `total` [V, d], reading and writing no rows but those that were looked up."""
        found, places = self._summed(0, self.rows.shape[0])
        total.index_add_(0, places % self.height, found.square_())

    def _summed(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum the gradients of equal rows of one example; return them with their places in [b·V]."""
        rows = self.rows[start:stop]
        offsets = torch.arange(stop - start, device=rows.device)[:, None] * self.height
        gradient = self.gradient[start:stop].flatten(0, 1).float()  # [b·T, d]
        keys = (rows + offsets).flatten()
        if self.skipped is not None:
            kept = (rows != self.skipped).flatten()
            keys, gradient = keys[kept], gradient[kept]
        places, which = keys.unique(return_inverse=True)  # type: ignore[no-untyped-call] # torch's own
        return gradient.new_zeros(len(places), gradient.shape[1]).index_add_(0, which, gradient), places


@dataclass(frozen=True, slots=True)
class Ready:
    """Example b's gradient is gradient[b]: [B, *shape]."""

    gradient: torch.Tensor

    def gradients(self, start: int, stop: int) -> torch.Tensor:
        """Return those of examples [start, stop), fp32."""
        return self.gradient[start:stop].float()


Use: TypeAlias = Product | Lookup | Ready


def add_squares(total: torch.Tensor, uses: Sequence[Use], examples: int) -> None:
    """Add Σ_b (Σ over uses of example b's gradient)² to `total`, fp32 and of the parameter's shape."""
    products = [use for use in uses if isinstance(use, Product)]
    if len(products) == len(uses):
        # tokens of several uses are like more tokens of one
        left, right = (torch.cat(parts, dim=1) for parts in zip(*((p.left, p.right) for p in products), strict=True))
        _add_products(total, left, right)
    elif len(uses) == 1 and isinstance(uses[0], Lookup):
        uses[0].add_squares(total)
    else:
        for start, stop in _chunks(total, examples):
            gradient = uses[0].gradients(start, stop)
            for use in uses[1:]:
                gradient = gradient + use.gradients(start, stop)
            total.add_(gradient.square().sum(dim=0))


def _add_products(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    examples, tokens = left.shape[:2]
    if tokens == 1:
        # (g xᵀ)² = g² (x²)ᵀ, so the sum over examples is a product itself
        total.addmm_(left[:, 0].float().square().T, right[:, 0].float().square())
        return
    memory: torch.Tensor | None = None
    for start, stop in _chunks(total, examples):
        if memory is None:
            memory = total.new_empty(stop - start, *total.shape)
        gradient = _product(left[start:stop], right[start:stop], memory[: stop - start])
        if stop - start == 1:
            total.addcmul_(gradient[0], gradient[0])
        else:
            total.add_(gradient.square_().sum(dim=0))


def _product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """Return leftᵀ right by example, fp32 [b, m, k]."""
    if left.is_cuda and left.dtype == right.dtype and left.dtype in {torch.bfloat16, torch.float16}:
        return torch.bmm(left.transpose(1, 2), right, out_dtype=torch.float32, out=out)
    return torch.bmm(left.float().transpose(1, 2), right.float(), out=out)


def _chunks(total: torch.Tensor, examples: int) -> list[tuple[int, int]]:
    """Cut the examples so that their gradients take `CHUNK_BYTES` at most, but for those of one alone."""
    most = CHUNK_BYTES.get(total.device.type, CHUNK_BYTES["cpu"])
    step = max(1, most // (4 * max(math.prod(total.shape), 1)))
    return [(start, min(start + step, examples)) for start in range(0, examples, step)]
