"""What ends for good: a deleted project, members who leave or are removed; what stays of them, and what must not."""

import threading

import pytest
from sqlalchemy import select

from gramfuse_server import audit_log
from gramfuse_server.api import projects as project_routes
from gramfuse_server.cli import main
from gramfuse_server.database import reading, transaction
from gramfuse_server.ending import delete_project
from gramfuse_server.intake.projects import project_documents
from gramfuse_server.intake.uploads import lock_upload
from gramfuse_server.operations.projects import find_project
from gramfuse_server.sweeping import delete_spent_bytes
from gramfuse_server.tables import (
    AcceptanceRow,
    AskedRow,
    AuditRow,
    BlobRow,
    ContributionRow,
    ModelRow,
    ParticipantRow,
    ProjectRow,
    UploadRow,
)
from gramfuse_server.verifying.inventory import take_inventory
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.signatures import public_key
from support.answers import give, send
from support.audit_summaries import WARNED
from support.identities import signed_acceptance
from support.questions import ask, begin_merged, evaluation, statistics
from support.secure_sessions import identity_of
from support.server_world import OPEN_POLICY, make_base, problem
from support.worker_world import MEMBERS, InProcessWorker, contribute

PROJECT = "acme.tweets"
PATH = f"/v1/projects/{PROJECT}"
LINEAR = {"recipe": {"merge_method": "linear"}}
FROZEN = Policy(minimum_cohort=2, minimum_rows_per_dimension=1.0)


@pytest.fixture
def merged(begun):
    """A project with the model `first`, whose policy allows requests; and a worker."""
    world, settings = begun(begin_merged)
    return world, InProcessWorker(world, settings)


def end(world, *, by=None, status=200):
    answer = (by or world.coordinator("acme")).delete(PATH)
    assert answer.status_code == status, answer.text
    return answer.json()


def leave(world, member, *, by=None, joined=True):
    query = {"joined": "true"} if joined else {}
    return (by or world.participant(member)).delete(f"{PATH}/participants/{member}", params=query)


def submit(world, job="first"):
    answer = world.coordinator("acme").put(f"{PATH}/jobs/{job}", json=LINEAR)
    assert answer.status_code == 201, answer.text


def own(world, member):
    found = world.coordinator("acme").get(f"{PATH}/contributions", params={"organization": member})
    return found.json()["items"][0]["id"]


def sweep(world):
    delete_spent_bytes(world.services.database, world.services.blobs, world.clock())


def actions(world):
    with reading(world.services.database) as session:
        audit_log.verify(session)
        return [row.action for row in session.scalars(select(AuditRow).order_by(AuditRow.sequence))]


# --- deleting a project ----------------------------------------------------------------------------------------------


