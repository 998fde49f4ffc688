"""What the client keeps, shows and lets leave when it answers a request. The models run in other suites."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from safetensors.torch import save_file

from gramfuse.answering.configuration import Participation, read_participation
from gramfuse.answering.kept import KeptAnswers
from gramfuse.answering.made_from import digest_of_sources
from gramfuse.answering.prepared import PreparedAnswer, keep_leaving_statistics
from gramfuse.contributing.loading import open_statistics_file
from gramfuse_shared.contract.manifest import (
    BaseFile,
    BaseManifest,
    CollectorSettings,
    LayerInfo,
    PolicyReference,
    TapInfo,
    TensorInfo,
)
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.requests import Answer, ModelScore, RequestInfo
from gramfuse_shared.contract.statistics_file import METADATA_KEY, StatisticsMetadata, gram_tensor_name, packed_length
from gramfuse_shared.errors import ArchitectureMismatchError, ConfigurationError, FileUnreadableError

WIDTH = 8
NOW = datetime(2026, 1, 2, tzinfo=UTC)
POLICY = Policy(minimum_rows_per_dimension=1)
SHAPE = (WIDTH, WIDTH)
BASE = BaseManifest(
    files=(
        BaseFile(name="config.json", bytes=2, sha256="1" * 64),
        BaseFile(
            name="model.safetensors",
            bytes=5000,
            sha256="2" * 64,
            tensors=tuple(
                TensorInfo(name=name, dtype="F32", shape=SHAPE)
                for name in ("a.q", "a.k", "b.q", "c.q", "d.q", "classifier.weight")
            ),
        ),
    )
)
REFERENCE = PolicyReference(version=1, digest="0" * 64)
SOURCES = "5" * 64
ASKED = RequestInfo.model_validate(
    {
        "id": "eval-1",
        "project": "acme.tweets",
        "kind": "evaluate",
        "models": ["first"],
        "state": "open",
        "policy": REFERENCE,
        "created_at": NOW,
        "deadline": NOW,
        "asked": [],
    }
)


def tap(name: str, *layers: str, source="mixed", rows=100) -> TapInfo:
    return TapInfo(
        name=name,
        width=WIDTH,
        rows=rows,
        distinct_rows=rows,
        source=source,
        layers=tuple(LayerInfo(weight=layer) for layer in layers),
    )


@pytest.fixture
def measured(tmp_path):
    import torch  # noqa: PLC0415 - only the file's values

    taps = (
        tap("a", "a.q", "a.k"),
        tap("b", "b.q"),
        tap("c", "c.q", source="embeddings"),
        tap("d", "d.q", rows=2),
        tap("e", "classifier.weight"),
    )
    path = tmp_path / "all.safetensors"
    metadata = StatisticsMetadata(collector=CollectorSettings(collector_version="1"), taps=taps)
    values = {
        gram_tensor_name(one.name): torch.full((packed_length(WIDTH),), float(number))
        for number, one in enumerate(taps)
    }
    save_file(values, path, metadata={METADATA_KEY: metadata.model_dump_json()})
    return path


def answer(**changes) -> Answer:
    scores = (ModelScore(model="first", examples=120, metrics={"f1": 0.5, "average_precision": 0.25}),)
    document = {"project": "acme.tweets", "request": "eval-1", "organization": "globex", "policy": REFERENCE}
    return Answer.model_validate(document | {"scores": scores} | changes)


# --- what leaves -----------------------------------------------------------------------------------------------------


def test_only_taps_that_the_policy_lets_leave_are_in_the_file_and_the_others_are_told_with_reasons(measured, tmp_path):
    target = tmp_path / "leaving.safetensors"
    kept = keep_leaving_statistics(measured, target, (), POLICY, BASE)
    section, stays = kept.section, kept.stays
    assert [one.name for one in section.taps] == ["a", "b"]
    assert [name for name, _ in stays] == ["c", "d", "e"]
    assert "embeddings feed it" in stays[0][1]
    assert "2 distinct rows" in stays[1][1]
    assert "none of the weights that read it leaves" in stays[2][1]  # a private head's
    written = open_statistics_file(target)
    assert written.metadata.taps == section.taps
    assert list(written.tensors) == ["gram.a", "gram.b"]
    assert (section.file.bytes, section.file.name) == (target.stat().st_size, "statistics.safetensors")


def test_of_a_tap_only_the_layers_that_were_asked_for_are_named(measured, tmp_path):
    kept = keep_leaving_statistics(measured, tmp_path / "leaving.safetensors", ("a.k",), POLICY, BASE)
    assert [[layer.weight for layer in one.layers] for one in kept.section.taps] == [["a.k"]]
    assert (kept.stays, kept.withheld) == ((), ())


@pytest.mark.parametrize(
    ("layers", "reasons"),
    [
        (("c.q",), ("embeddings",)),
        (("d.q",), ("few_rows",)),
        (("classifier.weight",), ("weights",)),
        (("c.q", "d.q"), ("embeddings", "few_rows")),
    ],
)
def test_where_nothing_of_what_is_asked_for_may_leave_the_answer_says_so_and_why_and_no_file_is_written(
    measured, tmp_path, layers, reasons
):
    kept = keep_leaving_statistics(measured, tmp_path / "leaving.safetensors", layers, POLICY, BASE)
    assert (kept.section, kept.withheld, len(kept.stays)) == (None, reasons, len(layers))
    assert not (tmp_path / "leaving.safetensors").exists()
    told = str(PreparedAnswer(answer(scores=(), withheld=kept.withheld), None, kept.stays))
    assert "that nothing of what is asked for may leave" in told
    assert "The members of the project will see this" in told


def test_layers_that_the_model_does_not_have_are_an_error(measured, tmp_path):
    with pytest.raises(ArchitectureMismatchError, match="no such layers"):
        keep_leaving_statistics(measured, tmp_path / "leaving.safetensors", ("none",), POLICY, BASE)


def test_the_preview_names_every_number_who_sees_it_and_what_stays(measured, tmp_path):
    told = str(PreparedAnswer(answer()))
    assert "first on 120 of your held-out texts: f1 0.5, average precision 0.25" in told
    assert "The members of the project will see these numbers" in told
    kept = keep_leaving_statistics(measured, tmp_path / "leaving.safetensors", (), POLICY, BASE)
    section, stays = kept.section, kept.stays
    told = str(PreparedAnswer(answer(scores=(), statistics=section), tmp_path / "leaving.safetensors", stays))
    assert "Gram matrices of" in told
    assert "The server sees them" in told
    assert "statistics of c: embeddings feed it directly" in told


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"kind": "evaluate", "models": ["a", "b"]}, "how well a, b and your own model, if you name it,"),
        ({"kind": "gram"}, "what layers of first read of your texts\n"),
        ({"kind": "gram", "block": "own"}, "read of your texts, the measured blocks being your own model's\n"),
        ({"kind": "gram", "weighting": "output_gradient"}, "read of your texts, each row counted by output gradient\n"),
        ({"kind": "head"}, "what the head of first would be refit from"),
        ({"kind": "calibration"}, "which scores first gives your labelled texts"),
    ],
)
def test_the_preview_says_what_was_asked_of_which_model_and_how(asked, words):
    request = {"id": "round-1", "project": "acme.tweets", "models": ["first"], "state": "open", "policy": REFERENCE}
    request |= {"created_at": NOW, "deadline": NOW, "asked": []} | asked
    told = str(PreparedAnswer(answer(), asked=RequestInfo.model_validate(request)))
    assert told.startswith("Answers round-1: ")
    assert words in told


def test_metrics_stand_in_one_order_also_of_an_answer_that_was_read_again():
    given = answer(scores=(ModelScore(model="first", examples=9, metrics={"recall": 0.5, "loss": 1.0, "f1": 0.25}),))
    told = str(PreparedAnswer(given))
    assert "first on 9 of your held-out texts: f1 0.25, recall 0.5, loss 1.0" in told
    assert str(PreparedAnswer(Answer.parse(given.canonical()))) == told


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_an_answer_that_was_kept_is_found_as_it_was_and_the_folder_is_its_owners(tmp_path):
    kept = KeptAnswers(tmp_path / "answers")
    assert kept.find("eval-1") is None
    kept.keep(PreparedAnswer(answer(), stays=(("a", "because"),)), SOURCES)
    found = kept.find("eval-1")
    assert found == PreparedAnswer(answer(), stays=(("a", "because"),))
    assert (tmp_path / "answers").stat().st_mode & 0o077 == 0
    kept.forget("eval-1")
    assert kept.find("eval-1") is None


def test_an_answer_is_known_by_what_it_was_made_from_and_one_of_an_earlier_version_by_nothing(tmp_path):
    kept = KeptAnswers(tmp_path / "answers")
    assert not kept.is_made_from("eval-1", SOURCES)
    kept.keep(PreparedAnswer(answer()), SOURCES)
    assert (kept.is_made_from("eval-1", SOURCES), kept.is_made_from("eval-1", "6" * 64)) == (True, False)
    (tmp_path / "answers" / "eval-1" / "made-from.sha256").unlink()
    assert not kept.is_made_from("eval-1", SOURCES)


CONFIGURATION = {"project": "acme.tweets", "held_out": {"texts": "held-out.jsonl"}, "model": "tuned"}


@pytest.mark.parametrize(
    ("changed", "is_the_same"),
    [
        ({}, True),
        ({"batch_size": 1, "device": "cuda", "allow": ["evaluate"], "folder": "elsewhere"}, True),
        ({"measured": {"texts": "nowhere.jsonl"}}, True),  # which no evaluation reads
        ({"held_out": {"texts": "held-out.jsonl", "examples": 2}}, False),
        ({"held_out": {"texts": "held-out.jsonl", "label_field": "mood"}}, False),
        ({"held_out": {"texts": "more.jsonl"}}, False),
        ({"held_out": {"texts": "same.jsonl"}}, True),
        ({"model": None}, False),
        ({"model": "other"}, False),
        ({"max_length": 16}, False),
        ({"seed": 1}, False),
    ],
)
def test_what_an_answer_is_made_from_is_texts_model_and_settings_by_what_they_hold(
    tmp_path, monkeypatch, changed, is_the_same
):
    monkeypatch.chdir(tmp_path)
    for name, texts in (("held-out", "one"), ("same", "one"), ("more", "one\ntwo")):
        (tmp_path / f"{name}.jsonl").write_text(texts)
    for name in ("tuned", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    before = digest_of_sources(ASKED, Participation.model_validate(CONFIGURATION))
    after = digest_of_sources(ASKED, Participation.model_validate(CONFIGURATION | changed))
    assert (before == after) is is_the_same
    other_question = ASKED.model_copy(update={"models": ("second",)})
    assert digest_of_sources(other_question, Participation.model_validate(CONFIGURATION)) != before


def test_texts_that_a_folder_holds_are_known_by_every_file_in_it(tmp_path):
    configuration = Participation.model_validate(CONFIGURATION | {"model": None, "held_out": {"texts": tmp_path}})
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "data.arrow").write_text("one")
    before = digest_of_sources(ASKED, configuration)
    (tmp_path / "test" / "data.arrow").write_text("two")
    assert digest_of_sources(ASKED, configuration) != before


def test_half_an_answer_counts_as_none(tmp_path, measured):
    kept = KeptAnswers(tmp_path / "answers")
    place = kept.place("eval-1")
    section = keep_leaving_statistics(measured, place / "statistics.safetensors", (), POLICY, BASE).section
    kept.keep(PreparedAnswer(answer(scores=(), statistics=section)), SOURCES)
    assert kept.find("eval-1").file == place / "statistics.safetensors"
    (place / "statistics.safetensors").unlink()
    assert kept.find("eval-1") is None
    (place / "answer.json").write_bytes(b'{"half": ')
    assert kept.find("eval-1") is None


def test_pulled_models_that_no_request_waits_for_are_removed_but_the_newest(tmp_path):
    kept = KeptAnswers(tmp_path / "answers")
    kept.forget_models(set())  # nothing was pulled yet
    assert kept.models() == []
    for age, name in enumerate(("newest", "older", "needed", "oldest")):
        kept.model(name).mkdir()
        (kept.model(name) / "model.safetensors").write_bytes(b"weights")
        os.utime(kept.model(name), (1e9 - age, 1e9 - age))
    for name in ("begun", "needed"):
        kept.model(name).with_name(f"{name}.partial").mkdir(exist_ok=True)
    kept.keep(PreparedAnswer(answer()), SOURCES)
    assert [folder.name for folder in kept.models()] == ["newest", "older", "needed", "oldest"]
    kept.forget_models({"needed"})
    assert {folder.name for folder in kept.model("newest").parent.iterdir()} == {"newest", "needed", "needed.partial"}
    assert kept.find("eval-1") is not None


# --- the configuration -----------------------------------------------------------------------------------------------


def test_a_configurations_paths_start_from_its_own_folder(tmp_path):
    path = tmp_path / "participate.yaml"
    path.write_text(
        "project: acme.tweets\nmodel: tuned\nheld_out: {texts: test.jsonl}\ncalibrated: {texts: dev.jsonl}\n"
        "allow: [evaluate]\n"
    )
    found = read_participation(path)
    assert found.model == tmp_path / "tuned"
    assert found.held_out.texts == tmp_path / "test.jsonl"
    assert found.folder == tmp_path / "answers"
    assert found.calibrated.texts == tmp_path / "dev.jsonl"
    assert found.kinds == {"evaluate", "calibration"}


def test_by_default_nothing_is_answered_unasked(tmp_path):
    path = tmp_path / "participate.yaml"
    path.write_text("project: acme.tweets\n")
    found = read_participation(path)
    assert (found.allow, found.kinds) == ((), frozenset())


def test_whoever_names_no_model_answers_no_requests_about_own_blocks():
    request = {"id": "gram-1", "project": "acme.tweets", "kind": "gram", "models": ["first"], "layers": ["a.q"]}
    request |= {"state": "open", "policy": REFERENCE, "created_at": NOW, "deadline": NOW, "asked": []}
    merged, own = (RequestInfo.model_validate(request | {"block": block}) for block in ("merged", "own"))
    without = Participation.model_validate({"project": "acme.tweets", "measured": {"texts": "mine.jsonl"}})
    assert (without.can_answer(merged), without.can_answer(own)) == (True, False)
    assert without.model_copy(update={"model": Path("tuned")}).can_answer(own)
    assert not Participation(project="acme.tweets", model=Path("tuned")).can_answer(merged)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("project: [", "not YAML"),
        ("project: acme.tweets\nallow: [everything]\n", "allow"),
        ("project: acme.tweets\nhook: rm\n", "hook is not a key"),
        ("", "mapping"),
    ],
)
def test_a_configuration_that_makes_no_sense_says_where(tmp_path, content, message):
    path = tmp_path / "participate.yaml"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        read_participation(path)


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(FileUnreadableError, match=r"participate\.yaml"):
        read_participation(tmp_path / "participate.yaml")


def test_the_preview_as_json_is_the_answer_itself():
    assert PreparedAnswer(answer()).to_json() == {"answer": json.loads(answer().canonical()), "stays": []}
