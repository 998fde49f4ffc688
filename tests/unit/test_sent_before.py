"""What is warned of where weights were pushed before: to other projects, and both in the open and summed in secret."""

import pytest

from gramfuse.config import Home
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.contributing.draft import draft_contribution
from gramfuse.contributing.sent_before import Sent, SentBefore, warnings_of
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import ConfigurationError
from support.client_models import write_model

HERE, THERE = "https://here.example", "https://there.example"
OPEN = Policy()
HEADS = Policy(heads="shared", head_parameters=("classifier.*",))


def sent(project="acme.tweets", url=HERE, weights="a", *, summed=False) -> Sent:
    return Sent(url=url, project=project, weights=weights * 64, summed=summed)


def test_other_projects_are_named_and_other_servers_too():
    before = [sent("acme.news"), sent("acme.tweets", THERE), sent("acme.mail", weights="b"), sent()]
    (told,) = warnings_of(sent(), before)
    assert told.startswith("you pushed these weights to acme.news, acme.tweets at https://there.example before: ")
    assert "mail" not in told


def test_the_same_project_again_is_no_other_one():
    assert warnings_of(sent(), [sent(), sent()]) == ()


@pytest.mark.parametrize(("summed", "words"), [(True, "went in the open to"), (False, "went summed in secret to")])
def test_what_went_in_the_open_must_not_be_summed_nor_the_other_way_round(summed, words):
    (told,) = warnings_of(sent(summed=summed), [sent(summed=not summed)])
    assert f"{words} acme.tweets" in told
    assert "do not send a model both ways" in told


@pytest.fixture
def models(tmp_path):
    write_model(tmp_path / "base")
    for name, changes in {
        "one": {"seed": 1},
        "sharded": {"seed": 1, "shards": 2},
        "other": {"seed": 2},
    }.items():
        write_model(tmp_path / name, **changes)
    return tmp_path


def prepared(folder, name, project, policy=OPEN):
    base = build_base_manifest(folder / "base")
    draft = draft_contribution(folder / name, None, base, policy, base_folder=folder / "base")
    before = len(draft.plan.warnings)
    warned, made = SentBefore(Home(folder / "home")).prepare(draft, HERE, project)
    return [warning for warning in warned.plan.warnings[before:] if "before" in warning], made


def test_weights_are_known_again_however_they_are_stored_and_whatever_becomes_of_their_head(models):
    warned, made = prepared(models, "one", "acme.tweets")
    assert warned == []
    SentBefore(Home(models / "home")).remember(made)
    for name, policy, is_warned in (
        ("one", OPEN, True),
        ("one", HEADS, True),
        ("sharded", OPEN, True),
        ("other", OPEN, False),
    ):
        warned, _ = prepared(models, name, "acme.news", policy)
        assert [("acme.tweets" in one) for one in warned] == ([True] if is_warned else [])
    assert prepared(models, "one", "acme.tweets")[0] == []


def test_what_is_remembered_is_for_its_owner_only_and_once(models):
    home = Home(models / "home")
    _, made = prepared(models, "one", "acme.tweets")
    for _ in range(2):
        SentBefore(home).remember(made)
    (file,) = (home.path / "sent").iterdir()
    assert (file.stat().st_mode | (home.path / "sent").stat().st_mode) & 0o077 == 0
    file.write_text("{")
    with pytest.raises(ConfigurationError, match="delete it"):
        prepared(models, "one", "acme.news")
