"""Answering what waits: one request that fails, others that do not, and the loop of `participate --watch`."""

import json
import signal
import stat
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

import gramfuse
from gramfuse.answering import participating
from gramfuse.answering.kept import KeptAnswers
from gramfuse.answering.participating import Handled, participate
from gramfuse.answering.prepared import PreparedAnswer
from gramfuse.cli import participate as command
from gramfuse.cli.main import main
from gramfuse.config import Home
from gramfuse_shared.contract.manifest import PolicyReference
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.requests import Answer, ModelScore, RequestInfo
from gramfuse_shared.errors import CancelledError, ConfigurationError, PolicyViolationError, TransportError

NOW = datetime(2026, 1, 2, tzinfo=UTC)
REFERENCE = PolicyReference(version=1, digest="0" * 64)


def request(name: str, *models: str) -> RequestInfo:
    document = {"id": name, "project": "acme.tweets", "kind": "evaluate", "models": models or ("first",)}
    asked = [{"organization": "globex", "state": "awaited"}]
    state = {"state": "open", "policy": REFERENCE, "created_at": NOW, "deadline": NOW, "asked": asked}
    return RequestInfo.model_validate(document | state)


class Client:
    """globex's client: three requests wait, the newest first, and what is answered is written down."""

    organization = "globex"
    home = SimpleNamespace(base_folder=lambda _: None)

    url = "https://merge.example"

    def __init__(self, home: Path) -> None:
        self.home = Home(home)
        self.answered: list[str] = []
        self.waiting = [request("third", "a", "b"), request("second"), request("first")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def requests(self, _project: str) -> list[RequestInfo]:
        return self.waiting

    def project(self, _project: str) -> Any:
        return SimpleNamespace(policy=REFERENCE, base="1" * 64)

    def policy(self, _project: str) -> Any:
        return SimpleNamespace(policy=Policy(), version=1)

    def base_manifest(self, _project: str) -> None:
        return None

    def model(self, _project: str, _model: str) -> Any:
        return SimpleNamespace(receipt=SimpleNamespace(receipt=SimpleNamespace(outputs=())))

    def pull(self, _project: str, _model: str, folder: Path, **_: Any) -> Path:
        folder.mkdir(exist_ok=True)
        return folder

    def answer(self, prepared: PreparedAnswer, **_: Any) -> None:
        self.answered.append(prepared.answer.request)


@pytest.fixture
def errors(monkeypatch):
    """What computing the answer to a request raises, by its id; nothing by default."""
    found: dict[str, Exception] = {}

    def compute(assignment: Any, _participation: Any, **_: Any) -> PreparedAnswer:
        name = assignment.request.id
        if name in found:
            raise found[name]
        scores = tuple(
            ModelScore(model=model, examples=100, metrics={"f1": 0.5}) for model in assignment.request.models
        )
        document = {"project": "acme.tweets", "request": name, "organization": "globex", "policy": REFERENCE}
        return PreparedAnswer(Answer.model_validate(document | {"scores": scores}))

    monkeypatch.setattr(participating, "compute", compute)
    return found


@pytest.fixture
def participation(tmp_path) -> gramfuse.Participation:
    (tmp_path / "held-out.jsonl").write_text("one text\n")
    held_out = gramfuse.LocalTexts(texts=tmp_path / "held-out.jsonl")
    return gramfuse.Participation(
        project="acme.tweets", held_out=held_out, allow=("evaluate",), folder=tmp_path / "answers"
    )


def outcomes(handled: list[Handled]) -> dict[str, str]:
    return {one.request.id: one.outcome for one in handled}


def answer_all(client: Any, participation: gramfuse.Participation, **options: Any) -> dict[str, str]:
    return outcomes(participate(client, participation, confirm=lambda _: True, **options))


def test_the_oldest_request_is_answered_first_and_of_all_models_one_is_left(errors, participation):
    assert errors == {}
    client = Client(participation.folder)
    assert answer_all(client, participation) == dict.fromkeys(("first", "second", "third"), "answered")
    assert client.answered == ["first", "second", "third"]
    assert len(list(participation.folder.glob("*/models/*"))) == 1


def test_whoever_is_shown_an_answer_is_told_what_was_asked_also_of_one_that_was_kept(errors, participation):
    assert errors == {}
    client, shown = Client(participation.folder), list[str]()
    asking = participation.model_copy(update={"allow": ()})
    for _ in range(2):
        participate(client, asking, confirm=lambda prepared: shown.append(str(prepared).splitlines()[0]))
    assert shown[:3] == shown[3:]
    assert shown[0] == "Answers first: how well first and your own model, if you name it, do on your held-out texts"


def test_one_request_that_cannot_be_answered_is_told_and_the_others_are_answered(errors, participation):
    errors["second"] = PolicyViolationError("too few rows")
    client, told = Client(participation.folder), []
    found = answer_all(client, participation, on_failure=lambda seen, error: told.append((seen.id, error.code)))
    assert found == {"first": "answered", "second": "failed", "third": "answered"}
    assert told == [("second", "policy-violation")]
    assert "first" in {path.name for path in participation.folder.glob("*/models/*")}  # its model may be needed yet
    assert answer_all(client, participation, skip={"second"}).keys() == {"first", "third"}


def test_where_nobody_is_told_the_first_error_is_raised_behind_the_last_request(errors, participation):
    errors["second"] = PolicyViolationError("too few rows")
    client = Client(participation.folder)
    with pytest.raises(PolicyViolationError):
        answer_all(client, participation)
    assert client.answered == ["first", "third"]


# --- what is kept ----------------------------------------------------------------------------------------------------


def computed(monkeypatch) -> list[str]:
    """Note which requests are computed."""
    found, compute = list[str](), participating.compute

    def noted(assignment: Any, *arguments: Any, **options: Any) -> PreparedAnswer:
        found.append(assignment.request.id)
        return compute(assignment, *arguments, **options)

    monkeypatch.setattr(participating, "compute", noted)
    return found


def decline_all(client: Any, participation: gramfuse.Participation) -> None:
    asking = participation.model_copy(update={"allow": ()})
    assert set(outcomes(participate(client, asking, confirm=lambda _: False)).values()) == {"declined"}


def test_an_answer_that_was_declined_is_kept_until_what_it_was_made_from_changes(errors, participation, monkeypatch):
    assert errors == {}
    client, found = Client(participation.folder), computed(monkeypatch)
    client.waiting = [request("first")]
    decline_all(client, participation)
    decline_all(client, participation)
    assert found == ["first"]
    participation.held_out.texts.write_text("two texts\nin place of one\n")
    decline_all(client, participation)
    elsewhere = participation.held_out.texts.with_name("others.jsonl")
    elsewhere.write_text("other texts\n")
    other = gramfuse.LocalTexts(texts=elsewhere)
    decline_all(client, participation.model_copy(update={"held_out": other}))
    assert found == ["first"] * 3


def test_an_answer_that_the_server_has_in_part_is_sent_to_its_end_as_it_is(errors, participation, monkeypatch):
    assert errors == {}
    client, found = Client(participation.folder), computed(monkeypatch)
    client.waiting = [request("first")]
    decline_all(client, participation)
    participation.held_out.texts.write_text("other texts\n")
    begun = client.waiting[0].asked[0].model_copy(update={"state": "open"})
    client.waiting = [client.waiting[0].model_copy(update={"asked": (begun,)})]
    assert answer_all(client, participation) == {"first": "answered"}
    assert found == ["first"]


def test_an_answer_that_is_refused_is_not_kept_and_one_that_did_not_arrive_is(errors, participation, monkeypatch):
    assert errors == {}
    client, found = Client(participation.folder), computed(monkeypatch)
    refusals: list[Exception] = [TransportError("no route"), PolicyViolationError("80 examples, the policy wants 100")]

    def answer(prepared: PreparedAnswer, **_: Any) -> None:
        if prepared.answer.request == "first" and refusals:
            raise refusals.pop(0)
        client.answered.append(prepared.answer.request)

    monkeypatch.setattr(client, "answer", answer)
    with pytest.raises(TransportError):
        answer_all(client, participation)
    with pytest.raises(PolicyViolationError):
        answer_all(client, participation)
    assert (client.answered, found) == (["second", "third"], ["first", "second", "third"])
    assert not (participation.folder / "acme.tweets" / "first").exists()
    client.waiting = client.waiting[2:]
    assert answer_all(client, participation) == {"first": "answered"}
    assert found == ["first", "second", "third", "first"]


@pytest.mark.parametrize("error", [TransportError("no route"), CancelledError("interrupted")])
def test_what_passes_by_itself_and_a_cancellation_are_raised_in_any_case(errors, participation, error):
    errors["first"] = error
    with pytest.raises(type(error)):
        answer_all(Client(participation.folder), participation, on_failure=lambda *_: pytest.fail("told"))


# --- the command -----------------------------------------------------------------------------------------------------


def test_what_could_not_be_answered_is_told_behind_what_was_and_the_exit_code_is_the_firsts(
    errors, participation, tmp_path, monkeypatch, capsys
):
    errors["first"], errors["second"] = PolicyViolationError("too few rows"), ConfigurationError("no such texts")
    client = Client(tmp_path)
    monkeypatch.setattr(command.session, "open_client", lambda: client)
    (tmp_path / "participate.yaml").write_text("project: acme.tweets\nheld_out: {texts: held-out.jsonl}\n")
    assert participation.held_out.texts == tmp_path / "held-out.jsonl"
    assert main(["participate", str(tmp_path / "participate.yaml"), "--yes", "--format", "json"]) == 3
    told = capsys.readouterr()
    assert client.answered == ["third"]
    first, second, third = json.loads(told.out)
    assert first["error"] == {"code": "policy-violation", "message": "too few rows"}
    assert (second["outcome"], second["error"]["code"], third["outcome"]) == ("failed", "configuration", "answered")
    assert "error" not in third
    assert json.loads(told.err)["message"] == "first cannot be answered: too few rows"
    assert main(["participate", str(tmp_path / "participate.yaml"), "--yes"]) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "second cannot be answered [configuration]: no such texts error[policy-violation]: first cannot be" in told


# --- the command that watches ----------------------------------------------------------------------------------------


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """Run `participate --watch` on a script: what each look does; the last one is interrupted."""
    (tmp_path / "participate.yaml").write_text("project: acme.tweets\nheld_out: {texts: held-out.jsonl}\n")
    client = Client(tmp_path)
    monkeypatch.setattr(command.session, "open_client", lambda: client)

    def run(*looks: Any, arguments: tuple[str, ...] = ()) -> tuple[int, list[frozenset[str]]]:
        script, skipped = list(looks), []

        def look(_client: Any, _participation: Any, *, skip: Any, **options: Any) -> list[Handled]:
            skipped.append(frozenset(skip))
            if len(script) == 1:
                signal.raise_signal(signal.SIGINT)
            return script.pop(0)(options)  # type: ignore[no-any-return] # what the test says

        monkeypatch.setattr(command, "participate", look)
        return main(["participate", str(tmp_path / "participate.yaml"), "--watch", "--every", "1", *arguments]), skipped

    return run


def test_watching_ends_with_ctrl_c_and_shows_each_outcome_once(watch, capsys):
    answered = [Handled(request("first"), "answered")]
    code, _ = watch(lambda _: answered, lambda _: answered, arguments=("--format", "json"))
    assert code == 0
    shown = capsys.readouterr().out
    assert json.loads(shown) == [{"request": "first", "kind": "evaluate", "outcome": "answered"}]


def test_what_the_configuration_lacks_for_an_answer_is_told(watch, capsys):
    asked = request("second").model_copy(update={"kind": "head"})
    code, _ = watch(lambda _: [Handled(asked, "no local data")])
    told = " ".join(capsys.readouterr().err.split())
    assert (code, "second waits for an answer: add measured and model to the configuration" in told) == (0, True)


def test_a_request_that_fails_or_was_declined_is_left_alone_and_watching_goes_on(watch, capsys):
    def fail(options: Any) -> list[Handled]:
        options["on_failure"](request("second"), PolicyViolationError("too few rows"))
        return [Handled(request("second"), "failed"), Handled(request("third"), "declined")]

    code, skipped = watch(fail, lambda _: [])
    assert code == 0
    assert skipped == [frozenset(), {"second", "third"}]
    told = " ".join(capsys.readouterr().err.split())
    assert "second cannot be answered [policy-violation]: too few rows; it is left alone" in told


def test_a_server_that_is_away_is_asked_again(watch, capsys):
    def unreachable(_options: Any) -> list[Handled]:
        msg = "the server is away"
        raise TransportError(msg)

    code, skipped = watch(unreachable, lambda _: [])
    assert (code, len(skipped)) == (0, 2)
    assert "the server is away; trying again in 1 s" in capsys.readouterr().err


def test_ctrl_c_in_a_computation_ends_it_behind_the_batch_and_other_errors_end_the_command(watch, capsys):
    def interrupted(options: Any) -> list[Handled]:
        assert options["is_cancelled"]()
        msg = "interrupted behind 32 of 80 texts"
        raise CancelledError(msg)

    assert watch(interrupted)[0] == 0
    assert "interrupted behind 32 of 80 texts" in capsys.readouterr().err

    def refused(_options: Any) -> list[Handled]:
        msg = "not yours"
        raise PolicyViolationError(msg)

    assert watch(refused, lambda _: [])[0] == 3


def test_two_projects_that_share_a_folder_keep_their_answers_and_models_apart(participation):
    other = participation.model_copy(update={"project": "acme.letters"})
    mine, theirs = KeptAnswers.of(participation), KeptAnswers.of(other)
    assert mine.model("first") != theirs.model("first")
    assert mine.place("asked") != theirs.place("asked")
    assert stat.S_IMODE(mine.place("asked").parent.stat().st_mode) == 0o700
