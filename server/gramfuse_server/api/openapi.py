"""The OpenAPI document: what FastAPI writes, and the schemas that are referenced by hand."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from gramfuse_shared.contract.http_api import Problem, ProjectCreate
from gramfuse_shared.contract.manifest import ContributionManifest
from gramfuse_shared.contract.requests import Answer

_REFERENCED: tuple[type[BaseModel], ...] = (Problem, ProjectCreate, ContributionManifest, Answer)


def describe(app: FastAPI) -> None:
    """Have the app answer the completed document at /openapi.json."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign] # FastAPI's documented way


def _complete(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in _REFERENCED:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        for name, definition in schema.pop("$defs", {}).items():
            schemas.setdefault(name, definition)
        schemas.setdefault(model.__name__, schema)
    return document
