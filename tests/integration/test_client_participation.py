"""The SDK against the real API: create, join, push and resume, withdraw, and what the client refuses by itself."""

import json
from pathlib import Path

import httpx
import pytest

from gramfuse import pinning
from gramfuse.contributing import draft
from gramfuse.contributing.planning import plan_contribution
from gramfuse.progress import Progress
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    ConflictError,
    ContributionRejectedError,
    NotConfirmedError,
    NotFoundError,
    PolicyNotAcceptedError,
    PolicyViolationError,
    RequestMalformedError,
    RoleRequiredError,
    StateError,
    TransportError,
    UnauthenticatedError,
)
from gramfuse_shared.identifiers import ProjectId
from support.client_models import tap, write_model, write_statistics
from support.client_world import URL, Site

PROJECT: ProjectId = "acme.tweets"
OPEN = Policy(embeddings="average", embedding_taps="send", heads="shared", minimum_cohort=2)
TAPS = (tap("encoder.layer.0.dense", "encoder.layer.0.dense.weight"),)


@pytest.fixture
def base(tmp_path) -> Path:
    return write_model(tmp_path / "base")


@pytest.fixture
def project(acme, globex, base) -> str:
    """A ready project that globex takes part in and whose policy globex accepted."""
    with acme.client() as client:
        client.create_project("tweets", base=base, policy=OPEN)
        client.invite(PROJECT, "globex")
    with globex.client() as client:
        client.accept_policy(PROJECT, client.policy(PROJECT).digest)
    globex.wire.requests.clear()
    return PROJECT


@pytest.fixture
def tuned(tmp_path) -> Path:
    return write_model(tmp_path / "tuned", seed=1)


@pytest.fixture
def statistics(tmp_path) -> Path:
    return write_statistics(tmp_path / "statistics.safetensors", TAPS)


def yes(_plan) -> bool:
    return True


# --- projects --------------------------------------------------------------------------------------------------------


def test_a_created_project_is_seen_joined_and_its_base_pulled_byte_for_byte(acme, globex, base, tmp_path):
    with acme.client() as client:
        created = client.create_project("tweets", base=base, policy=OPEN)
        assert (created.id, created.state) == (PROJECT, "ready")
        client.invite("tweets", "globex")
    with globex.client() as client:
        assert [project.id for project in client.projects()] == [PROJECT]
        acceptance = client.accept_policy("tweets", client.policy("tweets").digest)
        assert (acceptance.organization, acceptance.policy) == ("globex", created.policy)
        pulled = client.pull_base("tweets", tmp_path / "pulled")
        assert client.home.base_folder(created.base) == pulled
    assert {p.name: p.read_bytes() for p in pulled.iterdir()} == {p.name: p.read_bytes() for p in base.iterdir()}


def test_creating_a_project_again_sends_nothing_and_another_base_under_its_name_is_a_conflict(acme, base, tmp_path):
    with acme.client() as client:
        client.create_project("tweets", base=base, policy=OPEN)
        acme.wire.requests.clear()
        assert client.create_project("tweets", base=base, policy=OPEN).state == "ready"
        assert acme.wire.parts_sent() == []
        with pytest.raises(ConflictError):
            client.create_project("tweets", base=write_model(tmp_path / "other", seed=5), policy=OPEN)


def test_creating_a_project_resumes_after_a_dropped_connection(acme, base):
    acme.wire.breaks_at = lambda request: request.url.path.endswith("model.safetensors/parts/1")
    with acme.client() as client, pytest.raises(TransportError):
        client.create_project("tweets", base=base, policy=OPEN)
    before = acme.wire.parts_sent()
    acme.wire.breaks_at = lambda _: False
    with acme.client() as client:
        client.create_project("tweets", base=base, policy=OPEN)
    sent = acme.wire.parts_sent()
    assert before
    assert len(sent) == len(set(sent))


def test_pulling_the_base_again_leaves_it_and_never_touches_another_folder(globex, project, tmp_path):
    with globex.client() as client:
        client.pull_base(project, tmp_path / "pulled")
        globex.wire.requests.clear()
        client.pull_base(project, tmp_path / "pulled")
        assert not any("/base/files/" in path for _, path in globex.wire.requests)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("mine")
        with pytest.raises(ConflictError, match="choose another"):
            client.pull_base(project, tmp_path / "mine")


def test_what_one_may_not_see_does_not_exist(world, project, tmp_path):
    stranger = Site(world, "initech", "coordinator", tmp_path)
    with stranger.client() as client:
        assert client.projects() == []
        for name in (PROJECT, "tweets"):
            with pytest.raises(NotFoundError):
                client.project(name)


def test_a_bare_name_that_two_projects_bear_asks_for_the_full_one(world, acme, globex, project, base, tmp_path):
    initech = Site(world, "initech", "coordinator", tmp_path)
    with initech.client() as client:
        client.create_project("tweets", base=base)
        client.invite("initech.tweets", "globex")
    with globex.client() as client, pytest.raises(ConflictError, match=r"acme\.tweets, initech\.tweets"):
        client.project("tweets")


