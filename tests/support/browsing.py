"""An operator's browser: signs in to the dashboard, and looks at pages without running scripts."""

import re
from typing import Any
from urllib.parse import urljoin

import httpx

from support.server_world import Client, World

HTMX = {"hx-request": "true"}
"""What htmx sends with each of its requests."""


def csrf_of(page: httpx.Response) -> str:
    """The secret of a page's forms."""
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
    assert found, page.text
    return found[1]


def sign_in(world: World, token: str | None = None) -> tuple[Client, httpx.Response]:
    """A browser, signed in unless the token is bad; and the answer to the form."""
    browser = world.client()
    form = {"token": token or world.token(None, "operator"), "csrf": csrf_of(browser.get("/dashboard/sign-in"))}
    return browser, browser.post("/dashboard/sign-in", data=form)


def links_of(page: httpx.Response) -> set[str]:
    """The addresses, as paths, of everything that a page links to, loads, sends forms to or refreshes itself from."""
    found = re.findall(r'\s(?:href|src|action|hx-get)="([^"]*)"', page.text)
    return {
        urljoin(str(page.request.url.raw_path, "ascii"), link.replace("&amp;", "&"))
        for link in found
        if not link.startswith("#")
    }


def require_well_made(page: httpx.Response) -> None:
    """Require what every page keeps to: nothing inline, nothing from elsewhere, a name for all that takes the focus."""
    assert page.status_code == 200, page.text
    assert len(re.findall(r"<h1\b", page.text)) == 1
    assert "unsafe" not in page.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\sstyle=|\son\w+=|https?://", page.text)
    tables: Any = re.findall(r'<div class="table[^"]*"([^>]*)>', page.text)
    for attributes in tables:
        name = re.search(r'tabindex="0" role="group" aria-labelledby="([\w-]+)"', attributes)
        assert name, attributes
        assert f'id="{name[1]}"' in page.text
    identifiers = re.findall(r'\sid="([^"]+)"', page.text)
    assert len(identifiers) == len(set(identifiers))
