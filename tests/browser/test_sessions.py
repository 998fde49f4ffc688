"""What a person sees who may not go on: a wrong token, a session that is over, a form of another session."""

import sqlite3
from contextlib import closing

import pytest
from playwright.sync_api import expect

from support.deployment import call
from support.visiting import sign_in


def operator_token(deployment) -> str:
    return deployment.as_operator("POST", "/v1/tokens", {"role": "operator"})["token"]


def id_of(token: str) -> str:
    return token.split("_")[1]


def revoke(deployment, token: str) -> None:
    deployment.as_operator("POST", f"/v1/tokens/{id_of(token)}/revoke")


def outlive(deployment, token: str) -> None:
    """Have the hours pass that a session lives: the server's clock cannot be moved, its table can."""
    with closing(sqlite3.connect(deployment.folder / "server" / "gramfuse.sqlite", timeout=30)) as database, database:
        changed = database.execute(
            "UPDATE dashboard_sessions SET expires_at = '2020-01-01 00:00:00.000000' WHERE token = ?", [id_of(token)]
        )
        assert changed.rowcount == 1


@pytest.mark.parametrize("end", [revoke, outlive])
def test_who_is_signed_in_no_more_is_told_so_at_the_next_click(open_page, deployment, end):
    token = operator_token(deployment)
    page = open_page()
    sign_in(page, token)
    page.get_by_role("link", name="Tokens").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tokens")
    end(deployment, token)
    page.get_by_role("link", name="Projects").click()
    expect(page.get_by_role("alert")).to_have_text("Your session has ended. Please sign in again.")
    page.reload()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_page_that_refreshes_itself_turns_to_the_form_when_the_session_ends(open_page, deployment):
    token = operator_token(deployment)
    page = open_page()
    sign_in(page, token)
    revoke(deployment, token)
    expect(page.get_by_role("alert")).to_have_text("Your session has ended. Please sign in again.")
    expect(page.get_by_label("Token")).to_be_focused()


def test_a_wrong_token_is_told_and_the_next_one_lets_in(open_page, deployment, witness):
    page = open_page()
    page.goto("sign-in")
    page.get_by_label("Token").fill(deployment.operator_token[:-1] + "x")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("unknown, expired or revoked")
    expect(page.get_by_label("Token")).to_be_focused()
    witness.forgive("status of 401")
    page.keyboard.type(deployment.operator_token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")


def test_a_form_that_outlived_its_session_creates_no_token_and_says_what_to_do(open_page, deployment, witness):
    forgotten = open_page()
    sign_in(forgotten, deployment.operator_token)
    forgotten.goto("tokens")
    other = forgotten.context.new_page()
    other.goto("./")
    other.get_by_role("button", name="Sign out").click()
    sign_in(other, deployment.operator_token)
    before = deployment.as_operator("GET", "/v1/tokens")["items"]
    forgotten.get_by_label("Role").select_option("operator")
    forgotten.get_by_role("button", name="Create").click()
    expect(forgotten.get_by_text("reload the page and try again")).to_be_visible()
    witness.forgive("status of 403")
    assert deployment.as_operator("GET", "/v1/tokens")["items"] == before
    forgotten.get_by_role("link", name="Back to the dashboard").click()
    expect(forgotten.get_by_role("heading", level=1)).to_have_text("Overview")


def test_of_two_sign_in_forms_the_older_one_works_at_the_second_try(open_page, deployment, witness):
    older = open_page()
    older.goto("sign-in")
    older.context.new_page().goto("sign-in")
    older.get_by_label("Token").fill(deployment.operator_token)
    older.get_by_role("button", name="Sign in").click()
    expect(older.get_by_role("alert")).to_have_text("This form has expired. Please try again.")
    witness.forgive("status of 403")
    older.get_by_label("Token").fill(deployment.operator_token)
    older.get_by_role("button", name="Sign in").click()
    expect(older.get_by_role("heading", level=1)).to_have_text("Overview")


def test_nothing_of_a_page_is_left_to_go_back_to_after_signing_out(open_page, deployment):
    page = open_page()
    sign_in(page, deployment.operator_token)
    page.get_by_role("link", name="Tokens").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    assert call(deployment.url, "GET", "/v1/whoami", deployment.operator_token)["role"] == "operator"