def test_of_a_deleted_project_everything_that_was_signed_can_be_read_and_nothing_be_changed(merged):
    world, _ = merged
    ask(world)
    coordinator, member = world.coordinator("acme"), world.participant("globex")
    before = member.get(f"{PATH}/models/first").json()
    policy = member.get(f"{PATH}/policies/2").json()
    given, _ = statistics(world, "globex", "gram-1")
    assert ask(world, "gram-1", kind="gram").status_code == 201
    mine = own(world, "globex")
    deleted = end(world)
    shown = member.get(PATH).json()
    assert shown == deleted
    assert (shown["state"], shown["reason"], shown["deleted_at"] is None) == (
        "rejected",
        "the project was deleted",
        False,
    )
    assert [each["deleted_at"] for each in member.get("/v1/projects").json()["items"]] == [shown["deleted_at"]]
    assert member.get(f"{PATH}/models/first").json()["receipt"] == before["receipt"]
    assert member.get(f"{PATH}/policies/2").json() == policy
    assert member.get(f"{PATH}/contributions/{mine}").json()["state"] == "withdrawn"
    assert {each["state"] for each in member.get(f"{PATH}/requests").json()["items"]} == {"cancelled"}
    assert member.get(f"{PATH}/base").status_code == 200
    problem(member.get(f"{PATH}/models/first/files/README.md"), 404, "not-found")
    base = {
        "base": make_base().manifest.model_dump(mode="json"),
        "policy": OPEN_POLICY.model_dump(mode="json"),
    }
    changes = [
        coordinator.put(PATH, json=base),
        coordinator.post(f"{PATH}/base/seal"),
        coordinator.put_part(f"{PATH}/base/files/config.json", 0, b"{}"),
        member.get(f"{PATH}/base/files/config.json"),
        coordinator.put(f"{PATH}/participants/globex"),
        coordinator.delete(f"{PATH}/participants/globex"),
        coordinator.delete(f"{PATH}/participants/globex/identity"),
        leave(world, "globex"),
        coordinator.put(f"{PATH}/policies/3", json=OPEN_POLICY.model_dump(mode="json")),
        world.accept_policy(PROJECT, "globex"),
        member.put_part(f"{PATH}/contributions/{mine}/files/weights.safetensors", 0, b"x"),
        member.put_document(f"{PATH}/contributions/{mine}/audit", WARNED),
        member.post(f"{PATH}/contributions/{mine}/seal"),
        member.post(f"{PATH}/contributions/{mine}/withdraw"),
        coordinator.put(f"{PATH}/jobs/second", json=LINEAR),
        coordinator.post(f"{PATH}/jobs/first/retry"),
        coordinator.post(f"{PATH}/jobs/first/cancel"),
        coordinator.delete(f"{PATH}/models/first"),
        ask_again(coordinator),
        coordinator.post(f"{PATH}/requests/eval-1/cancel"),
        give(world, evaluation(world, "globex")),
        give(world, given),
        world.operator.put(f"/v1/admin/projects/{PROJECT}/quota", json={"bytes": 10**9}),
        world.operator.put(f"/v1/admin/projects/{PROJECT}/jobs/first/priority", json={"priority": "high"}),
    ]
    for answer in changes:
        told = problem(answer, 409, "wrong-state")
        assert told["facts"] == {"state": "deleted"}, told
        assert "was deleted on" in told["detail"]


def ask_again(coordinator):
    return coordinator.put(f"{PATH}/requests/eval-2", json={"kind": "evaluate", "models": ["first"]})


def test_who_sends_a_contribution_to_a_deleted_project_is_told_so(world):
    project = world.project(*MEMBERS)
    end(world)
    made = world.participant("globex").get(PATH).json()
    assert made["base"] == project["base"]
    with pytest.raises(AssertionError, match="was deleted on"):
        world.contribute(project, "globex")


def test_twice_is_once_and_only_the_coordinator_and_operators_delete(ready):
    world, _ = ready
    world.organization("umbrella")
    problem(world.participant("acme").delete(PATH), 403, "role-required")
    problem(world.coordinator("globex").delete(PATH), 403, "role-required")
    problem(world.coordinator("umbrella").delete(PATH), 404, "not-found")
    problem(world.operator.delete(PATH), 404, "not-found")
    problem(world.coordinator("acme").delete(f"/v1/admin{PATH.removeprefix('/v1')}"), 403, "role-required")
    first = world.operator.delete(f"/v1/admin/projects/{PROJECT}").json()
    assert first["deleted_at"] is not None
    assert end(world)["deleted_at"] == first["deleted_at"]
    assert actions(world).count("project.delete") == 1
    (entry,) = world.operator.get("/v1/admin/audit-log?action=project.delete").json()["items"]
    assert (entry["organization"], entry["subject"], len(entry["details"]["contributions"])) == (None, PROJECT, 3)
    overview = world.operator.get("/v1/admin/overview").json()
    assert (overview["projects"], overview["contributions"]) == (0, {"withdrawn": 3})


