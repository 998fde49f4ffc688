"""Finds the order of units that is most similar to another model's, from similarities alone.

A similarity [n, n] has the other model's places as rows and this model's units as columns. An order p says which unit
goes to each place: Σᵢ S[i, pᵢ] is largest. Optimal transport between n units of equal mass (Singh & Jaggi, Model Fusion
via Optimal Transport, 2020) has such an order among its optima, since the vertices of the doubly stochastic matrices
are the permutations (Birkhoff); so a linear assignment solves it exactly, as in Ainsworth et al., Git Re-Basin, 2023.
"""

from dataclasses import dataclass
from typing import Final

import torch
from scipy.optimize import linear_sum_assignment

from gramfuse_shared.errors import WeightsInvalidError

_TIE: Final = 1e-7
"""Relative to the largest similarity: between two equally good orders, the one in which more units stay is taken."""


def assign(similarity: torch.Tensor) -> torch.Tensor:
    """Return the order p [n] that makes Σᵢ S[i, pᵢ] largest.

    Raises:
        WeightsInvalidError: a similarity is not finite.
    """
    if not bool(torch.isfinite(similarity).all()):
        msg = "similarities are not finite: a model holds NaN or infinity"
        raise WeightsInvalidError(msg)
    scores = similarity.double().clone()  # [n, n]
    scores.diagonal().add_(_TIE * float(scores.abs().max()))
    _, order = linear_sum_assignment(scores.numpy(), maximize=True)
    return torch.from_numpy(order)


def score(similarity: torch.Tensor, order: torch.Tensor) -> float:
    """Return Σᵢ S[i, pᵢ]."""
    return float(similarity.double().gather(1, order[:, None]).sum())


@dataclass(frozen=True, slots=True)
class HeadSimilarity:
    """How similar the rows of one attention are: query and out [heads · queries · width]², key and value
    [heads · width]².
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    out: torch.Tensor


@dataclass(frozen=True, slots=True)
class HeadOrder:
    """For each place of a head: which query heads of its group [queries], and which dimensions [width], go where."""

    queries: torch.Tensor
    query_dimensions: torch.Tensor
    value_dimensions: torch.Tensor


@dataclass(frozen=True, slots=True)
class AttentionOrder:
    """Which head goes to each place [heads], and within each, per layer, in which order: `within[layer][place]`."""

    heads: torch.Tensor
    within: tuple[tuple[HeadOrder, ...], ...]
    score: float


def assign_heads(
    layers: tuple[HeadSimilarity, ...],
    *,
    heads: int,
    queries: int,
    width: int,
    query_dimensions_free: bool,
    head_bias: torch.Tensor | None = None,
) -> AttentionOrder:
    """Find the order of heads, and the orders within them, that make the sum of all similarities largest.

    What is best within a head does not hang on the other heads, so each pair of a place and a head is solved first, and
    the pairs are assigned by what they reach. That is exact where each head of keys has one head of queries. Where it
    has several, the order of these and that of the value dimensions meet in the output projection; they are improved in
    turn until neither can, as Git Re-Basin does with layers: the best that was found, not proved.
    `head_bias` [heads, heads] counts where queries = 1.
    """
    pairs = [
        [
            [
                _within(_pair(layer, place, head, queries, width), query_dimensions_free=query_dimensions_free)
                for head in range(heads)
            ]
            for place in range(heads)
        ]
        for layer in layers
    ]
    reached = torch.tensor(
        [
            [sum(pairs[at][place][head][1] for at in range(len(layers))) for head in range(heads)]
            for place in range(heads)
        ],
        dtype=torch.float64,
    )
    if head_bias is not None:
        reached += head_bias.double()
    order = assign(reached)
    within = tuple(
        tuple(pairs[at][place][head][0] for place, head in enumerate(order.tolist())) for at in range(len(layers))
    )
    return AttentionOrder(order, within, score(reached, order))


@dataclass(frozen=True, slots=True)
class _Pair:
    """The similarities between a head and the place that it may go to: query, out [queries, width, queries, width]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    out: torch.Tensor


def _pair(layer: HeadSimilarity, place: int, head: int, queries: int, width: int) -> _Pair:
    def block(similarity: torch.Tensor, rows: int) -> torch.Tensor:
        return similarity[place * rows : (place + 1) * rows, head * rows : (head + 1) * rows].double()

    shape = (queries, width, queries, width)
    return _Pair(
        query=block(layer.query, queries * width).reshape(shape),
        key=block(layer.key, width),
        value=block(layer.value, width),
        out=block(layer.out, queries * width).reshape(shape),
    )


def _within(pair: _Pair, *, query_dimensions_free: bool) -> tuple[HeadOrder, float]:
    queries, width = pair.query.shape[:2]
    stay = torch.arange(width)
    # from the order as it is, which the result is then never worse than, and from what the queries alone say
    starts = [torch.arange(queries)]
    if queries > 1:
        starts.append(assign(torch.einsum("ikjk->ij", pair.query)))
    best: tuple[HeadOrder, float] | None = None
    for start in starts:
        order, reached = start, -float("inf")
        while True:
            on_queries = pair.query[torch.arange(queries), :, order].sum(0) + pair.key  # [width, width]
            on_values = pair.out[torch.arange(queries), :, order].sum(0) + pair.value  # [width, width]
            turned = assign(on_queries) if query_dimensions_free else stay
            valued = assign(on_values)
            now = score(on_queries, turned) + score(on_values, valued)
            if best is None or now > best[1]:
                best = HeadOrder(order, turned, valued), now
            # a rounding error is no improvement, and must not go on forever
            if queries == 1 or now <= reached + _TIE * abs(now):
                break
            reached = now
            order = assign(pair.query[:, stay, :, turned].sum(0) + pair.out[:, stay, :, valued].sum(0))
    assert best is not None  # noqa: S101 - there is a start
    return best
