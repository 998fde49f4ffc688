"""An operator's day at the dashboard: tokens, contributions that arrive, a merge that is watched, what it leaves."""

import re
import threading

import pytest
from playwright.sync_api import Page, expect

import gramfuse
from support.chromium import require_accessible
from support.collaboration import gather, measure, tune
from support.deployment import Deployment, Desk, call, paused, wait_until
from support.played import write_base
from support.visiting import go_to, sign_in

ORGANIZATIONS = ("hooli", "umbrella", "wonka")
PROJECT = "hooli.letters"


def test_an_operator_lets_organizations_in_and_watches_their_merge(open_page, deployment):
    page = open_page()
    sign_in(page, deployment.operator_token)
    for name in ORGANIZATIONS:
        deployment.as_operator("PUT", f"/v1/organizations/{name}")
    tokens = [create_token(page, name, "coordinator" if name == "hooli" else "participant") for name in ORGANIZATIONS]
    desks = tuple(
        deployment.new_desk(name, url=deployment.url, token=token)
        for name, token in zip(ORGANIZATIONS, tokens, strict=True)
    )
    gather(desks, write_base, name="letters")
    for seed, desk in enumerate(desks, start=1):
        tune(desk, seed=seed)
        measure(desk)

    go_to(page, "Overview")
    watch_contributions(page, deployment, desks)
    watch_merge(page, deployment, desks[0])
    look_at_layers(page)
    page.get_by_role("link", name="its model").click()
    expect(page.get_by_role("group", name="Card")).to_contain_text("Merged from 3 organizations' models")
    expect(page.get_by_role("group", name="Receipt")).to_contain_text('"model": "first"')
    for name in ORGANIZATIONS:
        expect(page.get_by_role("group", name="Merged from")).to_contain_text(name)

    search_audit_log(page)
    revoke_token(page, tokens[-1])
    with pytest.raises(gramfuse.GramfuseError, match="revoked"), desks[-1].client() as client:
        client.jobs(PROJECT)
    assert call(deployment.url, "GET", "/v1/whoami", tokens[0])["organization"] == "hooli"

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    page.goto("tokens")
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()


def create_token(page: Page, organization: str, role: str) -> str:
    """Create a token, and return what is shown this once."""
    go_to(page, "Tokens")
    page.get_by_label("Role").select_option(role)
    page.get_by_label("Organization").select_option(organization)
    page.get_by_label("Days").fill("7")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_text("It is shown this once")).to_be_visible()
    return page.get_by_role("group", name="A new token").inner_text()


def watch_contributions(page: Page, deployment: Deployment, desks: tuple[Desk, ...]) -> None:
    """See them arrive, wait for the worker, and be accepted, on a page that nobody reloads."""
    newest = page.get_by_role("group", name="Newest contributions")
    with paused(deployment.workers[0]):
        sending = [push(desk) for desk in desks]
        for desk in desks:
            expect(newest.get_by_role("row", name=re.compile(f"{desk.name} .* sealed"))).to_be_visible()
    for desk, thread in zip(desks, sending, strict=True):
        expect(newest.get_by_role("row", name=re.compile(f"{desk.name} .* accepted"))).to_be_visible()
        thread.join()


def push(desk: Desk) -> threading.Thread:
    """Have the organization send its contribution, while somebody looks."""

    def send() -> None:
        files = {"model": desk.folder / "tuned", "statistics": desk.folder / "statistics.safetensors"}
        with desk.client() as client:
            client.push(PROJECT, **files, confirm=lambda _: True)

    sending = threading.Thread(target=send)
    sending.start()
    return sending


def watch_merge(page: Page, deployment: Deployment, coordinator: Desk) -> None:
    """Follow it on its own page, from some of its shards to its end."""
    with coordinator.client() as client:
        client.submit(PROJECT, gramfuse.Recipe(merge_method="regmean"), job="first")
    path = f"/v1/projects/{PROJECT}/jobs/first"
    wait_until(lambda: coordinator.get(path)["done_tasks"] >= 2, seconds=60, what="two shards", pause=0.005)
    state, progress = page.locator(".head .state"), page.get_by_role("progressbar", name="Progress of first")
    with paused(deployment.workers[0]):
        live = page.get_by_role("region", name="Live jobs")
        expect(live).to_contain_text("regmean of 3: hooli, umbrella, wonka")
        live.get_by_role("link", name="first").click()
        expect(state).to_have_text("running")
        assert 0 < float(progress.get_attribute("value") or 0) < 1
        expect(page.get_by_role("group", name="Every entry")).to_be_visible()
        require_accessible(page)
    expect(state).to_have_text("succeeded")
    expect(progress).to_have_count(0)


def look_at_layers(page: Page) -> None:
    """See what the merge did to each, as a map and as a table."""
    gained = page.get_by_role("group", name=re.compile("gained", re.IGNORECASE)).first
    expect(gained.get_by_role("columnheader")).to_have_text(["Layer", *"012345"])
    last = "bert.encoder.layer.5.output.dense.weight"
    expect(gained.get_by_title(last)).to_have_text(re.compile(r"^\d+%$"))
    expect(page.get_by_role("group", name="Every entry")).to_contain_text(last)


def search_audit_log(page: Page) -> None:
    """Find the one row that says that the model was published."""
    go_to(page, "Audit log")
    page.get_by_label("Action").fill("model.publish")
    page.get_by_label("Subject").fill(PROJECT)
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("row")).to_have_count(2)
    expect(page.get_by_role("row").last).to_contain_text(f"{PROJECT}/first")
    page.get_by_role("link", name="Show all").click()
    expect(page.get_by_label("Action")).to_have_value("")


def revoke_token(page: Page, token: str) -> None:
    """Revoke a token that is not needed any more, after the question."""
    identifier = token.split("_")[1]
    go_to(page, "Tokens")
    page.get_by_role("link", name=f"Revoke {identifier}").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Revoke {identifier}?")
    require_accessible(page)
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("row", name=identifier)).to_contain_text("revoked")
