"""Everything that the server has in the end, asked of it, downloaded from it, and verified by it."""

import asyncio
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from benchmarks.soak.gathering import Consortium
from benchmarks.soak.line import Line, require
from benchmarks.soak.records import Contributed, Found, JobKey

from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import GramfuseError
from gramfuse_shared.signatures import is_signed
from support.deployment import Deployment

AT_ONCE: Final = 8
TENSORS_SUFFIX: Final = ".safetensors"


async def find(
    line: Line, deployment: Deployment, consortium: Consortium, models: "Models", *, downloading: bool = True
) -> Found:
    """Ask for everything; nothing is taken from what clients remember."""
    operator = deployment.operator_token
    listed = await line.read_all("/v1/admin/contributions", operator)
    details = await asyncio.gather(*(_contribution(line, consortium, row) for row in listed))
    jobs = await line.read_all("/v1/admin/jobs", operator)
    published = [(row["project"], row["id"]) for row in await line.read_all("/v1/admin/models", operator)]
    if downloading:
        await models.download(published)
    events = await line.read_all("/v1/admin/audit-log", operator)
    losses = await asyncio.to_thread(verify, deployment)
    return Found(
        contributions=details,
        jobs=[((row["project"], row["id"]), row["state"]) for row in jobs],
        models=published,
        weights=dict(models.weights),
        events=[_event(entry) for entry in events],
        damaged=[*models.damaged, *losses],
    )


class Models:
    """Downloads models and checks them as a client does: the receipt's signature, then every file's SHA-256."""

    def __init__(self, line: Line, consortium: Consortium, receipt_key: str) -> None:
        self._line = line
        self._consortium = consortium
        self._key = receipt_key
        self.weights: dict[JobKey, tuple[str, ...]] = {}
        self.damaged: list[str] = []
        self.bytes = 0

    async def download(self, models: Sequence[JobKey]) -> None:
        """Download those that were not downloaded yet."""
        waiting = asyncio.Semaphore(AT_ONCE)

        async def one(key: JobKey) -> None:
            async with waiting:
                await self._download(key)

        await asyncio.gather(*(one(key) for key in models if key not in self.weights))

    async def _download(self, key: JobKey) -> None:
        path = f"/v1/projects/{key[0]}/models/{key[1]}"
        token = self._consortium.coordinators[key[0]]
        answer = await self._line.ask("GET", f"{path}/files/receipt.json", token)
        try:
            signed = SignedReceipt.parse(answer.content)
        except GramfuseError as error:
            self.damaged.append(f"{path}: its receipt cannot be read: {error.message}")
            return
        if signed.public_key != self._key or not is_signed(signed.receipt, signed.signature, signed.public_key):
            self.damaged.append(f"{path}: its receipt is not signed by the server's key")
        weights = []
        for file in signed.receipt.outputs:
            if not file.name.endswith(TENSORS_SUFFIX):
                continue  # `verify --digests` reads the small ones; asking for eight files a model measures little else
            content = (await self._line.ask("GET", f"{path}/files/{file.name}", token)).content
            self.bytes += len(content)
            if sha256_hex(content) != file.sha256:
                self.damaged.append(f"{path}/files/{file.name}: its bytes are not the receipt's")
            weights.append(file.sha256)
        self.weights[key] = tuple(weights)


def verify(deployment: Deployment) -> list[str]:
    """Have `gramfuse-server verify` read every byte, every receipt and the audit log; return what it found wrong."""
    finished = subprocess.run(
        ["gramfuse-server", "verify", "--digests", "--format", "json"],  # noqa: S607
        cwd=deployment.folder, env=deployment.environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    try:
        told = json.loads(finished.stdout)
    except ValueError:
        return [f"verify ended with {finished.returncode}: {finished.stderr[-500:]}"]
    return list(_failures(told))


def _failures(told: Mapping[str, Any]) -> Iterator[str]:
    for finding in told["checks"]:
        if finding["verdict"] == "failed":
            yield f"verify: {finding['name']}: {finding['found']}"


async def _contribution(line: Line, consortium: Consortium, row: Mapping[str, Any]) -> tuple[str, Contributed]:
    path = f"/v1/projects/{row['project']}/contributions/{row['id']}"
    answer = await line.ask("GET", path, consortium.tokens[row["organization"]])
    found = require(answer, HTTPStatus.OK, what=path).document
    files = {file["name"]: file["sha256"] for file in found["files"]}
    return found["id"], Contributed(row["project"], row["organization"], found["state"], files)


def _event(entry: Mapping[str, Any]) -> tuple[str, str]:
    """What happened, and to what: a contribution's events are about the project and name it in their details."""
    subject: str = entry["details"].get("contribution", entry["subject"])
    return entry["action"], subject.rpartition("/")[2] if entry["action"] == "contribution.accept" else subject
