"""Carry out refits: solve a merged model's head or layers from its members' statistics, shift biases by histograms."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from gramfuse_shared.contract.calibration import CalibrationHistograms, ClassHistogram
from gramfuse_shared.fusion.calibration import choose_shifts
from gramfuse_shared.fusion.head import solve_head
from gramfuse_shared.fusion.products import LinearFit, ProductTerm
from gramfuse_shared.fusion.refit import solve_correction
from gramfuse_shared.merging.reading import Inputs
from gramfuse_shared.merging.refit_planning import why_labels_stay
from gramfuse_shared.merging.refit_steps import HeadPart, HeadStep, LayersStep, RefitStep, ShiftStep, SummedHistograms
from gramfuse_shared.merging.schedule import tap_of
from gramfuse_shared.merging.terms import Term


def refit(step: RefitStep, inputs: Inputs) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Return the step's tensors, F64 and flat, and the diagnostics: of a head one entry for each part.

    Raises:
        ArchitectureMismatchError: the members' statistics have different shapes.
    """
    match step:
        case HeadStep():
            return _refit_head(step, inputs)
        case LayersStep():
            return _refit_layers(step, inputs)
        case ShiftStep():
            return _shift_bias(step, inputs)


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


def _refit_layers(step: LayersStep, inputs: Inputs) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Add the correction to every layer: [out, in], or its transpose where the weight is stored so."""
    tensors = [
        inputs.read(None, stored.name, 0, torch.Size(stored.shape).numel()).double().view(stored.shape).clone()
        for layer in step.layers
        for stored in layer.stored
    ]
    found = solve_correction(
        _terms_of_layers(step, inputs), ridge=step.ridge, with_bias=all(layer.has_bias for layer in step.layers)
    )
    place, at = 0, 0
    for layer in step.layers:
        rows = slice(at, at + layer.height)
        change = found.weight[rows]
        tensors[place] += change if layer.layout == "out_in" else change.T
        if layer.has_bias:
            tensors[place + 1] += found.bias[rows]
        place, at = place + len(layer.stored), at + layer.height
    return [tensor.reshape(-1) for tensor in tensors], [_describe(step, step.terms, found)]


def _terms_of_layers(step: LayersStep, inputs: Inputs) -> Iterator[ProductTerm]:
    """Read the statistics of the members one after the other; of each, the layers' products side by side."""
    for term in step.terms:
        tap = tap_of(term)
        gram = inputs.read_gram(term.key, tap.name, step.width).double()  # a copy: a read is valid until the next
        products = [
            inputs.read_product(term.key, layer.weight, step.width * layer.height).double().view(step.width, -1)
            for layer in step.layers
        ]
        yield ProductTerm(gram, torch.cat(products, dim=1), term.weight if step.by_rows else term.weight / tap.rows)


def _shift_bias(step: ShiftStep, inputs: Inputs) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    labels = step.histograms.labels
    bias = inputs.read(None, step.stored.name, 0, labels).cpu().double()
    if isinstance(step.histograms, SummedHistograms):
        found = _read_histograms(step.histograms, inputs)
        reason = why_labels_stay(labels, len(found.classes), step.histograms.minimum_holders)
    else:
        found, reason = step.histograms, step.reason
    shifts = choose_shifts(found)
    moved = shifts[shifts != 0]
    span = f", by {float(moved.min()):+.3g} to {float(moved.max()):+.3g}" if len(moved) else ""
    told = f"{len(moved)} of {labels} biases are shifted{span}"
    described = {
        "parameters": [step.output.name],
        "method": "calibration",
        "fallback": "none",
        "reason": told if reason is None else f"{told}; {reason}",
        "members": step.members,
    }
    return [bias + shifts], [described]


def _read_histograms(summed: SummedHistograms, inputs: Inputs) -> CalibrationHistograms:
    """Read sums of counts, which are whole numbers, of those labels that enough members counted."""
    labelled, others, holders = (
        inputs.read(summed.key, name, 0, count).cpu().round().long().view(summed.labels, -1).tolist()
        for name, count in summed.tensors
    )
    classes = tuple(
        ClassHistogram(label=label, labelled=tuple(labelled[label]), others=tuple(others[label]))
        for label in range(summed.labels)
        if holders[label][0] >= summed.minimum_holders
    )
    return CalibrationHistograms(score=summed.score, labels=summed.labels, classes=classes)


def _terms(step: HeadStep, part: HeadPart, inputs: Inputs) -> Iterator[ProductTerm]:
    """Read the statistics of a part's members one after the other, of the part's rows alone."""
    labels = step.weight.shape[0]
    for term in part.terms:
        tap = tap_of(term)
        gram = inputs.read_gram(term.key, tap.name, tap.width).cpu().clone()  # valid until the next read
        product = inputs.read_product(term.key, tap.name, tap.width * labels).cpu().view(tap.width, labels)
        scale = term.weight if step.by_rows else term.weight / tap.rows
        yield ProductTerm(gram, product[:, list(part.rows)], scale)


def _describe_part(step: HeadStep, part: HeadPart, head: LinearFit) -> dict[str, Any]:
    if step.reason is not None:
        reason = step.reason if head.diagnosis.reason is None else f"{head.diagnosis.reason}; {step.reason}"
        head = replace(head, diagnosis=replace(head.diagnosis, reason=reason))
    described = _describe(step, part.terms, head)
    return described if len(part.rows) == step.weight.shape[0] else described | {"label_rows": len(part.rows)}


def _describe(step: HeadStep | LayersStep, terms: Sequence[Term], found: LinearFit) -> dict[str, Any]:
    rows = [tap_of(term).rows for term in terms]
    summed = step.summed if isinstance(step, HeadStep) else None
    return {
        "parameters": [output.name for output in step.outputs],
        "method": "head" if isinstance(step, HeadStep) else "refit",
        "width": step.width,
        "compute": "float64",
        "members": len(terms) if summed is None else summed,
        **({"rows": sum(rows), "fewest_rows": min(rows)} if summed is None else {}),
    } | asdict(found.diagnosis)
