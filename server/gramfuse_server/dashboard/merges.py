"""What the pages of a job and of the model that it made show."""

from collections.abc import Mapping
from typing import Any, Final

import yaml
from sqlalchemy import select
from starlette.requests import Request

from gramfuse_server.dashboard.heat import heat_maps
from gramfuse_server.dashboard.sources import Sources, job_in, part_asked, project_in
from gramfuse_server.database import reading
from gramfuse_server.jobs import UNFINISHED
from gramfuse_server.listing import paginate
from gramfuse_server.merging.documents import diagnostics_document, find_job, find_model, log_entry
from gramfuse_server.operations.merges import admin_models, find_card, job_with_attempts, with_card
from gramfuse_server.operations.projects import find_project
from gramfuse_server.tables import JobLogRow, ModelRow
from gramfuse_shared.contract.diagnostics import Layer
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.reporting.layers import EXPLANATION, note_of, numbers_of, quantile_rows

MAX_ENTRIES: Final = 400
"""Rows of the table of layers; the JSON has them all."""


def read_job(sources: Sources, request: Request) -> Mapping[str, Any]:
    """Read a job with everything that is told of it."""
    with reading(sources.database) as session:
        project = find_project(session, project_in(request)).id
        row = find_job(session, project, job_in(request))
        query = select(JobLogRow).where(JobLogRow.project == project, JobLogRow.job == row.id)
        lines, cursor = paginate(session, query, part_asked(request), by=[JobLogRow.sequence], descending=True)
        diagnostics = diagnostics_document(session, row, None)
        return {
            "job": job_with_attempts(session, row),
            "recipe": recipe_text(Recipe.parse(row.recipe)),
            "unfinished": row.state in UNFINISHED,
            "model": session.get(ModelRow, (project, row.id)),
            "log": [log_entry(line) for line in lines],
            "next_cursor": cursor,
            "diagnostics": diagnostics,
            "quantiles": quantile_rows(diagnostics.layers),
            "explanation": EXPLANATION.replace("*", ""),
            "maps": heat_maps(diagnostics.layers),
            "entries": [_entry(layer) for layer in diagnostics.layers[:MAX_ENTRIES]],
        }


def read_model(sources: Sources, request: Request) -> Mapping[str, Any]:
    """Read a model with its card and its receipt."""
    with reading(sources.database) as session:
        project = find_project(session, project_in(request)).id
        (document,) = admin_models(session, [find_model(session, project, job_in(request))], sources.clock())
        card = find_card(session, document)
    model = with_card(document, card, sources.blobs)
    return {
        "model": model,
        "recipe": recipe_text(model.receipt.receipt.recipe),
        "receipt": model.receipt.model_dump_json(indent=2),
    }


def recipe_text(recipe: Recipe) -> str:
    """Write a recipe as people do; what is as by default is left out."""
    document = recipe.model_dump(mode="json", exclude_defaults=True) | {"merge_method": recipe.merge_method}
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True)).rstrip()


def _entry(layer: Layer) -> dict[str, Any]:
    method = layer.method if layer.fallback == "none" else f"{layer.method} → {layer.fallback}"
    rows = "" if layer.rows is None else f"{layer.rows:,}"
    return {
        "parameters": layer.parameters,
        "method": method,
        "fell_back": layer.fallback != "none",
        "rows": rows,
        "numbers": numbers_of(layer),
        "note": note_of(layer),
    }
