"""Where things lie on pages: what belongs together is in line, and nothing that matters is cut off."""

from playwright.sync_api import Page

from support.chromium import DESK, PHONE
from support.played import MEMBERS_PAGES

COLUMNS = """() => [...document.querySelectorAll(".heat")].map((map) => ({
  first: map.querySelectorAll("thead th")[1].getBoundingClientRect().left - map.getBoundingClientRect().left,
  widths: [...map.querySelectorAll("thead th")].slice(1).map((cell) => cell.getBoundingClientRect().width),
}))"""
CUT = """() => [...document.querySelectorAll(".table:not(.heat, .markdown *)")]
  .filter((table) => table.scrollWidth > table.clientWidth + 1).map((table) => table.getAttribute("aria-labelledby"))"""


def test_the_columns_of_all_heat_maps_are_in_line_and_no_wider_than_their_figures_need(coordinator: Page, played):
    coordinator.goto(played.address(MEMBERS_PAGES["job"]))
    maps = coordinator.evaluate(COLUMNS)
    assert len(maps) == 4
    assert max(found["first"] for found in maps) - min(found["first"] for found in maps) < 1
    widths = [width for found in maps for width in found["widths"]]
    assert max(widths) - min(widths) < 1
    assert max(widths) < 100


def test_no_table_of_a_member_is_cut_off_at_a_desk_or_on_a_phone(coordinator: Page, played):
    for size in (DESK, PHONE):
        coordinator.set_viewport_size(size)
        for name in ("project", "contribution", "request", "job", "model"):
            coordinator.goto(played.address(MEMBERS_PAGES[name]))
            assert coordinator.evaluate(CUT) == [], (name, size)
