"""The pictures of the documentation: `make screenshots` writes them anew, every other run sees that they could be."""

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page

import gramfuse
from support.checkout import REPOSITORY
from support.chromium import DESK, PHONE
from support.deployment import paused, wait_until
from support.played import MEMBERS_PAGES

FOLDER = Path("docs/screenshots")
NAMES = {"overview-light", "layers-dark", "merge-light", "model-light", "home-phone-dark"}
MOST_BYTES = 150_000
RUNNING = "regmean-3"


@pytest.fixture
def merging(played, deployment) -> Iterator[None]:
    """A merge that stands still between two shards."""
    with played.collaboration.coordinator.client() as client:
        client.submit(played.project, gramfuse.Recipe(merge_method="regmean"), job=RUNNING)
        wait_until(lambda: client.job(played.project, RUNNING).done_tasks >= 4, seconds=60, what="shards", pause=0.005)
        with paused(deployment.workers[0]):
            yield
        client.wait(played.project, RUNNING, timeout=60)


def test_the_main_pages_are_pictured(operator: Page, coordinator: Page, played, merging, tmp_path):
    folder = REPOSITORY / FOLDER if os.environ.get("GRAMFUSE_SCREENSHOTS") else tmp_path
    operator.reload()
    take(operator, folder / "overview-light.png")

    coordinator.goto(played.address(MEMBERS_PAGES["job"]))
    coordinator.emulate_media(color_scheme="dark")
    take(coordinator, folder / "layers-dark.png", top=coordinator.get_by_role("heading", name="Layers"))
    coordinator.goto("./")
    coordinator.set_viewport_size(PHONE)
    take(coordinator, folder / "home-phone-dark.png")
    coordinator.set_viewport_size(DESK)

    coordinator.emulate_media(color_scheme="light")
    coordinator.goto(played.address(MEMBERS_PAGES["order"]))
    take(coordinator, folder / "merge-light.png")
    coordinator.goto(played.address(MEMBERS_PAGES["model"]))
    take(coordinator, folder / "model-light.png")

    pictures = {path.stem: path for path in folder.glob("*.png")}
    assert pictures.keys() == NAMES
    for path in pictures.values():
        assert path.stat().st_size < MOST_BYTES
        with Image.open(path) as picture:
            assert picture.size in {tuple(DESK.values()), tuple(PHONE.values())}
            assert len(picture.getcolors()) > 20


def test_the_documentation_shows_every_picture_and_no_other():
    assert {path.name for path in (REPOSITORY / FOLDER).iterdir()} == {f"{name}.png" for name in NAMES}
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"(screenshots/{name}.png)" in text


def take(page: Page, path: Path, *, top=None) -> None:
    """Write what is on the screen, in as many colours as make no difference."""
    if top is not None:
        top.evaluate("(element) => scrollTo(0, element.getBoundingClientRect().top + scrollY - 16)")
    with Image.open(BytesIO(page.screenshot())) as picture:
        path.parent.mkdir(exist_ok=True)
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
