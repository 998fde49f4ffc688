"""Requests and answers of the HTTP API. Paths and status codes are in the OpenAPI document and docs/wire-format.md."""

from datetime import datetime
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, PlainSerializer, SecretStr, WithJsonSchema, model_validator

from gramfuse_shared import limits
from gramfuse_shared.contract.audit_summary import AuditSummary
from gramfuse_shared.contract.document import Document, Reply
from gramfuse_shared.contract.key_handover import Handovers
from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest, FileEntry, PolicyReference
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.receipt import Base64, SignedReceipt
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.contract.releases import ModelRelease
from gramfuse_shared.contract.requests import Answer, AnswerState
from gramfuse_shared.contract.scales_file import SCALES_FILE_NAME
from gramfuse_shared.contract.secure import SignedMessage
from gramfuse_shared.identifiers import Digest, FileName, JobId, Key, OrganizationName, ProjectId, Signature

Role = Literal["operator", "coordinator", "participant"]
ContributionState = Literal["open", "sealed", "accepted", "rejected", "expired", "withdrawn"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ProjectState = Literal["open", "sealed", "ready", "rejected"]
PassedOver = Literal["policy", "newer"]
"""Why merges pass over an accepted contribution: the policy has a newer version, or a newer one took its place."""

Item = TypeVar("Item")

SecretUrl = Annotated[
    SecretStr,
    PlainSerializer(lambda url: url.get_secret_value(), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "uri"}),
]
"""An address that gives a right to whoever knows it: shown nowhere but in the document that it travels in."""
_OF_SECRETS: Final = ConfigDict(hide_input_in_errors=True)
LOCATION_TYPE: Final = "application/vnd.gramfuse.location+json"
"""Whoever accepts it is answered where a file lies, by a server of direct transfers."""
DirectHeader = Literal["content-length", "if-none-match", "x-amz-checksum-sha256"]
"""What a server may have a client send to a store."""


class Page(Reply, Generic[Item]):
    """A part of a list; `next_cursor` asks for the next part and is absent on the last."""

    items: tuple[Item, ...]
    next_cursor: str | None = None


class Problem(Reply):
    """An RFC 9457 problem document. `code` is stable, `facts` are machine-readable details of this occurrence."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool = False
    instance: str | None = None
    facts: dict[str, Any] = Field(default_factory=dict)


# --- server and identities ---------------------------------------------------------------------------------------


class ServerInfo(Reply):
    """What anybody may know of a server; clients pin `receipt_key` on first use, then follow `handovers`.

    With `direct_transfers` parts may be announced, to be put into the server's object store past the server.
    """

    service: Literal["gramfuse"] = "gramfuse"
    version: str
    receipt_key: Base64
    handovers: Handovers = Field(default=(), exclude_if=lambda value: not value)
    direct_transfers: bool = Field(default=False, exclude_if=lambda value: not value)


class Health(Reply):
    """`ok`, and for readiness the state of each part that a request needs."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str] = Field(default_factory=dict)


class Workers(Reply):
    """Whether any worker of the server gave a sign of life within its lease: without one, checks and merges wait."""

    alive: bool


class WhoAmI(Reply):
    """The caller's token. An operator's token belongs to no organization."""

    organization: OrganizationName | None
    role: Role
    token: str
    expires_at: datetime | None


class OrganizationCreate(Document):
    """Creates an organization."""

    name: OrganizationName


class Organization(Reply):
    """A tenant."""

    name: OrganizationName
    created_at: datetime


class TokenCreate(Document):
    """Creates a token; the operator role takes no organization, the others need one."""

    role: Role
    organization: OrganizationName | None = None
    days: Annotated[int, Field(ge=1, le=3650)] = 90


class TokenInfo(Reply):
    """A token without its secret."""

    id: str
    role: Role
    organization: OrganizationName | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None = None


class TokenCreated(TokenInfo):
    """A new token; `token` is shown this once and cannot be recovered."""

    token: str


# --- projects ------------------------------------------------------------------------------------------------------


