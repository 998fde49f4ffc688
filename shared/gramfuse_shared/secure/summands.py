"""What one member adds to each sum, in float64, a chunk at a time: memory grows with the widest layer, not the model.

Around the base, Dᵢ = Wᵢ − W_base. Of every parameter cᵢDᵢ; of a tap D^-½P̂ᵢD^-½ and of its linears DᵢP̂ᵢD^-½, where P̂ᵢ
has α, ridge and aᵢ applied and D, the mean squares of the base's features on public text, is known to all. Of what is
weighed element by element Pᵢ = cᵢFᵢ/‖Fᵢ‖ and DᵢPᵢ.
"""

import math
from collections.abc import Iterator, Mapping

import torch

from gramfuse_shared.contract.manifest import FisherDescription, TapInfo
from gramfuse_shared.contract.recipe import DEFAULT_RIDGE, DEFAULT_WEIGHT, resolve
from gramfuse_shared.contract.secure_session import (
    SessionManifest,
    SessionTap,
    SummedTensor,
    precision_name,
    product_name,
    weighted_name,
)
from gramfuse_shared.contract.statistics_file import gram_tensor_name
from gramfuse_shared.errors import ArchitectureMismatchError
from gramfuse_shared.fusion import packing, symmetric
from gramfuse_shared.fusion.methods.fisher import FisherWeighted
from gramfuse_shared.fusion.methods.method import Fisher, Gram, MethodSettings
from gramfuse_shared.fusion.methods.regmean import RegMean
from gramfuse_shared.fusion.precision import GramSum
from gramfuse_shared.fusion.workspace import Workspace
from gramfuse_shared.merging.reading import MemberReader
from gramfuse_shared.merging.scales import Scales
from gramfuse_shared.merging.schedule import element_ranges
from gramfuse_shared.merging.streaming import TensorReader

MeanSquares = Mapping[str, torch.Tensor]
"""D by tap: float64 [width], positive."""

_FLOAT64_BYTES = 8


def mean_squares_of(session: SessionManifest, scales: Scales) -> dict[str, torch.Tensor]:
    """Return D of each tap that a session sums, float64 [width].

    Raises:
        ArchitectureMismatchError: the scales are of no such tap, or of another width.
    """
    found = {}
    for tap in session.taps:
        values = scales.mean_squares.get(tap.name)
        if values is None or values.shape != (tap.width,):
            msg = f"the session sums tap {tap.name}, {tap.width} wide; the scales file has none like it"
            raise ArchitectureMismatchError(msg, tap=tap.name)
        found[tap.name] = values.to(torch.float64)
    return found