def test_all_bytes_of_a_deleted_project_go_models_with_the_next_sweep_and_the_rest_after_the_delay(merged):
    world, worker = merged
    ask(world, "gram-1", kind="gram")
    given, file = statistics(world, "globex", "gram-1")
    send(world, given, file)
    assert worker.inspect_all() == ["accepted"]
    project = world.coordinator("acme").get(PATH).json()
    world.clock.advance(hours=1)
    opened = contribute(world, project, "initech", 9)
    end(world)
    assert worker.inspect_all() == []  # what was sealed is withdrawn

    def lost():
        with reading(world.services.database) as session:
            found = take_inventory(session, world.services.blobs, digests=True)
            named = len(list(session.scalars(select(BlobRow.sha256))))
        assert found.losses == ()
        return named

    held = lost()
    sweep(world)
    assert 0 < lost() < held  # the model's own files
    assert world.participant("globex").get(PATH).json()["bytes"] > 0
    world.clock.advance(hours=25)
    sweep(world)
    assert lost() == 0
    assert world.stored_keys() == set()
    told = world.participant("globex").get(PATH).json()
    assert told["bytes"] == 0
    assert opened.id in {
        item["id"] for item in world.participant("initech").get(f"{PATH}/contributions").json()["items"]
    }


def test_a_base_that_another_project_has_too_stays_there(world, settings):
    worker = InProcessWorker(world, settings)
    world.project("acme", "globex")
    world.project("initech", "globex")
    end(world)
    world.clock.advance(hours=25)
    sweep(world)
    assert worker.inspect_all() == []
    content = world.participant("globex").get("/v1/projects/initech.tweets/base/files/model.safetensors")
    assert content.content == make_base().files["model.safetensors"]


@pytest.mark.parametrize("state", ["open", "sealed"])
def test_a_project_whose_base_never_arrived_or_is_being_checked_is_deleted_all_the_same(world, settings, state):
    worker = InProcessWorker(world, settings)
    project, base = world.project("acme", ready=False), make_base()
    coordinator = world.coordinator("acme")
    coordinator.put_files(f"{PATH}/base", project, base.files)
    if state == "sealed":
        assert coordinator.post(f"{PATH}/base/seal").status_code == 200
    with reading(world.services.database) as session:
        upload = session.get_one(ProjectRow, PROJECT).base_upload
    end(world)
    assert worker.inspector.inspect(upload) is None
    world.clock.advance(hours=25)
    sweep(world)
    assert world.stored_keys() == set()


def test_a_job_that_runs_while_its_project_is_deleted_never_publishes(ready):
    world, worker = ready
    submit(world)
    attempt = worker.attempt(PROJECT, "first")
    assert worker.merger.plan(attempt, shard_bytes=worker.shard_bytes) == 1
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    end(world)
    assert not worker.merger.publish(attempt, shard_bytes=worker.shard_bytes)
    job = world.coordinator("acme").get(f"{PATH}/jobs/first").json()
    assert job["state"] == "cancelled"
    log = world.coordinator("acme").get(f"{PATH}/jobs/first/log").json()["items"]
    assert log[-1]["message"] == "cancelled: the project was deleted"
    world.clock.advance(hours=25)
    sweep(world)
    assert world.stored_keys() == set()


@pytest.mark.parametrize("head_start", [0.0, 0.01, 0.05])
def test_whether_a_model_is_published_just_before_or_not_none_is_left_of_a_deleted_project(ready, head_start):
    world, worker = ready
    submit(world)
    attempt = worker.attempt(PROJECT, "first")
    worker.merger.plan(attempt, shard_bytes=worker.shard_bytes)
    worker.merger.execute(attempt, 0, shard_bytes=worker.shard_bytes)
    published = []
    thread = threading.Thread(
        target=lambda: published.append(worker.merger.publish(attempt, shard_bytes=worker.shard_bytes))
    )
    thread.start()
    threading.Event().wait(head_start)
    end(world)
    thread.join(30)
    assert published in ([True], [False])
    with reading(world.services.database) as session:
        models = list(session.scalars(select(ModelRow)))
    assert len(models) == published[0]
    assert all(model.deleted_at is not None for model in models)
    state = world.coordinator("acme").get(f"{PATH}/jobs/first").json()["state"]
    assert state == ("succeeded" if published[0] else "cancelled")
    world.clock.advance(hours=25)
    sweep(world)
    assert world.stored_keys() == set()


