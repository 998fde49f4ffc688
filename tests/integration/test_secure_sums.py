"""Secure sums through the real API, SDK and engine: what comes out, what never travels, who may drop out."""

import pytest
import torch
from safetensors.torch import load_file

import gramfuse
from gramfuse.securing.stages import kept_sessions
from gramfuse.verification import verify as verify_model
from gramfuse_server.blobs import blob_key
from gramfuse_server.database import transaction
from gramfuse_server.requests.kept_words import forget_abandoned_words
from gramfuse_server.sweeping import delete_spent_bytes
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.contract.secure import STAGES
from gramfuse_shared.errors import (
    CancelledError,
    PolicyViolationError,
    RequestFailedError,
    SecureSessionRefusedError,
    StateError,
)
from gramfuse_shared.limits import KIB
from gramfuse_shared.secure.signing import sign
from support import tiny
from support.secret_cohort import NAMES, POLICY, PROJECT, begin, push, verify
from support.secure_sessions import identity_of
from support.server_world import problem
from support.worker_world import InProcessWorker

REGMEAN = gramfuse.Recipe(merge_method="regmean", dtype="float64")
LINEAR = gramfuse.Recipe(merge_method="linear", dtype="float64")
PATH = f"/v1/projects/{PROJECT}"
SOLVED = "bert.encoder.layer.1.intermediate.dense.weight"


@pytest.fixture
def part_bytes():
    return 64 * KIB  # masked words are many times as long as what others send: hundreds of small parts


@pytest.fixture
def worker(world, settings):
    return InProcessWorker(world, settings)


def pulled(cohort, name, job="summed"):
    with cohort.machines[name].client() as client:
        return load_file(client.pull(PROJECT, job, cohort.place(name) / job) / "model.safetensors")


def merged_in_the_open(cohort, names, method):
    """The same merge by the same engine, of folders."""
    entries = [{"model": str(cohort.place(name) / "tuned")} for name in names]
    for name in names:
        (cohort.place(name) / "tuned" / "statistics.safetensors").write_bytes(
            (cohort.place(name) / "statistics.safetensors").read_bytes()
        )
    recipe = gramfuse.Recipe.model_validate(
        {"merge_method": method, "base_model": str(cohort.folder / "base"), "models": entries, "dtype": "float64"}
    )
    target = cohort.folder / f"open-{method}-{len(names)}"
    gramfuse.merge(recipe, target)
    return load_file(target / "model.safetensors")


def test_a_sum_is_merged_as_contributions_would_be_and_no_byte_of_one_is_ever_stored(
    world, worker, settings, tmp_path, clock
):
    cohort = begin(world, worker, tmp_path, contribute=False)
    before = world.stored_keys()
    for name in cohort.machines:
        assert push(cohort, name).state == "accepted"
    assert world.stored_keys() == before  # the manifest alone
    job = cohort.sum(REGMEAN)
    assert [member.organization for member in job.cohort] == sorted(cohort.machines)
    found, wanted = pulled(cohort, "globex"), merged_in_the_open(cohort, NAMES[:3], "regmean")
    mean = merged_in_the_open(cohort, NAMES[:3], "linear")
    assert not torch.allclose(wanted[SOLVED], mean[SOLVED], rtol=1e-3)  # a solve, not a mean
    for name in (SOLVED, "bert.encoder.layer.1.attention.self.query.weight", "classifier.bias"):
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-6, atol=1e-7)  # as float32 is written
    assert job.layers is not None
    assert job.layers.solved > 0
    # what was asked of people, in words
    joined = [shown for shown in cohort.shown if shown.asked.kind == "keys"]
    assert len(joined) == len(cohort.shown) == 3  # who joined is not asked again
    assert "masked words" in str(joined[0])
    assert "sum itself is not hidden" in " ".join(str(joined[0]).split())
    # the receipt names the session, the model verifies offline
    with cohort.coordinator.client() as client:
        receipt = client.model(PROJECT, "summed").receipt.receipt
        assert receipt.session == client.session(PROJECT, "summed-keys").digest
        assert {member.organization for member in receipt.contributions} == set(cohort.machines)
    card = " ".join((cohort.place("globex") / "summed" / "README.md").read_text().split())
    assert "The server saw the sum over these organizations alone" in card
    assert "Every contribution is signed" in card
    assert verify_model(cohort.place("globex") / "summed", home=cohort.machines["globex"].home)
    # words, sums and secrets go
    delete_spent_bytes(worker.database, world.services.blobs, clock())
    left = {key for key in world.stored_keys() if not key.startswith("sha256/")}
    assert left == set()
    words = {shown.file.name for name in cohort.machines for shown in cohort.shown if shown.file}
    assert words == set()
    for name, machine in cohort.machines.items():
        with machine.client() as client:
            folder = kept_sessions(client, PROJECT).session(receipt.session).folder
        assert sorted(path.name for path in folder.iterdir()) == sorted(f"{stage}.json" for stage in STAGES), name
    # once
    with cohort.coordinator.client() as client, pytest.raises(StateError, match="summed-keys before, and is once"):
        client.sum(PROJECT, LINEAR, result="again")


