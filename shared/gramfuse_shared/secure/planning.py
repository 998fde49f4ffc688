"""Plan what a session sums, from documents alone: which tensors, in which order, with how many bits. No torch."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal

from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest, TapInfo
from gramfuse_shared.contract.policy import DEFAULT_HEAD_PARAMETERS, matches_any
from gramfuse_shared.contract.recipe import DEFAULT_RIDGE, Overridable, Recipe, resolve, values_of
from gramfuse_shared.contract.rules import CONTRIBUTED_DTYPES
from gramfuse_shared.contract.secure_session import (
    WORD_BITS,
    SessionManifest,
    SessionMember,
    SessionTap,
    SummedTensor,
    precision_name,
    product_name,
    threshold_of,
    weighted_name,
)
from gramfuse_shared.contract.statistics_file import packed_length
from gramfuse_shared.errors import RecipeInvalidError

SumKind = Literal["weighted", "precision", "product", "element"]

DEFAULT_BOUNDS: Final[Mapping[SumKind, float]] = {
    "weighted": 16.0,
    "precision": 2.0**13,
    "product": 2.0**11,
    "element": 1.0 + 2e-6,
}
"""Largest |x| of a member of weight 1. Of differences: fine-tuning moves weights by hundredths. Of precisions: squares
of features over the base's on public text; a feature may be 90 times as large, as those of a pooler become that hardly
answers before it is trained. Of products: the two of them, summed. Of elements: Fisher information over its norm, which
is right to 1e-6, and that times a difference."""


def plan_session(
    project: str,
    session: str,
    recipe: Recipe,
    contributions: Sequence[tuple[ContributionManifest, str, Overridable]],
    base: BaseManifest,
    *,
    scales: str | None,
    scaled_taps: Collection[str] = (),
    bounds: Mapping[SumKind, float] = DEFAULT_BOUNDS,
    head_parameters: Sequence[str] = DEFAULT_HEAD_PARAMETERS,
) -> SessionManifest:
    """Plan a session: what all contributions hold is summed, and nothing else.

    A parameter of the head of which somebody did not train every row is not: the rows' own merges would tell whose
    they are.

    Args:
        project: whose contributions they are.
        session: the id of its first request.
        recipe: `linear`, `regmean` or `fisher`.
        contributions: each with its organization's identity key (base64) and its weight in the recipe.
        base: the base model.
        scales: digest of the project's scales file; None: all linears are averaged.
        scaled_taps: the taps that it is of; linears of others are averaged.
        bounds: of the values of a member of weight 1; a larger one, of everybody, costs bits.
        head_parameters: the policy's.

    Raises:
        RecipeInvalidError: nothing is common to all contributions, statistics are weighted in different ways, linears
            that share a tap differ in α, ridge or a weight, or Fisher information is not divided by its norm.
    """
    manifests = [manifest for manifest, _, _ in contributions]
    members = tuple(
        sorted(
            (
                SessionMember(
                    organization=manifest.organization,
                    contribution=manifest.content_digest(),
                    identity=identity,
                    weight=weight,
                )
                for manifest, identity, weight in contributions
            ),
            key=lambda member: member.organization,
        )
    )
    partly = {manifest.labels.count for manifest in manifests if manifest.labels is not None}
    shapes = {
        name: shape
        for name, shape in _common_parameters(manifests, base, recipe).items()
        if not (shape and shape[0] in partly and matches_any(name, head_parameters))
    }
    if not shapes:
        msg = "there is no parameter that every contribution holds and the recipe merges"
        raise RecipeInvalidError(msg)
    elements = _common_elements(manifests, shapes, recipe) if recipe.merge_method == "fisher" else ()
    taps: tuple[SessionTap, ...] = ()
    if recipe.merge_method == "regmean" and scales is not None:
        _require_alike_statistics(manifests)
        taps = tuple(tap for tap in _common_taps(manifests, shapes) if tap.name in scaled_taps)
    for tap in taps:
        _require_alike(tap, recipe, members)
    largest = max(max(values_of(member.weight)) for member in members)
    rows = max((_rows(manifest) for manifest in manifests), default=1)
    scaled = largest * (rows if recipe.parameters.normalize == "rows" else 1)
    sizes: dict[SumKind, float] = {
        "weighted": bounds["weighted"] * largest,
        "precision": bounds["precision"] * scaled,
        "product": bounds["product"] * scaled,
        "element": bounds["element"] * largest,
    }

    def tensor(name: str, shape: tuple[int, ...], kind: SumKind) -> SummedTensor:
        bits = fraction_bits(sizes[kind], len(members))
        return SummedTensor(name=name, shape=shape, fraction_bits=bits, bound=sizes[kind])

    sums: list[SummedTensor] = []
    for tap in taps:
        # a tap's precision and what is multiplied by it stand together: its matrix is made once
        sums.append(tensor(precision_name(tap.name), (packed_length(tap.width),), "precision"))
        for layer in tap.layers:
            stored = shapes[layer.weight]
            shape = stored if layer.layout == "out_in" else stored[::-1]
            sums.append(tensor(product_name(layer.weight), shape, "product"))
    for name in elements:
        sums.append(tensor(precision_name(name), shapes[name], "element"))
        sums.append(tensor(product_name(name), shapes[name], "element"))
    sums += [tensor(weighted_name(name), shape, "weighted") for name, shape in shapes.items()]
    return SessionManifest(
        project=project,
        session=session,
        policy=manifests[0].policy,
        base=base.content_digest(),
        recipe=recipe,
        scales=scales if taps else None,
        members=members,
        threshold=threshold_of(len(members)),
        taps=taps,
        sums=tuple(sums),
    )


def fraction_bits(bound: float, members: int) -> int:
    """Return the most fraction bits with which the sum of so many values up to the bound stays within a word."""
    bits = math.floor(WORD_BITS - 1 - math.log2(members) - math.log2(bound))
    fitting = SummedTensor(name="x", shape=(), fraction_bits=bits, bound=bound)
    return bits if fitting.fits(members) else bits - 1


def _common_parameters(
    manifests: Sequence[ContributionManifest], base: BaseManifest, recipe: Recipe
) -> dict[str, tuple[int, ...]]:
    """Shapes of what every contribution holds and the recipe merges, in the base's order."""
    held = set.intersection(*({tensor.name for tensor in manifest.weights.tensors} for manifest in manifests))
    return {
        tensor.name: tensor.shape
        for tensor in base.tensors
        if tensor.name in held
        and tensor.dtype in CONTRIBUTED_DTYPES | {"F64"}
        and not matches_any(tensor.name, recipe.parameters.exclude)
    }