@pytest.mark.parametrize("name", ["acme.tweets/../x", "acme.", ".tweets", "acme.tweets?x", "Acme.Tweets"])
def test_a_name_that_could_change_a_path_is_refused_here(globex, name):
    with globex.client() as client, pytest.raises(RequestMalformedError):
        client.project(name)
    with globex.client() as client, pytest.raises(RequestMalformedError):
        client.model("acme.tweets", name)
    assert globex.wire.requests == []


def test_a_participants_token_does_not_invite(globex, project):
    with globex.client() as client, pytest.raises(RoleRequiredError):
        client.invite(project, "initech")


def test_a_wrong_token_is_unauthenticated_and_stays_out_of_the_message(globex):
    client = globex.client(token="gf_0011223344556677_wrongwrongwrong")
    with client, pytest.raises(UnauthenticatedError) as caught:
        client.whoami()
    assert "wrongwrong" not in f"{caught.value} {caught.value.facts} {client!r}"


def test_the_receipt_key_is_pinned_at_the_first_call(globex):
    with globex.client() as client:
        client.whoami()
        assert pinning.pinned_key(globex.home, URL) == client.server_info().receipt_key


# --- push ------------------------------------------------------------------------------------------------------------


def test_a_push_is_accepted_and_sends_just_what_was_shown(globex, project, tuned, statistics):
    shown, told = [], list[Progress]()
    with globex.client() as client:
        sent = client.push(
            project, model=tuned, statistics=statistics, confirm=lambda p: not shown.append(p), on_progress=told.append
        )
        assert sent.state == "accepted"
        assert [c.id for c in client.contributions(project, state="accepted")] == [sent.id]
    plan = shown[0]
    assert {t.name for t in sent.manifest.weights.tensors} == {d.info.name for d in plan.leaving_weights}
    assert {t.name for t in sent.manifest.statistics.taps} == {d.info.name for d in plan.leaving_taps}
    assert {progress.stage for progress in told} == {"digest", "upload", "check"}


def test_a_push_resumes_after_a_dropped_connection_and_sends_only_the_missing_parts(globex, project, tuned):
    globex.wire.breaks_at = lambda request: request.url.path.endswith("weights.safetensors/parts/1")
    with globex.client() as client, pytest.raises(TransportError, match="connection reset"):
        client.push(project, model=tuned, confirm=yes)
    first = globex.wire.parts_sent()
    assert [path.rpartition("/")[2] for path in first] == ["0"]
    globex.wire.breaks_at = lambda _: False
    with globex.client() as client:
        assert client.push(project, model=tuned, confirm=yes).state == "accepted"
    sent = globex.wire.parts_sent()
    assert len(sent) > 2
    assert len(sent) == len(set(sent))


def test_a_lost_answer_to_the_seal_does_not_lose_the_push(globex, project, tuned):
    lost = []

    def lose_once(request: httpx.Request) -> bool:
        if request.url.path.endswith("/seal") and not lost:
            lost.append(globex.wire.send(request))  # the server seals, its answer never arrives
            return True
        return False

    globex.wire.breaks_at = lose_once
    with globex.client(attempts=3) as client:
        assert client.push(project, model=tuned, confirm=yes).state == "accepted"


def test_pushing_the_same_content_again_asks_and_sends_nothing(globex, project, tuned, statistics):
    def never(_: object) -> bool:
        pytest.fail("nothing leaves, so there is nothing to ask")

    with globex.client() as client:
        first = client.push(project, model=tuned, statistics=statistics, confirm=yes)
        globex.wire.requests.clear()
        assert client.push(project, model=tuned, statistics=statistics, confirm=never).id == first.id
        assert {method for method, *_ in globex.wire.requests} == {"GET"}
        with pytest.raises(NotConfirmedError):  # without the statistics it is another contribution
            client.push(project, model=tuned, confirm=lambda _: False)


def test_another_model_of_the_same_shapes_is_asked_about_and_sent(globex, project, tuned, tmp_path):
    asked = []
    with globex.client() as client:
        first = client.push(project, model=tuned, confirm=yes)
        retrained = write_model(tmp_path / "retrained", seed=77)
        second = client.push(project, model=retrained, confirm=lambda plan: not asked.append(plan))
    assert (len(asked), second.id != first.id) == (1, True)


def test_content_that_was_withdrawn_can_be_pushed_again(globex, project, tuned):
    with globex.client() as client:
        first = client.push(project, model=tuned, confirm=yes)
        assert client.withdraw(project, first.id[:10]).state == "withdrawn"
        second = client.push(project, model=tuned, confirm=yes)
    assert second.state == "accepted"
    assert (first.manifest.generation, second.manifest.generation) == (1, 2)