@pytest.mark.parametrize("act", [end, lambda world: leave(world, "initech")])
def test_an_inspection_that_ends_meanwhile_and_notes_it_is_waited_for_and_waits_for_nobody(ready, act):
    """It holds an upload and then the audit log's end; whoever withdraws several must not hold them the other way."""
    world, worker = ready
    world.clock.advance(hours=1)
    project = world.coordinator("acme").get(PATH).json()
    newest = [contribute(world, project, "initech", 20 + number, generation=2 + number).id for number in range(2)]
    world.coordinator("acme"), world.participant("initech")
    thread = threading.Thread(target=lambda: act(world))
    with transaction(world.services.database) as session:
        row = lock_upload(session, session.get_one(ContributionRow, newest[-1]).upload)
        thread.start()
        threading.Event().wait(0.5)
        row.state, row.decided_at = "accepted", world.clock()
        audit_log.append(
            session, at=world.clock(), organization=None, token=None, action="contribution.accept", subject=PROJECT
        )
    thread.join(30)
    assert not thread.is_alive()
    assert actions(world)[-1] in {"project.delete", "project.leave"}
    with reading(world.services.database) as session:
        query = select(UploadRow.state).join(ContributionRow, ContributionRow.upload == UploadRow.id)
        assert set(session.scalars(query.where(ContributionRow.organization == "initech"))) == {"withdrawn"}
    assert worker.inspect_all() == []


def test_who_runs_the_server_deletes_a_project_at_its_shell(ready, ready_settings, monkeypatch, capsys):
    world, _ = ready
    monkeypatch.setenv("GRAMFUSE_SERVER_HOME", str(ready_settings.server_home))
    monkeypatch.setenv("GRAMFUSE_DATABASE_URL", ready_settings.database_url.get_secret_value())
    assert main(["project", "delete", "acme.twets", "--yes"]) == 1
    assert "there is no project acme.twets" in capsys.readouterr().err
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert main(["project", "delete", PROJECT]) != 0
    assert "acme.tweets stays" in capsys.readouterr().err
    assert world.coordinator("acme").get(PATH).json()["deleted_at"] is None
    for _ in range(2):
        assert main(["project", "delete", PROJECT, "--yes"]) == 0
        assert capsys.readouterr().out == "acme.tweets is deleted\n"
    (entry,) = world.operator.get("/v1/admin/audit-log?action=project.delete").json()["items"]
    assert entry["details"]["by"] == "shell"
    assert main(["verify"]) == 0


def test_a_client_of_before_still_reads_the_list_in_which_a_deleted_project_stands(world):
    """It knows four states, and passes over keys that it does not know."""
    world.project("acme", "globex")
    end(world)
    (shown,) = world.participant("globex").get("/v1/projects").json()["items"]
    assert shown["state"] in {"open", "sealed", "ready", "rejected"}


# --- leaving, and being removed --------------------------------------------------------------------------------------


def test_who_leaves_takes_along_what_it_gave_and_sees_nothing_more_while_what_it_signed_stays(ready):
    world, _ = ready
    submit(world)
    mine = own(world, "globex")
    left = leave(world, "globex")
    assert left.status_code == 200
    assert [member["organization"] for member in left.json()["participants"]] == ["acme", "initech"]
    problem(world.participant("globex").get(PATH), 404, "not-found")
    problem(leave(world, "globex"), 404, "not-found")
    coordinator = world.coordinator("acme")
    assert coordinator.get(f"{PATH}/contributions/{mine}").json()["state"] == "withdrawn"
    assert coordinator.get(f"{PATH}/jobs/first").json()["state"] == "cancelled"
    assert coordinator.get(PATH).json()["deleted_at"] is None
    with reading(world.services.database) as session:
        signed = session.scalars(select(AcceptanceRow.organization).where(AcceptanceRow.organization == "globex"))
        assert len(list(signed)) == 1
    assert actions(world)[-2:] == ["contribution.withdraw", "project.leave"]
    world.clock.advance(hours=25)
    sweep(world)
    with reading(world.services.database) as session:
        kept = take_inventory(session, world.services.blobs, digests=True)
    assert (kept.losses, kept.unnamed) == ((), 0)


