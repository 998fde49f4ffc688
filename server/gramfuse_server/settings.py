"""The settings of API and worker. Built only in `app`, `worker` and `cli`, then passed down."""

import re
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gramfuse_shared import limits
from gramfuse_shared.contract.document import describe_validation
from gramfuse_shared.errors import ConfigurationError

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_TIMEDELTA: Final = TypeAdapter(timedelta)
_LEAST: Final = timedelta(milliseconds=1)


def parse_duration(written: object) -> object:
    """Parse `30s`, `5m`, `24h`, `7d`; or what pydantic takes, as `PT5M`.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(written, str):
        return written
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s?([smhd])", written.strip())
    try:
        if found:
            return timedelta(**{_UNITS[found[2]]: float(found[1])})
        return _TIMEDELTA.validate_python(written)
    except (ValidationError, OverflowError):
        msg = f"{written!r} is no duration; write it as 30s, 5m, 24h or 7d"
        raise ValueError(msg) from None


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


def within(least: timedelta, most: timedelta = timedelta.max) -> AfterValidator:
    """Require that a duration is no shorter and no longer; pydantic's own bounds are told as Python writes them."""

    def require(duration: timedelta) -> timedelta:
        if not least <= duration <= most:
            longest = "" if most == timedelta.max else f" and at most {most.total_seconds():g}s"
            msg = f"must be at least {least.total_seconds():g}s{longest}"
            raise ValueError(msg)
        return duration

    return AfterValidator(require)


