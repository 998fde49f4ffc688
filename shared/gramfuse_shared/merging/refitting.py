"""Carry out refits: solve a merged model's head from its members' statistics, shift its biases by their histograms."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from gramfuse_shared.fusion.calibration import choose_shifts
from gramfuse_shared.fusion.head import Head, HeadTerm, solve_head
from gramfuse_shared.merging.reading import Inputs
from gramfuse_shared.merging.schedule import tap_of
from gramfuse_shared.merging.steps import HeadPart, HeadStep, RefitStep, ShiftStep


def refit(step: RefitStep, inputs: Inputs) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Return the step's tensors, F64 and flat on the CPU, and the diagnostics: of a head one entry for each part.

    Raises:
        ArchitectureMismatchError: the members' statistics have different shapes.
    """
    return _refit_head(step, inputs) if isinstance(step, HeadStep) else _shift_bias(step, inputs)


def _refit_head(step: HeadStep, inputs: Inputs) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    labels, features = step.weight.shape
    weight = inputs.read(None, step.weight.name, 0, labels * features).cpu().double().view(labels, features).clone()
    bias = None
    if step.bias is not None:
        bias = inputs.read(None, step.bias.name, 0, labels).cpu().double().clone()
    descriptions = []
    for part in step.parts:
        head = solve_head(_terms(step, part, inputs), ridge=step.ridge, with_bias=bias is not None)
        rows = list(part.rows)
        weight[rows] = head.weight
        if bias is not None:
            bias[rows] = head.bias
        descriptions.append(_describe_part(step, part, head))
    return [weight.view(-1)] + ([] if bias is None else [bias]), descriptions


def _shift_bias(step: ShiftStep, inputs: Inputs) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    bias = inputs.read(None, step.stored.name, 0, step.histograms.labels).cpu().double()
    shifts = choose_shifts(step.histograms)
    moved = shifts[shifts != 0]
    span = f", by {float(moved.min()):+.3g} to {float(moved.max()):+.3g}" if len(moved) else ""
    told = f"{len(moved)} of {step.histograms.labels} biases are shifted{span}"
    described = {
        "parameters": [step.output.name],
        "method": "calibration",
        "fallback": "none",
        "reason": told if step.reason is None else f"{told}; {step.reason}",
        "members": step.members,
    }
    return [bias + shifts], [described]


def _terms(step: HeadStep, part: HeadPart, inputs: Inputs) -> Iterator[HeadTerm]:
    """Read the statistics of a part's members one after the other, of the part's rows alone."""
    labels = step.weight.shape[0]
    for term in part.terms:
        tap = tap_of(term)
        gram = inputs.read_gram(term.key, tap.name, tap.width).cpu().clone()  # valid until the next read
        product = inputs.read_product(term.key, tap.name, tap.width * labels).cpu().view(tap.width, labels)
        scale = term.weight if step.by_rows else term.weight / tap.rows
        yield HeadTerm(gram, product[:, list(part.rows)], scale)


def _describe_part(step: HeadStep, part: HeadPart, head: Head) -> dict[str, Any]:
    rows = [tap_of(term).rows for term in part.terms]
    found = head.diagnosis
    if step.reason is not None:
        reason = step.reason if found.reason is None else f"{found.reason}; {step.reason}"
        found = replace(found, reason=reason)
    described = {
        "parameters": [output.name for output in step.outputs],
        "method": "head",
        "width": step.width,
        "compute": "float64",
        "members": len(part.terms),
        "rows": sum(rows),
        "fewest_rows": min(rows),
    } | asdict(found)
    return described if len(part.rows) == step.weight.shape[0] else described | {"label_rows": len(part.rows)}
