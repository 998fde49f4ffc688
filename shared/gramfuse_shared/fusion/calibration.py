"""How far each class's bias is shifted, from the sums of score histograms."""

import math
from collections.abc import Sequence
from typing import Final

import torch

from gramfuse_shared.contract.calibration import BINS, CalibrationHistograms, ClassHistogram, bin_edge
from gramfuse_shared.errors import ArchitectureMismatchError

SURE_FROM: Final = 2.0
"""Standard errors by which a class's F1 has to grow before margins are shifted. On a MiniLM entity recognizer whose
biases were right, best edges cost 0.9 to 2.2 points of F1 on other texts, and these none (docs/methods.md)."""

_ZERO: Final = BINS // 2
"""The edge that is zero."""


def add_histograms(parts: Sequence[CalibrationHistograms]) -> CalibrationHistograms:
    """Return the histograms of all parts together: every text counts the same, whoever has it.

    Raises:
        ArchitectureMismatchError: no parts, or of other labels or another score.
    """
    if len({(part.score, part.labels) for part in parts}) != 1:
        msg = "score histograms add up only if all are of the same labels and score, and there is at least one"
        raise ArchitectureMismatchError(msg)
    sums: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for part in parts:
        for one in part.classes:
            labelled, others = sums.get(one.label, ((0,) * BINS, (0,) * BINS))
            sums[one.label] = (_added(labelled, one.labelled), _added(others, one.others))
    classes = tuple(
        ClassHistogram(label=label, labelled=labelled, others=others)
        for label, (labelled, others) in sorted(sums.items())
    )
    return CalibrationHistograms(score=parts[0].score, labels=parts[0].labels, classes=classes)


def choose_shifts(histograms: CalibrationHistograms) -> torch.Tensor:
    """Return what is added to each class's bias, F64 [labels]; zero for classes without a histogram.

    Of logits, class c is predicted where s + b_c > 0, whatever the others do. b_c is the one among the (negated) inner
    edges at which F1 = 2·TP/(2·TP + FP + FN) is largest, and of equals the smallest, so no class's F1 on the counted
    texts becomes worse: zero is among them.

    Of margins, c is predicted where s + b_c > max over the others of what theirs has moved. Each class's best shift
    e_c against others that stay is found in the same way; it is zero unless the class's F1 grows by more than
    `SURE_FROM` standard errors, because rivals answer for each other's shifts. b solves, in least squares and with the
    least norm,

        b_c − Σ_{j≠c} π_j b_j / Σ_{j≠c} π_j = e_c,    π_j: how many texts bear the label j,

    which takes a class's rival to be another class as often as that occurs. Of two classes, whose shifts work against
    each other, b₁ − b₀ is (e₁ − e₀)/2, the mean of what both ask for; shifting each by its own would go twice as far.
    Which class is whose rival, histograms do not say, so F1 may become worse: evaluate before and after.
    """
    edges = [bin_edge(number) for number in range(BINS + 1)]
    shifts = torch.zeros(histograms.labels, dtype=torch.float64)
    counts = torch.zeros(histograms.labels, dtype=torch.float64)
    for one in histograms.classes:
        number = _best_edge(one, edges)
        if histograms.score == "logit" or _is_surely_better(one, number):
            shifts[one.label] = 0.0 - edges[number]
        counts[one.label] = sum(one.labelled)
    if histograms.score == "logit" or not bool(shifts.any()):
        return shifts
    known = [one.label for one in histograms.classes]
    shifts[known] = _against_each_other(shifts[known], counts[known])
    return shifts


def _added(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _best_edge(histogram: ClassHistogram, edges: Sequence[float]) -> int:
    """Return the inner edge above which predicting the class has the largest F1; of equals the one nearest to zero."""
    labelled, others = torch.tensor(histogram.labelled), torch.tensor(histogram.others)
    # above the inner edge k are the bins k and later; whole numbers, so that equal F1 are found equal
    right = labelled.flip(0).cumsum(0).flip(0)[1:]  # TP [BINS − 1]
    predicted = right + others.flip(0).cumsum(0).flip(0)[1:]  # TP + FP
    total = int(labelled.sum())
    best, found = (0, 1), _ZERO  # F1 = 2·TP / (TP + FP + TP + FN), kept as a fraction
    for number, (tp, positive) in enumerate(zip(right.tolist(), predicted.tolist(), strict=True), start=1):
        score = (tp, positive + total)
        ahead, behind = score[0] * best[1], best[0] * score[1]
        if ahead > behind or (ahead == behind and abs(edges[number]) < abs(edges[found])):
            best, found = score, number
    return found


def _is_surely_better(histogram: ClassHistogram, number: int) -> bool:
    """Tell whether F1 above this edge exceeds that above zero by more than `SURE_FROM` standard errors.

    With J = TP/n of the n rows that bear the label or are predicted, F1 = 2J/(1 + J), so that its standard error is
    2/(1 + J)²·√(J(1 − J)/n). One row more that is right and one that is not are counted: few rows are never certain.
    """
    (before, _), (after, error) = (_score_above(histogram, edge) for edge in (_ZERO, number))
    return after - before > SURE_FROM * error


def _score_above(histogram: ClassHistogram, number: int) -> tuple[float, float]:
    """Return F1 of predicting the class above an edge, and its standard error."""
    right, rows = sum(histogram.labelled[number:]), sum(histogram.labelled) + sum(histogram.others[number:])
    share = (right + 1) / (rows + 2)
    error = 2 / (1 + share) ** 2 * math.sqrt(share * (1 - share) / (rows + 2))
    return 2 * right / max(right + rows, 1), error


def _against_each_other(shifts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    rivals = counts.expand(len(counts), -1).clone().fill_diagonal_(0.0)
    rivals /= rivals.sum(dim=1, keepdim=True).clamp(min=1.0)  # a lone class has no rival
    system = torch.eye(len(counts), dtype=torch.float64) - rivals
    solution: torch.Tensor = torch.linalg.lstsq(system, shifts[:, None], driver="gelsd").solution  # [classes, 1]
    return solution[:, 0]
