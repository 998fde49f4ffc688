"""Carry out the two steps that compute: the mean of a parameter, and the solution of a group of linears."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

import torch

from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES
from gramfuse_shared.fusion.cholesky import Diagnosis
from gramfuse_shared.fusion.methods import Method
from gramfuse_shared.fusion.methods.method import Gram
from gramfuse_shared.fusion.precision import GramPrecision, Precision, ScalarPrecision
from gramfuse_shared.fusion.solve import Accumulator, Solution, Sums, solve_sums
from gramfuse_shared.merging import ready_sums
from gramfuse_shared.merging.reading import Inputs
from gramfuse_shared.merging.steps import AverageStep, GramStep, Linear, ReadySum, Source, Term
from gramfuse_shared.merging.streaming import element_ranges

_TORCH: Final[Mapping[str, torch.dtype]] = MappingProxyType({"float32": torch.float32, "float64": torch.float64})


def average(step: AverageStep, inputs: Inputs, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield W_ref + ΣcᵢDᵢ/Σcᵢ in flat chunks, in the step's compute dtype; no tensor is ever whole in memory."""
    name, dtype = step.output.name, _TORCH[step.compute]
    for start, stop in element_ranges(torch.Size(step.output.shape).numel(), DTYPE_BYTES["F32"]):
        origin = inputs.read_elements(step.reference, name, start, stop).to(device, dtype)
        if isinstance(step.terms, ReadySum):
            total = inputs.read_elements(step.terms.key, ready_sums.weighted_name(name), start, stop)
            weight = step.terms.weight
            solution = solve_sums(Sums(ScalarPrecision(weight), None, total.to(device, dtype), weight))
        else:
            accumulator = Accumulator[Precision](dtype=dtype)
            for term in step.terms:
                if term.key == step.reference:  # it was read as the origin
                    difference = torch.zeros_like(origin)
                else:
                    difference = inputs.read_elements(term.key, name, start, stop).to(device, dtype).sub_(origin)
                accumulator.add(difference, ScalarPrecision(term.weight), term.weight)
            solution = accumulator.solve()
        yield origin.add_(solution.delta)


def solve_group(
    step: GramStep, inputs: Inputs, method: Method, device: torch.device
) -> tuple[list[torch.Tensor], Diagnosis]:
    """Solve a group of linears as right-hand sides of one factorization.

    Returns:
        The merged weights in the step's compute dtype, each in its stored layout and shape, and how they were found.
    """
    origin = _stack(step, inputs, step.reference, device)  # [Σout, in]
    if isinstance(step.terms, ReadySum):
        solution = solve_sums(_read_sums(step, step.terms, inputs, device))
    else:
        solution = _accumulate(step, step.terms, origin, inputs, method, device)
    merged = torch.split(origin.add_(solution.delta), [linear.height for linear in step.linears])
    weights = [_as_stored(weight, linear) for weight, linear in zip(merged, step.linears, strict=True)]
    return weights, solution.diagnosis


def _accumulate(
    step: GramStep,
    terms: tuple[Term, ...],
    origin: torch.Tensor,
    inputs: Inputs,
    method: Method,
    device: torch.device,
) -> Solution:
    accumulator = Accumulator[Precision](dtype=origin.dtype)
    for term in terms:
        if term.tap is None:
            msg = f"{step.outputs[0].name}: a term of a Gram step has a tap"
            raise ValueError(msg)
        if term.key == step.reference:  # it was read as the origin
            difference = torch.zeros_like(origin)
        else:
            difference = _stack(step, inputs, term.key, device).sub_(origin)
        gram = Gram(inputs.read_gram(term.key, term.tap.name).to(device), step.width, term.tap.rows)
        accumulator.add(difference, method.precision(gram, term.weight, step.settings), term.weight)
    return accumulator.solve()


def _stack(step: GramStep, inputs: Inputs, source: Source, device: torch.device) -> torch.Tensor:
    """Read the group's weights of one source into [Σout, in], in the step's compute dtype."""
    stacked = torch.empty(step.height, step.width, dtype=_TORCH[step.compute], device=device)
    heights = [linear.height for linear in step.linears]
    for rows, linear in zip(torch.split(stacked, heights), step.linears, strict=True):
        weight = inputs.read(source, linear.output.name).to(device)
        rows.copy_(weight if linear.layout == "out_in" else weight.T)
    return stacked


def _as_stored(weight: torch.Tensor, linear: Linear) -> torch.Tensor:
    return weight if linear.layout == "out_in" else weight.T


def _read_sums(step: GramStep, ready: ReadySum, inputs: Inputs, device: torch.device) -> Sums[GramPrecision]:
    """Read ΣP, ΣDP and ΣcD of the group. ΣDP is stored [out, in], ΣcD as the weight is."""
    if ready.tap is None:
        msg = f"{step.outputs[0].name}: the ready sum of a Gram step has a tap"
        raise ValueError(msg)
    dtype = _TORCH[step.compute]
    precision = inputs.read(ready.key, ready_sums.precision_name(ready.tap)).to(device, dtype)
    products = torch.empty(step.height, step.width, dtype=dtype, device=device)
    weighted = torch.empty_like(products)
    heights = [linear.height for linear in step.linears]
    for rows, mean_rows, linear in zip(
        torch.split(products, heights), torch.split(weighted, heights), step.linears, strict=True
    ):
        name = linear.output.name
        rows.copy_(inputs.read(ready.key, ready_sums.product_name(name)))
        stored = inputs.read(ready.key, ready_sums.weighted_name(name))
        mean_rows.copy_(stored if linear.layout == "out_in" else stored.T)
    return Sums(GramPrecision(precision, step.width), products, weighted, ready.weight)
