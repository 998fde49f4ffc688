"""Finds the groups of units of a model that may change places, from its tensors' names and shapes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from gramfuse.matching.families import FAMILIES, AttentionNames, BlockNames
from gramfuse.naming import name_pattern, natural_key
from gramfuse_shared.errors import ArchitectureMismatchError

_FUSED_PARTS: Final = 3


@dataclass(frozen=True, slots=True)
class Place:
    """Where units lie in a tensor: `length` entries along `axis`, from `start`; a module's outputs or its inputs."""

    tensor: str
    axis: int
    start: int
    length: int
    side: Literal["outputs", "inputs"]


@dataclass(frozen=True, slots=True)
class Intermediate:
    """The intermediate units of a feed-forward block: one entry each in every place, the last what `down` reads."""

    name: str
    units: int
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """The places of one attention: weights first, then biases and what else has the same rows."""

    query: tuple[Place, ...]
    key: tuple[Place, ...]
    value: tuple[Place, ...]
    out: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Attention:
    """The heads of an attention, or of all attentions of a stack where they share a bias with a column per head.

    `heads` heads of keys and values, each read by `queries` heads of queries, all of `width` dimensions.
    `query_dimensions_free`: no rotary positions, so dimensions of queries and keys may change places within a head.
    """

    name: str
    heads: int
    queries: int
    width: int
    layers: tuple[AttentionLayer, ...]
    head_bias: tuple[Place, ...]
    query_dimensions_free: bool

    @property
    def places(self) -> tuple[Place, ...]:
        """All of them."""
        of_layers = [(*layer.query, *layer.key, *layer.value, *layer.out) for layer in self.layers]
        return (*(place for places in of_layers for place in places), *self.head_bias)


Group = Intermediate | Attention


def find_groups(
    model_type: str, shapes: Mapping[str, Sequence[int]], *, heads: int, key_heads: int
) -> tuple[Group, ...]:
    """List a model's groups, layer by layer.

    Args:
        model_type: of the config.
        shapes: of all tensors, by the names in the file.
        heads: of queries.
        key_heads: of keys and values.

    Raises:
        ArchitectureMismatchError: the architecture is not known, a layer holds a tensor that is not known, or a
            tensor has another shape than its place says.
    """
    family = FAMILIES.get(model_type)
    if family is None:
        msg = (
            f"it is not known which units of a {model_type!r} model may change places; "
            f"known are {', '.join(sorted(FAMILIES))}"
        )
        raise ArchitectureMismatchError(msg)
    tensors = _Tensors(shapes, out_axis=1 if family.transposed else 0)
    groups: list[Group] = []
    for block in family.blocks:
        layers = _layers_of(block, shapes)
        if not layers and block is family.blocks[0]:
            msg = f"no tensor is named as the layers of a {model_type!r} model are"
            raise ArchitectureMismatchError(msg)
        for layer, held in layers.items():
            _require_known(block, layer, held, model_type)
        for names in block.attentions:
            if heads % key_heads:
                msg = f"{heads} heads of queries cannot share {key_heads} heads of keys evenly"
                raise ArchitectureMismatchError(msg)
            found = [
                _attention(tensors, names, [layer], heads=heads, key_heads=key_heads, rotary=family.rotary)
                for layer in layers
                if names.head_bias is None
            ]
            if names.head_bias is not None and layers:
                found = [
                    _attention(tensors, names, list(layers), heads=heads, key_heads=key_heads, rotary=family.rotary)
                ]
            groups.extend(found)
        groups.extend(_intermediate(tensors, block, layer) for layer in layers)
    return tuple(sorted(groups, key=lambda group: natural_key(group.name)))


@dataclass(frozen=True, slots=True)
class _Tensors:
    shapes: Mapping[str, Sequence[int]]
    out_axis: int

    def outputs(self, module: str, *, start: int = 0, length: int | None = None) -> list[Place]:
        """Return weight and bias of a module, or part of their rows; empty if it is not there."""
        weight, bias = f"{module}.weight", f"{module}.bias"
        if weight not in self.shapes:
            return []
        whole = self._size(weight, self.out_axis)
        places = [Place(weight, self.out_axis, start, whole if length is None else length, "outputs")]
        if bias in self.shapes:
            places.append(Place(bias, 0, start, places[0].length, "outputs"))
            self.require(bias, 0, whole)
        return places

    def inputs(self, module: str) -> Place:
        """Return the input side of a module's weight."""
        weight, axis = f"{module}.weight", 1 - self.out_axis
        return Place(weight, axis, 0, self._size(weight, axis), "inputs")

    def require(self, tensor: str, axis: int, size: int) -> None:
        """Require the size of a tensor along an axis."""
        found = self._size(tensor, axis)
        if found != size:
            msg = f"{tensor} is {found} wide where {size} was expected: its heads were pruned, or packed otherwise"
            raise ArchitectureMismatchError(msg)

    def _size(self, tensor: str, axis: int) -> int:
        shape = self.shapes.get(tensor, ())
        if len(shape) <= axis:
            msg = f"{tensor} is missing, or no matrix"
            raise ArchitectureMismatchError(msg)
        return shape[axis]