def test_of_three_nobody_may_drop_out_and_a_stage_that_was_missed_is_asked_anew(world, worker, tmp_path, clock):
    cohort = begin(world, worker, tmp_path)

    def all_but_one(request):
        cohort.answer_all(but=["initech"] if request.kind == "masked" else [])
        clock.advance(hours=2)

    with pytest.raises(RequestFailedError, match="initech missed the deadline"):
        cohort.sum(LINEAR, seconds=3600, on_request=all_but_one)
    said = {}

    def note(request):
        cohort.answer_all()
        with cohort.coordinator.client() as client:
            for stage in client.stage_messages(PROJECT, request.id):
                said.setdefault((stage.message.stage, stage.message.sender), set()).add(stage.canonical())

    job = cohort.sum(LINEAR, seconds=3600, on_request=note)
    assert job.state == "succeeded"
    assert all(len(messages) == 1 for messages in said.values())
    with cohort.coordinator.client() as client:
        states = {request.id: request.state for request in client.requests(PROJECT)}
    assert states["summed-masked"] == "failed"
    assert states["summed-masked-retry-2"] == "complete"
    # nor do the words of the stage that was missed stay, which are the same bytes
    with cohort.coordinator.client() as client:
        words = [signed.message.body.words.sha256 for signed in client.stage_messages(PROJECT, "summed-survivors")]
    delete_spent_bytes(worker.database, world.services.blobs, clock())
    assert len(words) == 3
    assert not {blob_key(sha256) for sha256 in words} & world.stored_keys()
    found, wanted = pulled(cohort, "acme"), merged_in_the_open(cohort, NAMES[:3], "linear")
    torch.testing.assert_close(found[SOLVED], wanted[SOLVED], rtol=1e-6, atol=1e-7)


def test_of_five_one_may_go_before_words_and_the_sum_is_of_those_who_sent_some(world, worker, tmp_path, clock):
    policy = POLICY.model_copy(update={"missed_deadline": "leave_out"})
    cohort = begin(world, worker, tmp_path, count=5, policy=policy)

    def go_on(request):
        cohort.answer_all(but=["hooli"] if request.kind == "masked" else [])
        clock.advance(hours=2)

    job = cohort.sum(LINEAR, seconds=3600, on_request=go_on)
    assert [member.organization for member in job.cohort] == sorted(NAMES[:4])
    found, wanted = pulled(cohort, "acme"), merged_in_the_open(cohort, NAMES[:4], "linear")
    torch.testing.assert_close(found[SOLVED], wanted[SOLVED], rtol=1e-6, atol=1e-7)


def secrets_at(cohort):
    """Who holds a session's secret."""
    held = []
    for name, machine in cohort.machines.items():
        with machine.client() as client:
            if kept_sessions(client, PROJECT).unended():
                held.append(name)
    return held


def words_in(world):
    """The stored files of masked words."""
    keys = [key for key in world.stored_keys() if key.startswith("sha256/")]
    blobs = world.services.blobs
    return [key for key in keys if b'"I64"' in blobs.read(key, 0, min(blobs.size(key), 4096))]


def sweep(world, worker):
    with transaction(worker.database) as session:
        forget_abandoned_words(session, world.clock())
    delete_spent_bytes(worker.database, world.services.blobs, world.clock())


