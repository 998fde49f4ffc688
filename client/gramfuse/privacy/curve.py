"""How much of RegMean's gain noise would leave, by simulation on models and texts at hand. Nothing leaves.

The gain is that of RegMean's objective f(W) = Σ tr((W − Wᵢ)Gᵢ(W − Wᵢ)ᵀ)/nᵢ over the average's, with the exact Gram
matrices of all rows: 1 − f(W)/f(W̄), as a merge's diagnostics tell it. The share kept is the sum over taps of what the
merge of noised matrices gains, over the sum of what the merge of exact ones does. It falls below zero where noise makes
the merge worse than the average.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from gramfuse.measuring.forwarding import collect, open_to_measure
from gramfuse.measuring.inference import Progress
from gramfuse.measuring.layers import find_layers
from gramfuse.measuring.texts import Text
from gramfuse.privacy.clipping import ClippedSum
from gramfuse.privacy.collecting import sum_clipped
from gramfuse.privacy.noise import NoiseSource
from gramfuse.privacy.releasing import Mechanism, raw_gram
from gramfuse_shared.contract.manifest import TapInfo
from gramfuse_shared.contract.privacy import PrivacyBudget
from gramfuse_shared.errors import ArchitectureMismatchError, ConfigurationError
from gramfuse_shared.fusion import packing
from gramfuse_shared.fusion.methods.method import Gram, MethodSettings
from gramfuse_shared.fusion.methods.regmean import RegMean
from gramfuse_shared.fusion.solve import Accumulator
from gramfuse_shared.merging.scales import Scales

EPSILONS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
DEFAULT_TAPS: Final = 12
"""Taps that are simulated, evenly over the model's: each takes an eigendecomposition per member and ε."""

_LEAST_MEMBERS: Final = 2


@dataclass(frozen=True, slots=True)
class CurveMember:
    """One model of a simulated merge: its linear weights [out, in], exact Gram matrices by tap, and the clipped sum."""

    weights: Mapping[str, torch.Tensor]
    exact: Mapping[str, torch.Tensor]
    clipped: ClippedSum


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """At this ε, which share of the gain is kept."""

    epsilon: float
    kept: float


def measure_member(
    model: str | Path,
    texts: Sequence[Text],
    scales: Scales,
    *,
    base_folder: str | Path | None = None,
    max_length: int | None = None,
    device: str = "auto",
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> CurveMember:
    """Measure a model on texts, exactly and clipped.

    Raises:
        GramfuseError: see `gramfuse.collect` and `sum_clipped`.
    """
    opened, _ = open_to_measure(model, base_folder, device=device)
    run: dict[str, Any] = {
        "tokenizer": opened.tokenizer,
        "max_length": max_length,
        "device": device,
        "on_progress": on_progress,
        "is_cancelled": is_cancelled,
    }
    statistics = collect(opened.model, texts, **run)
    exact = {
        layer.weight: tap.unpacked().double() / tap.info.rows for tap in statistics.taps for layer in tap.info.layers
    }
    taps = scales.metadata.taps
    missing = next((tap.name for tap in taps if tap.layers[0].weight not in exact), None)
    if missing is not None:
        msg = f"tap {missing} of the scales is none of this model's"
        raise ArchitectureMismatchError(msg, tap=missing)
    weights = {
        layer.weight: weight if layer.layout == "out_in" else weight.T
        for layer in find_layers(opened.model)
        for weight in [layer.modules[0].weight.detach().cpu()]  # type: ignore[operator] # a linear layer's
    }
    clipped = sum_clipped(opened.model, texts, scales, **run)
    return CurveMember(weights, {tap.name: exact[tap.layers[0].weight] for tap in taps}, clipped)


def privacy_curve(
    members: Sequence[CurveMember],
    *,
    delta: float,
    epsilons: Sequence[float] = EPSILONS,
    examples: int | None = None,
    alpha: float = 0.9,
    taps: int = DEFAULT_TAPS,
    source: NoiseSource | None = None,
) -> Iterator[CurvePoint]:
    """Yield a point for each ε, as if every member had `examples` texts like those that were measured.

    Args:
        members: two or more models.
        delta: of every release.
        epsilons: of one release each.
        examples: n; None: as many as were measured, of each member its own.
        alpha: the recipe's.
        taps: how many taps are simulated, evenly over the model's.
        source: of the noise.

    Raises:
        ConfigurationError: fewer than two members, or RegMean gains nothing on them.
    """
    if len(members) < _LEAST_MEMBERS:
        msg = "a curve needs two models or more: a merge of one has nothing to gain"
        raise ConfigurationError(msg)
    every = members[0].clipped.scales.metadata.taps
    chosen = [every[round(at)] for at in torch.linspace(0, len(every) - 1, min(taps, len(every))).tolist()]
    drawn = source or NoiseSource()
    best = sum(_gained(members, tap, [member.exact[tap.name] for member in members], alpha) for tap in chosen)
    if not best > 0:
        msg = "RegMean gains nothing over the average on these models: they do not differ where their texts are"
        raise ConfigurationError(msg)
    for epsilon in epsilons:
        budget = PrivacyBudget(epsilon=epsilon, delta=delta)
        found = sum(_gained(members, tap, _noised(members, tap, budget, examples, drawn), alpha) for tap in chosen)
        yield CurvePoint(epsilon, found / best)


def _noised(
    members: Sequence[CurveMember], tap: TapInfo, budget: PrivacyBudget, examples: int | None, source: NoiseSource
) -> list[torch.Tensor]:
    """Return each member's matrix as it would be released, divided by n."""
    found = []
    for member in members:
        scales = member.clipped.scales
        mechanism = Mechanism.of(budget, clip=scales.metadata.clip, examples=examples or member.clipped.examples)
        noisy = mechanism.release(member.clipped.mean(tap.name).numpy(), source)
        found.append(raw_gram(mechanism.repair(noisy), tap, scales, 1))
    return found


def _gained(members: Sequence[CurveMember], tap: TapInfo, grams: Sequence[torch.Tensor], alpha: float) -> float:
    """Return 1 − f(W)/f(W̄) of the merge by these matrices, f with the exact ones; layers of a tap are stacked."""
    stacked = [torch.cat([member.weights[layer.weight].double() for layer in tap.layers]) for member in members]
    settings = MethodSettings(alpha=alpha, normalize="equal")
    accumulator = Accumulator[Any](tuple(stacked[0].shape), dtype=torch.float64)
    for weight, gram in zip(stacked, grams, strict=True):
        precision = RegMean().precision(Gram(packing.pack(gram), tap.width, 1), 1.0, settings)
        accumulator.add(weight - stacked[0], precision, 1.0)
    solution = accumulator.solve().delta
    merged = stacked[0] if solution is None else stacked[0] + solution
    average = torch.stack(stacked).mean(dim=0)
    exact = [member.exact[tap.name] for member in members]
    worst = _objective(average, stacked, exact)
    return 1 - _objective(merged, stacked, exact) / worst if worst > 0 else 0.0


def _objective(merged: torch.Tensor, weights: Sequence[torch.Tensor], grams: Sequence[torch.Tensor]) -> float:
    differences = ((merged - weight, gram) for weight, gram in zip(weights, grams, strict=True))
    return sum(float(((difference @ gram) * difference).sum()) for difference, gram in differences)
