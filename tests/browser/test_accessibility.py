"""Every page by day, by night and on a phone: axe finds nothing, and nothing is wider than the screen."""

import pytest

from support.chromium import require_accessible
from support.played import MEMBERS_PAGES, OPERATORS_PAGES


# What members are shown of jobs and models is what operators are, and more.
@pytest.mark.parametrize("name", [name for name in OPERATORS_PAGES if name not in ("job", "model")])
def test_an_operators_page_keeps_every_rule_of_accessibility_in_every_look(operator, played, name):
    operator.goto(played.address(OPERATORS_PAGES[name]))
    require_accessible(operator)


@pytest.mark.parametrize("name", MEMBERS_PAGES)
def test_a_members_page_keeps_every_rule_of_accessibility_in_every_look(coordinator, played, name):
    coordinator.goto(played.address(MEMBERS_PAGES[name]))
    require_accessible(coordinator)


def test_so_does_the_sign_in_form_before_and_after_a_wrong_token(open_page, witness):
    page = open_page()
    page.goto("sign-in")
    require_accessible(page)
    page.get_by_label("Token").fill("gf_nonsense")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").wait_for()
    require_accessible(page)
    witness.forgive("status of 401")


def test_so_does_a_page_that_is_not_there(operator, witness):
    operator.goto("projects/acme.nothing")
    operator.get_by_role("link", name="Back to the dashboard").wait_for()
    require_accessible(operator)
    witness.forgive("status of 404")


def test_the_witness_sees_what_it_is_there_for(operator, witness):
    operator.evaluate("""async () => {
        console.error("something");
        setTimeout(() => { throw new Error("nobody catches this") });
        document.body.append(Object.assign(document.createElement("img"), { src: "http://127.0.0.2:9/pixel.png" }));
        document.body.append(Object.assign(document.createElement("script"), { textContent: "alert(1)" }));
        await new Promise((later) => setTimeout(later, 100));
    }""")
    witness.forgive("console: something", "uncaught: .*nobody catches this")
    witness.forgive("img-src forbids http://127.0.0.2", "script-src-elem forbids inline", "Content Security Policy")
    witness.forgive("request to http://127.0.0.2")
