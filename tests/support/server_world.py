"""What the server's integration suite plays with: a clock, synchronous clients, tiny models, organizations."""

import math
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal
from fastapi import FastAPI

from gramfuse_server.auth import issue_token
from gramfuse_server.blobs import blob_key
from gramfuse_server.database import transaction
from gramfuse_server.intake.parts import parted_file
from gramfuse_server.tables import BlobRow, ContributionRow, ProjectRow, UploadFileRow, UploadRow
from gramfuse_shared.contract.fisher_file import METADATA_KEY as FISHER_METADATA_KEY
from gramfuse_shared.contract.fisher_file import FisherMetadata, tensors_of_fisher
from gramfuse_shared.contract.identity import SIGNATURE_HEADER, statement_of
from gramfuse_shared.contract.manifest import (
    BaseManifest,
    CollectorSettings,
    ContributionManifest,
    TapInfo,
)
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES, format_header
from gramfuse_shared.contract.statistics_file import (
    METADATA_KEY,
    StatisticsMetadata,
    gram_tensor_name,
    packed_length,
)
from gramfuse_shared.digest import format_content_digest, sha256_hex
from gramfuse_shared.signatures import public_key, sign
from support.identities import signed_acceptance
from support.secure_sessions import identity_of

Tensor = tuple[str, str, tuple[int, ...]]

WIDTH = 12
BASE_TENSORS: tuple[Tensor, ...] = (
    ("embeddings.word_embeddings.weight", "F32", (31, WIDTH)),
    ("encoder.query.weight", "F32", (WIDTH, WIDTH)),
    ("encoder.query.bias", "F32", (WIDTH,)),
    ("encoder.output.weight", "F32", (WIDTH, WIDTH)),
    ("encoder.position_ids", "I64", (1, 4)),
    ("classifier.weight", "F32", (3, WIDTH)),
)
BODY_TENSORS = tuple(tensor for tensor in BASE_TENSORS if tensor[0].startswith("encoder.") and tensor[1] == "F32")
CONFIG = b'{"model_type": "tiny", "vocab_size": 31}'
OPEN_POLICY = Policy(minimum_cohort=2, cohorts="open", minimum_rows_per_dimension=1.0)


class ManualClock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)
        return self.now

    def advance(self, **duration: float) -> None:
        self.now += timedelta(**duration)


class AppTransport(httpx.BaseTransport):
    """Sends the requests of a synchronous client to an app, through an event loop in another thread."""

    def __init__(self, app: Any, portal: BlockingPortal, address: str) -> None:
        self._asgi = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=(address, 1))
        self._portal = portal

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = b"".join(request.stream)
        return self._portal.call(self._send, request, body)

    async def _send(self, request: httpx.Request, body: bytes) -> httpx.Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield body

        sent = httpx.Request(request.method, request.url, headers=request.headers, content=chunks())
        if "transfer-encoding" not in request.headers:
            sent.headers.pop("transfer-encoding", None)
        answer = await self._asgi.handle_async_request(sent)
        content = await answer.aread()
        headers = [(name, value) for name, value in answer.headers.raw if name.lower() != b"content-encoding"]
        return httpx.Response(answer.status_code, headers=headers, content=content)


@dataclass(frozen=True)
class Files:
    """A manifest and the files that it announces."""

    manifest: Any
    files: Mapping[str, bytes]

    @property
    def id(self) -> str:
        return self.manifest.content_digest()


def safetensors(tensors: tuple[Tensor, ...], *, seed: int = 0, metadata: Mapping[str, str] | None = None) -> bytes:
    """A well-formed file of these tensors, each value's bytes chosen small enough to be finite in every dtype."""
    chooser = random.Random(seed)
    size = sum(math.prod(shape) * DTYPE_BYTES[dtype] for _, dtype, shape in tensors)
    return format_header(list(tensors), metadata) + bytes(chooser.randrange(64) for _ in range(size))


