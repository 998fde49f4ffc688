"""Pages that refresh themselves: what somebody is at stays where it is, and a page that is no longer live says so."""

import re

import pytest
from playwright.sync_api import Page, expect

NARROW = {"width": 320, "height": 480}
DRAWN = "(canvas) => canvas.toDataURL()"


@pytest.fixture
def overview(operator: Page, played) -> Page:
    """The overview after the merges, whose time the test can hasten."""
    operator.clock.install()
    operator.reload()
    return operator


def refresh(page: Page) -> None:
    """Hasten the page's next refresh, and wait for it."""
    old = page.locator("#content").element_handle()
    page.clock.fast_forward(2_000)
    page.wait_for_function("(old) => !old.isConnected", arg=old)


def test_the_focus_stays_where_it_was(overview, played):
    link = overview.get_by_role("group", name="Projects").get_by_role("link", name=played.project)
    link.focus()
    refresh(overview)
    expect(link).to_be_focused()
    table = overview.get_by_role("group", name="Audit log")
    table.focus()
    refresh(overview)
    expect(table).to_be_focused()


def test_what_is_scrolled_stays_scrolled(overview):
    overview.set_viewport_size(NARROW)
    table = overview.get_by_role("group", name="Throughput")
    places = "(table) => [table.scrollLeft, table.scrollTop, scrollY]"
    table.evaluate("(table) => { table.scrollTo(1000, 100); scrollTo(0, 500); }")
    before = table.evaluate(places)
    assert all(before)
    refresh(overview)
    assert table.evaluate(places) == before


def test_the_chart_stays_while_the_page_refreshes_and_is_drawn_anew_each_minute_and_by_night(overview):
    chart = overview.get_by_role("img", name=re.compile("^Work of the last 24 hours"))
    canvas = chart.locator("canvas")
    expect(canvas).to_be_visible()
    by_day = canvas.evaluate(DRAWN)
    canvas.evaluate("(canvas) => { canvas.id = 'the-same'; }")
    refresh(overview)
    expect(chart.locator("#the-same")).to_be_visible()
    with overview.expect_response("**/throughput.json") as asked:
        overview.clock.fast_forward(60_000)
    assert sum(hour["merges"] for hour in asked.value.json()["hours"]) >= 1
    overview.emulate_media(color_scheme="dark")
    overview.wait_for_function(f"(before) => ({DRAWN})(document.getElementById('the-same')) !== before", arg=by_day)
    listed = overview.get_by_role("group", name="Throughput")
    expect(listed.get_by_role("row")).to_have_count(25)


def test_what_somebody_selects_stays_selected(overview, played):
    overview.get_by_role("link", name=played.merged).first.select_text()
    overview.clock.run_for(6_000)
    assert overview.evaluate("() => String(getSelection())") == played.merged
    overview.evaluate("() => getSelection().removeAllRanges()")
    refresh(overview)


@pytest.mark.parametrize("failure", ["the network", "a proxy"])
def test_a_page_that_gets_no_answer_says_so_until_there_is_one(overview, witness, failure):
    def fail(route) -> None:
        route.fulfill(status=502) if failure == "a proxy" else route.abort()

    stale = overview.get_by_role("status")
    expect(stale).to_be_hidden()
    overview.route("**/dashboard/", fail)
    overview.clock.fast_forward(2_000)
    expect(stale).to_have_text("The server does not answer. What stands here is as old as it says at the bottom.")
    witness.forgive(*(["status of 502", "Status Error Code 502"] if failure == "a proxy" else ["ERR_FAILED", "htmx:"]))
    overview.unroute("**/dashboard/")
    refresh(overview)
    expect(stale).to_be_hidden()
