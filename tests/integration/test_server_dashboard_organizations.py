"""The operators' page of organizations, and that nobody else has one."""

import re

from support.browsing import require_well_made, sign_in


def cells(page, name):
    """The texts of an organization's row."""
    (row,) = [row for row in re.findall(r"<tr>(.*?)</tr>", page.text, re.DOTALL) if f">{name}</a>" in row]
    return [
        " ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
    ]


def test_operators_see_every_organization_and_who_of_them_has_no_way_in(world):
    for name in ("acme", "newcomer"):
        assert world.operator.put(f"/v1/organizations/{name}").status_code in {200, 201}
    world.token("acme", "coordinator")
    browser, _ = sign_in(world)
    page = browser.get("/dashboard/organizations")
    require_well_made(page)
    assert cells(page, "acme")[1] == "1"
    assert cells(page, "newcomer")[1:5] == ["0", "–", "0", "never"]
    assert 'href="audit?action=&amp;subject=&amp;actor=newcomer"' in page.text


def test_an_empty_server_says_how_an_organization_is_made(world):
    browser, _ = sign_in(world)
    assert "gramfuse-server org create NAME" in browser.get("/dashboard/organizations").text


def test_members_have_no_page_of_organizations(world):
    assert world.operator.put("/v1/organizations/acme").status_code == 201
    token = world.token("acme", "coordinator")
    browser, page = sign_in(world, token)
    assert 'href="organizations"' not in page.text
    assert browser.get("/dashboard/organizations").status_code == 404
