"""Many requests at once: how many are computed, and who is answered meanwhile."""

import threading
from collections.abc import Callable

import anyio
import httpx
import pytest
from fastapi import FastAPI

from gramfuse_server.app import create_app
from gramfuse_shared import limits
from gramfuse_shared.digest import format_content_digest, sha256_hex
from support.server_world import make_base

THREADS = 2
WAITING = 6


@pytest.fixture
def settings(settings):
    """Few threads, so that few requests fill them."""
    return settings.model_copy(update={"request_threads": THREADS, "part_bytes": 64 * limits.KIB})


class Gate:
    """Holds whoever comes until it is opened, and counts how many it held at once."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._counting = threading.Lock()
        self.held = self.most = 0

    def pass_through(self) -> None:
        with self._counting:
            self.held += 1
            self.most = max(self.most, self.held)
        self._open.wait(20)
        with self._counting:
            self.held -= 1

    def open(self) -> None:
        self._open.set()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in threads
            await anyio.sleep(0.01)


def client(app: FastAPI, token: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server", headers=headers)


def test_more_requests_than_threads_wait_and_health_is_answered_at_once(world, settings):
    gate = Gate()

    def clock():
        gate.pass_through()  # everybody who is authenticated asks for the time, in a thread
        return world.clock()

    app, token = create_app(settings, clock=clock), world.token(None, "operator")

    async def play() -> list[int]:
        statuses: list[int] = []
        async with app.router.lifespan_context(app), client(app, token) as browser, anyio.create_task_group() as tasks:

            async def ask() -> None:
                statuses.append((await browser.get("/v1/whoami")).status_code)

            for _ in range(WAITING):
                tasks.start_soon(ask)
            await until(lambda: gate.held == THREADS)
            with anyio.fail_after(5):
                assert (await browser.get("/healthz")).status_code == 200
            assert statuses == []
            gate.open()
        return statuses

    assert anyio.run(play) == [200] * WAITING
    assert gate.most == THREADS


def test_parts_on_their_way_to_a_slow_store_hold_up_nobody_else(world, settings, monkeypatch):
    coordinator = world.organization("acme")
    base, path = make_base(), "/v1/projects/acme.tweets"
    body = {"base": base.manifest.model_dump(mode="json"), "policy": {}}
    assert coordinator.put(path, json=body).status_code == 201
    app, token, gate = create_app(settings, clock=world.clock), world.token("acme", "coordinator"), Gate()
    put = type(app.state.services.blobs).put

    def put_slowly(*given: object) -> bool:
        gate.pass_through()
        return put(*given)

    monkeypatch.setattr(type(app.state.services.blobs), "put", put_slowly)

    async def play() -> list[int]:
        statuses: list[int] = []
        async with app.router.lifespan_context(app), client(app, token) as browser, anyio.create_task_group() as tasks:

            async def send(name: str, content: bytes) -> None:
                digest = {"content-digest": format_content_digest(sha256_hex(content))}
                sent = await browser.put(f"{path}/base/files/{name}/parts/0", content=content, headers=digest)
                statuses.append(sent.status_code)

            for name, content in base.files.items():
                tasks.start_soon(send, name, content)
            await until(lambda: gate.held == len(base.files) > THREADS)
            with anyio.fail_after(5):
                assert (await browser.get(path)).status_code == 200
            gate.open()
        return statuses

    assert anyio.run(play) == [201, 201, 201]
