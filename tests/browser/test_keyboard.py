"""The dashboard by the keyboard alone: Tab, Enter, Space and arrows; what has the focus is always to be seen."""

from typing import Literal

from playwright.sync_api import Page, expect

from support.chromium import require_visible_focus, tab_to
from support.played import OPERATORS_PAGES

STOPS = """() => [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, [tabindex]")]
  .filter((element) => element.checkVisibility()).map((element) => element.outerHTML.slice(0, 160))"""


def choose(page: Page, name: str, *, role: Literal["link", "button"] = "link", key: str = "Enter", **how: bool) -> None:
    """Go to a link or a button and follow it."""
    tab_to(page, page.get_by_role(role, name=name, exact=True).first, **how)
    with page.expect_navigation():
        page.keyboard.press(key)


def test_signing_in_giving_and_taking_a_token_and_leaving_need_no_mouse(open_page, deployment, played):
    page = open_page()
    page.goto("sign-in")
    expect(page.get_by_label("Token")).to_be_focused()
    require_visible_focus(page)
    page.keyboard.type(deployment.operator_token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")

    # a token is given
    choose(page, "Tokens")
    expect(page.get_by_role("heading", level=1)).to_have_text("Tokens")
    tab_to(page, page.get_by_label("Role"))
    page.keyboard.press("ArrowDown")
    expect(page.get_by_label("Role")).to_have_value("coordinator")
    tab_to(page, page.get_by_label("Organization"))
    page.keyboard.type("acme")
    expect(page.get_by_label("Organization")).to_have_value("acme")
    tab_to(page, page.get_by_label("Days"))
    page.keyboard.type("1")
    choose(page, "Create", role="button", key="Space")
    shown = page.get_by_role("group", name="A new token")
    tab_to(page, shown)
    identifier = shown.inner_text().split("_")[1]

    # and taken
    choose(page, "To all tokens")
    choose(page, f"Revoke {identifier}")
    choose(page, "Revoke", role="button")
    expect(page.get_by_role("row", name=identifier)).to_contain_text("revoked")

    choose(page, "Sign out", role="button", backwards=True)
    expect(page.get_by_label("Token")).to_be_focused()


def test_ordering_a_merge_following_it_and_taking_its_model_need_no_mouse(coordinator, played):
    page = coordinator
    choose(page, "Projects")
    choose(page, played.project)
    choose(page, "Merge …")
    tab_to(page, page.get_by_label("Name of the job"))
    page.keyboard.type("by-hand")
    tab_to(page, page.get_by_label("Method"))
    page.keyboard.type("regmean")
    tab_to(page, page.get_by_label("initech"))
    page.keyboard.press("Space")
    expect(page.get_by_label("initech")).not_to_be_checked()
    page.keyboard.press("Space")
    choose(page, "Merge", role="button")
    expect(page.locator(".head .state")).to_have_text("succeeded")
    tab_to(page, page.get_by_role("group", name="Every entry"))
    page.keyboard.press("End")
    page.wait_for_function("() => document.activeElement.scrollTop > 0")
    choose(page, "its model", backwards=True)
    tab_to(page, page.get_by_role("link", name="config.json", exact=True))
    with page.expect_download() as begun:
        page.keyboard.press("Enter")
    assert begun.value.suggested_filename == "config.json"
    tab_to(page, page.get_by_role("group", name="Receipt"))


def test_the_first_stop_leads_past_the_top_to_the_content(operator, played):
    operator.goto(played.address(OPERATORS_PAGES["project"]))
    operator.keyboard.press("Tab")
    skip = operator.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    require_visible_focus(operator)
    operator.keyboard.press("Enter")
    operator.keyboard.press("Tab")
    expect(operator.locator("#content").get_by_role("link", name="Projects")).to_be_focused()


def test_the_stops_are_all_that_can_be_used_in_the_order_that_they_stand_in(operator, played):
    for name in ("overview", "project", "audit log"):
        operator.goto(played.address(OPERATORS_PAGES[name]))
        stops = operator.evaluate(STOPS)
        assert len(stops) > 10
        for stop in stops:
            operator.keyboard.press("Tab")
            require_visible_focus(operator)
            assert operator.evaluate("() => document.activeElement.outerHTML.slice(0, 160)") == stop
