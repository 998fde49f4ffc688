"""Summaries of audits through the real API, SDK, command line and pages: what leaves, when, and what is refused."""

import json
import sys

import httpx
import pytest

from gramfuse.auditing.running import Auditing
from gramfuse.auditing.thresholds import Below, Thresholds
from gramfuse_server import audit_log
from gramfuse_server.database import reading
from gramfuse_server.tables import AuditRow
from gramfuse_shared.contract.audit_summary import AuditSummary
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import AuditRefusedError, NotConfirmedError, PolicyViolationError, TransportError
from gramfuse_shared.reporting.audits import summary_told
from gramfuse_shared.version import __version__
from support.audit_summaries import WARNED, summary
from support.browsing import require_well_made, sign_in
from support.client_models import tap, write_model, write_statistics
from support.client_world import Site
from support.server_world import OPEN_POLICY, make_contribution, problem
from support.shell import Shell

PROJECT = "acme.tweets"
SHARED = OPEN_POLICY.model_copy(update={"audit": "shared"})
SECURE = Policy(aggregation="secure", methods=("linear",), audit="shared")
MEMBERS = ("acme", "globex", "initech")
TAPS = (tap("classifier", "classifier.weight", rows=900, distinct_rows=800),)
"""Few enough rows to warn."""


def begin_shared(world, settings):
    world.project(*MEMBERS, policy=SHARED)
    world.organization("umbrella")


def begin_private(world, settings):
    world.project(*MEMBERS)


def begin_secure(world, settings):
    world.project(*MEMBERS, policy=SECURE)


@pytest.fixture
def shared(begun):
    return begun(begin_shared)[0]


def opened(world, organization="globex", **made):
    """A contribution whose manifest is there and all of whose parts arrived; and its path."""
    project = world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json()
    contribution = make_contribution(project, organization, **made)
    path = f"/v1/projects/{PROJECT}/contributions/{contribution.id}"
    member = world.participant(organization)
    answer = member.put_document(path, contribution.manifest)
    assert answer.status_code == 201, answer.text
    member.put_files(path, answer.json(), contribution.files)
    return contribution, path


# --- the server ------------------------------------------------------------------------------------------------------


def test_a_summary_is_held_replaced_while_open_and_shown_to_members_and_operators(shared):
    contribution, path = opened(shared)
    member = shared.participant("globex")
    before = member.get(path).json()
    assert (before["shares_audit"], before["audit"]) == (True, None)
    for sent in (summary(), summary(), WARNED):
        answer = member.put_document(f"{path}/audit", sent)
        assert (answer.status_code, AuditSummary.model_validate(answer.json()["audit"])) == (200, sent)
    assert member.post(f"{path}/seal").json()["state"] == "sealed"
    wanted = json.loads(WARNED.canonical())
    for reader in (member, shared.participant("initech"), shared.coordinator("acme")):
        assert reader.get(path).json()["audit"] == wanted
        assert reader.get(f"/v1/projects/{PROJECT}/contributions").json()["items"][0]["audit"] == wanted
    for at in (f"projects/{PROJECT}/contributions/{contribution.id}", "contributions"):
        told = shared.operator.get(f"/v1/admin/{at}").json()
        assert told.get("items", [told])[0]["audit"] == wanted
    with reading(shared.services.database) as session:
        audit_log.verify(session)
        rows = session.query(AuditRow).filter_by(organization="globex").order_by(AuditRow.sequence)
        actions = [row.action for row in rows]
    assert actions == [
        "policy.accept",
        "contribution.create",
        *["contribution.audit"] * 2,  # the same again is no other
        "contribution.seal",
    ]


def test_what_a_policy_keeps_at_home_is_refused_by_the_server_too_and_nothing_of_it_is_stored(begun):
    world, _ = begun(begin_private)
    _, path = opened(world)
    member = world.participant("globex")
    refused = problem(member.put_document(f"{path}/audit", WARNED), 422, "policy-violation")
    assert "audit: private" in refused["detail"]
    assert member.post(f"{path}/seal").status_code == 200
    told = member.get(path).json()
    assert (told["shares_audit"], told["audit"]) == (False, None)


