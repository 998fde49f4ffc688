"""What serves the pages of jobs and models, whoever looks: recipe, layers as maps and as a table, log, receipt."""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from gramfuse_server.dashboard.browser import NO_STORE
from gramfuse_server.dashboard.formats import as_written
from gramfuse_server.dashboard.heat import heat_maps
from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.listing import PageRequest, paginate
from gramfuse_server.merging.documents import diagnostics_document, job_documents, log_entry
from gramfuse_server.merging.model_files import receipt_text
from gramfuse_server.tables import JobLogRow, JobRow, ModelRow
from gramfuse_shared.contract.diagnostics import Layer
from gramfuse_shared.contract.http_api import Job, Model
from gramfuse_shared.contract.receipt import RECEIPT_FILE_NAME
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.reporting.layers import EXPLANATION, note_of, numbers_of, quantile_rows, share, way_of

MAX_ENTRIES: Final = 400
"""Rows of the table of layers; the JSON has them all."""


def describe_merge(session: Session, row: JobRow, *, viewer: str | None, lines: PageRequest) -> Mapping[str, Any]:
    """Describe a job but for itself, as an organization may see it, or an operator: None.

    Args:
        session: where to ask.
        row: the job.
        viewer: whose own distances are told.
        lines: which part of the log.
    """
    query = select(JobLogRow).where(JobLogRow.project == row.project, JobLogRow.job == row.id)
    log, cursor = paginate(session, query, lines, by=[JobLogRow.sequence], descending=True)
    diagnostics = diagnostics_document(session, row, viewer)
    return {
        "recipe": recipe_text(Recipe.parse(row.recipe)),
        "unfinished": row.state in UNFINISHED,
        "model": session.get(ModelRow, (row.project, row.id)),
        "log": [log_entry(line) for line in log],
        "next_cursor": cursor,
        "diagnostics": diagnostics,
        "quantiles": quantile_rows(diagnostics.layers),
        "explanation": EXPLANATION.replace("*", ""),
        "maps": heat_maps(diagnostics.layers),
        "tells_own": any(layer.own is not None for layer in diagnostics.layers),
        "entries": [_entry(layer) for layer in diagnostics.layers[:MAX_ENTRIES]],
    }


def live_jobs(session: Session, limit: int, *where: ColumnElement[bool]) -> list[Job]:
    """Return jobs that run or wait, those that run first, then who came first."""
    rows = session.scalars(
        select(JobRow)
        .where(JobRow.state.in_(UNFINISHED), *where)
        .order_by(JobRow.state.desc(), JobRow.created_at)
        .limit(limit)
    )
    return job_documents(session, rows.all())


def describe_model(model: Model) -> Mapping[str, Any]:
    """Describe a model but for its card and its files."""
    return {
        "model": model,
        "recipe": recipe_text(model.receipt.receipt.recipe),
        "receipt": model.receipt.model_dump_json(indent=2),
    }


def recipe_text(recipe: Recipe) -> str:
    """Write a recipe as people do; what is as by default is left out."""
    return as_written(recipe, merge_method=recipe.merge_method)


def receipt_file(model: ModelRow) -> Response:
    """Answer a model's receipt as a file, called as verification wants it beside the model's other files."""
    headers = {"Content-Disposition": f'attachment; filename="{RECEIPT_FILE_NAME}"', **NO_STORE}
    return Response(receipt_text(model), media_type="application/octet-stream", headers=headers)


def _entry(layer: Layer) -> dict[str, Any]:
    rows = "" if layer.rows is None else f"{layer.rows:,}"
    own = "" if layer.own is None else share(layer.own)
    condition, gained, distances = numbers_of(layer)
    told = (
        (rows, f"{rows} rows"),
        (condition, f"condition ≥ {condition}"),
        (gained, f"gained {gained}"),
        (distances, f"distances {distances}"),
        (own, f"yours {own}"),
    )
    return {
        "parameters": layer.parameters,
        "method": way_of(layer),
        "fell_back": layer.fallback != "none",
        "rows": rows,
        "numbers": (condition, gained, distances),
        "own": own,
        "in_short": ", ".join(words for figure, words in told if figure),
        "note": note_of(layer),
    }
