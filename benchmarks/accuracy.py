"""Errors against the definition in float64: ‖W − oracle‖_F / ‖oracle‖_F of one layer, three members.

The oracle is least squares on everybody's rows, augmented for α (the definition), and where no row determines the
answer (dead features, or too few rows at α = 1) what the product promises there: the mean, or the ridge toward it.
"""

from typing import Any

import torch
from published import merge_linear
from timing import Effort

from gramfuse_shared.fusion import packing
from gramfuse_shared.merging.exact_products import exact_products
from support.fusion_oracle import Contributor, relative_error, ridge_solution, scaled_least_squares, weighted_mean
from support.fusion_oracle import merge as merge_ours

CASES = ("good", "outlier", "tiny", "dead", "rank_deficient_alpha1")
MEMBERS = 3


def measure(effort: Effort) -> dict[str, Any]:
    """Return the errors of both by case; a published merge that raises counts as infinite."""
    width = 64 if effort.is_smoke else 768
    found: dict[str, dict[str, float | None]] = {"ours": {}, "published": {}}
    for case in CASES:
        alpha = 1.0 if case == "rank_deficient_alpha1" else 0.9
        contributors = make_case(case, width)
        oracle = _oracle(contributors, alpha)
        with exact_products():
            ours, _ = merge_ours(contributors, alpha=alpha)
        found["ours"][case] = relative_error(ours, oracle)
        found["published"][case] = _published_error(contributors, alpha, oracle)
    return found


def make_case(case: str, width: int) -> list[Contributor]:
    """Make inputs with correlated features; one of them a thousand times larger, or some tiny, dead, or few rows."""
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(width, width, generator=generator) / width**0.5
    mixing = torch.eye(width) + 0.5 * torch.randn(width, width, generator=generator) / width**0.5
    rows = width // 8 if case == "rank_deficient_alpha1" else 4 * width
    contributors = []
    for _ in range(MEMBERS):
        inputs = torch.randn(rows, width, generator=generator) @ mixing
        if case == "outlier":
            inputs[:, 0] = 1e3 * inputs[:, 0] + 1e3
        elif case == "tiny":
            inputs[:, : width // 8] *= 1e-6
        elif case == "dead":
            inputs[:, : width // 8] = 0.0
        weight = base + 0.1 * torch.randn(width, width, generator=generator) / width**0.5
        contributors.append(Contributor(weight, inputs))
    return contributors


def _oracle(contributors: list[Contributor], alpha: float) -> torch.Tensor:
    if alpha == 1.0:
        return ridge_solution(contributors, weighted_mean(contributors))
    return scaled_least_squares(contributors, alpha=alpha)[0]


def _published_error(contributors: list[Contributor], alpha: float, oracle: torch.Tensor) -> float | None:
    grams = [
        packing.unpack(contributor.gram().packed, contributor.rows.shape[1]) / len(contributor.rows)
        for contributor in contributors
    ]
    try:
        merged = merge_linear([contributor.weight for contributor in contributors], grams, alpha)
    except torch.linalg.LinAlgError:
        return None  # the inverse does not exist: there is no merge
    return relative_error(merged, oracle)
