"""The whole story of a merge, clicked through by an operator, a coordinator and a participant in browsers of their own.

What can be done at the dashboard is done there; clients accept policies and push contributions.
"""

import re
import threading
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from transformers import BertForSequenceClassification

import gramfuse
from gramfuse_shared.digest import sha256_hex
from support.chromium import Witness, require_accessible
from support.collaboration import gather, measure, tune
from support.deployment import Deployment, Desk, call, paused, wait_until
from support.played import write_base
from support.visiting import go_to, sign_in

ORGANIZATIONS = ("hooli", "umbrella", "wonka")
PROJECT = "hooli.letters"
MOST_DOWNLOADS = 10
"""Of one visit to a page: before another, Chromium asks the person, and there is nobody to ask here."""


def test_three_organizations_are_let_in_merge_and_part_again(open_page, deployment, witness):
    operator, coordinator, participant = open_page(), open_page(), open_page()
    sign_in(operator, deployment.operator_token)
    for name in ORGANIZATIONS:
        deployment.as_operator("PUT", f"/v1/organizations/{name}")
    desks = tuple(
        deployment.new_desk(name, url=deployment.url, token=create_token(operator, name, role))
        for name, role in zip(ORGANIZATIONS, ("coordinator", "participant", "participant"), strict=True)
    )
    hooli, umbrella, wonka = desks
    gather(desks, write_base, name="letters")
    for seed, desk in enumerate(desks, start=1):
        tune(desk, seed=seed)
        measure(desk)
    sign_in(coordinator, hooli.token)
    sign_in(participant, umbrella.token)
    expect(participant.get_by_role("region", name="What waits for you")).to_contain_text(f"Contribute to {PROJECT}")
    go_to(operator, "Overview")
    watch_contributions(operator, deployment, desks)

    submit_merge(coordinator, witness)
    watch_merge(coordinator, operator, participant, deployment, hooli)
    look_at_layers(operator)
    look_at_model(operator)
    change_quota(operator)
    download_model(participant, umbrella.folder / "downloaded", umbrella)
    withdraw(participant)
    coordinator.get_by_role("link", name="its model").click()
    expect(coordinator.get_by_text("Withdrawn since")).to_be_visible()

    search_audit_log(operator)
    revoke_token(operator, wonka.token)
    with pytest.raises(gramfuse.GramfuseError, match="revoked"), wonka.client() as client:
        client.jobs(PROJECT)
    assert call(deployment.url, "GET", "/v1/whoami", hooli.token)["organization"] == "hooli"
    operator.get_by_role("button", name="Sign out").click()
    expect(operator.get_by_role("button", name="Sign in")).to_be_visible()
    operator.goto("tokens")
    expect(operator.get_by_role("button", name="Sign in")).to_be_visible()


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


def submit_merge(page: Page, witness: Witness) -> None:
    """Order a merge of everybody, at the second try: two are fewer than the policy merges."""
    go_to(page, "Projects")
    page.get_by_role("link", name=PROJECT, exact=True).click()
    page.get_by_role("link", name="Merge …").click()
    page.get_by_label("Name of the job").fill("first")
    page.get_by_label("Method").select_option("regmean")
    page.get_by_label("Parameters").fill("alpha: 0.8")
    page.get_by_label("wonka").uncheck()
    page.get_by_role("button", name="Merge").click()
    expect(page.get_by_role("alert")).to_contain_text("at least 3")
    witness.forgive("status of 422")
    require_accessible(page)
    expect(page.get_by_label("Parameters")).to_have_value("alpha: 0.8")
    page.get_by_label("wonka").check()
    page.get_by_role("button", name="Merge").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("first")