def without_words_of_initech(cohort):
    def answer(request):
        cohort.answer_all(but=["initech"] if request.kind == "masked" else [])
        cohort.coordinator.world.clock.advance(hours=2)

    with pytest.raises(RequestFailedError):
        cohort.sum(LINEAR, seconds=3600, on_request=answer)


def test_words_and_secrets_of_a_session_that_nobody_goes_on_with_are_deleted_after_a_week(
    world, worker, tmp_path, clock
):
    cohort = begin(world, worker, tmp_path)
    without_words_of_initech(cohort)
    clock.advance(days=6)
    cohort.answer_all()
    sweep(world, worker)
    assert len(words_in(world)) == 2
    assert secrets_at(cohort) == ["acme", "globex", "initech"]
    clock.advance(days=1)
    cohort.answer_all()
    sweep(world, worker)
    assert words_in(world) == []
    assert secrets_at(cohort) == []
    with pytest.raises(StateError, match="left for more than 7 days; begin another"):
        cohort.sum(LINEAR, seconds=3600)
    assert cohort.sum(LINEAR, result="another", seconds=3600).state == "succeeded"


def test_a_sum_takes_words_and_secrets_of_another_session_of_the_same_contributions_with_it(
    world, worker, tmp_path, clock
):
    cohort = begin(world, worker, tmp_path)
    without_words_of_initech(cohort)
    assert cohort.sum(LINEAR, result="another", seconds=3600).state == "succeeded"
    sweep(world, worker)
    assert words_in(world) == []
    assert secrets_at(cohort) == []


def test_who_was_left_out_of_the_last_stage_forgets_its_secrets_when_it_looks_again(world, worker, tmp_path, clock):
    policy = POLICY.model_copy(update={"missed_deadline": "leave_out"})
    cohort = begin(world, worker, tmp_path, count=5, policy=policy)

    def answer(request):
        cohort.answer_all(but=["hooli"] if request.kind in {"survivors", "unmask"} else [])
        clock.advance(hours=2)

    job = cohort.sum(LINEAR, seconds=3600, on_request=answer)
    assert len(job.cohort) == 5  # its words are in the sum
    assert secrets_at(cohort) == ["hooli"]
    cohort.answer("hooli")
    assert secrets_at(cohort) == []


def test_the_words_of_a_queued_merge_stay_until_it_is_over_and_no_other_is_begun_without_them(
    world, worker, tmp_path, clock
):
    cohort = begin(world, worker, tmp_path)

    def answer(request):
        cohort.answer_all()
        if request.kind == "unmask":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cohort.sum(LINEAR, seconds=3600, on_request=answer)
    with cohort.coordinator.client() as client:
        merge = LINEAR.model_copy(update={"request": "summed-unmask"})
        client.submit(PROJECT, merge, job="queued")
        clock.advance(days=8)
        sweep(world, worker)
        assert len(words_in(world)) == 3
        client.cancel(PROJECT, "queued")
        sweep(world, worker)
        assert words_in(world) == []
        for begun_again in (
            lambda: client.submit(PROJECT, merge, job="late"),
            lambda: client.retry(PROJECT, "queued"),
        ):
            with pytest.raises(StateError, match=r"masked words.*were deleted.*contribute anew"):
                begun_again()


def test_nobody_speaks_to_members_whose_keys_people_did_not_compare_nor_of_weights_that_changed(
    world, worker, tmp_path
):
    cohort = begin(world, worker, tmp_path, verified=False)
    refused = []

    def answer(request):
        for name in cohort.machines:
            with pytest.raises(SecureSessionRefusedError) as error:
                cohort.answer(name)
            refused.append(error.value.message)
        with cohort.coordinator.client() as client:
            client.cancel_request(PROJECT, request.id)

    with pytest.raises(CancelledError):
        cohort.sum(LINEAR, on_request=answer)
    assert len(refused) == 3
    assert "no identity key pinned" in refused[0]
    verify(cohort)
    refused.clear()
    tiny.write_tuned(cohort.folder / "base", cohort.place("globex") / "tuned", seed=77)

    def answer_changed(request):
        with pytest.raises(SecureSessionRefusedError, match=r"is not what was contributed.*contribute anew"):
            cohort.answer("globex")
        with cohort.coordinator.client() as client:
            client.cancel_request(PROJECT, request.id)

    with pytest.raises(CancelledError):
        cohort.sum(LINEAR, on_request=answer_changed)


