"""What is known of a merged model, in one document: how it was made, what each layer got, how it scored.

A published model never changes. What evaluations say of it comes later, so it is put together when somebody asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gramfuse_shared.contract.diagnostics import JobDiagnostics
from gramfuse_shared.contract.http_api import Model
from gramfuse_shared.contract.metrics import LOWER_IS_BETTER, MetricName
from gramfuse_shared.contract.recipe import Overridable
from gramfuse_shared.contract.requests import ModelScore, RequestInfo
from gramfuse_shared.reporting.layers import describe_layers, markdown_table

_METRICS: Final[tuple[MetricName, ...]] = ("f1", "average_precision", "accuracy", "perplexity", "loss")
"""What tables are of, where anybody measured it; the others are in the requests."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model, its job's diagnostics, and the complete evaluations that it was part of, the oldest first."""

    model: Model
    diagnostics: JobDiagnostics
    evaluations: tuple[RequestInfo, ...]
    may_be_evaluated: bool = True
    """Whether the policy allows that one is asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values of all of it."""
        return {
            "model": self.model.model_dump(mode="json"),
            "diagnostics": self.diagnostics.model_dump(mode="json"),
            "evaluations": [request.model_dump(mode="json") for request in self.evaluations],
        }

    def to_markdown(self) -> str:
        """Write it for people."""
        lines = [*self._made(), *self._released(), "", "## Before and after", "", *self._scores(), "", "## Layers", ""]
        return "\n".join([*lines, *describe_layers(self.diagnostics.layers)]) + "\n"

    def _made(self) -> list[str]:
        model, receipt = self.model, self.model.receipt.receipt
        members = [
            [member.organization, f"`{member.manifest[:16]}…`", _weight(member.weight)]
            for member in receipt.contributions
        ]
        lines = [
            f"# {model.project} · {model.id}",
            "",
            (
                f"Merged by `{receipt.recipe.merge_method}` ({receipt.method_version}) on "
                f"{receipt.created:%Y-%m-%d %H:%M} UTC from {len(members)} organizations' contributions, attempt "
                f"{receipt.attempt}. Base `{receipt.base}`, policy version {receipt.policy.version}."
            ),
            "",
            *markdown_table(["organization", "contribution", "weight"], members, right=(2,)),
        ]
        if receipt.recipe.request is not None:
            lines += [
                "",
                f"Merged anew from `{receipt.recipe.base_model}` with the answers to {receipt.recipe.request}.",
            ]
        if model.withdrawn_members:
            lines += ["", f"Withdrawn since: {', '.join(model.withdrawn_members)}."]
        if model.deleted_at is not None:
            lines += ["", f"Its files were deleted on {model.deleted_at:%Y-%m-%d}."]
        return lines

    def _released(self) -> list[str]:
        release = self.model.release
        if release is None:
            return []
        gate = f"The policy releases a model once {release.gate}."
        if release.state == "released":
            return ["", f"**Released**: {release.request} passed. {gate}"]
        return ["", f"**Candidate**, not released: {release.reason}. {gate}"]

    def _scores(self) -> list[str]:
        if not self.evaluations:
            if not self.may_be_evaluated:
                return ["No evaluation of it is complete, and the policy's `requests` allow none."]
            ask = f"gramfuse request create {self.model.project} evaluate {self.model.id}"
            return [f"No evaluation of it is complete. The coordinator asks for one: `{ask}`."]
        lines = [
            (
                "Each organization scored its own model and the merged one on held-out examples of its own, at home; "
                "only the scores left it. Nobody checks them."
            )
        ]
        for request in self.evaluations:
            for metric in _METRICS:
                rows = _rows(request, self.model.id, metric)
                if rows:
                    heads = ["organization", "examples", "own model", "merged", "change"]
                    title = f"### {metric.replace('_', ' ')} ({request.id}, {request.created_at:%Y-%m-%d})"
                    note = ["", "Less is better."] if metric in LOWER_IS_BETTER else []
                    lines += ["", title, *note, "", *markdown_table(heads, rows, right=(1, 2, 3, 4))]
        return lines


def _rows(request: RequestInfo, model: str, metric: MetricName) -> list[list[str]]:
    """Make a row of each organization, and one of the means where everybody has both; none where nobody has any."""
    rows, pairs, has_any = [], [], False
    for place in request.asked:
        before, after = (_score(place.scores, which) for which in (None, model))
        own, merged = (None if score is None else score.metrics.get(metric) for score in (before, after))
        has_any = has_any or own is not None or merged is not None
        examples = "" if after is None else f"{after.examples:,}"
        rows.append([place.organization, examples, *_change(own, merged)])
        if own is not None and merged is not None:
            pairs.append((own, merged))
    if not has_any:
        return []
    if len(pairs) == len(request.asked) > 1:
        means = [sum(values) / len(values) for values in zip(*pairs, strict=True)]
        rows.append(["mean", "", *_change(*means)])
    return rows


def _score(scores: Sequence[ModelScore], model: str | None) -> ModelScore | None:
    return next((score for score in scores if score.model == model), None)


def _change(own: float | None, merged: float | None) -> list[str]:
    known = [f"{value:.4f}" if value is not None else "–" for value in (own, merged)]
    return [*known, f"{merged - own:+.4f}" if own is not None and merged is not None else "–"]


def _weight(value: Overridable) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(f"{conditional.value:g} for `{conditional.filter or '*'}`" for conditional in value)
