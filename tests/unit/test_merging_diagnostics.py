"""What the engine tells of layers: distances by the definition, of a sample that hangs on names alone."""

import json

import pytest
import torch

from gramfuse_shared.contract.diagnostics import Layer, Spread, rounded, without_members
from gramfuse_shared.merging import sampling, schedule
from gramfuse_shared.merging.plan import LabelRows
from support.merging_cases import CPU, merge_models, random_models, recipe_of

MATRICES = {"q.weight", "k.weight", "conv.weight"}


def distance(model, merged, names):
    """‖Wᵢ − W‖/‖W‖ over all elements."""
    own, whole = (torch.cat([t[name].double().flatten() for name in names]) for t in (model.weights, merged.tensors))
    return float((own - whole).norm() / whole.norm())


@pytest.mark.parametrize("method", ["linear", "regmean", "task_arithmetic", "ties", "dare_ties", "wudi"])
def test_distances_are_the_definition_where_all_elements_are_sampled(tmp_path, method):
    base, models = random_models()
    merged = merge_models(tmp_path, models, base, recipe_of(method))
    told = [entry for entry in merged.diagnostics if "distances" in entry]
    assert {name for entry in told for name in entry["parameters"]} == MATRICES
    for entry in told:
        for model in models:
            expected = distance(model, merged, entry["parameters"])
            assert entry["distances"][f"model {model.key}"] == pytest.approx(expected, rel=1e-4)


def test_of_many_elements_a_sample_is_close(tmp_path, monkeypatch):
    base, models = random_models(width=200)
    exact = merge_models(tmp_path / "exact", models, base, recipe_of())
    monkeypatch.setattr(sampling, "SAMPLED_ELEMENTS", 500)
    sampled = merge_models(tmp_path / "sampled", models, base, recipe_of())
    assert [result.file for result in exact.results] == [result.file for result in sampled.results]
    for one, other in zip(exact.diagnostics, sampled.diagnostics, strict=True):
        assert one["distances"] != other["distances"]
        for label, value in one["distances"].items():
            assert other["distances"][label] == pytest.approx(value, rel=0.25)


def test_the_sample_is_the_same_in_chunks_in_shards_and_on_another_run(tmp_path, monkeypatch):
    base, models = random_models(width=60)
    monkeypatch.setattr(sampling, "SAMPLED_ELEMENTS", 50)
    whole = merge_models(tmp_path / "whole", models, base, recipe_of("linear"))
    again = merge_models(tmp_path / "again", models, base, recipe_of("linear"))
    monkeypatch.setattr(schedule, "CHUNK_BYTES", 20)
    chunked = merge_models(tmp_path / "chunked", models, base, recipe_of("linear"), shard_bytes=1000)
    assert whole.diagnostics == again.diagnostics
    for one, other in zip(whole.diagnostics, chunked.diagnostics, strict=True):
        assert one["distances"] == pytest.approx(other["distances"])


def test_what_is_zero_has_no_relative_distance():
    sample = sampling.Sample(torch.arange(3), ["a"], CPU)
    sample.take_difference("a", torch.ones(3))
    assert sample.distances() == {}


def test_rows_that_single_members_trained_have_no_distances(tmp_path):
    base, models = random_models()
    labels = [
        LabelRows(frozenset({"q.weight"}), frozenset(rows)) for rows in ((0, 1, 2, 3), (2, 3, 4, 5, 6, 7), (0, 7))
    ]
    for model, rows in zip(models, labels, strict=True):
        object.__setattr__(model, "labels", rows)
    merged = merge_models(tmp_path, models, base, recipe_of())
    parts = [entry for entry in merged.diagnostics if "label_rows" in entry]
    assert parts
    assert not any("distances" in entry for entry in parts)
    assert any(entry.get("gained") is not None for entry in parts)


def test_a_solved_group_tells_its_condition_and_its_gain(tmp_path):
    base, models = random_models()
    merged = merge_models(tmp_path, models, base, recipe_of(alpha=0.9))
    group = next(entry for entry in merged.diagnostics if entry["parameters"] == ["q.weight", "k.weight"])
    assert 1.0 <= group["condition"] < 100.0
    assert 0.0 < group["gained"] < 1.0
    assert json.loads(json.dumps(merged.diagnostics, allow_nan=False)) == merged.diagnostics


def test_published_entries_name_nobody():
    entry = {
        "parameters": ["w"], "method": "regmean", "fallback": "none", "reason": None, "width": 3, "condition": 12.3456,
        "gained": -0.0, "distances": {"acme": 0.11111, "globex": 0.3, "initech": 0.2, "umbrella": 0.4},
    }  # fmt: skip
    published = without_members(entry)
    assert "acme" not in json.dumps(published)
    assert published["spread"] == {"smallest": 0.111, "median": 0.25, "largest": 0.4}
    assert (published["condition"], str(published["gained"])) == (12.3, "0.0")
    assert Layer.of_entry(published) == Layer.of_entry(entry)
    assert Layer.of_entry(entry, own="acme").own == 0.111
    assert Layer.of_entry(entry, own="hooli").own is None
    assert without_members(published) == published


def test_entries_of_before_there_were_figures_are_read():
    entry = {"parameters": ["w"], "method": "regmean", "fallback": "average", "reason": "acme sent none"}
    assert Layer.of_entry(entry).spread is None


def test_one_member_is_smallest_median_and_largest():
    assert Spread.of([0.5]) == Spread(smallest=0.5, median=0.5, largest=0.5)
    assert rounded(123456.0) == 123000.0
