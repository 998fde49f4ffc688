"""Is the order of a model's hidden units the one that fits another model best? `gramfuse.match_models`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import torch
import transformers

from gramfuse.matching.activations import ByActivations, correlate
from gramfuse.matching.assignment import AttentionOrder, HeadSimilarity, assign, assign_heads, score
from gramfuse.matching.groups import Attention, Group, Intermediate, Place, find_groups
from gramfuse.matching.similarity import ByWeights, Weights
from gramfuse.measuring.inference import Progress
from gramfuse.measuring.texts import Text
from gramfuse_shared.errors import ArchitectureMismatchError, FileUnreadableError

Kind = Literal["units", "heads", "query dimensions", "value dimensions"]

_NO_GAIN: Final = 1e-6
"""Relative to the scale: what fp32 products cannot tell from no gain at all leaves every unit where it is."""


@dataclass(frozen=True, slots=True)
class Part:
    """How many of a kind of unit a group has, and how many the best order that was found leaves in their places."""

    kind: Kind
    units: int
    stay: int


@dataclass(frozen=True, slots=True)
class GroupMatching:
    """One group of units: how similar the models are as they are, and in the best order.

    `identity` and `best` are cosines of all its weights, or mean correlations of what its units do. `moves` says, for
    each place, which entry comes where: empty where the identity is best.
    """

    name: str
    parts: tuple[Part, ...]
    identity: float
    best: float
    moves: Mapping[Place, torch.Tensor]

    @property
    def identity_is_best(self) -> bool:
        """Whether no order fits better than the present one."""
        return not self.moves

    @property
    def ratio(self) -> float | None:
        """Identity by best; None where even the best order is not similar at all."""
        return self.identity / self.best if self.best > 0 else None


@dataclass(frozen=True, slots=True)
class Matching:
    """What fits a model to another: all groups, in the model's order."""

    model: Path
    other: Path
    by: Literal["weights", "activations"]
    groups: tuple[GroupMatching, ...]

    @property
    def identity_is_best(self) -> bool:
        """Whether every unit is in its best place already."""
        return all(group.identity_is_best for group in self.groups)