def tensor_documents(tensors: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": dtype, "shape": list(shape)} for name, dtype, shape in tensors]


def entry(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "bytes": len(content), "sha256": sha256_hex(content)}


def make_base(*, seed: int = 0, config: bytes = CONFIG, tensors: tuple[Tensor, ...] = BASE_TENSORS) -> Files:
    weights = safetensors(tensors, seed=seed)
    files = {"config.json": config, "model.safetensors": weights, "tokenizer.json": b"{}"}
    documents = [entry(name, content) for name, content in files.items()]
    documents[1]["tensors"] = tensor_documents(tensors)
    return Files(BaseManifest.model_validate({"files": documents, "vocabulary_size": 31}), files)


def make_tap(**changes: Any) -> TapInfo:
    document = {
        "name": "encoder.query",
        "width": WIDTH,
        "rows": 500,
        "distinct_rows": 400,
        "source": "mixed",
        "layers": [{"weight": "encoder.query.weight"}],
    }
    return TapInfo.model_validate(document | changes)


def make_contribution(
    project: Mapping[str, Any],
    organization: str,
    *,
    tensors: tuple[Tensor, ...] = BODY_TENSORS,
    taps: tuple[TapInfo, ...] | None = None,
    weights: bytes | None = None,
    statistics: bytes | None = None,
    information: FisherMetadata | None = None,
    fisher: bytes | None = None,
    seed: int = 1,
    **changes: Any,
) -> Files:
    """A contribution to a project as its coordinator sees it; `weights` and `statistics` replace honest bytes.

    With `information` it has Fisher information, with `fisher` of these bytes.
    """
    taps = (make_tap(),) if taps is None else taps
    collector = CollectorSettings(collector_version="0.1.0")
    weights = safetensors(tensors, seed=seed) if weights is None else weights
    files = {"weights.safetensors": weights}
    document: dict[str, Any] = {
        "project": project["id"],
        "organization": organization,
        "base": project["base"],
        "policy": project["policy"],
        "weights": {"file": entry("weights.safetensors", weights), "tensors": tensor_documents(tensors)},
    }
    if taps:
        if statistics is None:
            metadata = StatisticsMetadata(base=project["base"], collector=collector, taps=taps)
            grams = tuple((gram_tensor_name(tap.name), "F32", (packed_length(tap.width),)) for tap in taps)
            statistics = safetensors(grams, seed=seed, metadata={METADATA_KEY: metadata.model_dump_json()})
        files["statistics.safetensors"] = statistics
        document["statistics"] = {
            "file": entry("statistics.safetensors", statistics),
            "taps": [tap.model_dump(mode="json") for tap in taps],
            "collector": collector.model_dump(mode="json"),
        }
    if information is not None:
        if fisher is None:
            announced = {FISHER_METADATA_KEY: information.model_dump_json()}
            fisher = safetensors(tuple(tensors_of_fisher(information.parameters)), seed=seed, metadata=announced)
        files["fisher.safetensors"] = fisher
        told = information.model_dump(mode="json", exclude={"format", "base"})
        document["fisher"] = told | {"file": entry("fisher.safetensors", fisher)}
    return Files(ContributionManifest.model_validate(document | changes), files)


def make_information(
    *, tensors: tuple[Tensor, ...] = BODY_TENSORS, examples: int = 50, source: str = "mixed", **changes: Any
) -> FisherMetadata:
    """Say what Fisher information of these tensors would be; of whatever norm."""
    parameters = [{"name": name, "shape": shape, "norm": 1.0, "source": source} for name, _, shape in tensors]
    document = {
        "examples": examples,
        "distinct_examples": examples,
        "collector": {"collector_version": "0.1.0"},
        "parameters": parameters,
    }
    return FisherMetadata.model_validate(document | changes)


class Client(httpx.Client):
    """An HTTP client with a token."""

    def put_document(self, path: str, document: Any) -> httpx.Response:
        headers = {"content-type": "application/json"}
        if isinstance(document, ContributionManifest):
            key = identity_of(document.organization)
            headers[SIGNATURE_HEADER] = sign(statement_of(document, public_key(key)), key)
        return self.put(path, content=document.model_dump_json(), headers=headers)

    def put_part(self, path: str, number: int, content: bytes, **headers: str) -> httpx.Response:
        announced = {"content-digest": format_content_digest(sha256_hex(content))}
        return self.put(f"{path}/parts/{number}", content=content, headers=announced | headers)

    def put_files(self, path: str, answer: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Send every part of every file that the answer to a manifest asks for."""
        for file in answer["files"]:
            content, length = files[file["name"]], file["part_bytes"]
            for number in range(file["part_count"]):
                part = content[number * length : (number + 1) * length]
                answer_to_part = self.put_part(f"{path}/files/{file['name']}", number, part)
                assert answer_to_part.status_code in {200, 201}, answer_to_part.text


@dataclass
class World:
    """A server and its organizations."""

    app: FastAPI
    clock: ManualClock
    portal: BlockingPortal
    _tokens: dict[tuple[str | None, str], str] = field(default_factory=dict)

    @property
    def services(self) -> Any:
        return self.app.state.services

    def client(self, token: str | None = None, *, address: str = "127.0.0.1") -> Client:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return Client(transport=AppTransport(self.app, self.portal, address), base_url="http://server", headers=headers)

    def raw_status(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        token: str | None,
        body: Callable[[], Iterator[bytes]],
        *,
        breaks: bool = False,
    ) -> int:
        """Call the app without a client, so that one sees whether it asks for the body; return the status.

        The connection may break behind these bytes.
        """
        fields = dict(headers) | ({"authorization": f"Bearer {token}"} if token else {})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in fields.items()],
            "client": ("127.0.0.1", 1),
            "server": ("server", 80),
        }
        statuses: list[int] = []
        asked = iter(range(10**9))

        async def receive() -> dict[str, Any]:
            if breaks and next(asked):
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": b"".join(body()), "more_body": breaks}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        self.portal.call(self.app, scope, receive, send)
        return statuses[0]

    def token(self, organization: str | None, role: str) -> str:
        """The token of an organization's role, made on first use."""
        known = self._tokens.get((organization, role))
        if known is None:
            with transaction(self.services.database) as session:
                _, known = issue_token(
                    session, role=role, organization=organization, now=self.clock(), lifetime=timedelta(days=900)
                )
            self._tokens[organization, role] = known
        return known

    @property
    def operator(self) -> Client:
        return self.client(self.token(None, "operator"))

    def organization(self, name: str) -> Client:
        """Create an organization; return its coordinator."""
        assert self.operator.put(f"/v1/organizations/{name}").status_code in {200, 201}
        return self.coordinator(name)

    def coordinator(self, organization: str) -> Client:
        return self.client(self.token(organization, "coordinator"))

    def participant(self, organization: str) -> Client:
        return self.client(self.token(organization, "participant"))

    def project(
        self, *members: str, policy: Policy = OPEN_POLICY, ready: bool = True, base: Files | None = None
    ) -> dict[str, Any]:
        """A project `<first>.tweets` whose members all accepted its policy; ready unless told otherwise."""
        for member in members:
            self.organization(member)
        coordinator = self.coordinator(members[0])
        path = f"/v1/projects/{members[0]}.tweets"
        base = base or make_base()
        document = {"base": base.manifest.model_dump(mode="json"), "policy": policy.model_dump(mode="json")}
        answer = coordinator.put(path, json=document)
        assert answer.status_code == 201, answer.text
        for member in members[1:]:
            assert coordinator.put(f"{path}/participants/{member}").status_code == 201
        for member in members:
            assert self.accept_policy(f"{members[0]}.tweets", member).status_code == 201
        if ready:
            coordinator.put_files(f"{path}/base", answer.json(), base.files)
            assert coordinator.post(f"{path}/base/seal").status_code == 200
            self.accept_base(f"{members[0]}.tweets")
        return coordinator.get(path).json()

    def accept_policy(
        self, project: str, organization: str, *, digest: str | None = None, key: Any = None
    ) -> httpx.Response:
        """Accept a project's policy, the current one by default, signed by the organization's identity key."""
        member = self.participant(organization)
        policy = member.get(f"/v1/projects/{project}").json()["policy"]
        digest = digest or policy["digest"]
        signed = signed_acceptance(project, organization, digest, version=policy["version"], key=key)
        return member.put_document(f"/v1/projects/{project}/acceptances/{digest}", signed)

    def contribute(self, project: Mapping[str, Any], organization: str, *, accept: bool = False, **made: Any) -> Files:
        """Push a contribution up to its seal, and have it accepted if asked."""
        contribution = make_contribution(project, organization, **made)
        member = self.participant(organization)
        path = f"/v1/projects/{project['id']}/contributions/{contribution.id}"
        answer = member.put_document(path, contribution.manifest)
        assert answer.status_code == 201, answer.text
        member.put_files(path, answer.json(), contribution.files)
        answer = member.post(f"{path}/seal")
        assert answer.status_code == 200, answer.text
        if accept:
            self.accept_contribution(contribution.id)
        return contribution

    def accept_base(self, project: str) -> None:
        """What the worker does with a good base model."""
        with transaction(self.services.database) as session:
            self._accept(session, session.get_one(ProjectRow, project).base_upload)

    def accept_contribution(self, contribution: str) -> None:
        """What the worker does with a good contribution."""
        with transaction(self.services.database) as session:
            self._accept(session, session.get_one(ContributionRow, contribution).upload)

    def _accept(self, session: Any, upload_id: str) -> None:
        upload = session.get_one(UploadRow, upload_id)
        assert upload.state == "sealed"
        for row in session.query(UploadFileRow).filter_by(upload=upload_id):
            content = parted_file(session, self.services.blobs, row)
            self.services.blobs.put(blob_key(row.sha256), content.read(0, row.bytes))
            if session.get(BlobRow, row.sha256) is None:
                session.add(BlobRow(sha256=row.sha256, bytes=row.bytes, created_at=self.clock()))
                session.flush()
        upload.state, upload.decided_at = "accepted", self.clock()

    def stored_keys(self) -> set[str]:
        """Everything in the blob store."""
        return set(self.services.blobs.keys(""))


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Require that an answer is this problem document, with a request id; return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    document = answer.json()
    assert (document["status"], document["code"]) == (status, code), document
    assert document["detail"]
    return document