def test_weights_that_were_pushed_to_one_project_are_warned_of_before_another_one_gets_them(
    acme, globex, project, base, tuned
):
    other = OPEN.model_copy(update={"heads": "private"})
    with acme.client() as client:
        client.create_project("news", base=base, policy=other)
        client.invite("acme.news", "globex")
    shown = []

    def push(client, to, *, answer=True):
        return client.push(to, model=tuned, confirm=lambda plan: shown.append(str(plan)) or answer)

    with globex.client() as client:
        client.accept_policy("acme.news", client.policy("acme.news").digest)
        with pytest.raises(NotConfirmedError):
            push(client, project, answer=False)
        push(client, project)
        push(client, "acme.news")
        push(client, project)
        told = client.plan(project, model=tuned).to_json()["warnings"]
    warned = ["you pushed these weights to" in text for text in shown]
    assert warned == [False, False, True]
    assert "pushed these weights to acme.tweets before" in shown[2]
    assert any("pushed these weights to acme.news before" in warning for warning in told)


def test_a_push_that_broke_off_counts_as_sent(globex, project, tuned):
    globex.wire.breaks_at = lambda request: "/parts/" in request.url.path
    with globex.client() as client, pytest.raises(TransportError):
        client.push(project, model=tuned, confirm=yes)
    (file,) = (globex.home.path / "sent").iterdir()
    assert json.loads(file.read_text())["project"] == project


@pytest.mark.parametrize("answer", [False, None, "yes"])
def test_without_a_clear_yes_nothing_is_sent(globex, project, tuned, answer):
    with globex.client() as client, pytest.raises(NotConfirmedError):
        client.push(project, model=tuned, confirm=lambda _: answer)
    assert globex.wire.writes() == []


def test_planning_sends_nothing(globex, project, tuned, statistics):
    with globex.client() as client:
        plan = client.plan(project, model=tuned, statistics=statistics)
    assert plan.leaving_weights
    assert json.dumps(plan.to_json())
    assert globex.wire.writes() == []


def test_a_policy_that_was_not_accepted_stops_the_push_before_anything_is_read_or_sent(acme, globex, project, tuned):
    with acme.client() as client:
        client.set_policy(project, Policy(minimum_cohort=2))
    with globex.client() as client:
        with pytest.raises(PolicyNotAcceptedError, match="accepted version 1"):
            client.push(project, model=tuned, confirm=yes)
        assert globex.wire.writes() == []
        client.accept_policy(project, client.policy(project).digest)
        assert client.push(project, model=tuned, confirm=yes).state == "accepted"


def test_only_the_current_policy_can_be_accepted(acme, globex, project):
    old = globex.client().policy(project).digest
    with acme.client() as client:
        client.set_policy(project, Policy(minimum_cohort=2))
    with globex.client() as client, pytest.raises((ConflictError, NotFoundError, PolicyNotAcceptedError, StateError)):
        client.accept_policy(project, old)


def test_the_clients_own_check_refuses_what_the_policy_forbids_whatever_the_plan_says(
    acme, globex, project, tuned, monkeypatch
):
    with acme.client() as client:
        client.set_policy(project, Policy(minimum_cohort=2))

    def plan_everything(tensors, statistics, base, _policy, **known):
        return plan_contribution(tensors, statistics, base, OPEN, **known)

    monkeypatch.setattr(draft, "plan_contribution", plan_everything)
    with globex.client() as client:
        client.accept_policy(project, client.policy(project).digest)
        globex.wire.requests.clear()
        with pytest.raises(PolicyViolationError, match="may not leave"):
            client.push(project, model=tuned, confirm=yes)
    assert globex.wire.writes() == []


def test_a_model_of_another_architecture_is_refused_here(globex, project, tmp_path):
    shapes = {"encoder.layer.0.dense.weight": ("F32", (3, 3))}
    with globex.client() as client, pytest.raises(ArchitectureMismatchError, match=r"is \[3, 3\]"):
        client.push(project, model=write_model(tmp_path / "odd", shapes=shapes), confirm=yes)
    assert globex.wire.writes() == []


def test_a_base_that_the_server_tampered_with_is_not_planned_against(globex, project, tuned, monkeypatch):
    with globex.client() as client:
        honest = client.base_manifest(project)
        monkeypatch.setattr(client, "base_manifest", lambda _: honest.model_copy(update={"vocabulary_size": None}))
        with pytest.raises(ArchitectureMismatchError, match="announced digest"):
            client.push(project, model=tuned, confirm=yes)
    assert globex.wire.writes() == []


def test_what_the_server_rejects_is_an_error_with_its_reason(globex, project, tuned, world, monkeypatch):
    def reject(_seconds: float) -> None:
        from gramfuse_server.database import transaction  # noqa: PLC0415
        from gramfuse_server.tables import UploadRow  # noqa: PLC0415

        with transaction(world.services.database) as session:
            for row in session.query(UploadRow).filter_by(state="sealed"):
                row.state, row.reason, row.decided_at = "rejected", "weights hold NaN", world.clock()

    with globex.client() as client:
        client._sleep = reject
        with pytest.raises(ContributionRejectedError, match="weights hold NaN"):
            client.push(project, model=tuned, confirm=yes)
        with pytest.raises(ContributionRejectedError, match="weights hold NaN"):
            client.push(project, model=tuned, confirm=yes)