def test_the_policy_that_a_contribution_was_made_under_decides_not_a_later_one(shared):
    _, path = opened(shared)
    assert shared.coordinator("acme").put_document(f"/v1/projects/{PROJECT}/policies/2", OPEN_POLICY).status_code == 201
    member = shared.participant("globex")
    problem(member.post(f"{path}/seal"), 409, "audit-missing")
    assert member.put_document(f"{path}/audit", WARNED).status_code == 200
    assert member.post(f"{path}/seal").status_code == 200


def test_only_its_own_organization_says_how_a_contributions_audit_came_out(shared):
    _, path = opened(shared)
    for client in (shared.participant("initech"), shared.coordinator("acme")):
        problem(client.put_document(f"{path}/audit", WARNED), 403, "role-required")
    for client in (shared.coordinator("umbrella"), shared.operator):
        problem(client.put_document(f"{path}/audit", WARNED), 404, "not-found")
    problem(shared.client().put_document(f"{path}/audit", WARNED), 401, "unauthenticated")
    assert shared.participant("globex").get(path).json()["audit"] is None


def test_a_seal_without_a_summary_says_what_to_do_and_the_contribution_stays_open(shared):
    _, path = opened(shared)
    member = shared.participant("globex")
    refused = problem(member.post(f"{path}/seal"), 409, "audit-missing")
    assert "gramfuse contribution push" in refused["detail"]
    assert f"{path}/audit" in refused["detail"]
    assert member.get(path).json()["state"] == "open"
    assert member.put_document(f"{path}/audit", WARNED).status_code == 200
    assert member.post(f"{path}/seal").status_code == 200


@pytest.mark.parametrize("ending", ["sealed", "withdrawn", "expired"])
def test_behind_the_seal_nothing_else_is_said_and_the_same_again_is_the_same(shared, ending):
    _, path = opened(shared)
    member = shared.participant("globex")
    assert member.put_document(f"{path}/audit", WARNED).status_code == 200
    if ending == "expired":
        shared.clock.advance(days=400)
    else:
        assert member.post(f"{path}/{'seal' if ending == 'sealed' else 'withdraw'}").status_code == 200
    assert member.get(path).json()["state"] == ending
    assert member.put_document(f"{path}/audit", WARNED).json()["audit"] == json.loads(WARNED.canonical())
    problem(member.put_document(f"{path}/audit", summary()), 409, "wrong-state")
    assert member.get(path).json()["audit"] == json.loads(WARNED.canonical())