def test_the_coordinator_removes_anybody_but_itself_and_members_nobody_but_themselves(ready):
    world, _ = ready
    coordinator = world.coordinator("acme")
    problem(leave(world, "acme", by=coordinator), 409, "wrong-state")
    problem(leave(world, "initech", by=world.coordinator("globex")), 403, "role-required")
    problem(leave(world, "initech", by=coordinator, joined=False), 409, "wrong-state")
    problem(leave(world, "globex", joined=False), 409, "wrong-state")
    for _ in range(2):
        assert leave(world, "initech", by=coordinator).status_code == 200
    problem(world.participant("initech").get(PATH), 404, "not-found")
    assert actions(world).count("project.remove") == 1
    (entry,) = world.operator.get("/v1/admin/audit-log?action=project.remove").json()["items"]
    assert (entry["organization"], entry["details"]["organization"]) == ("acme", "initech")
    assert len(entry["details"]["contributions"]) == 1


def test_who_was_invited_and_does_not_want_to_join_leaves_too(world):
    world.project("acme")
    world.organization("globex")
    world.coordinator("acme").put(f"{PATH}/participants/globex")
    assert leave(world, "globex", joined=False).status_code == 200
    problem(world.participant("globex").get(PATH), 404, "not-found")
    assert actions(world)[-1] == "project.leave"


def test_who_was_removed_and_is_invited_again_accepts_anew_with_the_same_key_or_another_and_contributes(ready):
    world, worker = ready
    coordinator = world.coordinator("acme")
    for _ in range(2):
        assert leave(world, "globex", by=coordinator).status_code == 200
        assert coordinator.put(f"{PATH}/participants/globex").status_code == 201
        project = coordinator.get(PATH).json()
        (member,) = [each for each in project["participants"] if each["organization"] == "globex"]
        assert (member["identity"], member["accepted_policy"]) == (None, None)
        assert coordinator.delete(f"{PATH}/participants/globex").status_code == 200  # what it signed once binds nobody
        assert coordinator.put(f"{PATH}/participants/globex").status_code == 201
        assert world.accept_policy(PROJECT, "globex").status_code == 201
        world.clock.advance(hours=1)
        contribute(world, project, "globex", 7, generation=2 + actions(world).count("project.remove"))
        assert worker.inspect_all() == ["accepted"]
    assert coordinator.delete(f"{PATH}/participants/globex/identity").status_code == 200
    problem(coordinator.delete(f"{PATH}/participants/globex"), 409, "wrong-state")  # what it sent is here
    submit(world)
    worker.run(PROJECT, "first")
    assert len(coordinator.get(f"{PATH}/jobs/first").json()["cohort"]) == 3
    assert leave(world, "globex").status_code == 200
    assert coordinator.put(f"{PATH}/participants/globex").status_code == 201
    another = identity_of("globex-anew")
    assert world.accept_policy(PROJECT, "globex", key=another).status_code == 201
    project = coordinator.get(PATH).json()
    (member,) = [each for each in project["participants"] if each["organization"] == "globex"]
    assert member["identity"] == public_key(another)


