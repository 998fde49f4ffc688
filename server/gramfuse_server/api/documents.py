"""Large documents as request bodies."""

from typing import Any, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from gramfuse_server.api.context import TOKEN_REQUIRED, caller_of
from gramfuse_server.auth import Caller
from gramfuse_shared.contract.document import Document
from gramfuse_shared.errors import RequestMalformedError

D = TypeVar("D", bound=Document)


def document_body(model: type[Document]) -> dict[str, Any]:
    """Declare a document as an operation's body, for `openapi_extra`."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    body = {"required": True, "content": {"application/json": {"schema": reference}}}
    return {"requestBody": body, "security": TOKEN_REQUIRED}


async def read_document(request: Request, model: type[D]) -> tuple[Caller, D]:
    """Return the caller and the body, parsed away from the event loop.

    Raises:
        UnauthenticatedError, TooManyRequestsError, EncodingUnsupportedError: see `caller_of`.
        DocumentMalformedError: the body does not follow the schema.
        RequestMalformedError: the body does not arrive, or is announced as something else than JSON.
    """
    caller = caller_of(request)
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