@pytest.mark.parametrize(
    "body",
    ["{}", "[]", '{"gramfuse": "0.1.0", "effort": "all", "texts_given": true, "thresholds": "usual", "auc": 0.9}'],
)
def test_what_is_no_summary_is_refused(shared, body):
    _, path = opened(shared)
    answer = shared.participant("globex").put(
        f"{path}/audit", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422
    assert shared.participant("globex").get(path).json()["audit"] is None


def test_what_is_summed_in_secret_is_accepted_at_its_seal_and_not_without_its_summary(begun):
    world, _ = begun(begin_secure)
    project = world.coordinator("acme").get(f"/v1/projects/{PROJECT}").json()
    contribution = make_contribution(project, "globex", taps=())
    path = f"/v1/projects/{PROJECT}/contributions/{contribution.id}"
    member = world.participant("globex")
    created = member.put_document(path, contribution.manifest).json()
    assert (created["state"], created["files"], created["counts"]) == ("open", [], False)
    problem(member.post(f"{path}/seal"), 409, "audit-missing")
    assert member.put_document(f"{path}/audit", WARNED).json()["state"] == "open"
    sealed = member.post(f"{path}/seal").json()
    assert (sealed["state"], sealed["counts"], sealed["bytes"]) == ("accepted", True, 0)
    assert sealed["sealed_at"] == sealed["decided_at"]
    assert member.post(f"{path}/seal").json() == sealed
    assert world.participant("initech").get(path).json()["audit"] == json.loads(WARNED.canonical())
    assert member.post(f"{path}/withdraw").json()["state"] == "withdrawn"
    problem(member.post(f"{path}/seal"), 409, "wrong-state")


# --- the client ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """What a push takes."""
    return {
        "model": write_model(tmp_path / "tuned", seed=1),
        "statistics": write_statistics(tmp_path / "statistics.safetensors", TAPS),
    }


@pytest.fixture
def create(acme, globex, tmp_path):
    """Creates a project that globex takes part in."""

    def made(**changes) -> str:
        policy = Policy(**({"heads": "shared", "minimum_cohort": 2} | changes))
        with acme.client() as client:
            client.create_project("tweets", base=write_model(tmp_path / "base"), policy=policy)
            client.invite(PROJECT, "globex")
        with globex.client() as client:
            client.accept_policy(PROJECT, client.policy(PROJECT).digest)
        globex.wire.requests.clear()
        return PROJECT

    return made


def audits_sent(site: Site) -> list[str]:
    return [path for method, path in site.wire.requests if method == "PUT" and path.endswith("/audit")]


def test_what_is_sent_is_what_was_shown_and_it_goes_before_the_seal(globex, create, files):
    project, plans = create(audit="shared"), []

    def confirm(plan) -> bool:
        plans.append(plan)
        assert globex.wire.writes() == []
        return True

    with globex.client() as client:
        sent = client.push(project, **files, confirm=confirm)
        listed = client.contributions(project)[0]
    (plan,) = plans
    assert plan.audit == sent.audit == listed.audit
    assert sent.audit.kinds("warn") == ("rows_per_dimension",)
    assert (sent.audit.gramfuse, sent.audit.texts_given) == (__version__, False)
    assert plan.to_json()["audit_summary"] == json.loads(plan.audit.canonical())
    (line,) = [line for line in str(plan).splitlines() if "audit" in line]
    assert line == (
        "Also leaves, for the project's members and the server's operators: "
        f"audit, {summary_told(plan.audit)} (policy: audit = shared)"
    )
    writes = [path.rsplit("/", 1)[-1] for path in globex.wire.writes()]
    assert writes[:2] == [sent.id, "audit"]
    assert writes[-1] == "seal"


def test_of_a_private_audit_nothing_is_sent_or_shown_as_leaving(globex, create, files):
    project, plans = create(), []
    with globex.client() as client:
        sent = client.push(project, **files, confirm=lambda plan: not plans.append(plan))
    assert (sent.shares_audit, sent.audit, plans[0].audit) == (False, None, None)
    assert audits_sent(globex) == []
    assert "audit" not in str(plans[0])
    assert "audit_summary" not in plans[0].to_json()


def test_a_push_without_an_audit_is_refused_where_the_policy_shares_it(globex, create, files):
    project = create(audit="shared")
    with globex.client() as client, pytest.raises(PolicyViolationError, match="auditing=None makes none"):
        client.push(project, **files, confirm=lambda _: True, auditing=None)
    assert globex.wire.writes() == []


def test_what_is_refused_or_declined_sends_nothing_of_its_audit(globex, create, files):
    project = create(audit="shared")
    strict = Auditing(thresholds=Thresholds(rows_per_dimension=Below(warn=2000, refuse=1000)))
    with globex.client() as client:
        with pytest.raises(AuditRefusedError):
            client.push(project, **files, confirm=lambda _: True, auditing=strict)
        with pytest.raises(NotConfirmedError):
            client.push(project, **files, confirm=lambda _: False)
    assert globex.wire.writes() == []


def test_a_push_that_broke_is_resumed_and_says_what_the_audit_of_today_says(globex, create, files):
    project = create(audit="shared")

    def breaks(request: httpx.Request) -> bool:
        return "statistics.safetensors/parts" in request.url.path

    globex.wire.breaks_at = breaks
    with globex.client() as client, pytest.raises(TransportError):
        client.push(project, **files, confirm=lambda _: True)
    globex.wire.breaks_at = lambda _: False
    lenient = Auditing(thresholds=Thresholds(rows_per_dimension=Below(warn=50, refuse=1)))
    with globex.client() as client:
        sent = client.push(project, **files, confirm=lambda _: True, auditing=lenient)
        assert (sent.state, sent.audit.verdict, sent.audit.thresholds) == ("accepted", "pass", "own")
        assert len(audits_sent(globex)) == 2
        again = client.push(project, **files, confirm=lambda _: True)
    assert again.audit == sent.audit  # it is closed: what was said stays said
    assert len(audits_sent(globex)) == 2


def test_before_an_audit_is_made_a_plan_says_that_it_will_leave(globex, create, files):
    project = create(audit="shared")
    with globex.client() as client:
        plan = client.plan(project, **files)
        audited = client.audit(project, **files)
    assert "how the audit comes out, in words (policy: audit = shared)" in str(plan)
    assert plan.to_json()["audit_summary"] is None
    assert audited.plan["audit_summary"]["outcomes"]["rows_per_dimension"] == "warn"
    assert "warned: rows" in audited.plan_told


def test_a_manifest_alone_is_sent_with_its_summary_and_sealed(globex, create, files):
    project = create(aggregation="secure", methods=("linear",), minimum_cohort=3, audit="shared")
    with globex.client() as client:
        sent = client.push(project, **files, confirm=lambda plan: plan.summed)
        assert (sent.state, sent.counts, sent.audit.effort) == ("accepted", True, "bounded")
        assert client.push(project, **files, confirm=lambda _: True).id == sent.id
    assert globex.wire.parts_sent() == []


# --- the command line ------------------------------------------------------------------------------------------------


def test_a_person_reads_what_leaves_of_the_audit_before_it_is_asked(globex, create, files, monkeypatch, capsys):
    project, shell = create(audit="shared"), Shell(globex, monkeypatch, capsys)
    push = ("contribution", "push", project, "--model", str(files["model"]), "--statistics", str(files["statistics"]))
    code, _, err = shell(*push)
    assert code == 3
    assert err.count("Also leaves") == 1
    assert err.index("usual thresholds; warned: rows") < err.index("Send this to")
    assert globex.wire.writes() == []
    planned = shell.json(*push, "--dry-run")["audit_summary"]
    pushed = shell.json(*push, "--yes")
    assert pushed["audit_summary"] == planned
    assert pushed["audit"]["verdict"] == "warn"
    listed = shell.json("contribution", "list", project)
    assert [item["audit"] for item in listed] == [planned]
    assert "1 warning: rows (1 of 6 judged)" in shell("contribution", "list", project)[1]
    policy = shell("project", "policy", project)[1]
    assert "Your contribution says in words, to members and operators, how your audit came out" in policy


def test_where_torch_is_missing_the_summary_says_that_headers_alone_were_read(
    globex, create, files, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "gramfuse.privacy.audit", None)
    monkeypatch.setattr("gramfuse.auditing.running.EXTRAS", {"gramfuse": "collect"})
    project, shell = create(audit="shared"), Shell(globex, monkeypatch, capsys)
    push = ("contribution", "push", project, "--model", str(files["model"]), "--statistics", str(files["statistics"]))
    code, out, _ = shell(*push, "--dry-run")
    assert (code, "headers alone were read, nothing was attacked, without the texts" in out) == (0, True)
    assert shell.json(*push, "--yes")["audit_summary"]["effort"] == "headers"


# --- pages -----------------------------------------------------------------------------------------------------------


def browsers(world):
    """An operator's, its own organization's, and another member's."""
    yield sign_in(world)[0]
    for name in ("globex", "initech"):
        yield sign_in(world, world.token(name, "participant"))[0]


def test_pages_tell_members_and_operators_how_an_audit_came_out(shared):
    contribution, path = opened(shared)
    at = f"/dashboard/contributions/{PROJECT}/{contribution.id}"
    for browser in browsers(shared):
        assert "not sent yet" in browser.get(at).text
    assert shared.participant("globex").put_document(f"{path}/audit", WARNED).status_code == 200
    for browser in browsers(shared):
        page, listed = browser.get(at), browser.get(f"/dashboard/projects/{PROJECT}")
        for found in (page, listed):
            require_well_made(found)
            assert "2 warnings: rows, membership (3 of 6 judged)" in found.text
        assert summary_told(WARNED) in page.text
        assert "word, which nobody can check" in page.text


def test_pages_say_of_a_private_audit_that_it_stays_at_home(begun):
    world, _ = begun(begin_private)
    contribution, _ = opened(world)
    for browser in browsers(world):
        for at in (f"contributions/{PROJECT}/{contribution.id}", f"projects/{PROJECT}"):
            page = browser.get(f"/dashboard/{at}")
            require_well_made(page)
            assert "stays at home" in page.text