def test_answers_go_with_who_leaves_even_if_its_contribution_went_before(merged):
    world, worker = merged
    assert world.participant("globex").post(f"{PATH}/contributions/{own(world, 'globex')}/withdraw").status_code == 200
    ask(world, "gram-1", kind="gram")
    given, file = statistics(world, "globex", "gram-1")
    send(world, given, file)
    assert worker.inspect_all() == ["accepted"]
    assert leave(world, "globex").status_code == 200
    with reading(world.services.database) as session:
        place = session.get_one(AskedRow, (PROJECT, "gram-1", "globex"))
        upload = session.get_one(UploadRow, place.upload)
    assert (upload.state, upload.delete_after is None) == ("withdrawn", False)


def begin_frozen(world, settings):
    worker = InProcessWorker(world, settings)
    project = world.project(*MEMBERS, policy=FROZEN)
    for seed, member in enumerate(MEMBERS):
        contribute(world, project, member, seed)
    assert worker.inspect_all() == ["accepted"] * len(MEMBERS)
    submit(world)
    worker.run(PROJECT, "first")


@pytest.mark.parametrize("comes_back", [False, True])
def test_the_rest_of_a_frozen_cohort_is_not_merged_without_who_left(begun, comes_back):
    world, settings = begun(begin_frozen)
    worker = InProcessWorker(world, settings)
    assert leave(world, "initech").status_code == 200
    coordinator = world.coordinator("acme")
    for recipe in ({}, {"models": [{"model": "acme"}, {"model": "globex"}]}):
        body = {"recipe": {"merge_method": "linear"} | recipe}
        problem(coordinator.put(f"{PATH}/jobs/second", json=body), 409, "cohort-frozen")
    if comes_back:
        assert coordinator.put(f"{PATH}/participants/initech").status_code == 201
        problem(coordinator.put(f"{PATH}/jobs/second", json=LINEAR), 409, "cohort-frozen")
        assert world.accept_policy(PROJECT, "initech").status_code == 201
        world.clock.advance(hours=1)
        contribute(world, coordinator.get(PATH).json(), "initech", 9)
        assert worker.inspect_all() == ["accepted"]
        submit(world, "second")  # the same organizations as before


def test_who_is_removed_while_it_waits_to_accept_a_policy_does_not_accept(world, monkeypatch):
    """It saw the project before it was removed, and waits for the row that the coordinator holds."""
    world.project("acme", "globex")
    world.organization("initech")
    coordinator = world.coordinator("acme")
    assert coordinator.put(f"{PATH}/participants/initech").status_code == 201
    member, begun, answers = world.participant("initech"), threading.Event(), []
    policy = member.get(PATH).json()["policy"]["digest"]
    signed = signed_acceptance(PROJECT, "initech", policy, version=1)
    former = project_routes.changeable_project

    def begin(session, caller, project, **how):
        if caller.organization == "initech":
            begun.set()
        return former(session, caller, project, **how)

    monkeypatch.setattr(project_routes, "changeable_project", begin)
    with transaction(world.services.database) as session:
        session.scalars(select(ProjectRow).with_for_update()).one()
        session.delete(session.get_one(ParticipantRow, (PROJECT, "initech")))
        session.flush()
        accepting = f"{PATH}/acceptances/{policy}"
        thread = threading.Thread(target=lambda: answers.append(member.put_document(accepting, signed)))
        thread.start()
        assert begun.wait(10)
        threading.Event().wait(0.3)  # until it waits
    thread.join(30)
    problem(answers[0], 404, "not-found")


def test_deleting_holds_what_it_changes_before_it_writes_the_log(ready):
    """A project that is deleted by two at once is deleted once."""
    world, _ = ready
    results = []

    def delete():
        with transaction(world.services.database) as session:
            row = find_project(session, PROJECT, lock=True)
            services = world.services
            delete_project(
                session, audit_log.SHELL, row, queue=services.jobs, settings=services.settings, now=world.clock()
            )
            results.append(project_documents(session, [row], settings=services.settings, now=world.clock())[0])

    threads = [threading.Thread(target=delete) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({result.deleted_at for result in results}) == 1
    assert actions(world).count("project.delete") == 1
