"""The blocks of a transformer, told from the names of its parameters, in the order in which a text passes them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gramfuse.naming import natural_key
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.rules import why_tensor_stays
from gramfuse_shared.errors import ArchitectureMismatchError

_BLOCK: Final = re.compile(r"(?P<block>(?:[^.]+\.)+?\d+)\.")
_FEWEST_LAYERS: Final = 2  # one numbered linear alone is an element of an nn.Sequential


@dataclass(frozen=True, slots=True)
class Block:
    """A block by its module's name, `bert.encoder.layer.0`, and its matrices that may be merged."""

    name: str
    layers: tuple[str, ...]


def block_of(parameter: str) -> str:
    """Name the block that a parameter belongs to: up to the first number of its name.

    A parameter outside numbered blocks belongs to its module alone.
    """
    found = _BLOCK.match(parameter)
    return found["block"] if found else parameter.rpartition(".")[0]


def parameters_of_blocks(layers: Iterable[str], parameters: Iterable[str]) -> list[str]:
    """List those parameters that belong to a block of one of the layers."""
    blocks = {block_of(layer) for layer in layers}
    return [name for name in parameters if block_of(name) in blocks]


def plan_blocks(base: BaseManifest, policy: Policy) -> tuple[Block, ...]:
    """List the blocks of the project's model in forward order, decoders behind encoders.

    Told from names and shapes alone: what a participant finds to be no linear layer is not measured. Heads, poolers and
    whatever else lies outside the numbered blocks are left out, as in the published algorithm; so are matrices whose
    weights the policy keeps at home.

    Raises:
        ArchitectureMismatchError: the model has no numbered blocks.
    """
    blocks: dict[str, list[str]] = {}
    for tensor in base.tensors:
        is_matrix = len(tensor.shape) == 2 and tensor.name.endswith(".weight")  # noqa: PLR2004 - rows and columns
        role = policy.role_of(tensor.name, tensor.shape, base.vocabulary_size)
        if (
            is_matrix
            and role == "body"
            and _BLOCK.match(tensor.name)
            and why_tensor_stays(tensor, base, policy) is None
        ):
            blocks.setdefault(block_of(tensor.name), []).append(tensor.name)
    found = [
        Block(name, tuple(sorted(layers, key=natural_key)))
        for name, layers in blocks.items()
        if len(layers) >= _FEWEST_LAYERS
    ]
    if not found:
        msg = (
            "the base model has no numbered blocks such as encoder.layer.0, so there is no order to merge it anew in; "
            "ask for its layers with `gramfuse request create`"
        )
        raise ArchitectureMismatchError(msg)
    return tuple(sorted(found, key=_place))


def _place(block: Block) -> tuple[bool, tuple[tuple[int, str | int], ...]]:
    return any("decoder" in part for part in block.name.split(".")), natural_key(block.name)
