"""Organizations' machines for the client's integration tests: the SDK, its home, and a wire that can break."""

from collections.abc import Callable
from pathlib import Path

import httpx

from gramfuse.config import Endpoint, Home, Token
from gramfuse.participation import Client
from gramfuse.transfer.retrying import RetryRule
from gramfuse.transfer.transport import Transport
from support.identities import keep_identity
from support.server_world import AppTransport, World

URL = "http://127.0.0.1:1"


class Wire(httpx.BaseTransport):
    """The way to the app: writes down every request, and breaks where it is told to."""

    def __init__(self, world: World) -> None:
        self.connect(world)
        self.requests: list[tuple[str, str]] = []
        self.breaks_at: Callable[[httpx.Request], bool] = lambda _: False

    def connect(self, world: World) -> None:
        """Go to another process of the same server from now on."""
        self._app = AppTransport(world.app, world.portal, "127.0.0.1")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.breaks_at(request):
            raise httpx.ReadError("connection reset")
        self.requests.append((request.method, request.url.path))
        return self.send(request)

    def send(self, request: httpx.Request) -> httpx.Response:
        answer = self._app.handle_request(request)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))

    def parts_sent(self) -> list[str]:
        return [path for method, path in self.requests if method == "PUT" and "/parts/" in path]

    def writes(self) -> list[str]:
        return [path for method, path in self.requests if method != "GET"]


class Site:
    """One organization's machine."""

    def __init__(self, world: World, organization: str, role: str, folder: Path) -> None:
        self.wire = Wire(world)
        self.organization = organization
        self.home = Home(folder / f"home-{organization}-{role}")
        keep_identity(organization, self.home.path)
        world.operator.put(f"/v1/organizations/{organization}")
        self.token = world.token(organization, role)
        self.world = world

    def client(self, *, attempts: int = 1, token: str | None = None, wire: httpx.BaseTransport | None = None) -> Client:
        endpoint = Endpoint(URL, Token(token or self.token), allow_http=False)
        transport = Transport(
            endpoint, connection=wire or self.wire, retry=RetryRule(attempts=attempts), sleep=lambda _: None
        )
        return Client(home=self.home, transport=transport, parallel=1, sleep=self._let_the_worker_work)

    def _let_the_worker_work(self, _seconds: float) -> None:
        """Waiting is when the worker works; here it accepts whatever was sealed."""
        client = self.world.coordinator(self.organization)
        for project in client.get("/v1/projects").json()["items"]:
            if project["state"] == "sealed":
                self.world.accept_base(project["id"])
            sealed = client.get(f"/v1/projects/{project['id']}/contributions", params={"state": "sealed"})
            for contribution in sealed.json()["items"]:
                self.world.accept_contribution(contribution["id"])