class Settings(BaseSettings):
    """Every setting is an environment variable `GRAMFUSE_<NAME>`; what is not set lies in the server's home folder.

    The database's URL is masked, because it may hold a password. Credentials of an S3 store are read by the store
    itself from the usual `AWS_…` variables.
    """

    model_config = SettingsConfigDict(env_prefix="GRAMFUSE_", frozen=True, extra="ignore")

    # not GRAMFUSE_HOME: that is the client's, and both may run in one shell
    server_home: Path = Field(
        default=Path(".gramfuse-server"),
        description="holds the database, the blobs and the receipt key unless these are set",
    )
    database_url: SecretStr = Field(default=SecretStr(""), description="sqlite:///… or postgresql://…")
    blobs: str = Field(default="", description="file:///… or s3://bucket/prefix, shared by API and workers")
    receipt_key: Path = Field(
        default=Path(), description="file of the Ed25519 key that signs receipts (PEM, mode 0600)"
    )

    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    metrics_port: Annotated[int, Field(ge=0, le=65_535)] | None = Field(
        default=None, description="where Prometheus finds this process's metrics, 0 for a free port; unset, nowhere"
    )
    metrics_host: str = Field(default="127.0.0.1", description="the address of that port; who reaches it may read it")

    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("127.0.0.1", "::1"),
        description="addresses and networks of proxies whose word for a caller's address and scheme is taken",
    )

    part_bytes: Annotated[int, Field(ge=1, le=limits.MAX_PART_BYTES)] = limits.DEFAULT_PART_BYTES
    concurrent_parts: Annotated[int, Field(ge=1, le=1_000)] = Field(
        default=32, description="parts received at once; the others wait, so that memory is bounded"
    )
    request_threads: Annotated[int, Field(ge=1, le=1_000)] = Field(
        default=8,
        description="requests that one API process computes at once, parts on their way to the store apart; more "
        "threads share the same interpreter, and whoever waits for an answer waits for all of them",
    )
    parts_per_organization: Annotated[int, Field(ge=1, le=1_000)] = Field(
        default=8, description="parts of one organization that are received at once; its others wait"
    )
    part_timeout: Annotated[Duration, within(_LEAST)] = Field(
        default=timedelta(minutes=5), description="within which a part must have arrived"
    )
    connections: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=1_000, description="connections at once; of more, those make room that ask for nothing"
    )
    head_timeout: Annotated[Duration, within(_LEAST)] = Field(
        default=timedelta(seconds=10), description="within which a request's path and headers must have arrived"
    )
    body_timeout: Annotated[Duration, within(_LEAST)] = Field(
        default=timedelta(minutes=2), description="within which a body must have arrived that is no part"
    )
    requests_per_second: Annotated[float, Field(ge=0)] = Field(
        default=200.0, description="of each token, what changes something counting tenfold; 0: without limit"
    )
    refusals_per_minute: Annotated[float, Field(ge=0)] = Field(
        default=60.0, description="wrong tokens and sign-ins of each address; 0: without limit"
    )
    concurrent_requests: Annotated[int, Field(ge=1)] = Field(
        default=128, description="requests of one organization that are under way at once"
    )
    upload_lifetime: Annotated[Duration, within(_LEAST)] = Field(
        default=timedelta(days=7), description="after which an open upload expires"
    )
    deletion_delay: Annotated[Duration, within(timedelta())] = Field(
        default=timedelta(hours=24), description="between a withdrawal or rejection and the deletion of the bytes"
    )
    blob_grace: Annotated[Duration, within(timedelta(hours=1))] = Field(
        default=limits.BLOB_GRACE,
        description="after which bytes are deleted that were written and that nothing names; longer than any write",
    )
    project_quota_bytes: Annotated[int, Field(ge=0)] = Field(
        default=limits.TIB,
        description="what one project's uploads and models may hold, unless it has a quota of its own",
    )

    direct_transfers: bool = Field(
        default=False, description="on: parts and files pass clients' machines and the S3 store alone, by signed URLs"
    )
    direct_endpoint: str = Field(
        default="", description="the S3 store's address as clients reach it; unset, as the server does (AWS_ENDPOINT)"
    )
    direct_lifetime: Annotated[Duration, within(timedelta(seconds=1), timedelta(hours=12))] = Field(
        default=timedelta(minutes=10), description="within which a transfer by a signed URL must have begun"
    )

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] = Field(
        default="auto", description="where a worker computes: auto, cpu, cuda, or cuda:N, one worker for each"
    )
    scratch: Path = Field(default=Path(), description="a worker's local folder for what is not finished")
    shard_bytes: Annotated[int, Field(ge=1)] = Field(
        default=2 * limits.GIB, description="bytes of a merged model's files, each the work of one task"
    )
    heartbeat_interval: Annotated[Duration, within(_LEAST)] = Field(
        default=timedelta(seconds=1), description="between a worker's signs of life"
    )
    worker_lease: Annotated[Duration, within(_LEAST)] = Field(
        default=timedelta(seconds=5), description="without a sign of life, after which others take a worker's work over"
    )
    sweep_interval: Annotated[Duration, within(_LEAST)] = Field(
        default=timedelta(seconds=30), description="between a worker's rounds of expiring and deleting"
    )

    @field_validator("server_home")
    @classmethod
    def _home_is_absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _proxies_are_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        # all of them, or a name that is looked up, would let any caller say where it calls from
        return tuple(
            str(ip_network(word.strip())).removesuffix("/32").removesuffix("/128") for word in value.split(",")
        )

    @model_validator(mode="before")
    @classmethod
    def _empty_means_unset(cls, values: object) -> object:
        # compose files pass VARIABLE= for what is not set
        return {key: value for key, value in values.items() if value != ""} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _defaults_lie_in_home(self) -> Self:
        if not self.database_url.get_secret_value():
            object.__setattr__(self, "database_url", SecretStr(f"sqlite:///{self.server_home / 'gramfuse.sqlite'}"))
        if not self.blobs:
            object.__setattr__(self, "blobs", (self.server_home / "blobs").as_uri())
        if self.receipt_key == Path():
            object.__setattr__(self, "receipt_key", self.server_home / "receipt-key.pem")
        if self.scratch == Path():
            object.__setattr__(self, "scratch", self.server_home / "scratch")
        return self

    @model_validator(mode="after")
    def _workers_live_from_one_sign_of_life_to_the_next(self) -> Self:
        if self.worker_lease <= self.heartbeat_interval:
            msg = "GRAMFUSE_WORKER_LEASE must be longer than GRAMFUSE_HEARTBEAT_INTERVAL, or all workers seem dead"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _only_s3_is_reached_directly(self) -> Self:
        if self.direct_transfers and not self.blobs.startswith("s3://"):
            msg = "GRAMFUSE_DIRECT_TRANSFERS needs GRAMFUSE_BLOBS=s3://bucket/prefix: a folder has no signed URLs"
            raise ValueError(msg)
        return self


def make_folder(folder: Path, variable: str) -> None:
    """Make a folder that a setting names, unless it is there.

    Raises:
        ConfigurationError: it cannot be made; the message names the variable that chooses another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"the folder {folder} cannot be made: {error.strerror}; choose another with {variable}"
        raise ConfigurationError(msg) from error


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigurationError: a variable holds what its setting cannot be.
    """
    try:
        return Settings()
    except ValidationError as error:
        named = [
            # what is wrong with several together has no place of its own
            place | {"loc": (f"GRAMFUSE_{place['loc'][0]}".upper(), *place["loc"][1:]) if place["loc"] else ()}
            for place in error.errors()
        ]
        raise ConfigurationError(describe_validation("the environment", named)) from error
