"""Contributions that arrive whatever happens: cut, unheard, sent again, sealed twice."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from benchmarks.soak.line import Fault, Line, require
from benchmarks.soak.made_models import Upload
from benchmarks.soak.records import Contributed, Told

from gramfuse_shared.contract.identity import SIGNATURE_HEADER, statement_of
from gramfuse_shared.digest import format_content_digest, sha256_hex
from gramfuse_shared.signatures import public_key, sign
from support.secure_sessions import identity_of

CREATED: Final = (HTTPStatus.OK, HTTPStatus.CREATED)
CUT_SHARE: Final = 0.2
UNHEARD_SHARE: Final = 0.1
AGAIN_SHARE: Final = 0.1
"""Of the parts: cut in the middle of the body, answered without anybody listening, sent again once acknowledged."""


async def contribute(
    line: Line,
    token: str,
    project: str,
    upload: Upload,
    told: Told,
    *,
    everybody: asyncio.Barrier,
    chance: random.Random,
) -> None:
    """Bring one contribution to its seal, and note what was acknowledged. Nobody sends a part before all have begun."""
    organization = upload.manifest.organization
    path = f"/v1/projects/{project}/contributions/{upload.id}"
    key = identity_of(organization)
    body = upload.manifest.model_dump_json().encode()
    signed = {SIGNATURE_HEADER: sign(statement_of(upload.manifest, public_key(key)), key)}
    begun, again = await asyncio.gather(*(line.ask("PUT", path, token, body, signed) for _ in range(2)))
    for answer in (begun, again):
        require(answer, *CREATED, what=path)
    await everybody.wait()
    acknowledged = await send_parts(line, token, path, begun.document["files"], upload.files, chance=chance)
    told.unlisted_parts += await _unlisted(line, token, path, acknowledged)
    for answer in await asyncio.gather(*(line.ask("POST", f"{path}/seal", token) for _ in range(2))):
        require(answer, HTTPStatus.OK, what=f"seal of {path}")
    files = {name: sha256_hex(content) for name, content in upload.files.items()}
    told.contributions[upload.id] = Contributed(project, organization, "accepted", files)
    line.counts["uploads"] += 1


async def send_parts(
    line: Line,
    token: str,
    path: str,
    announced: Sequence[Mapping[str, Any]],
    files: Mapping[str, bytes],
    *,
    chance: random.Random | None = None,
) -> dict[str, set[int]]:
    """Send every part, with faults if there is chance; return the numbers that were acknowledged, by file."""
    acknowledged: dict[str, set[int]] = {}
    for file in announced:
        content, length = files[file["name"]], file["part_bytes"]
        for number in range(file["part_count"]):
            part = content[number * length : (number + 1) * length]
            fields = {
                "Content-Type": "application/octet-stream",
                "Content-Digest": format_content_digest(sha256_hex(part)),
            }
            where = f"{path}/files/{file['name']}/parts/{number}"
            answer = await line.ask("PUT", where, token, part, fields, fault=_fault(chance))
            require(answer, *CREATED, what=where)
            acknowledged.setdefault(file["name"], set()).add(number)
            line.counts["parts"] += 1
            if chance is not None and chance.random() < AGAIN_SHARE:
                require(await line.ask("PUT", where, token, part, fields), HTTPStatus.OK, what=f"{where} again")
                line.counts["repeated"] += 1
    return acknowledged


async def _unlisted(line: Line, token: str, path: str, acknowledged: Mapping[str, set[int]]) -> list[str]:
    missing = []
    for name, numbers in acknowledged.items():
        listed = await line.read(f"{path}/files/{name}/parts", token)
        gone = numbers - {part["number"] for part in listed["parts"]}
        missing += [f"{path}/files/{name}/parts/{number}" for number in sorted(gone)]
    return missing


def _fault(chance: random.Random | None) -> Fault | None:
    if chance is None:
        return None
    drawn = chance.random()
    if drawn < CUT_SHARE:
        return "cut"
    return "unheard" if drawn < CUT_SHARE + UNHEARD_SHARE else None
