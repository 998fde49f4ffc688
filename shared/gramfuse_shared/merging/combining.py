"""Carry out the steps that compute: means, what is added to the base, and solutions of groups of linears."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

import torch

from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES
from gramfuse_shared.contract.statistics_file import packed_length
from gramfuse_shared.digest import seed_of
from gramfuse_shared.fusion.estimation import Measured
from gramfuse_shared.fusion.least_squares import Diagnosis
from gramfuse_shared.fusion.methods import DeltaMethod, DifferenceMethod, ElementMethod, PrecisionMethod
from gramfuse_shared.fusion.methods.method import Fisher, Gram
from gramfuse_shared.fusion.objective import Objective
from gramfuse_shared.fusion.precision import DiagonalSum, GramSum, Precision, ScalarPrecision
from gramfuse_shared.fusion.solve import Accumulator, Solution, Sums, solve_sums
from gramfuse_shared.fusion.workspace import Workspace
from gramfuse_shared.merging import ready_sums
from gramfuse_shared.merging.reading import Inputs
from gramfuse_shared.merging.sampling import Sample
from gramfuse_shared.merging.schedule import element_ranges, row_ranges
from gramfuse_shared.merging.steps import AverageStep, DeltaStep, DiagonalStep, GramStep, Linear
from gramfuse_shared.merging.terms import ReadySum, Source, Term

_TORCH: Final[Mapping[str, torch.dtype]] = MappingProxyType({"float32": torch.float32, "float64": torch.float64})


def average(step: AverageStep, inputs: Inputs, workspace: Workspace, sample: Sample) -> Iterator[torch.Tensor]:
    """Yield W_ref + ΣcᵢDᵢ/Σcᵢ in flat chunks, in the step's compute dtype; no tensor is ever whole in memory.

    A chunk is valid until the next one is asked for. What a sample is to follow, it has followed at the end.
    """
    name, dtype = step.output.name, _TORCH[step.compute]
    for start, stop in element_ranges(torch.Size(step.output.shape).numel(), DTYPE_BYTES["F32"]):
        origin = workspace.take("origin", (stop - start,), dtype)
        origin.copy_(inputs.read(step.reference, name, start, stop))
        if isinstance(step.terms, ReadySum):
            weighted = workspace.take("weighted", (stop - start,), dtype)
            weighted.copy_(inputs.read(step.terms.key, ready_sums.weighted_name(name), start, stop))
            origin.add_(weighted, alpha=1 / step.terms.weight)
            yield origin
            continue
        sample.take_origin(origin, start)
        accumulator = Accumulator[Precision]((stop - start,), dtype=dtype, workspace=workspace)
        for term in step.terms:
            difference: torch.Tensor | None = None
            if term.key != step.reference:  # that was read as the origin
                values = inputs.read(term.key, name, start, stop)
                difference = _subtract(values, origin, workspace.take("difference", (stop - start,), dtype))
            sample.take_difference(term.key, difference, start)
            accumulator.add(difference, ScalarPrecision(term.weight), term.weight)
        merged = _moved(origin, accumulator.solve())
        sample.take_merged(merged, start)
        yield merged


def weigh_elements(
    step: DiagonalStep, inputs: Inputs, method: ElementMethod, workspace: Workspace, sample: Sample
) -> Iterator[tuple[torch.Tensor, Diagnosis]]:
    """Yield W_ref + ΣDᵢPᵢ/ΣPᵢ, element by element, in flat chunks as `average` does, and how each was found."""
    name, dtype = step.output.name, _TORCH[step.compute]
    for start, stop in element_ranges(torch.Size(step.output.shape).numel(), DTYPE_BYTES["F32"]):
        shape = (stop - start,)
        origin = workspace.take("origin", shape, dtype)
        origin.copy_(inputs.read(step.reference, name, start, stop))
        if isinstance(step.terms, ReadySum):
            solution = solve_sums(_read_element_sums(step.terms, name, start, stop, inputs, workspace))
            yield _moved(origin, solution), solution.diagnosis
            continue
        sample.take_origin(origin, start)
        accumulator = Accumulator[Precision](shape, dtype=dtype, workspace=workspace)
        for term in step.terms:
            if term.fisher is None:
                msg = f"{name}: a term of a diagonal step says what its Fisher information is of"
                raise ValueError(msg)
            difference: torch.Tensor | None = None
            if term.key != step.reference:  # that was read as the origin
                values = inputs.read(term.key, name, start, stop)
                difference = _subtract(values, origin, workspace.take("difference", shape, dtype))
            sample.take_difference(term.key, difference, start)
            values = inputs.read_fisher(term.key, name, start, stop)
            fisher = Fisher(values, term.fisher.examples, term.fisher.norm)
            precision = method.elementwise_precision(fisher, term.weight, step.settings)
            accumulator.add(difference, precision, term.weight)
        solution = accumulator.solve()
        merged = _moved(origin, solution)
        sample.take_merged(merged, start)
        yield merged, solution.diagnosis


def add_deltas(
    step: DeltaStep, inputs: Inputs, method: DeltaMethod, workspace: Workspace, sample: Sample
) -> torch.Tensor:
    """Return W_base + λ·sum(s(D₁), …, s(Dₙ)), flat, in the compute dtype. Valid until the workspace is used again.

    The parameter is whole in memory, since a method may look at all of a difference at once.
    """
    name, dtype = step.output.name, _TORCH[step.compute]
    count = torch.Size(step.output.shape).numel()
    origin = workspace.take("origin", (count,), dtype)
    for start, stop in element_ranges(count, DTYPE_BYTES["F32"]):
        origin[start:stop].copy_(inputs.read(None, name, start, stop))
    sample.take_origin(origin)
    total = method.combine.begin(count, dtype, workspace)
    for turn in range(step.turns):
        for term in step.terms:
            difference = workspace.take("difference", (count,), dtype)
            for start, stop in element_ranges(count, DTYPE_BYTES["F32"]):
                _subtract(inputs.read(term.key, name, start, stop), origin[start:stop], difference[start:stop])
            if turn == 0:
                sample.take_difference(term.key, difference)
            # chance is of the contribution, the parameter and the recipe: the same on every worker and in every order
            seed = seed_of(f"{step.settings.seed}\n{term.key}\n{name}")
            total.add(method.sparsify(difference, step.settings.density, seed), term.weight, turn)
    merged = origin.add_(total.result().mul_(step.settings.scale))
    sample.take_merged(merged)
    return merged


def solve_group(
    step: GramStep,
    inputs: Inputs,
    method: PrecisionMethod,
    workspace: Workspace,
    sample: Sample,
    objective: Objective,
) -> tuple[list[torch.Tensor], Diagnosis]:
    """Solve a group of linears as right-hand sides of one factorization.

    Args:
        step: what to solve.
        inputs: the task's.
        method: whose precisions.
        workspace: for everything that is large.
        sample: elements of the stacked weights [Σout, in] to follow; ready sums say nothing of single members.
        objective: rows of them to follow; what is gained is in the diagnosis.

    Returns:
        The merged weights in the step's compute dtype, each in its stored layout and shape, valid until the workspace
        is used again, and how they were found.
    """
    origin = workspace.take("origin", (step.height, step.width), _TORCH[step.compute])
    for rows, chunk, _ in _read_weights(step, inputs, step.reference, origin):
        rows.copy_(chunk)
    if isinstance(step.terms, ReadySum):
        solution = solve_sums(_read_sums(step, step.terms, inputs, workspace))
    else:
        sample.take_origin(origin)
        solution = _accumulate(step, step.terms, origin, inputs, method, workspace, sample, objective)
    if solution.diagnosis.fallback == "average":
        inputs.require_finite_statistics(step)
    merged = _moved(origin, solution)
    sample.take_merged(merged)
    return [_as_stored(rows, linear) for rows, linear in _rows_of(step, merged)], solution.diagnosis


def _accumulate(
    step: GramStep,
    terms: tuple[Term, ...],
    origin: torch.Tensor,
    inputs: Inputs,
    method: PrecisionMethod,
    workspace: Workspace,
    sample: Sample,
    objective: Objective,
) -> Solution:
    shape = (step.height, step.width)
    accumulator = Accumulator[Precision](shape, dtype=origin.dtype, workspace=workspace, objective=objective)
    estimates = any(term.tap is None for term in terms)
    measured = Measured()
    for term in terms:
        difference = None
        if term.key != step.reference:  # that was read as the origin
            difference = workspace.take("difference", shape, origin.dtype)
            for rows, chunk, origins in _read_weights(step, inputs, term.key, difference, origin):
                _subtract(chunk, origins, rows)
        sample.take_difference(term.key, difference)
        if term.tap is not None:
            gram = Gram(inputs.read_gram(term.key, term.tap.name, step.width), step.width, term.tap.rows)
            if estimates:
                measured.add(gram)
        elif difference is not None and step.reference is None:
            gram = method.gram(difference) if isinstance(method, DifferenceMethod) else measured.estimate(difference)
        else:
            msg = f"{step.outputs[0].name}: an estimate is of a difference to the base"
            raise ValueError(msg)
        accumulator.add(difference, method.precision(gram, term.weight, step.settings), term.weight)
    return accumulator.solve()


def _read_sums(step: GramStep, ready: ReadySum, inputs: Inputs, workspace: Workspace) -> Sums:
    """Read ΣP, ΣDP and ΣcD of the group. ΣDP is stored [out, in], ΣcD as the weight is."""
    if ready.tap is None:
        msg = f"{step.outputs[0].name}: the ready sum of a Gram step has a tap"
        raise ValueError(msg)
    shape, dtype = (step.height, step.width), _TORCH[step.compute]
    products, weighted = workspace.take("products", shape, dtype), workspace.take("weighted", shape, dtype)
    packed = inputs.read(ready.key, ready_sums.precision_name(ready.tap), 0, packed_length(step.width))
    total = GramSum.ready(packed, step.width, products, workspace)
    for (rows, linear), (mean_rows, _) in zip(_rows_of(step, products), _rows_of(step, weighted), strict=True):
        name, count = linear.output.name, rows.numel()
        rows.view(-1).copy_(inputs.read(ready.key, ready_sums.product_name(name), 0, count))
        stored = inputs.read(ready.key, ready_sums.weighted_name(name), 0, count)
        _as_stored(mean_rows, linear).copy_(stored.view(linear.output.shape))
    return Sums(total, weighted, ready.weight)  # type: ignore[arg-type] # nothing is added to it any more


def _read_element_sums(ready: ReadySum, name: str, start: int, stop: int, inputs: Inputs, workspace: Workspace) -> Sums:
    """Read ΣP, ΣDP and ΣcD of elements [start, stop) of a parameter."""
    total, products, weighted = (
        workspace.take(place, (stop - start,), torch.float64).copy_(inputs.read(ready.key, name_of(name), start, stop))
        for place, name_of in (
            ("sum", ready_sums.precision_name),
            ("products", ready_sums.product_name),
            ("weighted", ready_sums.weighted_name),
        )
    )
    return Sums(DiagonalSum(total, products), weighted, ready.weight)  # type: ignore[arg-type] # nothing is added


def _rows_of(step: GramStep, stacked: torch.Tensor) -> list[tuple[torch.Tensor, Linear]]:
    """Cut [Σout, in] into the linears' own rows."""
    parts = torch.split(stacked, [linear.height for linear in step.linears])
    return list(zip(parts, step.linears, strict=True))


