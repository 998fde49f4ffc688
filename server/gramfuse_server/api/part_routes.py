"""The routes by which the parts of a file arrive, the same ones for whatever has files."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from gramfuse_server.api.announcing import ANNOUNCED_RESPONSES, announce_part
from gramfuse_server.api.context import CallerOf, FilePath, ServicesOf, declares
from gramfuse_server.api.uploads import PART_BODY, PART_RESPONSES, FindUpload, PartPath, receive_part
from gramfuse_server.database import reading
from gramfuse_server.intake import parts
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import AnnouncedPart, Part, PartAnnouncement, PartList
from gramfuse_shared.errors import StateError


def add_part_routes(
    router: APIRouter, path: str, *, of: str, finds: Callable[..., Awaitable[FindUpload]], by: str = ""
) -> None:
    """Add to a router how parts of a file are listed, sent, and announced.

    Args:
        router: the noun's.
        path: where the noun is, below the router's prefix.
        of: what the files belong to, a word for the operations' names.
        finds: a dependency that takes the path's parameters and tells how the caller's own upload is found.
        by: who alone may do so, behind the descriptions.
    """
    place = f"{path}/files/{{file}}/parts"

    @router.get(
        place,
        name=f"list_{of}_parts",
        description=f"The parts of a file that have arrived{by}, so that a rerun sends only the others.",
        responses=declares(StateError),
    )
    def list_parts(
        file: FilePath, services: ServicesOf, caller: CallerOf, find_upload: Annotated[FindUpload, Depends(finds)]
    ) -> PartList:
        with reading(services.database) as session:
            return parts.parts_of(session, find_upload(session, caller), file)

    @router.put(
        f"{place}/{{number}}",
        name=f"put_{of}_part",
        description=f"Send a part of a file{by}. Refused before its body is read, if it can be.",
        status_code=201,
        max_body_size=limits.MAX_PART_BYTES,
        openapi_extra=PART_BODY,
        responses=PART_RESPONSES,
    )
    async def put_part(
        file: FilePath,
        number: PartPath,
        request: Request,
        response: Response,
        services: ServicesOf,
        find_upload: Annotated[FindUpload, Depends(finds)],
    ) -> Part:
        return await receive_part(request, response, services, file=file, number=number, find_upload=find_upload)

    @router.post(
        f"{place}/{{number}}",
        name=f"announce_{of}_part",
        description=f"Announce a part that is put into the object store{by}: before, to be told where, and behind.",
        status_code=202,
        responses=ANNOUNCED_RESPONSES,
    )
    async def announce(
        file: FilePath,
        number: PartPath,
        announced: PartAnnouncement,
        response: Response,
        services: ServicesOf,
        caller: CallerOf,
        find_upload: Annotated[FindUpload, Depends(finds)],
    ) -> AnnouncedPart:
        return await announce_part(
            response, services, caller, announced, file=file, number=number, find_upload=find_upload
        )
