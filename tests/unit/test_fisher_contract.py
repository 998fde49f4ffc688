"""Fisher information on the wire: its file, its place in a manifest, and what the policy lets leave of it."""

import json
from pathlib import Path

import pytest

from gramfuse_shared.contract.fisher_file import METADATA_KEY, FisherMetadata, parse_fisher_metadata
from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.rules import require_architecture, require_policy, why_fisher_stays
from gramfuse_shared.contract.safetensors_header import Header, format_header, parse_header
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    HeaderMalformedError,
    PolicyViolationError,
    StatisticsMalformedError,
)

GOLDEN = Path(__file__).parents[1] / "golden"
DIGEST = "a" * 64
SHAPES = {
    "embeddings.word_embeddings.weight": (40, 8),
    "layer.0.weight": (8, 8),
    "layer.1.weight": (8, 24),
    "layer.1.bias": (8,),
    "classifier.weight": (3, 8),
}
SOURCES = {"embeddings.word_embeddings.weight": "embeddings", "layer.0.weight": "embeddings"}
ALLOWED = Policy(methods=("linear", "regmean", "fisher"))
OPEN = Policy(methods=("fisher",), embeddings="average", embedding_taps="send", heads="shared")


def base() -> BaseManifest:
    file = {"bytes": 100_000, "sha256": DIGEST}
    tensors = [{"name": name, "dtype": "F32", "shape": shape} for name, shape in SHAPES.items()]
    weights = file | {"name": "model.safetensors", "tensors": tensors}
    return BaseManifest.model_validate({"files": [file | {"name": "config.json"}, weights], "vocabulary_size": 40})


def metadata(names=tuple(SHAPES), *, examples=1_000, **changes) -> FisherMetadata:
    parameters = [
        {"name": name, "shape": SHAPES.get(name, (2,)), "norm": 0.5, "source": SOURCES.get(name, "mixed")}
        for name in names
    ]
    document = {
        "examples": 2_000,
        "distinct_examples": examples,
        "collector": {"collector_version": "0"},
        "parameters": parameters,
    }
    return FisherMetadata.model_validate(document | changes)


def manifest(names=tuple(SHAPES), *, weights=tuple(SHAPES), spare=400, **changes) -> ContributionManifest:
    told = metadata(names, **changes)
    size = 4 * sum(_count(parameter.shape) for parameter in told.parameters)
    tensors = [{"name": name, "dtype": "F32", "shape": SHAPES[name]} for name in weights]
    document = {
        "project": "acme.tweets",
        "organization": "acme",
        "base": base().content_digest(),
        "policy": {"version": 1, "digest": DIGEST},
        "weights": {
            "file": {"name": "w", "bytes": 4 * sum(_count(SHAPES[n]) for n in weights) + 400, "sha256": DIGEST},
            "tensors": tensors,
        },
        "fisher": told.model_dump(mode="json", exclude={"format", "base"})
        | {"file": {"name": "f", "bytes": size + spare, "sha256": DIGEST}},
    }
    return ContributionManifest.model_validate(document)


def _count(shape):
    count = 1
    for size in shape:
        count *= size
    return count


# --- what may leave --------------------------------------------------------------------------------------------------


def stays(policy, *, contributed=tuple(SHAPES), **changes):
    return why_fisher_stays(metadata(**changes), contributed, base(), policy)


def test_by_default_none_of_it_leaves():
    assert set(stays(Policy()).values()) == {"no method of the policy reads Fisher information (methods)"}
    with pytest.raises(PolicyViolationError, match=r"the Fisher information of embeddings\.word.* may not leave"):
        require_policy(manifest(weights=("layer.1.weight",)), base(), Policy())


def test_it_goes_where_the_weights_go_and_not_where_embeddings_feed():
    found = stays(ALLOWED)
    assert {name for name, reason in found.items() if reason is None} == {"layer.1.weight", "layer.1.bias"}
    assert "embeddings: base" in found["embeddings.word_embeddings.weight"]
    assert "heads: private" in found["classifier.weight"]
    assert "which tokens the text holds (embedding_taps: withhold)" in found["layer.0.weight"]


def test_what_given_labels_told_stays_unless_the_policy_says_so():
    given = {"collector": {"collector_version": "0", "labels": "given"}}
    reasons = set(stays(ALLOWED, **given).values())
    assert len(reasons) == 1
    assert "with the texts' own labels, and tells how the model does on them (given_labels: withhold)" in reasons.pop()
    with pytest.raises(PolicyViolationError, match="given_labels"):
        require_policy(manifest(**given), base(), OPEN)
    sending = OPEN.model_copy(update={"given_labels": "send"})
    require_policy(manifest(**given), base(), sending)
    require_policy(manifest(), base(), sending)
    assert "no method of the policy" in next(iter(stays(Policy(given_labels="send"), **given).values()))


def test_a_policy_says_of_given_labels_only_where_they_leave():
    """So a policy that was accepted before there were any keeps its digest."""
    assert b"given_labels" not in ALLOWED.canonical()
    assert b'"given_labels":"send"' in Policy(given_labels="send").canonical()


def test_a_policy_that_shares_everything_lets_all_of_it_leave():
    assert set(stays(OPEN).values()) == {None}
    require_policy(manifest(), base(), OPEN)


