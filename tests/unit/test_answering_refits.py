"""What the client computes, shows and keeps when it answers requests but those for Gram matrices; no server runs."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from gramfuse.answering.computing import Assignment, compute
from gramfuse.answering.configuration import LocalTexts, Participation
from gramfuse.answering.kept import KeptAnswers
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.evaluating.calibration import collect_calibration
from gramfuse.evaluating.evaluation import evaluate
from gramfuse.measuring.head import HeadStatistics, collect_head
from gramfuse.measuring.refit import collect_refit
from gramfuse_shared.contract.answer_rules import require_answer_allowed
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.release_gate import ReleaseGate
from gramfuse_shared.contract.requests import RequestInfo
from gramfuse_shared.errors import ConfigurationError, PolicyViolationError
from support import tiny
from support.adapters import save_adapter

POLICY = Policy(
    heads="shared",
    methods=("linear", "head", "refit", "calibration"),
    requests=("head", "refit", "calibration"),
    minimum_rows_per_dimension=1,
    minimum_evaluation_examples=10,
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """An organization's folder: base, a merged model, its own one, texts with and without labels."""
    folder = tmp_path_factory.mktemp("desk")
    tiny.write_base(folder / "base")
    tiny.write_tuned(folder / "base", folder / "merged", seed=1)
    tiny.write_tuned(folder / "base", folder / "tuned", seed=2)
    tiny.write_texts(folder / "texts.jsonl", count=60, words=6)
    lines = (folder / "texts.jsonl").read_text().splitlines()
    labelled = (json.dumps(json.loads(line) | {"label": n % 2}) for n, line in enumerate(lines))
    (folder / "labelled.jsonl").write_text("\n".join(labelled) + "\n")
    return folder


def texts_of(desk):
    return [json.loads(line)["text"] for line in (desk / "texts.jsonl").read_text().splitlines()]


def assignment(desk, folder, kind, policy=POLICY, layers=()):
    request = RequestInfo.model_validate(
        {
            "id": f"{kind}-1",
            "project": "acme.tweets",
            "kind": kind,
            "models": ["first"],
            "layers": layers,
            "state": "open",
            "policy": {"version": 1, "digest": policy.content_digest()},
            "created_at": "2026-01-01T00:00:00Z",
            "deadline": "2026-01-08T00:00:00Z",
            "asked": [{"organization": "globex", "state": "awaited"}],
        }
    )
    folder.mkdir(exist_ok=True)
    base = build_base_manifest(desk / "base")
    return Assignment(request, "globex", policy, 1, base, {"first": desk / "merged"}, folder)


def participation(desk, **changes):
    told = {
        "project": "acme.tweets",
        "model": desk / "tuned",
        "measured": LocalTexts(texts=desk / "texts.jsonl"),
        "held_out": LocalTexts(texts=desk / "labelled.jsonl"),
        "device": "cpu",
    }
    return Participation.model_validate(told | changes)


def test_a_head_is_answered_by_the_merged_trunks_features_and_ones_own_logits(desk, tmp_path):
    given = assignment(desk, tmp_path / "head-1", "head")
    prepared = compute(given, participation(desk))
    require_answer_allowed(prepared.answer, given.request, POLICY, given.base)
    section = prepared.answer.statistics
    assert (section.labels, section.taps[0].width, section.taps[0].rows) == (3, 33, 60)
    expected = collect_head(desk / "merged", desk / "tuned", texts_of(desk), device="cpu")
    found = HeadStatistics.load(prepared.file)
    assert torch.equal(found.gram, expected.gram.float().double())
    assert torch.equal(found.product, expected.product.float().double())
    assert found.base == given.base.content_digest()
    assert section.file.bytes == prepared.file.stat().st_size


