"""A real Chromium, and what must never be seen in it: errors, breaches of the content policy, requests to elsewhere."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import axe_playwright_python
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

INSTALL = "the browser tests need a Chromium: apt-get install chromium"
ARGUMENTS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
PATIENCE_MS = 30_000
"""How long a page may take to show what is awaited; a page that refreshes itself does so every ten seconds at most."""
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 800}
_AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
_AXE_RUN = "(rules) => axe.run({ resultTypes: ['violations'], ...(rules && { runOnly: rules }) })"
_FOCUS = """() => {
  const element = document.activeElement, style = getComputedStyle(element), box = element.getBoundingClientRect();
  return {
    element: element.outerHTML.slice(0, 160),
    marked: (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0) || style.boxShadow !== "none",
    seen: box.width > 0 && box.bottom > 0 && box.right > 0 && box.top < innerHeight && box.left < innerWidth,
  };
}"""
_REPORT_BREACHES = """document.addEventListener("securitypolicyviolation", (breach) =>
  console.error(`content policy: ${breach.violatedDirective} forbids ${breach.blockedURI}`));"""


def find_chromium() -> str | None:
    """Return the system's browser, None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium(program: str) -> Iterator[Browser]:
    """Run a browser without a window, on a profile of its own, which knows no address but this machine's."""
    arguments = [*ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=arguments)
        expect.set_options(timeout=PATIENCE_MS)
        yield running
        running.close()


class Witness:
    """Notes whatever a page should not do: write errors, break the content policy, ask another host."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self.faults: list[str] = []

    def watch(self, context: BrowserContext) -> None:
        """Follow every page that the context opens."""
        context.add_init_script(_REPORT_BREACHES)
        context.on("console", lambda message: self._hear(message.type, message.text))
        context.on("weberror", lambda error: self.faults.append(f"uncaught: {error.error}"))
        context.on("request", lambda request: self._follow(request.url))

    def forgive(self, *patterns: str) -> None:
        """Take away the faults of these kinds, of each of which there must be some."""
        for pattern in patterns:
            remaining = [fault for fault in self.faults if not re.search(pattern, fault)]
            assert len(remaining) < len(self.faults), f"nothing like {pattern!r} in {self.faults}"
            self.faults = remaining

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.faults.append(f"console: {text}")

    def _follow(self, url: str) -> None:
        address = urlsplit(url)
        if address.scheme not in ("data", "blob") and address.netloc != self._host:
            self.faults.append(f"request to {url}")


def violations(page: Page, *rules: str) -> list[str]:
    """Have axe look at the page as it is, by all its rules or by some; return what it finds wrong, with the places."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(_AXE)
    found: list[dict[str, Any]] = page.evaluate(_AXE_RUN, rules or None)["violations"]
    return [f"{rule['id']}: {rule['help']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]


def require_accessible(page: Page) -> None:
    """Require that axe finds nothing, by day, by night and on a phone, where nothing may be wider than the screen."""
    seen = page.viewport_size
    found = {}
    for look, scheme, size in (("light", "light", DESK), ("dark", "dark", DESK), ("phone", "light", PHONE)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(size)
        # by night nothing but colours is other than by day
        found[look] = violations(page, *(["color-contrast"] if look == "dark" else []))
        if (wide := page.evaluate("() => document.documentElement.scrollWidth")) > size["width"]:
            found[look].append(f"{wide} pixels wide")
    page.set_viewport_size(seen)
    assert not any(found.values()), found


def tab_to(page: Page, target: Locator, *, backwards: bool = False, most: int = 80) -> int:
    """Press Tab until the target has the focus; require that each stop on the way can be seen. Return how many."""
    for pressed in range(1, most + 1):
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
        require_visible_focus(page)
        if target.evaluate("element => element === document.activeElement"):
            return pressed
    msg = f"{target} was not reached by the keyboard"
    raise AssertionError(msg)


def require_visible_focus(page: Page) -> None:
    """Require that what has the focus is on the screen and marked."""
    focus = page.evaluate(_FOCUS)
    assert focus["seen"], f"has the focus out of sight: {focus['element']}"
    assert focus["marked"], f"has the focus, and nothing shows it: {focus['element']}"
