"""The attack on any Gram matrix: was this text among those that were measured?

A row z of the texts lies where the matrix G has weight, so its leverage zᵀ(G + λI)⁻¹z is smaller than if it were not
among them, the most so of unusual rows. Of the k rows Z of a text only H = Z(G + λI)⁻¹Zᵀ matters: with the text taken
out of G it is H(I − H)⁻¹, exactly (Sherman, Morrison, Woodbury). So every text says what the attacker would have seen
had it not been there, and no second set of texts is needed to tell how well the attack does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from gramfuse.privacy.whitening import factor_of, whiten

RIDGE: Final = 1e-5
"""Of the mean diagonal: sums in fp32 are no better than that."""

POWER: Final = 4
"""A text's rows are summed up by this power mean: between their mean and their largest, and better than either."""

CALIBRATION: Final = 0.5
"""How much of what public text says of a text's rows is taken off: some texts are unusual wherever they are from."""

_LARGEST: Final = 1 - 1e-9


@dataclass(frozen=True, slots=True)
class TextLeverage:
    """H = U·diag(h)·Uᵀ of one text: `eigenvalues` h [k] and `loads` U² [k, k], float64; `usual` is the statistic that
    public text gives it, 0 where there is none.
    """

    eigenvalues: torch.Tensor
    loads: torch.Tensor
    usual: float = 0.0

    @property
    def largest(self) -> float:
        """The largest leverage of a row: 1 where no other row has a part in its direction."""
        return float((self.loads @ self.eigenvalues).max())

    def inside(self, times: float = 1.0) -> float:
        """The statistic in a sum of so many matrices of like size, of which one holds this measured text."""
        left_out = self._left_out() / times
        return self._statistic(left_out / (1 + left_out))

    def left_out(self, times: float = 1.0) -> float:
        """The statistic had this text, which was measured, not been there."""
        return self._statistic(self._left_out() / times)

    def outside(self, times: float = 1.0) -> float:
        """The statistic of a text that was not measured."""
        return self._statistic(self.eigenvalues / times)

    def _left_out(self) -> torch.Tensor:
        inside = self.eigenvalues.clamp_max(_LARGEST)
        return inside / (1 - inside)

    def _statistic(self, values: torch.Tensor) -> float:
        return _power_mean(self.loads @ values) - CALIBRATION * self.usual


class LeverageMeter:
    """Measures texts against one Gram matrix [d, d], which is factorized once.

    Args:
        gram: the matrix under attack.
        public: the Gram matrix of the same tap over public texts, which makes the attack stronger; None for none.

    Raises:
        StatisticsInvalidError: a matrix is not positive semi-definite.
    """

    def __init__(self, gram: torch.Tensor, public: torch.Tensor | None = None) -> None:
        self._factor = factor_of(gram, ridge=RIDGE)
        self._public = None if public is None else factor_of(public, ridge=RIDGE)

    def measure(self, rows: torch.Tensor) -> TextLeverage:
        """Return the leverage of a text's rows [k, d]."""
        values, vectors = torch.linalg.eigh(_products(self._factor, rows))
        usual = 0.0 if self._public is None else _power_mean(_products(self._public, rows).diagonal())
        return TextLeverage(values.clamp_min(0), vectors.square(), usual)


def membership_auc(
    measured: Sequence[TextLeverage], others: Sequence[TextLeverage] | None = None, *, times: float = 1.0
) -> float:
    """Return the AUC of telling texts that were measured from texts that were not; ½ is chance.

    Args:
        measured: texts that the matrix was measured on.
        others: texts that it was not; None to compare with the same texts, had they been left out.
        times: the sum of so many matrices of like size, of which one holds the texts: an estimate of what the sum of a
            cohort tells, exact if the others' matrices were equal to this one.
    """
    inside = [text.inside(times) for text in measured]
    outside = (
        [text.left_out(times) for text in measured] if others is None else [text.outside(times) for text in others]
    )
    return auc(torch.tensor(outside), torch.tensor(inside))


def auc(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """Return the probability that a positive scores above a negative, ties by half: Mann and Whitney's U / (m·n)."""
    ordered = negative.double().sort().values
    scores = positive.double().contiguous()
    below = torch.searchsorted(ordered, scores, right=False)
    not_above = torch.searchsorted(ordered, scores, right=True)
    return float((below + not_above).double().sum() / (2 * len(scores) * len(ordered)))


def _products(factor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    atoms = whiten(rows, factor)  # [k, d]
    return atoms @ atoms.T


def _power_mean(leverages: torch.Tensor) -> float:
    """Return log of the power mean; of rows without weight, a very small number."""
    return float(leverages.clamp_min(1e-30).pow(POWER).mean().log() / POWER)
