"""Finds how often each of many known rows was added up into a Gram matrix: non-negative least squares.

The matrix of the normal equations is never formed: of 30,000 rows it would have 10⁹ entries. Blocks of it are, for
coordinate descent, which finds the rows that take part; conjugate gradients then solve for these.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from gramfuse.privacy.whitening import factor_of, whiten

BLOCK: Final = 512
SWEEPS_PER_ROUND: Final = 2
CONJUGATE_STEPS: Final = 15
ENOUGH: Final = 1e-3
"""A round that lowers the residual by less than this share is the last."""

RIDGE: Final = 1e-6
"""Of the mean diagonal: a Gram matrix of fewer rows than features is singular."""


@dataclass(frozen=True, slots=True)
class Fit:
    """`counts` [n] are how often each row was found to occur, `slopes` [n] how far the residual asks for more of it,
    and `explained` is the share of the whitened matrix that the fit explains: 1 − ‖I − ΣcAA'‖²/‖I‖².
    """

    counts: torch.Tensor
    slopes: torch.Tensor
    explained: float


def fit_counts(rows: torch.Tensor, gram: torch.Tensor, *, rounds: int = 6) -> Fit:
    """Solve min over c ≥ 0 of ‖L⁻¹(gram − Σ cₜ zₜzₜᵀ)L⁻ᵀ‖²_F for the rows z, [n, d], of a dictionary.

    Whitened, since the few directions that all rows share would else outweigh all others. The gradient of cₜ is
    −aₜᵀRaₜ, R the residual and aₜ = L⁻¹zₜ.

    Args:
        rows: [n, d] of any floating dtype, on the CPU.
        gram: [d, d], symmetric.
        rounds: at most so many; fewer where the residual has settled.

    Raises:
        StatisticsInvalidError: the matrix is not positive semi-definite.
    """
    problem = _Problem(whiten(rows, factor_of(gram, ridge=RIDGE)).float().contiguous())
    before = problem.residual_norm()
    for _ in range(rounds):
        for _ in range(SWEEPS_PER_ROUND):
            problem.sweep()
        problem.solve_free(CONJUGATE_STEPS)
        now = problem.residual_norm()
        if now > before * (1 - ENOUGH):
            break
        before = now
    width = problem.atoms.shape[1]
    return Fit(problem.counts, problem.slopes(), 1 - problem.residual_norm() ** 2 / width)


class _Problem:
    """min over c ≥ 0 of ‖I − AᵀCA‖²_F, with the residual kept up to date."""

    def __init__(self, atoms: torch.Tensor) -> None:
        self.atoms = atoms  # [n, d]
        self.counts = torch.zeros(len(atoms))
        self.residual = torch.eye(atoms.shape[1])
        self._kernels: dict[int, np.ndarray] = {}

    def residual_norm(self) -> float:
        return float(torch.linalg.matrix_norm(self.residual))

    def slopes(self) -> torch.Tensor:
        return _quadratic(self.atoms, self.residual)

    def sweep(self) -> None:
        """Minimize over each count in turn, a block of them at a time."""
        for start in range(0, len(self.atoms), BLOCK):
            atoms = self.atoms[start : start + BLOCK]
            kernel = self._kernel(start, atoms)
            slopes = _quadratic(atoms, self.residual).numpy().copy()
            before = self.counts[start : start + BLOCK].numpy().copy()
            after = before.copy()
            for place, own in enumerate(kernel.diagonal()):
                # A row of zeros explains nothing, so it does not occur.
                step = max(after[place] + slopes[place] / own, 0.0) - after[place] if own > 0 else 0.0
                if step:
                    slopes -= kernel[:, place] * step
                    after[place] += step
            change = torch.from_numpy(after - before)
            moved = change != 0
            self.residual -= (atoms[moved].T * change[moved]) @ atoms[moved]
            self.counts[start : start + BLOCK] = torch.from_numpy(after)

    def solve_free(self, steps: int) -> None:
        """Improve the counts above zero by conjugate gradients, as far toward their end as keeps the residual least."""
        free = self.counts > 0
        atoms, begin = self.atoms[free], self.counts[free]
        change = torch.zeros_like(begin)
        remaining = _quadratic(atoms, self.residual)
        direction, size = remaining.clone(), float(remaining @ remaining)
        for _ in range(steps):
            curved = _quadratic(atoms, (atoms.T * direction) @ atoms)
            bend = float(direction @ curved)
            if size == 0 or bend <= 0:
                break
            change += (size / bend) * direction
            remaining -= (size / bend) * curved
            size, old = float(remaining @ remaining), size
            direction = remaining + (size / old) * direction
        least = self.residual_norm()
        for share in (1.0, 0.5, 0.25):
            tried = (begin + share * change).clamp_min(0)
            residual = torch.eye(atoms.shape[1]) - (atoms.T * tried) @ atoms
            norm = float(torch.linalg.matrix_norm(residual))
            if norm < least:
                self.counts[free], self.residual, least = tried, residual, norm

    def _kernel(self, start: int, atoms: torch.Tensor) -> np.ndarray:
        if start not in self._kernels:
            self._kernels[start] = (atoms @ atoms.T).square().numpy()
        return self._kernels[start]


def _quadratic(atoms: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return aᵀMa for every row a."""
    return ((atoms @ matrix) * atoms).sum(1)
