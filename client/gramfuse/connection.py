"""One organization's connection to one server: address, identity, names and pages."""

import difflib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from gramfuse import pinning
from gramfuse.config import Home, Token, require_token
from gramfuse.transfer.transport import Transport
from gramfuse.transfer.uploads import DEFAULT_PARALLEL_PARTS
from gramfuse.transfer.watching import WorkerWatch
from gramfuse_shared.contract.document import Document
from gramfuse_shared.contract.http_api import Page, Project, ServerInfo, WhoAmI
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.errors import (
    ConfigurationError,
    ConflictError,
    NotFoundError,
    ReceiptInvalidError,
    RequestMalformedError,
    RoleRequiredError,
)
from gramfuse_shared.identifiers import IN_WORDS, JOB_PATTERN, PROJECT_PATTERN

if TYPE_CHECKING:
    from gramfuse.trust import Trust

Listed = TypeVar("Listed", bound=Document)


class Connection:
    """What every call of the client rests on.

    Args:
        url: the server; default GRAMFUSE_URL, else the one that `gramfuse login` kept.
        token: the organization's token; default GRAMFUSE_TOKEN, else the kept one.
        home: the client's home; default GRAMFUSE_HOME, else the platform's folder.
        allow_http: permit http:// to another machine than this one.
        parallel: parts on their way at once.
        on_no_worker: told, where what is waited for is a worker's and none of the server's is alive.
        transport: the way to the server, for tests.
        sleep: how to pass the time between two looks.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | Token | None = None,
        *,
        home: Home | str | Path | None = None,
        allow_http: bool | None = None,
        parallel: int = DEFAULT_PARALLEL_PARTS,
        on_no_worker: Callable[[], None] | None = None,
        transport: Transport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.home = home if isinstance(home, Home) else Home(Path(home)) if home else Home.default()
        if transport is None:
            endpoint = self.home.endpoint(url, token, allow_http=allow_http)
            require_token(endpoint)
            transport = Transport(endpoint)
        self._transport = transport
        self._parallel = parallel
        self._on_no_worker = on_no_worker
        self._sleep = sleep
        self._identity: WhoAmI | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r}, token={self._transport.endpoint.token!s})"

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    # --- the server and the caller -----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The server's address."""
        return self._transport.endpoint.url

    def server_info(self, *, receipt_key: str | None = None) -> ServerInfo:
        """Return the server's version and receipt key; pin the key at first use, and follow hand-overs from then on.

        Args:
            receipt_key: the key that the server must have, known by another way; it is pinned in the place of another.

        Raises:
            ConfigurationError: there is no server of ours at the address.
            ReceiptInvalidError: the key is not the given one; or another one is pinned, and did not hand over to it.
        """
        try:
            info = ServerInfo.parse(self._transport.call("GET", "v1/server"))
        except NotFoundError as error:
            msg = (
                f"there is no gramfuse server at {self.url}; give its address alone, such as https://merge.example.org"
            )
            raise ConfigurationError(msg) from error
        former: tuple[str, ...] = ()
        if info.handovers:
            from gramfuse_shared.succession import require_succession  # noqa: PLC0415 - cryptography, see below

            former = require_succession(info.handovers, info.receipt_key)
        if receipt_key is None:
            pinning.pin(self.home, self.url, info.receipt_key, former=former)
        elif receipt_key == info.receipt_key:
            pinning.replace(self.home, self.url, receipt_key, former=former)
        else:
            msg = (
                f"{self.url} presents the receipt key {info.receipt_key}, not the one that you gave; nothing is changed"
            )
            raise ReceiptInvalidError(msg, url=self.url, expected=receipt_key, presented=info.receipt_key)
        return info

    def whoami(self) -> WhoAmI:
        """Return whose token this is; the first call of a home also pins the server's receipt key."""
        if pinning.pinned_key(self.home, self.url) is None:
            self.server_info()
        self._identity = WhoAmI.parse(self._transport.call("GET", "v1/whoami"))
        return self._identity

    @property
    def organization(self) -> str:
        """The organization whose token this is; raises RoleRequiredError for an operator's."""
        identity = self._identity or self.whoami()
        if identity.organization is None:
            msg = "an operator's token belongs to no organization; use a coordinator's or a participant's"
            raise RoleRequiredError(msg)
        return identity.organization

    def _trust(self, project: Project) -> "Trust":
        """Return what the home knows of a project, whatever the server says."""
        from gramfuse.trust import Trust  # noqa: PLC0415 - cryptography takes its time to load

        return Trust.of(self.home, self.url, project.id)

    # --- names and pages ---------------------------------------------------------------------------------------------

    def projects(self) -> list[Project]:
        """List the projects that the caller's organization takes part in."""
        return list(self._pages("v1/projects", Page[Project]))

    def base_manifest(self, project: str) -> BaseManifest:
        """Return the manifest of a project's base model."""
        return BaseManifest.parse(self._transport.call("GET", f"{self._path(project)}/base"))

    def _workers(self) -> WorkerWatch:
        """Begin to wait for what workers do."""
        return WorkerWatch(self._transport, self._on_no_worker)

    def _project(self, identifier: str) -> Project:
        return Project.parse(self._transport.call("GET", f"v1/projects/{identifier}"))

    def _path(self, project: str) -> str:
        return f"v1/projects/{self._resolve(project)}"

    def _job_path(self, project: str, job: str) -> str:
        return f"{self._path(project)}/jobs/{named('job', job, JOB_PATTERN)}"

    def _model_path(self, project: str, model: str) -> str:
        return f"{self._path(project)}/models/{named('model', model, JOB_PATTERN)}"

    def _resolve(self, name: str) -> str:
        """Return a project's full name."""
        if "." in name:
            return named("project", name, PROJECT_PATTERN)
        names = [project.id for project in self.projects()]
        found = [one for one in names if one.partition(".")[2] == name]
        if not found:
            alike = difflib.get_close_matches(name, [one.partition(".")[2] for one in names], n=1)
            meant = f"; did you mean {alike[0]}?" if alike else ""
            msg = f"no project of yours is called {name!r}{meant} (`gramfuse project list` names them all)"
            raise NotFoundError(msg)
        if len(found) > 1:
            msg = f"several projects are called {name!r}: {', '.join(found)}; give the full name"
            raise ConflictError(msg)
        return found[0]

    def _pages(
        self, path: str, page: type[Page[Listed]], query: Mapping[str, str | None] | None = None
    ) -> Iterator[Listed]:
        cursor: str | None = None
        while True:
            answer = page.parse(self._transport.call("GET", path, query={**(query or {}), "cursor": cursor}))
            yield from answer.items
            cursor = answer.next_cursor
            if cursor is None:
                return


def named(what: str, name: str, pattern: str) -> str:
    """Return a name that is safe in a path.

    Raises:
        RequestMalformedError: it is not of the form that such names have.
    """
    if re.fullmatch(pattern, name) is None:
        article = "an" if what[0] in "aeiou" else "a"
        msg = f"{name!r} cannot be the name of {article} {what}; such a name is {IN_WORDS[pattern]}"
        raise RequestMalformedError(msg)
    return name