def test_what_feeds_a_layer_unknown_counts_as_embeddings():
    told = metadata(("layer.1.weight",)).model_dump()
    told["parameters"][0]["source"] = "unknown"
    found = why_fisher_stays(FisherMetadata.model_validate(told), SHAPES, base(), ALLOWED)
    assert "what feeds it is not known" in found["layer.1.weight"]


def test_it_stays_with_its_weight():
    found = stays(ALLOWED, contributed=("layer.1.bias",))
    assert "its weight does not leave" in found["layer.1.weight"]
    assert found["layer.1.bias"] is None


def test_too_few_examples_for_the_largest_matrix_keep_all_of_it():
    """[8, 24] has a harmonic mean of 12, so the default wants 240 examples, of the vector beside it too."""
    assert ALLOWED.minimum_examples((8, 24)) == 240
    assert stays(ALLOWED, examples=240)["layer.1.weight"] is None
    few = stays(ALLOWED, examples=239)
    for name in ("layer.1.weight", "layer.1.bias"):
        assert "239 distinct examples, the policy wants 240 (20 per dimension" in few[name]
    with pytest.raises(PolicyViolationError, match="239 distinct examples"):
        require_policy(manifest(("layer.1.bias", "layer.1.weight"), examples=239), base(), OPEN)


@pytest.mark.parametrize(("shape", "needed"), [((), 20), ((8,), 36), ((8, 8), 160), ((4, 2, 4), 107), ((8, 0), 0)])
def test_a_square_matrix_wants_as_many_examples_as_a_gram_matrix_of_its_width_wants_rows(shape, needed):
    assert Policy().minimum_examples(shape) == needed
    assert Policy().minimum_examples((8, 8)) == Policy().minimum_rows(8)


# --- what fits -------------------------------------------------------------------------------------------------------


def test_information_of_another_shape_or_tensor_is_refused():
    require_architecture(manifest(), base())
    told = manifest(("layer.1.bias",)).model_dump(mode="json")
    told["fisher"]["parameters"][0]["shape"] = [4, 2]
    with pytest.raises(ArchitectureMismatchError, match=r"layer\.1\.bias is \[4, 2\], the base model has one of \[8\]"):
        require_architecture(ContributionManifest.model_validate(told), base())
    with pytest.raises(ArchitectureMismatchError, match="of other is"):
        require_architecture(manifest(("other",)), base())


@pytest.mark.parametrize("spare", [0, 10_000_000])
def test_a_file_that_cannot_hold_its_tensors_is_refused(spare):
    with pytest.raises(HeaderMalformedError, match="f has"):
        require_architecture(manifest(spare=spare), base())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"distinct_examples": 3_000}, "distinct_examples exceeds examples"),
        ({"parameters": []}, "parameters"),
        ({"parameters": [{"name": "a", "shape": [1], "norm": -1.0, "source": "mixed"}]}, "norm"),
        ({"parameters": [{"name": "a", "shape": [1], "norm": 1.0, "source": "mixed"}] * 2}, "named twice"),
        ({"distinct_examples": -1}, "distinct_examples"),
        ({"collector": {"collector_version": "0", "labels": "guessed"}}, "labels"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        metadata(**changes)


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_a_manifest_without_it_has_the_bytes_that_it_had():
    raw = (GOLDEN / "contribution.json").read_bytes()
    parsed = ContributionManifest.parse(raw)
    assert parsed.fisher is None
    assert parsed.canonical() == raw
    assert b"fisher" not in raw


def test_the_files_of_a_manifest_are_weights_statistics_fisher():
    assert [file.name for file in manifest().files] == ["w", "f"]
    golden = ContributionManifest.parse((GOLDEN / "contribution-fisher.json").read_bytes())
    assert [file.name for file in golden.files] == [
        "weights.safetensors",
        "statistics.safetensors",
        "fisher.safetensors",
    ]


def header_of(tensors, told) -> Header:
    raw = format_header(tensors, {} if told is None else {METADATA_KEY: told})
    size = sum(4 * _count(shape) for _, _, shape in tensors)
    return parse_header(raw, len(raw) + size)


def test_a_file_is_read_back_as_it_was_described():
    told = metadata(("layer.1.bias", "layer.1.weight"))
    header = header_of([("layer.1.bias", "F32", (8,)), ("layer.1.weight", "F32", (8, 24))], told.model_dump_json())
    assert parse_fisher_metadata(header) == told


@pytest.mark.parametrize(
    ("tensors", "told", "reason"),
    [
        ([("layer.1.bias", "F32", (8,))], None, "not a file of Fisher information"),
        ([("layer.1.bias", "F32", (8,))], "{", "not JSON"),
        ([("layer.1.bias", "F32", (8,))], json.dumps({"format": "gramfuse/fisher/2"}), "format"),
        ([("layer.1.bias", "I32", (8,))], metadata(("layer.1.bias",)).model_dump_json(), "found .*I32"),
        ([("layer.1.bias", "F32", (9,))], metadata(("layer.1.bias",)).model_dump_json(), "9"),
        ([("other", "F32", (8,))], metadata(("layer.1.bias",)).model_dump_json(), "other"),
        ([], metadata(("layer.1.bias",)).model_dump_json(), "0 tensors of 1"),
    ],
)
def test_a_file_that_does_not_hold_what_it_describes_is_refused(tensors, told, reason):
    with pytest.raises(StatisticsMalformedError, match=reason):
        parse_fisher_metadata(header_of(tensors, told))