class FileUpload(FileEntry):
    """A file that is being uploaded in parts: every part but the last has `part_bytes` bytes, numbered from 0."""

    part_bytes: Annotated[int, Field(ge=1)]
    part_count: Annotated[int, Field(ge=1, le=limits.MAX_PARTS_PER_FILE)]
    received_parts: Annotated[int, Field(ge=0)]


class Part(Reply):
    """A part that has arrived."""

    number: int
    bytes: int
    sha256: Digest


class PartList(Reply):
    """The parts of a file that have arrived, so that a rerun sends only the others."""

    file: FileName
    part_bytes: int
    part_count: int
    parts: tuple[Part, ...]


class DirectRequest(Document):
    """A request to the object store that needs no token: method PUT of a part or GET of a file, until `expires_at`.

    The headers are signed: all have to be sent, as they are.
    """

    model_config = _OF_SECRETS
    url: SecretUrl
    headers: dict[DirectHeader, str] = Field(default_factory=dict)
    expires_at: datetime


class PartAnnouncement(Document):
    """Announces a part that is, or shall be, put into the object store."""

    bytes: Annotated[int, Field(ge=1, le=limits.MAX_PART_BYTES)]
    sha256: Digest


class AnnouncedPart(Part):
    """A part that was announced. Without `put` it has arrived; else its bytes go there, and it is announced again."""

    model_config = _OF_SECRETS
    put: DirectRequest | None = Field(default=None, exclude_if=lambda value: value is None)


class FileLocation(Reply):
    """Where a file lies in the object store. `sha256` is of the whole file."""

    model_config = _OF_SECRETS
    bytes: int
    sha256: Digest
    get: DirectRequest


class ProjectCreate(Document):
    """Creates a project: its base model's manifest, its first policy, and the scales file that the policy names."""

    base: BaseManifest
    policy: Policy = Policy()
    scales: FileEntry | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _scales_are_the_policys(self) -> Self:
        if self.policy.scales != (None if self.scales is None else self.scales.sha256):
            msg = "the scales file that is announced is not the one that the policy names"
            raise ValueError(msg)
        if self.policy.differential_privacy is not None and self.scales is None:
            msg = "differential_privacy needs the project's scales file, which bounds what one text may weigh"
            raise ValueError(msg)
        if self.scales is not None and self.scales.name != SCALES_FILE_NAME:
            msg = f"a scales file is called {SCALES_FILE_NAME}"
            raise ValueError(msg)
        if any(file.name == SCALES_FILE_NAME for file in self.base.files):
            msg = f"a base model's file is called {SCALES_FILE_NAME}, as the project's scales are"
            raise ValueError(msg)
        return self

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files that travel."""
        return (*self.base.files, *(() if self.scales is None else (self.scales,)))


class Participant(Reply):
    """A member of a project, the newest policy version that it accepted, and the identity key that signed this.

    The signature is over the `PolicyAcceptance` of these, so that every member can check it.
    """

    organization: OrganizationName
    invited_at: datetime
    accepted_policy: PolicyReference | None
    identity: Key | None = None
    signature: Signature | None = None


class Project(Reply):
    """A project as its members see it. `ready` once the base model is uploaded and checked.

    One that was deleted says so by `deleted_at`; its `state` is then `rejected`, with that as its reason, because
    clients of before know no other word for a project that takes nothing any more.
    `bytes` is what it holds, of at most `quota`: base model, contributions, answers, models and those being merged.
    """

    id: ProjectId
    coordinator: OrganizationName
    state: ProjectState
    reason: str | None = None
    base: Digest
    policy: PolicyReference
    created_at: datetime
    deleted_at: datetime | None = None
    participants: tuple[Participant, ...]
    files: tuple[FileUpload, ...]
    bytes: int
    quota: int

    @property
    def shown_state(self) -> str:
        """The state as people are told it."""
        return self.state if self.deleted_at is None else "deleted"


class PolicyVersion(Reply):
    """A version of a project's policy."""

    version: int
    digest: Digest
    policy: Policy
    created_at: datetime


class Acceptance(Document):
    """An organization's recorded acceptance of a policy version."""

    organization: OrganizationName
    policy: PolicyReference
    identity: Key
    token: str
    accepted_at: datetime


