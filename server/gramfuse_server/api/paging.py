"""Which part of a list was asked for: `?limit=&cursor=`."""

from typing import Annotated

from fastapi import Depends, Query

from gramfuse_server.listing import MAX_CURSOR_CHARACTERS, PageRequest
from gramfuse_shared import limits


def page_request(
    limit: Annotated[int, Query(ge=1, le=limits.MAX_PAGE_ITEMS)] = limits.DEFAULT_PAGE_ITEMS,
    cursor: Annotated[
        str | None,
        Query(max_length=MAX_CURSOR_CHARACTERS, description="the `next_cursor` of the page before"),
    ] = None,
) -> PageRequest:
    """Read `?limit=&cursor=`."""
    return PageRequest(limit=limit, cursor=cursor)


PageOf = Annotated[PageRequest, Depends(page_request)]