def match_models(
    model: str | Path,
    other: str | Path,
    *,
    texts: Sequence[Text] | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    device: str = "auto",
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Matching:
    """Find the order of a model's hidden units in which it is most similar to another, computing the same as before.

    Units of feed-forward blocks, heads, and dimensions within a head have an order that the model's function does not
    hang on. The residual stream is left alone: models of one base share it by their embeddings.

    Args:
        model: a `from_pretrained` folder.
        other: another of the same architecture: the base, a merged model.
        texts: match by what units do on these texts; None: by weights.
        batch_size: texts per forward pass.
        max_length: tokens after which a text is cut.
        device: where the models run; the orders are found on the CPU.
        on_progress: called after each batch of texts.

    Raises:
        ArchitectureMismatchError: the architecture is not known, or not the same in both.
        FileUnreadableError: a folder holds no model.
        WeightsInvalidError: a model holds NaN or infinity.
    """
    weights = Weights(Path(model)), Weights(Path(other))
    found = [_groups_of(each) for each in weights]
    if found[0] != found[1]:
        msg = f"{other} is built otherwise than {model}: {_first_difference(*found)}"
        raise ArchitectureMismatchError(msg)
    groups = found[0]
    similarities: ByWeights | ByActivations
    if texts is None:
        _require_same_shapes(groups, *weights)
        similarities = ByWeights(*weights)
    else:
        similarities = correlate(
            Path(model),
            Path(other),
            groups,
            texts,
            batch_size=batch_size,
            max_length=max_length,
            device=device,
            on_progress=on_progress,
        )
    return Matching(
        Path(model),
        Path(other),
        "weights" if texts is None else "activations",
        tuple(_match(group, similarities) for group in groups),
    )


def _groups_of(weights: Weights) -> tuple[Group, ...]:
    try:
        config = transformers.AutoConfig.from_pretrained(weights.folder, local_files_only=True)
    except (OSError, ValueError) as error:
        msg = f"{weights.folder}/config.json cannot be read: {error}"
        raise FileUnreadableError(msg) from error
    heads = getattr(config, "num_attention_heads", 0) or 1
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    try:
        return find_groups(config.model_type, weights.shapes, heads=heads, key_heads=key_heads)
    except ArchitectureMismatchError as error:
        msg = f"{weights.folder}: {error.message}"
        raise ArchitectureMismatchError(msg) from error


def _first_difference(ours: tuple[Group, ...], theirs: tuple[Group, ...]) -> str:
    known = {group.name: group for group in theirs}
    return next((group.name for group in ours if known.get(group.name) != group), "it has more layers")


def _require_same_shapes(groups: Sequence[Group], model: Weights, other: Weights) -> None:
    for name in dict.fromkeys(place.tensor for group in groups for place in group.places):
        if model.shapes[name] != other.shapes[name]:
            msg = f"{name} is {model.shapes[name]} in {model.folder}, {other.shapes[name]} in {other.folder}"
            raise ArchitectureMismatchError(msg)


def _match(group: Group, similarities: ByWeights | ByActivations) -> GroupMatching:
    if isinstance(group, Intermediate):
        return _match_intermediate(group, similarities)
    return _match_attention(group, similarities)


def _match_intermediate(group: Intermediate, similarities: ByWeights | ByActivations) -> GroupMatching:
    similarity = similarities(group.places)
    stay = torch.arange(group.units)
    order = assign(similarity)
    scores = score(similarity, stay), score(similarity, order)
    stays = int((order == stay).sum())
    return _matching(
        group, similarities, scores, (Part("units", group.units, stays),), dict.fromkeys(group.places, order)
    )


def _match_attention(group: Attention, similarities: ByWeights | ByActivations) -> GroupMatching:
    layers = tuple(
        HeadSimilarity(*(similarities(places) for places in (layer.query, layer.key, layer.value, layer.out)))
        for layer in group.layers
    )
    head_bias = similarities(group.head_bias) if group.head_bias else None
    found = assign_heads(
        layers,
        heads=group.heads,
        queries=group.queries,
        width=group.width,
        query_dimensions_free=group.query_dimensions_free,
        head_bias=head_bias,
    )
    identity = sum(
        float(each.double().trace()) for layer in layers for each in (layer.query, layer.key, layer.value, layer.out)
    ) + (float(head_bias.double().trace()) if head_bias is not None else 0.0)
    moves, parts = _moves(group, found)
    return _matching(group, similarities, (identity, found.score), parts, moves)


def _moves(group: Attention, found: AttentionOrder) -> tuple[dict[Place, torch.Tensor], tuple[Part, ...]]:
    """Spell out the order of heads, and those within, as one order of the entries of each place."""
    moves: dict[Place, torch.Tensor] = dict.fromkeys(group.head_bias, found.heads)
    heads = found.heads.tolist()
    query_heads, query_rows, value_rows = [], [], []
    for layer, within in zip(group.layers, found.within, strict=True):
        queries = [head * group.queries + order.queries for head, order in zip(heads, within, strict=True)]
        turned = [order.query_dimensions for order in within]
        valued = [order.value_dimensions for order in within]
        key = torch.cat([head * group.width + each for head, each in zip(heads, turned, strict=True)])
        value = torch.cat([head * group.width + each for head, each in zip(heads, valued, strict=True)])
        query, out = (
            torch.cat(
                [
                    (of_head[:, None] * group.width + dimensions[None, :]).flatten()
                    for of_head, dimensions in zip(queries, each, strict=True)
                ]
            )
            for each in (turned, valued)
        )
        for places, order in ((layer.query, query), (layer.key, key), (layer.value, value), (layer.out, out)):
            moves |= dict.fromkeys(places, order)
        query_heads.append(torch.cat(queries))
        query_rows.append(query)
        value_rows.append(out)
    parts = [_part("heads", query_heads), _part("value dimensions", value_rows)]
    if group.query_dimensions_free:
        parts.append(_part("query dimensions", query_rows))
    return moves, tuple(parts)


def _part(kind: Kind, orders: Sequence[torch.Tensor]) -> Part:
    return Part(
        kind,
        sum(len(order) for order in orders),
        sum(int((order == torch.arange(len(order))).sum()) for order in orders),
    )


def _matching(
    group: Group,
    similarities: ByWeights | ByActivations,
    scores: tuple[float, float],
    parts: tuple[Part, ...],
    moves: Mapping[Place, torch.Tensor],
) -> GroupMatching:
    scale = similarities.scale(group) or 1.0  # all weights zero: nothing is similar, and nothing moves
    identity, best = (each / scale for each in scores)
    if best - identity <= _NO_GAIN:
        parts = tuple(Part(part.kind, part.units, part.units) for part in parts)
        best, moves = identity, {}
    return GroupMatching(group.name, parts, identity, best, MappingProxyType(dict(moves)))
