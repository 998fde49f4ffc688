"""How sessions of secure sums end: contributions that do not count any more are summed no further, and words go."""

import pytest

from gramfuse.answering.configuration import Participation
from gramfuse.securing.stages import Stages
from gramfuse_server.sweeping import delete_spent_bytes
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.secure import STAGES
from gramfuse_shared.errors import SecureSessionRefusedError
from support.client_world import Site
from support.server_world import problem
from support.summing_members import SummingMember
from support.worker_world import InProcessWorker

POLICY = Policy(aggregation="secure", methods=("linear",), missed_deadline="leave_out")
NAMES = ("acme", "brick", "corex", "dunder", "eagle")
PROJECT = "acme.tweets"
PATH = f"/v1/projects/{PROJECT}"


pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")  # rules, no queries


@pytest.fixture
def members(world, tmp_path, request):
    """Three, or as many as the test says."""
    names = NAMES[: getattr(request, "param", 3)]
    world.project(*names, policy=POLICY)
    made = [SummingMember(world, PROJECT, name, tmp_path / name, POLICY) for name in names]
    for seed, member in enumerate(made):
        member.contribute(seed)
    return made


def ask(world, stage, after=None, *, suffix=""):
    body = {"recipe": {"merge_method": "linear"}} if after is None else {"after": after}
    return world.coordinator("acme").put(
        f"{PATH}/requests/{stage}{suffix}", json={"kind": stage, "seconds": 3600} | body
    )


def answer(world, member, stage):
    prepared = member.prepare(stage, stage)
    given = world.participant(member.name).put_document(
        f"{PATH}/requests/{stage}/answers/{member.name}", prepared.answer
    )
    if given.status_code == 201 and prepared.content:
        assert member.send(prepared, given.json()).status_code == 200
    return given


def say(world, settings, members, *, last):
    """Ask everybody the stages up to this one."""
    for before, stage in zip((None, *STAGES), STAGES[: STAGES.index(last) + 1], strict=False):
        assert ask(world, stage, before).status_code == 201
        for member in members:
            assert answer(world, member, stage).status_code == 201
        InProcessWorker(world, settings).inspect_all()


def merge(world, job="summed"):
    recipe = {"merge_method": "linear", "request": "unmask"}
    return world.coordinator("acme").put(f"{PATH}/jobs/{job}", json={"recipe": recipe})


def contribution_of(member):
    return next(iter(member.contributions))


@pytest.mark.parametrize("how", ["withdrawn", "replaced"])
def test_of_a_contribution_that_does_not_count_any_more_no_share_is_revealed(world, settings, members, how):
    say(world, settings, members, last="survivors")
    assert ask(world, "unmask", "survivors").status_code == 201
    for member in members[:2]:
        assert answer(world, member, "unmask").status_code == 201
    if how == "withdrawn":
        members[1].withdraw(contribution_of(members[1]))
    else:
        members[1].contribute(17)
    # one more, and the masks would come off
    told = problem(answer(world, members[2], "unmask"), 409, "wrong-state")
    assert told["detail"].startswith("the contribution of brick was withdrawn or replaced")
    problem(ask(world, "unmask", "survivors", suffix="-again"), 409, "wrong-state")


def test_a_sum_of_which_a_contribution_was_withdrawn_is_not_queued(world, settings, members):
    say(world, settings, members, last="unmask")
    members[1].withdraw(contribution_of(members[1]))
    told = problem(merge(world), 409, "wrong-state")
    assert told["facts"] == {"organizations": ["brick"]}


@pytest.mark.parametrize("members", [5], indirect=True)
def test_a_session_goes_on_without_the_words_of_who_withdrew_before_survivors_were_signed_for(
    world, settings, members, clock
):
    say(world, settings, members, last="masked")
    members[1].withdraw(contribution_of(members[1]))
    clock.advance(hours=2)
    others = [member for member in members if member.name != "brick"]
    for stage, before in (("survivors", "masked"), ("unmask", "survivors")):
        assert ask(world, stage, before).status_code == 201
        assert [answer(world, member, stage).status_code for member in others] == [201] * 4
    submitted = merge(world)
    assert submitted.status_code == 201, submitted.text
    assert sorted(member["organization"] for member in submitted.json()["cohort"]) == [each.name for each in others]
    InProcessWorker(world, settings).run(PROJECT, "summed")


def test_words_that_were_merged_are_not_merged_again_because_others_of_their_session_lie_there(
    world, settings, members
):
    say(world, settings, members, last="unmask")
    assert merge(world).status_code == 201
    InProcessWorker(world, settings).run(PROJECT, "summed")
    assert ask(world, "masked", "shares", suffix="-again").status_code == 201
    prepared = members[0].prepare("masked-again", "masked")
    place = f"{PATH}/requests/masked-again/answers/acme"
    assert world.participant("acme").put_document(place, prepared.answer).status_code == 201
    told = problem(merge(world, "again"), 409, "wrong-state")
    assert "were deleted" in told["detail"]


def test_words_stay_until_all_merges_of_their_sum_are_over(world, settings, members, clock):
    say(world, settings, members, last="unmask")
    assert [merge(world, job).status_code for job in ("first", "second")] == [201, 201]
    worker = InProcessWorker(world, settings)
    for job in ("first", "second"):
        worker.run(PROJECT, job)
        delete_spent_bytes(worker.database, world.services.blobs, clock())
    words = {f"sha256/{member.prepare('masked', 'masked').answer.files[0].sha256}" for member in members}
    assert not words & world.stored_keys()


def test_the_client_of_who_withdrew_says_nothing_more(world, members, tmp_path):
    assert ask(world, "keys").status_code == 201
    brick = Site(world, "brick", "participant", tmp_path / "sites")
    members[1].withdraw(contribution_of(members[1]))
    with brick.client() as client, pytest.raises(SecureSessionRefusedError, match="was withdrawn or replaced"):
        Stages(client, Participation(project=PROJECT)).answer(client.request(PROJECT, "keys"))