class Summands:
    """One member's numbers for the sums of a session."""

    def __init__(
        self,
        session: SessionManifest,
        organization: str,
        files: MemberReader,
        base: TensorReader,
        taps: Mapping[str, TapInfo],
        scales: MeanSquares,
        fisher: FisherDescription | None = None,
    ) -> None:
        """Take what is read; nothing is yet.

        Args:
            session: what is summed.
            organization: whose weight in the recipe applies.
            files: the member's weights, as they are, and its statistics with Gram matrices in fp32.
            base: the base model's tensors.
            taps: the member's taps by name, with their rows.
            scales: D of each tap that is summed.
            fisher: what the member's Fisher information is of, where that is summed.
        """
        member = session.member(organization)
        self._session = session
        self._weight = DEFAULT_WEIGHT if member is None else member.weight
        self._files = files
        self._base = base
        self._rows = {name: tap.rows for name, tap in taps.items()}
        self._scales = scales
        self._precisions = {precision_name(tap.name): tap for tap in session.taps}
        self._products = {product_name(layer.weight): (tap, layer) for tap in session.taps for layer in tap.layers}
        self._weighted = {weighted_name(name): name for name in base.tensors}
        self._element_precisions = {precision_name(name): name for name in session.elements}
        self._element_products = {product_name(name): name for name in session.elements}
        self._fisher = fisher
        self._workspace = Workspace()
        self._current: tuple[str, torch.Tensor] | None = None

    def chunks(self, tensor: SummedTensor) -> Iterator[torch.Tensor]:
        """Yield the member's values of one sum in order, flat, float64. A chunk is valid until the next one.

        Raises:
            ArchitectureMismatchError: the session sums what is not known here.
        """
        if tensor.name in self._precisions:
            yield from self._precision(self._precisions[tensor.name])
        elif tensor.name in self._products:
            tap, layer = self._products[tensor.name]
            yield from self._product(tap, layer.weight, is_transposed=layer.layout == "in_out")
        elif tensor.name in self._element_precisions:
            yield from self._elements(self._element_precisions[tensor.name], tensor.count, with_difference=False)
        elif tensor.name in self._element_products:
            yield from self._elements(self._element_products[tensor.name], tensor.count, with_difference=True)
        elif tensor.name in self._weighted:
            yield from self._weighted_difference(self._weighted[tensor.name], tensor.count)
        else:
            msg = f"the session sums {tensor.name}, which is neither of a tap that it names nor of a parameter"
            raise ArchitectureMismatchError(msg, tensor=tensor.name)

    def _weighted_difference(self, name: str, count: int) -> Iterator[torch.Tensor]:
        weight = resolve(self._weight, name, default=DEFAULT_WEIGHT)
        for start, stop in element_ranges(count, _FLOAT64_BYTES):
            yield self._difference(name, start, stop).mul_(weight)

    def _precision(self, tap: SessionTap) -> Iterator[torch.Tensor]:
        total, inverse_root = self._matrix(tap), self._inverse_root(tap)
        for start, stop in block_ranges(tap.width):
            yield (total[start:stop, :stop] * inverse_root[start:stop, None] * inverse_root[:stop]).view(-1)

    def _product(self, tap: SessionTap, weight: str, *, is_transposed: bool) -> Iterator[torch.Tensor]:
        total, inverse_root = self._matrix(tap), self._inverse_root(tap)
        count = math.prod(self._base.tensors[weight].shape)
        whole = self._difference(weight, 0, count).view(tap.width, -1).T if is_transposed else None
        for start, stop in element_ranges(count // tap.width, _FLOAT64_BYTES * tap.width):
            if whole is None:
                rows = self._difference(weight, start * tap.width, stop * tap.width).view(-1, tap.width)
            else:
                rows = whole[start:stop]
            product = torch.zeros(rows.shape, dtype=torch.float64)
            symmetric.add_product_(product, rows, total)
            yield product.mul_(inverse_root).view(-1)

    def _elements(self, name: str, count: int, *, with_difference: bool) -> Iterator[torch.Tensor]:
        """Yield P, a number per element, or DP."""
        file, described = self._files.fisher, self._fisher
        if file is None or described is None:
            msg = f"the session sums the Fisher information of {name}, and there is none"
            raise ArchitectureMismatchError(msg, tensor=name)
        norms = {parameter.name: parameter.norm for parameter in described.parameters}
        normalize = self._session.recipe.parameters.normalize
        # as in the open: over all parameters that are weighed, or over this one
        weighed = [name] if normalize == "parameter_norm" else self._session.elements
        norm = math.hypot(*(norms[each] for each in weighed))
        weight, settings = resolve(self._weight, name, default=DEFAULT_WEIGHT), MethodSettings(1.0, normalize)
        for start, stop in element_ranges(count, _FLOAT64_BYTES):
            found = Fisher(file.read_elements(name, start, stop).to(torch.float64), described.examples, norm)
            precision = FisherWeighted().elementwise_precision(found, weight, settings)
            values = precision.values.mul_(precision.scale)
            yield values.mul_(self._difference(name, start, stop)) if with_difference else values

    def _matrix(self, tap: SessionTap) -> torch.Tensor:
        """Return P̂, [d, d] in its lower triangle; the one of the last tap that was asked for is kept."""
        if self._current is None or self._current[0] != tap.name:
            if self._files.statistics is None:
                msg = f"the session sums tap {tap.name}, and there are no statistics of it"
                raise ArchitectureMismatchError(msg, tap=tap.name)
            packed = self._files.statistics.read(gram_tensor_name(tap.name))
            precision = RegMean().precision(
                Gram(packed, tap.width, self._rows[tap.name]),
                resolve(self._weight, tap.layers[0].weight, default=DEFAULT_WEIGHT),
                self._settings(tap),
            )
            total = GramSum.zero((1, tap.width), torch.float64, self._workspace)
            total.add(precision, None)  # type: ignore[arg-type] # of a Gram matrix, so a Gram precision
            self._current = (tap.name, total.total)
        return self._current[1]

    def _settings(self, tap: SessionTap) -> MethodSettings:
        parameters, name = self._session.recipe.parameters, tap.layers[0].weight
        ridge = resolve(parameters.ridge, name, default=DEFAULT_RIDGE)
        return MethodSettings(self._session.alpha_of(name), parameters.normalize, ridge)

    def _inverse_root(self, tap: SessionTap) -> torch.Tensor:
        return self._scales[tap.name].rsqrt()

    def _difference(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return elements of Dᵢ; widened before the subtraction, so that nothing is rounded."""
        own = self._files.weights.read_elements(name, start, stop).to(torch.float64)
        return own.sub_(self._base.read_elements(name, start, stop).to(torch.float64))


def block_ranges(width: int) -> Iterator[tuple[int, int]]:
    """Yield the rows [s, e) of each block row of a packed matrix, whose elements are [s:e, :e]."""
    for start in range(0, width, packing.BLOCK):
        yield start, min(start + packing.BLOCK, width)
