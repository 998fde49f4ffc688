"""The audit's page on a phone: nothing of it is wider than the screen, so that nobody has to scroll sideways."""

from pathlib import Path

from playwright.sync_api import Browser

from gramfuse.auditing.page import write_page
from support.audited import report_of


def test_the_page_of_an_audit_is_as_wide_as_a_phone(browser: Browser, tmp_path: Path) -> None:
    write_page(report_of("bert.encoder.layer.11.attention.output.dense"), tmp_path / "audit.html")
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto((tmp_path / "audit.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()
