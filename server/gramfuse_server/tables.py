"""Every table. Rows are records of what happened; decisions about them are made elsewhere.

Documents of the contract are stored as their canonical JSON, so that their digests can be recomputed.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC on both databases; SQLite stores it without the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    @property
    def python_type(self) -> type[datetime]:
        """The type of its values in Python."""
        return datetime

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive values: they mean a different instant on every machine."""
        if value is None:
            return None
        if value.tzinfo is None:
            msg = "a naive datetime cannot be stored"
            raise ValueError(msg)
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


class Row(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=CONVENTION)
    type_annotation_map: Any = {datetime: UtcDateTime, int: BigInteger, str: String}  # noqa: RUF012 - SQLAlchemy's form


def _one_of(column: str, *values: str) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=column)


# --- tenants -------------------------------------------------------------------------------------------------------


class OrganizationRow(Row):
    """A tenant."""

    __tablename__ = "organizations"

    name: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]


class TokenRow(Row):
    """A token; of its secret only the SHA-256 is known."""

    __tablename__ = "tokens"
    __table_args__ = (
        _one_of("role", "operator", "coordinator", "participant"),
        CheckConstraint("(role = 'operator') = (organization IS NULL)", name="organization_by_role"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    secret_sha256: Mapped[str]
    role: Mapped[str]
    organization: Mapped[str | None] = mapped_column(ForeignKey("organizations.name"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


# --- uploads -------------------------------------------------------------------------------------------------------


class UploadRow(Row):
    """Files that arrive in parts: a project's base model, a contribution, or an answer to a request.

    open → sealed → accepted | rejected; open → expired; accepted (and earlier) → withdrawn. `delete_after` is set
    when the bytes have no further use, `deleted_at` once they are given up: the sweep deletes them then, and they
    count no more.
    """

    __tablename__ = "uploads"
    __table_args__ = (
        _one_of("kind", "base", "contribution", "answer"),
        _one_of("state", "open", "sealed", "accepted", "rejected", "expired", "withdrawn"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    project: Mapped[str] = mapped_column(index=True)
    state: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    bytes: Mapped[int]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    sealed_at: Mapped[datetime | None]
    decided_at: Mapped[datetime | None]
    withdrawn_at: Mapped[datetime | None]
    delete_after: Mapped[datetime | None] = mapped_column(index=True)
    deleted_at: Mapped[datetime | None]


class UploadFileRow(Row):
    """A file of an upload; its blob is `sha256` once the upload is accepted."""

    __tablename__ = "upload_files"

    upload: Mapped[str] = mapped_column(ForeignKey("uploads.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(index=True)
    part_bytes: Mapped[int]
    part_count: Mapped[int]


class UploadPartRow(Row):
    """A part that has arrived; its bytes lie at `blobs.part_key(upload, file, number, sha256)` until assembled."""

    __tablename__ = "upload_parts"
    __table_args__ = (ForeignKeyConstraint(["upload", "file"], ["upload_files.upload", "upload_files.name"]),)

    upload: Mapped[str] = mapped_column(primary_key=True)
    file: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bytes: Mapped[int]
    sha256: Mapped[str]
    received_at: Mapped[datetime]


class PartOfferRow(Row):
    """The one digest that a part may have which is put into the store directly; forgotten when the upload is closed."""

    __tablename__ = "part_offers"
    __table_args__ = (ForeignKeyConstraint(["upload", "file"], ["upload_files.upload", "upload_files.name"]),)

    upload: Mapped[str] = mapped_column(primary_key=True)
    file: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sha256: Mapped[str]
    offered_at: Mapped[datetime]


class BlobRow(Row):
    """A complete file in the blob store at `blobs.blob_key(sha256)`: the account of what is stored.

    `claimed_at` is set while somebody writes it and nothing names it yet, `condemned_at` while it is being deleted.
    """

    __tablename__ = "blobs"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int]
    created_at: Mapped[datetime]
    claimed_at: Mapped[datetime | None]
    condemned_at: Mapped[datetime | None]


# --- projects ------------------------------------------------------------------------------------------------------


class ProjectRow(Row):
    """A collaboration. Its state is its base upload's until it is deleted; it has the settings' quota, or its own."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    coordinator: Mapped[str] = mapped_column(ForeignKey("organizations.name"), index=True)
    base_digest: Mapped[str]
    base_manifest: Mapped[str] = mapped_column(Text)
    base_upload: Mapped[str] = mapped_column(ForeignKey("uploads.id"), unique=True)
    policy_version: Mapped[int]
    quota_bytes: Mapped[int | None]
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class ParticipantRow(Row):
    """An organization's membership in a project, the newest policy version that it accepted, and its identity key.

    Both are empty until it joins, and again after its key was reset.
    """

    __tablename__ = "participants"
    __table_args__ = (UniqueConstraint("project", "identity"),)

    project: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    organization: Mapped[str] = mapped_column(ForeignKey("organizations.name"), primary_key=True, index=True)
    invited_at: Mapped[datetime]
    accepted_version: Mapped[int | None]
    identity: Mapped[str | None]


class PolicyRow(Row):
    """A version of a project's policy."""

    __tablename__ = "policies"

    project: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str]
    document: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]


class AcceptanceRow(Row):
    """Who accepted which policy version, when, with which token, signed by which identity key. Never changed.

    `identity` is empty and `signature` missing in rows of before there were identity keys.
    """

    __tablename__ = "acceptances"
    __table_args__ = (ForeignKeyConstraint(["project", "version"], ["policies.project", "policies.version"]),)

    project: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    organization: Mapped[str] = mapped_column(ForeignKey("organizations.name"), primary_key=True)
    identity: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    signature: Mapped[str | None]
    token: Mapped[str] = mapped_column(ForeignKey("tokens.id"))
    accepted_at: Mapped[datetime]


class ContributionRow(Row):
    """One participant's immutable upload; its id is its manifest's digest, its state its upload's.

    `signature` is that of its statement by the key `identity`; contributions of before there were any have neither.
    `audit` is the summary of its audit, null unless its policy shares it.
    """

    __tablename__ = "contributions"
    __table_args__ = (
        ForeignKeyConstraint(["project", "policy_version"], ["policies.project", "policies.version"]),
        Index(None, "project", "organization"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    organization: Mapped[str] = mapped_column(ForeignKey("organizations.name"))
    upload: Mapped[str] = mapped_column(ForeignKey("uploads.id"), unique=True)
    manifest: Mapped[str] = mapped_column(Text)
    policy_version: Mapped[int]
    identity: Mapped[str | None]
    signature: Mapped[str | None]
    audit: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]


# --- jobs and models -----------------------------------------------------------------------------------------------


class JobRow(Row):
    """One execution of a recipe over a cohort. `attempt` is the present one, numbered from 1."""

    __tablename__ = "jobs"
    __table_args__ = (
        _one_of("state", "queued", "running", "succeeded", "failed", "cancelled"),
        _one_of("priority", "high", "normal", "low"),
        ForeignKeyConstraint(["project", "policy_version"], ["policies.project", "policies.version"]),
    )

    project: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    submission_digest: Mapped[str]
    recipe: Mapped[str] = mapped_column(Text)
    policy_version: Mapped[int]
    state: Mapped[str] = mapped_column(index=True)
    stage: Mapped[str]
    priority: Mapped[str] = mapped_column(default="normal", server_default="normal")
    attempt: Mapped[int]
    done_tasks: Mapped[int] = mapped_column(default=0)
    total_tasks: Mapped[int] = mapped_column(default=0)
    done_bytes: Mapped[int] = mapped_column(default=0)
    total_bytes: Mapped[int] = mapped_column(default=0)
    rate: Mapped[float | None]
    solved_layers: Mapped[int | None]
    averaged_layers: Mapped[int | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None] = mapped_column(Text)
    submitted_by: Mapped[str] = mapped_column(ForeignKey("tokens.id"))
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobContributionRow(Row):
    """A member of a job's cohort; `weight` is the recipe's, as JSON."""

    __tablename__ = "job_contributions"
    __table_args__ = (ForeignKeyConstraint(["project", "job"], ["jobs.project", "jobs.id"]),)

    project: Mapped[str] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(primary_key=True)
    contribution: Mapped[str] = mapped_column(ForeignKey("contributions.id"), primary_key=True, index=True)
    organization: Mapped[str] = mapped_column(ForeignKey("organizations.name"))
    weight: Mapped[str] = mapped_column(Text)


class AttemptRow(Row):
    """One try at a job: a workflow by its id.

    `executions` counts how often its planning, and after that its publication, was begun.
    """

    __tablename__ = "attempts"
    __table_args__ = (
        _one_of("state", "queued", "running", "succeeded", "failed", "cancelled"),
        ForeignKeyConstraint(["project", "job"], ["jobs.project", "jobs.id"]),
    )

    project: Mapped[str] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    workflow: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str]
    worker: Mapped[str | None]
    executions: Mapped[int] = mapped_column(default=0, server_default="0")
    error_code: Mapped[str | None]
    error_message: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class TaskRow(Row):
    """One shard of an attempt: how far it is, who computes it, and the blob that came out.

    `executions` counts how often a worker began it. `seconds` and `diagnostics` (JSON) are the last one's.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        _one_of("state", "queued", "running", "succeeded"),
        ForeignKeyConstraint(
            ["project", "job", "attempt"],
            ["attempts.project", "attempts.job", "attempts.number"],
            name="fk_tasks_attempt",
        ),
    )

    project: Mapped[str] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    file: Mapped[str]
    input_bytes: Mapped[int]
    done_bytes: Mapped[int] = mapped_column(default=0)
    state: Mapped[str]
    worker: Mapped[str | None]
    executions: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int | None]
    sha256: Mapped[str | None]
    seconds: Mapped[float | None]
    diagnostics: Mapped[str | None] = mapped_column(Text)


class JobLogRow(Row):
    """A line of a job's history."""

    __tablename__ = "job_log"
    __table_args__ = (ForeignKeyConstraint(["project", "job"], ["jobs.project", "jobs.id"]),)

    project: Mapped[str] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    attempt: Mapped[int]
    message: Mapped[str] = mapped_column(Text)


class ModelRow(Row):
    """A published model; its id is its job's. The receipt outlives the files."""

    __tablename__ = "models"
    __table_args__ = (ForeignKeyConstraint(["project", "id"], ["jobs.project", "jobs.id"]),)

    project: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    bytes: Mapped[int]
    receipt: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    delete_after: Mapped[datetime | None] = mapped_column(index=True)


class ModelFileRow(Row):
    """A file of a model, at `blobs.blob_key(sha256)`."""

    __tablename__ = "model_files"
    __table_args__ = (ForeignKeyConstraint(["project", "model"], ["models.project", "models.id"]),)

    project: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(index=True)


# --- requests ------------------------------------------------------------------------------------------------------


class RequestRow(Row):
    """What is asked of the organizations of a cohort. Its state follows from answers, deadline and policy.

    `session` is the manifest of a secure sum, in the row of its first stage; `opened_by` names that row in the others.
    """

    __tablename__ = "requests"
    __table_args__ = (ForeignKeyConstraint(["project", "policy_version"], ["policies.project", "policies.version"]),)

    project: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    document: Mapped[str] = mapped_column(Text)
    session: Mapped[str | None] = mapped_column(Text)
    opened_by: Mapped[str | None]
    policy_version: Mapped[int]
    asked_by: Mapped[str] = mapped_column(ForeignKey("tokens.id"))
    created_at: Mapped[datetime]
    deadline: Mapped[datetime]
    cancelled_at: Mapped[datetime | None]


class AskedRow(Row):
    """An organization that a request asks, and its answer once there is one; files of it are an upload."""

    __tablename__ = "asked"
    __table_args__ = (ForeignKeyConstraint(["project", "request"], ["requests.project", "requests.id"]),)

    project: Mapped[str] = mapped_column(primary_key=True)
    request: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str] = mapped_column(ForeignKey("organizations.name"), primary_key=True)
    answer: Mapped[str | None] = mapped_column(Text)
    upload: Mapped[str | None] = mapped_column(ForeignKey("uploads.id"), unique=True)
    answered_at: Mapped[datetime | None]


# --- workers and sign-ins ------------------------------------------------------------------------------------------


class WorkerRow(Row):
    """A worker process by its heartbeat."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    device: Mapped[str]
    memory_bytes: Mapped[int]
    version: Mapped[str]
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
    stopped_at: Mapped[datetime | None]


class DashboardSessionRow(Row):
    """A browser that signed in with a token; of its secret only the SHA-256 is known."""

    __tablename__ = "dashboard_sessions"

    secret_sha256: Mapped[str] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(ForeignKey("tokens.id"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


# --- audit ---------------------------------------------------------------------------------------------------------


class AuditRow(Row):
    """A link of the audit log's hash chain; `digest` covers all other columns."""

    __tablename__ = "audit_log"

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    organization: Mapped[str | None]
    token: Mapped[str | None]
    action: Mapped[str]
    subject: Mapped[str]
    details: Mapped[str] = mapped_column(Text)
    previous: Mapped[str]
    digest: Mapped[str]


class AuditHeadRow(Row):
    """The end of the chain, one row, locked by every append."""

    __tablename__ = "audit_head"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sequence: Mapped[int]
    digest: Mapped[str]