def _read_weights(
    step: GramStep, inputs: Inputs, source: Source, target: torch.Tensor, beside: torch.Tensor | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Read a source's weights of the group in chunks of rows as they are stored.

    Yields:
        The place of a chunk in `target` [Σout, in], the chunk, and its place in `beside` (`target` by default). The
        chunk is valid until the next one is asked for.
    """
    beside = target if beside is None else beside
    for (rows, linear), (others, _) in zip(_rows_of(step, target), _rows_of(step, beside), strict=True):
        columns = linear.output.shape[1]
        place, other = _as_stored(rows, linear), _as_stored(others, linear)
        for start, stop in row_ranges(linear, step.width):
            chunk = inputs.read(source, linear.output.name, start * columns, stop * columns)
            yield place[start:stop], chunk.view(stop - start, columns), other[start:stop]


def _as_stored(rows: torch.Tensor, linear: Linear) -> torch.Tensor:
    return rows if linear.layout == "out_in" else rows.T


def _subtract(values: torch.Tensor, origin: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write values − origin into `out`, in its dtype."""
    if values.dtype == out.dtype:
        return torch.sub(values, origin, out=out)
    return out.copy_(values).sub_(origin)


def _moved(origin: torch.Tensor, solution: Solution) -> torch.Tensor:
    return origin if solution.delta is None else origin.add_(solution.delta)
