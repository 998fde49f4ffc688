"""A server with a worker and a Chromium, started once; each test has its pages, and a witness of what they do."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest
from playwright.sync_api import Browser, Page, StorageState

from gramfuse_shared.limits import KIB
from support.chromium import DESK, INSTALL, PATIENCE_MS, Witness, chromium, find_chromium
from support.deployment import Deployment, deployed
from support.played import Played, play
from support.visiting import sign_in

# A merge of a small model is many tasks.
SETTINGS = {"shard_bytes": str(256 * KIB)}

OpenPage = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    program = find_chromium()
    if program is None:
        missing = pytest.fail if os.environ.get("GRAMFUSE_REQUIRE_BROWSER") == "1" else pytest.skip
        missing(INSTALL)
    with chromium(program) as running:
        yield running


@pytest.fixture(scope="session")
def deployment(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server with its API and one worker; not started where there is no browser to look at it."""
    with deployed(tmp_path_factory.mktemp("server"), **SETTINGS) as running:
        running.start_worker()
        yield running


@pytest.fixture(scope="session")
def played(deployment: Deployment) -> Played:
    """What three organizations did on the server before anybody looks: a merge that succeeded, and one that failed."""
    return play(deployment)


@pytest.fixture
def witness(deployment: Deployment) -> Witness:
    """Who notes what pages should not do; a test that provokes an error has it forgiven."""
    return Witness(deployment.url)


@pytest.fixture
def open_page(browser: Browser, deployment: Deployment, witness: Witness) -> Iterator[OpenPage]:
    """Opens a page of a browser that nobody used before; in the end nothing may have gone wrong in any."""
    with ExitStack() as stack:

        def open_one(**options: object) -> Page:
            wanted = {
                "viewport": DESK,
                "reduced_motion": "reduce",
                "base_url": f"{deployment.url}/dashboard/",
            } | options
            context = browser.new_context(**wanted)
            stack.callback(context.close)
            context.set_default_timeout(PATIENCE_MS)
            witness.watch(context)
            return context.new_page()

        yield open_one
    assert not witness.faults


@pytest.fixture(scope="session")
def cookies_of(browser: Browser, deployment: Deployment) -> Callable[[str], StorageState]:
    """Returns what a browser keeps of who signed in with a token; each signs in once."""

    @cache
    def cookies(token: str) -> StorageState:
        context = browser.new_context(base_url=f"{deployment.url}/dashboard/")
        sign_in(context.new_page(), token)
        state = context.storage_state()
        context.close()
        return state

    return cookies


@pytest.fixture
def operator(open_page: OpenPage, deployment: Deployment, cookies_of: Callable[[str], StorageState]) -> Page:
    """A page of an operator who has signed in, at the overview."""
    page = open_page(storage_state=cookies_of(deployment.operator_token))
    page.goto("./")
    return page


@pytest.fixture
def coordinator(open_page: OpenPage, played: Played, cookies_of: Callable[[str], StorageState]) -> Page:
    """A page of the coordinator, who has signed in, at the overview."""
    page = open_page(storage_state=cookies_of(played.collaboration.coordinator.token))
    page.goto("./")
    return page
