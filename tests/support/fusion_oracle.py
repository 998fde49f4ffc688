"""The definition of a merge, in float64 and straight from the rows: what the fusion tests compare with."""

from dataclasses import dataclass

import torch

from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.methods import METHODS
from gramfuse_shared.fusion.methods.method import Gram, MethodSettings
from gramfuse_shared.fusion.solve import Accumulator, Solution
from gramfuse_shared.fusion.workspace import Workspace


@dataclass(frozen=True)
class Contributor:
    """One organization's weight [out, in] and the rows [n, in] that its layer read."""

    weight: torch.Tensor
    rows: torch.Tensor
    share: float = 1.0

    def gram(self) -> Gram:
        width = self.rows.shape[1]
        flat = packing.packed_zeros(width)
        packing.accumulate_rows(flat, self.rows)
        return Gram(flat, width, len(self.rows))


def make_contributors(
    seed: int,
    *,
    members: int,
    width: int,
    height: int,
    rows: int,
    change: float = 0.1,
    correlated: bool = True,
    scales: bool = True,
) -> tuple[torch.Tensor, list[Contributor]]:
    """Return a base weight and contributors that fine-tuned it, on inputs with features of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(height, width, generator=generator) / width**0.5
    contributors = []
    for index in range(members):
        inputs = torch.randn(rows, width, generator=generator)
        if correlated:
            inputs = inputs @ (torch.eye(width) + 0.5 * torch.randn(width, width, generator=generator) / width**0.5)
        if scales:
            inputs = inputs * torch.logspace(-1.5, 1, width)[torch.randperm(width, generator=generator)]
        weight = base + change * torch.randn(height, width, generator=generator) / width**0.5
        contributors.append(Contributor(weight, inputs, share=1.0 + 0.5 * index))
    return base, contributors


def least_squares(
    contributors: list[Contributor], *, alpha: float, normalize: str = "equal", ridge: float = 0.0
) -> torch.Tensor:
    """Minimize Σ aᵢ/nᵢ (α‖Xᵢ(W−Wᵢ)ᵀ‖² + (1−α)‖√diag Gᵢ (W−Wᵢ)ᵀ‖² + ρ tr(Gᵢ)/d ‖W−Wᵢ‖²) by lstsq on augmented rows."""
    left, right = [], []
    for contributor in contributors:
        rows, weight = contributor.rows.double(), contributor.weight.double()
        share = contributor.share * (len(rows) if normalize == "rows" else 1.0)
        energy = rows.square().sum(0)
        parts = [alpha**0.5 * rows, (1 - alpha) ** 0.5 * energy.sqrt().diag()]
        if ridge:
            parts.append((ridge * energy.mean()).sqrt() * torch.eye(len(energy), dtype=torch.float64))
        augmented = torch.cat(parts)
        augmented = augmented * (share / len(rows)) ** 0.5
        left.append(augmented)
        right.append(augmented @ weight.T)
    return torch.linalg.lstsq(torch.cat(left), torch.cat(right), driver="gelsd").solution.T


def weighted_mean(contributors: list[Contributor]) -> torch.Tensor:
    """Return ΣcᵢWᵢ/Σcᵢ in float64."""
    shares = sum(contributor.share for contributor in contributors)
    return sum(contributor.share * contributor.weight.double() for contributor in contributors) / shares


def scaled_least_squares(contributors: list[Contributor], *, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `least_squares` where features differ by more than float64 can hold, and each feature's root energy.

    Features are scaled to the same energy first, since float64 too would take the tiniest for noise. No row looks at a
    dead feature, so any value would fit there: the answer is the weighted mean, and its root energy counts as 1.
    """
    energy = sum(c.share * c.rows.double().square().sum(0) / len(c.rows) for c in contributors)
    root = torch.where(energy > 0, energy.sqrt(), 1.0)
    scaled = [Contributor(c.weight.double() * root, c.rows.double() / root, c.share) for c in contributors]
    return torch.where(energy > 0, least_squares(scaled, alpha=alpha) / root, weighted_mean(contributors)), root


def ridge_solution(contributors: list[Contributor], mean: torch.Tensor, *, ridge: float = 1e-5) -> torch.Tensor:
    """Return least squares with a ridge toward the mean, in the metric in which every feature has energy 1 (α = 1)."""
    grams = [
        contributor.rows.double().T @ contributor.rows.double() * (contributor.share / len(contributor.rows))
        for contributor in contributors
    ]
    total = sum(grams, torch.zeros_like(grams[0]))
    scale = total.diagonal().rsqrt()
    residual = sum((c.weight.double() - mean.double()) @ gram for c, gram in zip(contributors, grams, strict=True))
    scaled = total * scale * scale[:, None] + ridge * torch.eye(len(total), dtype=torch.float64)
    return mean.double() + torch.linalg.solve(scaled, (residual * scale).T).T * scale


def merge(
    contributors: list[Contributor],
    *,
    alpha: float,
    normalize: str = "equal",
    reference: torch.Tensor | None = None,
    method: str = "regmean",
    ridge: float = 0.0,
    device: str = "cpu",
) -> tuple[torch.Tensor, Solution]:
    """Merge with the code under test: W_ref + delta, on the device."""
    settings = MethodSettings(alpha=alpha, normalize=normalize, ridge=ridge)
    chosen = METHODS[method]
    width, rows = contributors[0].rows.shape[1], sum(len(contributor.rows) for contributor in contributors)
    dtype = torch.float64 if chosen.needs_float64(settings, width=width, rows=rows) else torch.float32
    origin = (contributors[0].weight if reference is None else reference).to(device, dtype)
    accumulator = Accumulator(tuple(origin.shape), dtype=dtype, workspace=Workspace(device))
    for contributor in contributors:
        gram = contributor.gram()
        on_device = Gram(gram.packed.to(device), gram.width, gram.rows)
        is_reference = reference is None and contributor is contributors[0]
        difference = None if is_reference else contributor.weight.to(device, dtype) - origin
        accumulator.add(difference, chosen.precision(on_device, contributor.share, settings), contributor.share)
    solution = accumulator.solve()
    merged = origin if solution.delta is None else origin + solution.delta
    return merged.float().cpu(), solution


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())
