"""What operators see of a server: the documents under /v1/admin, which are also what the dashboard shows.

Of contributions and answers they hold states and sizes, never why one was refused, nor files or scores: these are their
organizations' own, and the members'.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.http_api import Contribution, Job, JobError, JobState, Model, Organization, Project
from gramfuse_shared.contract.manifest import Size
from gramfuse_shared.contract.requests import AnswerState, AskedKind, RequestState
from gramfuse_shared.identifiers import Digest, JobId, OrganizationName, ProjectId


class WorkerInfo(Document):
    """A worker by its heartbeat."""

    id: str
    host: str
    device: str
    memory_bytes: int
    version: str
    started_at: datetime
    heartbeat_at: datetime
    alive: bool
    running: tuple[str, ...] = ()


class AdminOrganization(Organization):
    """An organization, how many of its tokens open something, and in how many projects it is, invited or joined."""

    valid_tokens: int
    tokens_end_at: datetime | None = None
    """When the last of them ends; null also where one never does."""
    projects: int
    last_seen_at: datetime | None = None
    """The time of the newest row that its tokens have in the audit log."""


class AdminProject(Project):
    """A project, and whether its quota is the server's default."""

    quota_is_default: bool


class QuotaChange(Document):
    """Changes what a project may hold; null is the server's default.

    Less than what it holds is refused unless `below_held`: then it keeps all of it, and nothing new is taken.
    """

    bytes: Size | None
    below_held: bool = False


class AdminContribution(Contribution):
    """A contribution with its project, for operators."""

    project: ProjectId


class JobAttempt(Document):
    """One try at a job; `worker` is who had it last."""

    number: int
    state: JobState
    worker: str | None = None
    error: JobError | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


Priority = Literal["high", "normal", "low"]
"""Whose work goes first: all that is high, then all that is normal, then what is low."""


class JobPriority(Document):
    """The priority that an operator gives a job."""

    priority: Priority


class AdminJob(Job):
    """A job with its priority, and its attempts, the first one first."""

    priority: Priority = "normal"
    attempts: tuple[JobAttempt, ...]


class AdminModel(Model):
    """A model with its card, Markdown; null of a model that is deleted or held back by its policy's release gate."""

    card: str | None = None


class AdminAsked(Document):
    """An organization that a request asks, and how far its answer is."""

    organization: OrganizationName
    state: AnswerState


class AdminRequest(Document):
    """A request and who has answered it."""

    id: JobId
    project: ProjectId
    kind: AskedKind
    models: tuple[JobId, ...] = ()
    state: RequestState
    reason: str | None = None
    created_at: datetime
    deadline: datetime
    asked: tuple[AdminAsked, ...]


class Storage(Document):
    """What the blob store holds, by the database's account."""

    blobs: int
    blob_bytes: int
    open_upload_bytes: int


class Overview(Document):
    """The operator's first look."""

    version: str
    workers_alive: int
    organizations: int
    projects: int
    contributions: dict[str, int]
    jobs: dict[str, int]
    models: int
    storage: Storage
    recent_failures: tuple[Job, ...]


class HourOfWork(Document):
    """What was done within an hour.

    Attributes:
        begins_at: the hour, in UTC.
        merges, failures: attempts at jobs that succeeded, and that failed.
        received_bytes: of uploads that were sealed: base models, contributions, answers.
        published_bytes: of models.
    """

    begins_at: datetime
    merges: int
    failures: int
    received_bytes: int
    published_bytes: int


class Throughput(Document):
    """The last hours, the oldest first; the last one is not over."""

    hours: tuple[HourOfWork, ...]


class AuditEntry(Document):
    """A row of the hash-chained audit log; `digest` covers the row and `previous`."""

    sequence: int
    at: datetime
    organization: OrganizationName | None
    token: str | None
    action: str
    subject: str
    details: dict[str, Any] = Field(description="what the action says of itself; digests, counts and names")
    previous: Digest
    digest: Digest
