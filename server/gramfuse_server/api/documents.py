"""Large documents as request bodies: the caller is known before a byte of one is read."""

from typing import Any, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from gramfuse_server.api.context import TOKEN_REQUIRED, Services, authenticated
from gramfuse_server.auth import Caller
from gramfuse_shared.contract.document import Document
from gramfuse_shared.errors import RequestMalformedError

D = TypeVar("D", bound=Document)


def document_body(model: type[Document]) -> dict[str, Any]:
    """Declare a document as an operation's body, for `openapi_extra`."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    body = {"required": True, "content": {"application/json": {"schema": reference}}}
    return {"requestBody": body, "security": TOKEN_REQUIRED}


async def read_document(request: Request, services: Services, model: type[D]) -> tuple[Caller, D]:
    """Authenticate, then read and parse the body; both away from the event loop.

    Raises:
        UnauthenticatedError: before the body is read.
        DocumentMalformedError: the body does not follow the schema.
        RequestMalformedError: the body does not arrive, or is announced as something else than JSON.
    """
    caller = await run_in_threadpool(authenticated, services, request.headers.get("authorization"))
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        msg = f"the body is announced as {kind[:80]!r}; application/json is read"
        raise RequestMalformedError(msg)
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        msg = "the connection ended before the body had arrived"
        raise RequestMalformedError(msg) from error
    return caller, await run_in_threadpool(model.parse, raw)