def _layers_of(block: BlockNames, shapes: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """Map the name of each layer to what it holds, relative to it."""
    pattern = re.compile(rf"((?:[\w.]+\.)?{block.layer})\.(.+)")
    layers: dict[str, list[str]] = {}
    for name in sorted(shapes, key=natural_key):
        found = pattern.fullmatch(name)
        if found is not None:
            layers.setdefault(found[1], []).append(found[2])
    return layers


def _require_known(block: BlockNames, layer: str, held: list[str], model_type: str) -> None:
    known = {*block.up, block.down}
    for names in block.attentions:
        known |= {*names.query, *names.key, names.value, names.out}
        known |= {names.head_bias} if names.head_bias is not None else set()
    for name in held:
        module = name.removesuffix(".weight").removesuffix(".bias")
        if module not in known and name not in block.untouched and module not in block.untouched:
            msg = (
                f"{layer} holds {name}, which a {model_type!r} layer is not known to have, so it is not known which of "
                "its units may change places"
            )
            raise ArchitectureMismatchError(msg)


def _intermediate(tensors: _Tensors, block: BlockNames, layer: str) -> Intermediate:
    down = tensors.inputs(f"{layer}.{block.down}")
    up = [place for name in block.up for place in tensors.outputs(f"{layer}.{name}")]
    if not up:
        _refuse_missing(layer, block.up)
    for place in up:
        tensors.require(place.tensor, place.axis, down.length)
    return Intermediate(f"{layer}.{block.down}", down.length, (*up, down))


def _attention(
    tensors: _Tensors, names: AttentionNames, layers: list[str], *, heads: int, key_heads: int, rotary: bool
) -> Attention:
    out_width = tensors.inputs(f"{layers[0]}.{names.out}").length
    width = out_width // heads
    found = tuple(
        _attention_layer(tensors, names, layer, query_rows=heads * width, key_rows=key_heads * width)
        for layer in layers
    )
    head_bias = []
    if names.head_bias is not None:
        held = [f"{layer}.{names.head_bias}.weight" for layer in layers]
        head_bias = [Place(name, 1, 0, heads, "outputs") for name in held if name in tensors.shapes]
        for place in head_bias:
            tensors.require(place.tensor, 1, heads)
    path = f"{layers[0]}.{names.out}"
    return Attention(
        name=path if names.head_bias is None else name_pattern_of_layer(path, layers[0]),
        heads=key_heads,
        queries=heads // key_heads,
        width=width,
        layers=found,
        head_bias=tuple(head_bias),
        query_dimensions_free=not rotary,
    )


def name_pattern_of_layer(path: str, layer: str) -> str:
    """Replace the layer's number in a path, and no other: `encoder.block.*.layer.0.SelfAttention.o`."""
    return name_pattern(layer) + path.removeprefix(layer)


def _attention_layer(
    tensors: _Tensors, names: AttentionNames, layer: str, *, query_rows: int, key_rows: int
) -> AttentionLayer:
    def rows(modules: tuple[str, ...], part: int, length: int) -> tuple[Place, ...]:
        start = part * length if names.fused else 0
        places = [
            place for module in modules for place in tensors.outputs(f"{layer}.{module}", start=start, length=length)
        ]
        if not places or not places[0].tensor.startswith(f"{layer}.{modules[0]}."):
            _refuse_missing(layer, modules[:1])
        for place in places:
            tensors.require(place.tensor, place.axis, length * (_FUSED_PARTS if names.fused else 1))
        return tuple(places)

    out = tensors.inputs(f"{layer}.{names.out}")
    tensors.require(out.tensor, out.axis, query_rows)
    return AttentionLayer(
        query=rows(names.query, 0, query_rows),
        key=rows(names.key, 1, key_rows),
        value=rows((names.value,), 2, key_rows),
        out=(out,),
    )


def _refuse_missing(layer: str, modules: Sequence[str]) -> NoReturn:
    msg = f"{layer} holds no {' or '.join(modules)}"
    raise ArchitectureMismatchError(msg)