def watch_merge(coordinator: Page, operator: Page, participant: Page, deployment: Deployment, desk: Desk) -> None:
    """Follow it from some of its shards to its end; all three see it at once."""
    path = f"/v1/projects/{PROJECT}/jobs/first"
    wait_until(lambda: desk.get(path)["done_tasks"] >= 2, seconds=60, what="two shards", pause=0.005)
    with paused(deployment.workers[0]):
        for page in (operator, participant):
            live = page.get_by_role("region", name="Live jobs")
            expect(live).to_contain_text("regmean of 3: hooli, umbrella, wonka")
            live.get_by_role("link", name="first").click()
        for page in (operator, participant, coordinator):
            expect(page.locator(".head .state")).to_have_text("running")
            progress = page.get_by_role("progressbar", name="Progress of first")
            assert 0 < float(progress.get_attribute("value") or 0) < 1
        expect(coordinator.get_by_role("group", name="Every entry")).to_be_visible()
        require_accessible(coordinator)
    for page in (operator, participant, coordinator):
        expect(page.locator(".head .state")).to_have_text("succeeded")
        expect(page.get_by_role("progressbar")).to_have_count(0)


def look_at_layers(page: Page) -> None:
    """See what the merge did to each, as a map and as a table."""
    gained = page.get_by_role("group", name=re.compile("gained", re.IGNORECASE)).first
    expect(gained.get_by_role("columnheader")).to_have_text(["Layer", *"012345"])
    last = "bert.encoder.layer.5.output.dense.weight"
    expect(gained.get_by_title(last)).to_have_text(re.compile(r"^\d+%$"))
    expect(page.get_by_role("group", name="Every entry")).to_contain_text(last)


def look_at_model(page: Page) -> None:
    """See card and receipt, and no file that an operator could take."""
    page.get_by_role("link", name="its model").click()
    expect(page.get_by_role("region", name="Card")).to_contain_text("Merged from 3 organizations' models")
    expect(page.get_by_role("group", name="Receipt")).to_contain_text('"model": "first"')
    for name in ORGANIZATIONS:
        expect(page.get_by_role("group", name="Merged from")).to_contain_text(name)
    expect(page.get_by_role("group", name="Files").get_by_role("link")).to_have_count(0)


def change_quota(page: Page) -> None:
    """Let the project hold less than by default."""
    page.get_by_role("link", name=PROJECT, exact=True).click()
    page.get_by_role("link", name="Change the quota").click()
    page.get_by_label("as much as this").check()
    page.get_by_label("Amount").fill("1.5")
    page.get_by_label("Unit").select_option("GB")
    page.get_by_role("button", name="Change").click()
    expect(page.get_by_text("of 1.5 GB").first).to_be_visible()


def download_model(page: Page, folder: Path, desk: Desk) -> None:
    """Take every file and the receipt by clicking: what lies in the folder then is verified, and loads."""
    page.get_by_role("link", name="its model").click()
    files = page.get_by_role("group", name="Files")
    links = files.get_by_role("link")
    expect(links.first).to_be_visible()
    for number, link in enumerate([*links.all(), page.get_by_role("link", name="Download it")]):
        if number % MOST_DOWNLOADS == MOST_DOWNLOADS - 1:
            page.reload()
        with page.expect_download() as begun:
            link.click()
        begun.value.save_as(folder / begun.value.suggested_filename)
    for path in folder.iterdir():
        if path.name != "receipt.json":
            row = files.get_by_role("row", name=path.name, exact=False).filter(has_text=sha256_hex(path.read_bytes()))
            expect(row).to_have_count(1)
    assert "verified" in desk.gramfuse("model", "verify", str(folder))
    BertForSequenceClassification.from_pretrained(folder)


def withdraw(page: Page) -> None:
    """Take one's own contribution back, after the question."""
    page.get_by_role("link", name=PROJECT, exact=True).click()
    contributions = page.get_by_role("group", name="Contributions")
    contributions.get_by_role("row", name=re.compile("umbrella")).get_by_role("link").first.click()
    page.get_by_role("link", name="Withdraw …").click()
    expect(page.get_by_text("It cannot be taken back")).to_be_visible()
    require_accessible(page)
    page.get_by_role("button", name="Withdraw").click()
    expect(page.locator(".head .state")).to_have_text("withdrawn")


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