# --- contributions -------------------------------------------------------------------------------------------------


class Contribution(Reply):
    """A contribution as the project's members see it; `reason` and `files` are its own organization's only.

    `counts` says that it is the one that merges take: its organization's newest that was ever accepted, if that was not
    withdrawn and was made under the project's current policy. An older one never counts again. `passed_over` says why
    an accepted one does not: `policy`, it was made under an earlier version and its organization has to push again;
    `newer`, a newer one took its place, also if that was withdrawn. `audit` says in words how its audit came out, where
    the policy that it was made under shares audits (`shares_audit`), once its organization sent it.
    """

    id: Digest
    organization: OrganizationName
    state: ContributionState
    counts: bool = False
    passed_over: PassedOver | None = None
    reason: str | None = None
    policy: PolicyReference
    bytes: int
    created_at: datetime
    sealed_at: datetime | None = None
    decided_at: datetime | None = None
    withdrawn_at: datetime | None = None
    shares_audit: bool = False
    audit: AuditSummary | None = None
    files: tuple[FileUpload, ...] = ()


class ContributionDetail(Contribution):
    """A contribution with its manifest, for its own organization."""

    manifest: ContributionManifest | None = None


# --- requests ------------------------------------------------------------------------------------------------------


class StageMessages(Document):
    """The signed messages that a stage of a secure sum shows."""

    messages: Annotated[tuple[SignedMessage, ...], Field(max_length=limits.MAX_SECURE_COHORT)] = ()


class AnswerInfo(Reply):
    """An organization's own answer to a request, and the upload of its files; `awaited` while there is none."""

    organization: OrganizationName
    state: AnswerState
    reason: str | None = None
    files: tuple[FileUpload, ...] = ()
    answer: Answer | None = None


# --- jobs ----------------------------------------------------------------------------------------------------------


class JobCreate(Document):
    """Submits a job. `recipe.models` names organizations or contribution ids of the cohort; empty: every
    participant's newest accepted contribution.
    """

    recipe: Recipe


class JobContribution(Reply):
    """A member of a job's cohort."""

    organization: OrganizationName
    contribution: Digest


class JobError(Reply):
    """Why an attempt failed: an error's code and message."""

    code: str
    message: str


class JobLayers(Reply):
    """How many linear layers a method of statistics solves, and how many it averages because statistics are missing."""

    solved: int
    averaged: int


class Job(Reply):
    """A job. `progress` runs from 0 to 1; `rate` is bytes of input a second; `estimate_seconds` is what remains."""

    id: JobId
    project: ProjectId
    state: JobState
    stage: str
    attempt: int
    progress: Annotated[float, Field(ge=0, le=1)]
    done_tasks: int
    total_tasks: int
    rate: float | None = None
    estimate_seconds: float | None = None
    layers: JobLayers | None = Field(default=None, description="once it is planned, of methods that read statistics")
    recipe: Recipe
    cohort: tuple[JobContribution, ...]
    error: JobError | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class SubmittedJob(Job):
    """A job as a submission finds it. `new`: it was made now; else it was there, under this id and with this recipe.

    `outdated` names the organizations whose contribution a merge submitted now would not take as this job did: it was
    replaced or withdrawn since, is of an earlier policy, or is new.
    """

    new: bool = True
    outdated: tuple[OrganizationName, ...] = ()


class JobLogEntry(Reply):
    """A line of a job's history."""

    sequence: int
    at: datetime
    attempt: int
    message: str


# --- models --------------------------------------------------------------------------------------------------------


class Model(Reply):
    """A published model. `withdrawn_members` names organizations that withdrew after publication; `release` says, where
    the policy has a release gate, how the model stands to it.
    """

    id: JobId
    project: ProjectId
    created_at: datetime
    bytes: int
    files: tuple[FileEntry, ...]
    withdrawn_members: tuple[OrganizationName, ...] = ()
    deleted_at: datetime | None = None
    release: ModelRelease | None = Field(default=None, exclude_if=lambda value: value is None)
    receipt: SignedReceipt