def test_what_is_summed_is_never_merged_in_the_open_nor_the_other_way_round(world, worker, tmp_path):
    cohort = begin(world, worker, tmp_path, contribute=False)
    weights = cohort.place("globex") / "tuned"
    with cohort.coordinator.client() as client:
        client.create_project(
            "open", base=cohort.folder / "base", policy=POLICY.model_copy(update={"aggregation": "plain"})
        )
        client.invite("acme.open", "globex")
    with cohort.machines["globex"].client() as client:
        client.accept_policy("acme.open", client.project("acme.open").policy.digest)
        client.push("acme.open", model=weights, confirm=lambda _: True)
        with pytest.raises(PolicyViolationError, match=r"sent in the open in acme\.open"):
            client.push(PROJECT, model=weights, confirm=lambda _: True)
    push(cohort, "acme")
    with cohort.machines["acme"].client() as client:
        client.accept_policy("acme.open", client.project("acme.open").policy.digest)
        with pytest.raises(PolicyViolationError, match=r"summed in secret in acme\.tweets"):
            client.push("acme.open", model=cohort.place("acme") / "tuned", confirm=lambda _: True)
        with pytest.raises(PolicyViolationError, match="gramfuse request sum"):
            client.submit(PROJECT, LINEAR, job="open")


def test_the_server_takes_no_message_that_would_spoil_a_session(world, worker, tmp_path):
    cohort = begin(world, worker, tmp_path)
    tried = []

    def tamper(request):
        if request.kind == "shares":
            cohort.answer("acme")
            place = f"{PATH}/requests/{request.id}/answers"
            coordinator, globex = world.coordinator("acme"), world.participant("globex")
            given = Answer.model_validate(coordinator.get(f"{place}/acme").json()["answer"])
            assert coordinator.put_document(f"{place}/acme", given).status_code == 200  # the same again is the same
            message = given.message
            unsigned = given.model_copy(update={"message": message.model_copy(update={"signature": "A" * 86 + "=="})})
            problem(coordinator.put_document(f"{place}/acme", unsigned), 409, "conflict")
            foreign = given.model_copy(update={"organization": "globex"})
            problem(globex.put_document(f"{place}/globex", foreign), 409, "secure-session-refused")
            other = message.message.model_copy(update={"sender": "globex"})
            for changed, code in (
                (sign(other, identity_of("acme")), "signature-invalid"),
                (
                    sign(other.model_copy(update={"session": "0" * 64}), identity_of("globex")),
                    "secure-session-refused",
                ),
                (  # of other keys than the ones that were shown
                    sign(
                        other.model_copy(update={"body": other.body.model_copy(update={"keys": "0" * 64})}),
                        identity_of("globex"),
                    ),
                    "secure-session-refused",
                ),
            ):
                answer = foreign.model_copy(update={"message": changed})
                refused = globex.put_document(f"{place}/globex", answer)
                tried.append(problem(refused, refused.status_code, code)["status"])
        cohort.answer_all()

    assert cohort.sum(LINEAR, on_request=tamper).state == "succeeded"
    assert len(tried) == 3


def test_a_secure_policy_holds_nothing_that_is_not_summed_and_needs_scales_for_regmean(world, worker, tmp_path):
    for changes, words in (
        ({"methods": ("linear", "ties")}, "ties"),
        ({"requests": ("gram",), "methods": ("linear", "regmean")}, "gram"),
        ({"minimum_cohort": 2}, "at least 3"),
        ({"missing_statistics": "estimate"}, "estimated"),
    ):
        with pytest.raises(ValueError, match=words):
            gramfuse.Policy(**({"aggregation": "secure", "methods": ("linear",)} | changes))
    cohort = begin(world, worker, tmp_path, contribute=False)
    with cohort.coordinator.client() as client, pytest.raises(PolicyViolationError, match="scales collect"):
        client.create_project("bare", base=cohort.folder / "base", policy=POLICY)
