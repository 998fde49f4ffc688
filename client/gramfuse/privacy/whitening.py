"""Looks at rows as a Gram matrix weighs them: L⁻¹z, LLᵀ = G + λI, what every attack on such a matrix begins with."""

from typing import Final

import torch

from gramfuse_shared.errors import StatisticsInvalidError

_MOST_RIDGE: Final = 1e-2


def factor_of(gram: torch.Tensor, *, ridge: float) -> torch.Tensor:
    """Return L [d, d] float64, lower triangular, LLᵀ = gram + λI, λ = ridge·mean(diag), or tenfold until it exists.

    Raises:
        StatisticsInvalidError: the matrix is not positive semi-definite.
    """
    exact = gram.double()
    unit = float(exact.diagonal().mean()) * torch.eye(len(exact), dtype=torch.float64)
    while ridge <= _MOST_RIDGE:
        lower: torch.Tensor
        lower, info = torch.linalg.cholesky_ex(exact + ridge * unit)
        if int(info) == 0:
            return lower
        ridge *= 10  # sums of few rows in fp32 have eigenvalues a little below zero
    msg = "a Gram matrix of the statistics is not positive semi-definite"
    raise StatisticsInvalidError(msg)


def whiten(rows: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return rows·L⁻ᵀ, [n, d] float64."""
    solved: torch.Tensor = torch.linalg.solve_triangular(factor, rows.double().T, upper=False)
    return solved.T
