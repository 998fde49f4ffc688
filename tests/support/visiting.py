"""What a person does at the dashboard: signs in, and goes from page to page."""

from playwright.sync_api import Page


def sign_in(page: Page, token: str) -> None:
    """Sign in by the form."""
    page.goto("sign-in")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Sign out").wait_for()


def go_to(page: Page, name: str) -> None:
    """Go to a page by the links at the top."""
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
    page.get_by_role("heading", level=1, name=name).wait_for()