def test_an_adapters_logits_are_those_of_the_base_with_the_adapter_added(desk, tmp_path):
    options = {"target_modules": ["query", "value"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}
    save_adapter(tmp_path / "adapter", desk / "base", merged=tmp_path / "whole", **options)
    given = assignment(desk, tmp_path / "head-1", "head")
    own = participation(desk, model=tmp_path / "adapter")
    with pytest.raises(ConfigurationError, match="project base pull"):
        compute(given, own)
    prepared = compute(replace(given, base_folder=desk / "base"), own)
    expected = collect_head(desk / "merged", tmp_path / "whole", texts_of(desk), device="cpu")
    torch.testing.assert_close(HeadStatistics.load(prepared.file).product, expected.product, atol=1e-4, rtol=1e-4)


def test_drawn_labels_of_a_weighted_answer_are_repeated_where_a_seed_is_named_and_cannot_be_guessed_else(
    desk, tmp_path
):
    policy = POLICY.model_copy(update={"requests": ("gram",), "methods": ("regmean",)})
    digests = []
    for number, seed in enumerate((1, 1, None, None)):
        given = assignment(desk, tmp_path / f"gram-{number}", "gram", policy)
        asked = given.request.model_copy(update={"weighting": "output_gradient"})
        prepared = compute(replace(given, request=asked), participation(desk, seed=seed))
        digests.append(prepared.answer.statistics.file.sha256)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_of_scores_four_digits_leave_and_these_are_shown(desk, tmp_path):
    texts = [json.loads(line) for line in (desk / "labelled.jsonl").read_text().splitlines()]
    exact = evaluate(desk / "merged", [one["text"] for one in texts], [one["label"] for one in texts]).metrics
    given = assignment(desk, tmp_path / "evaluate-1", "evaluate", POLICY.model_copy(update={"requests": ("evaluate",)}))
    prepared = compute(given, participation(desk))
    leaving = prepared.answer.scores[0].metrics
    assert leaving == {name: round(value, 4) for name, value in exact.items()}
    assert leaving["loss"] != exact["loss"]
    assert all(f"{name.replace('_', ' ')} {value}" in str(prepared) for name, value in leaving.items())


def test_an_adapter_is_scored_as_the_whole_model_that_it_makes_of_the_base(desk, tmp_path):
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
    save_adapter(tmp_path / "adapter", desk / "base", merged=tmp_path / "whole", **options)
    AutoTokenizer.from_pretrained(desk / "base").save_pretrained(tmp_path / "whole")
    policy = POLICY.model_copy(update={"requests": ("evaluate",)})
    given = assignment(desk, tmp_path / "evaluate-1", "evaluate", policy)
    whole = compute(given, participation(desk, model=tmp_path / "whole")).answer.scores
    found = compute(replace(given, base_folder=desk / "base"), participation(desk, model=tmp_path / "adapter"))
    for score, expected in zip(found.answer.scores, whole, strict=True):
        assert (score.model, score.examples) == (expected.model, expected.examples)
        assert score.metrics == pytest.approx(expected.metrics, abs=1e-5)
    assert {score.model for score in whole} == {"first", None}


def test_before_a_head_leaves_the_person_reads_what_it_reveals(desk, tmp_path):
    told = str(compute(assignment(desk, tmp_path / "head-1", "head"), participation(desk)))
    assert "of 60 rows the Gram matrix of the 32 features that classifier" in told
    assert "your own model's logits of 3 labels" in told
    assert "The two together tell your own head, as sharing it does. The server sees them" in told


def test_head_statistics_of_few_rows_are_not_written(desk, tmp_path):
    given = assignment(desk, tmp_path / "head-1", "head", POLICY.model_copy(update={"minimum_rows_per_dimension": 2.0}))
    with pytest.raises(PolicyViolationError, match="60 distinct rows, the policy wants 66"):
        compute(given, participation(desk))
    assert list(given.folder.iterdir()) == []


# --- layers ----------------------------------------------------------------------------------------------------------

QUERY = "bert.encoder.layer.{}.attention.self.query.weight"
DENSE = "bert.encoder.layer.0.output.dense.weight"


def test_layers_are_answered_by_what_the_merged_model_reads_and_what_it_lacks_to_ones_own(desk, tmp_path):
    given = assignment(desk, tmp_path / "refit-1", "refit", layers=[DENSE, QUERY.format(1)])
    prepared = compute(given, participation(desk))
    require_answer_allowed(prepared.answer, given.request, POLICY, given.base)
    section = prepared.answer.statistics
    found = [(tap.width, tap.rows, [(layer.weight, layer.outputs) for layer in tap.layers]) for tap in section.taps]
    assert found == [(129, 60 * 8, [(DENSE, 32)]), (33, 60 * 8, [(QUERY.format(1), 32)])]
    assert (section.kind, section.file.bytes) == ("refit", prepared.file.stat().st_size)
    layers = [DENSE, QUERY.format(1)]
    expected = collect_refit(desk / "merged", desk / "tuned", texts_of(desk), layers=layers, device="cpu")
    stored = load_file(prepared.file)
    for weight, product in expected.products.items():
        assert torch.equal(stored[f"product.{weight}"], product)
    for tap in expected.statistics.taps:
        assert torch.equal(stored[f"gram.{tap.info.name}"][:-1], tap.gram[:-1])


def test_of_an_adapter_the_layers_are_those_of_the_base_with_the_adapter_added(desk, tmp_path):
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    save_adapter(tmp_path / "adapter", desk / "base", merged=tmp_path / "whole", **options)
    given = assignment(desk, tmp_path / "refit-1", "refit", layers=[DENSE])
    own = participation(desk, model=tmp_path / "adapter")
    prepared = compute(replace(given, base_folder=desk / "base"), own)
    expected = collect_refit(desk / "merged", tmp_path / "whole", texts_of(desk), layers=[DENSE], device="cpu")
    torch.testing.assert_close(
        load_file(prepared.file)[f"product.{DENSE}"], expected.products[DENSE], atol=1e-4, rtol=1e-4
    )


def test_without_named_layers_all_that_may_leave_are_answered_and_the_others_are_not_measured(desk, tmp_path):
    prepared = compute(assignment(desk, tmp_path / "refit-1", "refit"), participation(desk))
    layers = {layer.weight for tap in prepared.answer.statistics.taps for layer in tap.layers}
    # six in each block, but three that the embeddings feed; the pooler; no classifier, which is a head
    assert len(layers) == 10
    assert {layer for layer in layers if ".encoder." not in layer} == {"bert.pooler.dense.weight"}
    assert QUERY.format(0) not in layers
    ((tap, reason),) = prepared.stays
    assert tap.startswith("bert.encoder.layer.0.attention.self")
    assert "embeddings feed it directly" in reason


def test_before_layers_leave_the_person_reads_what_they_reveal(desk, tmp_path):
    asked = assignment(desk, tmp_path / "refit-1", "refit", layers=[DENSE, QUERY.format(0), "classifier.weight"])
    prepared = compute(asked, participation(desk))
    told = str(replace(prepared, asked=asked.request))
    assert "what linear layers of first would be refit from, to give what your own model's give" in told
    assert "The two together tell your own layers, as your contribution does, and what your own embeddings" in told
    assert DENSE in told
    assert "embeddings feed it directly" in told
    assert "statistics of classifier.weight: only matrices outside heads and embeddings are refit" in told


@pytest.mark.parametrize(
    ("layers", "rows", "reason"), [([DENSE], 4.0, "few_rows"), ([QUERY.format(0)], 1.0, "embeddings")]
)
def test_where_nothing_of_what_layers_would_be_refit_from_may_leave_the_answer_says_so_and_why(
    desk, tmp_path, layers, rows, reason
):
    policy = POLICY.model_copy(update={"minimum_rows_per_dimension": rows})
    given = assignment(desk, tmp_path / "refit-1", "refit", policy, layers)
    prepared = compute(given, participation(desk))
    require_answer_allowed(prepared.answer, given.request, policy, given.base)
    assert (prepared.answer.withheld, prepared.answer.statistics, prepared.files) == ((reason,), None, ())
    assert list(given.folder.iterdir()) == []
    kept = KeptAnswers(tmp_path)
    kept.keep(prepared, "5" * 64)
    assert kept.find("refit-1") == prepared


def test_layers_that_nobody_may_be_asked_for_are_an_error(desk, tmp_path):
    given = assignment(desk, tmp_path / "refit-1", "refit", layers=["classifier.weight"])
    with pytest.raises(PolicyViolationError, match="only matrices outside heads and embeddings"):
        compute(given, participation(desk))


# --- calibrations ----------------------------------------------------------------------------------------------------


def test_scores_are_counted_of_labels_that_enough_texts_bear(desk, tmp_path):
    given = assignment(desk, tmp_path / "calibration-1", "calibration")
    prepared = compute(given, participation(desk))
    require_answer_allowed(prepared.answer, given.request, POLICY, given.base)
    labels = [number % 2 for number in range(60)]
    expected = collect_calibration(desk / "merged", texts_of(desk), labels, minimum_examples=10, device="cpu")
    assert prepared.answer.histograms == expected
    assert [one.label for one in expected.classes] == [0, 1]  # nobody bears label 2
    assert prepared.files == ()


def test_before_a_calibration_leaves_the_person_reads_how_often_each_label_occurs(desk, tmp_path):
    told = str(compute(assignment(desk, tmp_path / "calibration-1", "calibration"), participation(desk)))
    assert "for 2 of 3 labels" in told
    assert "label 1: 30 that bear it, 30 that do not" in told
    assert "how often each label occurs in your texts. The server sees them" in told


def test_without_labels_that_enough_texts_bear_there_is_no_answer(desk, tmp_path):
    policy = POLICY.model_copy(update={"minimum_evaluation_examples": 31})
    with pytest.raises(PolicyViolationError, match="use more labelled texts"):
        compute(assignment(desk, tmp_path / "calibration-1", "calibration", policy), participation(desk))


def test_too_few_texts_to_evaluate_on_are_refused_before_a_model_runs(desk, tmp_path):
    policy = POLICY.model_copy(update={"requests": ("evaluate",), "minimum_evaluation_examples": 61})
    run = list[object]()
    with pytest.raises(PolicyViolationError, match="counts 60 examples, the policy wants 61"):
        compute(assignment(desk, tmp_path / "eval", "evaluate", policy), participation(desk), on_progress=run.append)
    assert run == []


def test_texts_that_a_model_reads_as_the_same_are_found_behind_the_first_model(desk, tmp_path):
    lines = (desk / "labelled.jsonl").read_text().splitlines()
    spaced = [line.replace(" ", "  ") for line in lines[:30]]
    (tmp_path / "twice.jsonl").write_text("\n".join(lines[:30] + spaced))
    held_out = LocalTexts(texts=tmp_path / "twice.jsonl")
    policy = POLICY.model_copy(update={"requests": ("evaluate",), "minimum_evaluation_examples": 31})
    run = list[object]()
    with pytest.raises(PolicyViolationError, match="counts 30 examples"):
        compute(
            assignment(desk, tmp_path / "eval", "evaluate", policy),
            participation(desk, held_out=held_out, batch_size=60),
            on_progress=run.append,
        )
    assert len(run) == 1


def test_an_own_model_that_a_release_is_compared_with_is_missed_before_a_model_runs(desk, tmp_path):
    gate = ReleaseGate(metric="f1", behind_own=0.1)
    policy = POLICY.model_copy(update={"requests": ("evaluate",), "release": gate})
    given = replace(assignment(desk, tmp_path / "eval", "evaluate", policy), models={"first": desk / "nowhere"})
    with pytest.raises(PolicyViolationError, match="name your own"):
        compute(given, participation(desk, model=None))


def test_texts_to_calibrate_on_may_be_others_than_those_to_evaluate_on(desk, tmp_path):
    few = LocalTexts(texts=desk / "labelled.jsonl", examples=40)
    given = assignment(desk, tmp_path / "calibration-1", "calibration")
    counted = compute(given, participation(desk, calibrated=few)).answer.histograms
    assert sum(counted.classes[0].labelled) == 20


@pytest.mark.parametrize("kind", ["head", "calibration"])
def test_what_the_policy_does_not_allow_is_refused_before_a_model_runs(desk, tmp_path, kind):
    given = assignment(desk, tmp_path / kind, kind, POLICY.model_copy(update={"heads": "private"}))
    absent = replace(given, models={"first": desk / "nowhere"})
    with pytest.raises(PolicyViolationError, match="needs shared heads"):
        compute(absent, participation(desk))


def test_kinds_are_answered_where_there_is_what_they_take(desk, tmp_path):
    assert participation(desk).kinds == {"evaluate", "gram", "head", "refit", "calibration"}
    without_model = participation(desk, model=None)
    assert without_model.kinds == {"evaluate", "gram", "calibration"}
    labelled = LocalTexts(texts=desk / "labelled.jsonl")
    assert participation(desk, held_out=None, measured=None, calibrated=labelled).kinds == {"calibration"}
    for kind in ("head", "refit"):
        with pytest.raises(ConfigurationError, match="no model of your own"):
            compute(assignment(desk, tmp_path / kind, kind), without_model)
    with pytest.raises(ConfigurationError, match="no calibrated or held_out texts"):
        compute(assignment(desk, tmp_path / "calibration", "calibration"), participation(desk, held_out=None))


@pytest.mark.parametrize("kind", ["head", "refit", "calibration"])
def test_a_kept_answer_is_found_with_its_bytes(desk, tmp_path, kind):
    kept = KeptAnswers(tmp_path / "answers")
    prepared = compute(assignment(desk, kept.place(f"{kind}-1"), kind), participation(desk))
    kept.keep(prepared, "5" * 64)
    assert kept.find(f"{kind}-1") == prepared