def _common_taps(
    manifests: Sequence[ContributionManifest], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[SessionTap, ...]:
    """Taps of which every contribution holds statistics of the same layers, with those layers that are summed."""
    described = [{tap.name: tap for tap in _taps(manifest)} for manifest in manifests]
    taps = []
    for tap in _taps(manifests[0]):
        others = [of_member.get(tap.name) for of_member in described]
        if any(other is None or (other.width, other.layers) != (tap.width, tap.layers) for other in others):
            continue
        layers = tuple(layer for layer in tap.layers if layer.weight in shapes)
        if layers:
            taps.append(SessionTap(name=tap.name, width=tap.width, layers=layers))
    return tuple(taps)


def _common_elements(
    manifests: Sequence[ContributionManifest], shapes: Mapping[str, tuple[int, ...]], recipe: Recipe
) -> tuple[str, ...]:
    """Name the parameters of which every contribution holds Fisher information, of the same labels."""
    if recipe.parameters.normalize not in {"norm", "parameter_norm"}:
        msg = (
            "in a secure sum Fisher information is divided by its norm, since nobody knows how large it is before: say "
            "normalize: norm, or parameter_norm"
        )
        raise RecipeInvalidError(msg)
    sent = [manifest.fisher for manifest in manifests]
    held = [{p.name for p in fisher.parameters} if fisher is not None else set[str]() for fisher in sent]
    names = tuple(name for name in shapes if all(name in of_member for of_member in held))
    if not names or len({fisher.collector.labels for fisher in sent if fisher is not None}) > 1:
        msg = "there is no parameter of which all contributions hold Fisher information, or it is of different labels"
        raise RecipeInvalidError(msg)
    return names


def _require_alike_statistics(manifests: Sequence[ContributionManifest]) -> None:
    """Weighted rows and rows that count alike are of different magnitude: the larger would decide."""
    found = {m.organization: m.statistics.collector.weighting for m in manifests if m.statistics is not None}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{organization}: {weighting}" for organization, weighting in sorted(found.items()))
        msg = f"the statistics are weighted in different ways ({told}); collect all of them with the same weighting"
        raise RecipeInvalidError(msg)


def _require_alike(tap: SessionTap, recipe: Recipe, members: Sequence[SessionMember]) -> None:
    """A tap's precision is summed once, so what it is multiplied by is the same for all layers that read it."""
    ridge = recipe.parameters.ridge
    asked: list[tuple[str, Overridable, float]] = [
        ("alpha", recipe.parameters.alpha, 0.0),
        ("ridge", ridge, DEFAULT_RIDGE),
        *((f"the weight of {member.organization}", member.weight, 0.0) for member in members),
    ]
    for what, value, default in asked:
        if len({resolve(value, layer.weight, default=default) for layer in tap.layers}) > 1:
            names = ", ".join(layer.weight for layer in tap.layers)
            msg = f"{what} differs between {names}, which read the same inputs: in a secure sum they have one precision"
            raise RecipeInvalidError(msg, tap=tap.name)


def _taps(manifest: ContributionManifest) -> tuple[TapInfo, ...]:
    return manifest.statistics.taps if manifest.statistics is not None else ()


def _rows(manifest: ContributionManifest) -> int:
    return max((tap.rows for tap in _taps(manifest)), default=1)
