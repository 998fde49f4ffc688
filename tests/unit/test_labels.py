"""Trained labels: which rows are labels', who may name them, and what a plan says of them."""

import json
from pathlib import Path

import pytest

from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.contributing.draft import draft_contribution
from gramfuse.contributing.packaging import build_package, leaving_files
from gramfuse_shared.contract.labels import label_count, label_parameters, require_labels
from gramfuse_shared.contract.manifest import BaseManifest, TrainedLabels
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    DocumentMalformedError,
    FileUnreadableError,
    PolicyViolationError,
)
from support.client_models import SHAPES, VOCABULARY, WIDTH, values, write_model

SHARED = Policy(heads="shared")
LABELS = 5
HEAD = "classifier.weight"
ALL_HEAD = {HEAD: ("F32", (LABELS, WIDTH)), "classifier.bias": ("F32", (LABELS,))}


def write_labelled(folder: Path, seed: int = 0, *, like_base: tuple[int, ...] = (), head=None) -> Path:
    """A model with five labels, of whose head some rows are those of seed 0."""
    shapes = SHAPES | (ALL_HEAD if head is None else head)
    write_model(folder, seed, shapes=shapes)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bert", "vocab_size": VOCABULARY, "id2label": {str(i): "x" for i in range(LABELS)}})
    )
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for name, kind in ALL_HEAD.items():
        old, base = values(seed, name, *kind), values(0, name, *kind)
        length = len(old) // LABELS
        rows = [(base if row in like_base else old)[row * length : (row + 1) * length] for row in range(LABELS)]
        content = content.replace(old, b"".join(rows))
    path.write_bytes(content)
    return folder


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    return write_labelled(tmp_path / "base")


@pytest.fixture
def base(base_folder: Path) -> BaseManifest:
    return build_base_manifest(base_folder)


def base_of(**heads: tuple[int, ...]) -> BaseManifest:
    tensors = [{"name": "encoder.weight", "dtype": "F32", "shape": [4, 8]}]
    tensors += [{"name": name.replace("_", "."), "dtype": "F32", "shape": shape} for name, shape in heads.items()]
    entry = {"bytes": 1, "sha256": "ab" * 32}
    files = [{"name": "config.json", **entry}, {"name": "model.safetensors", **entry, "tensors": tensors}]
    return BaseManifest.model_validate({"files": files})


# --- which rows are labels' ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count"),
    [({"id2label": {"0": "a", "1": "b", "2": "c"}}, 3), ({"num_labels": 7}, 7), ({}, 2), ({"num_labels": 1}, 1)],
)
def test_the_number_of_labels_is_read_as_transformers_reads_it(config, count):
    assert label_count(config) == count


@pytest.mark.parametrize("config", [{"num_labels": 0}, {"num_labels": True}, {"num_labels": "3"}, {"id2label": {}}])
def test_a_number_of_labels_that_no_head_has_is_refused(config):
    with pytest.raises(ArchitectureMismatchError):
        label_count(config)


def test_label_rows_are_those_of_a_heads_parameters_with_one_row_a_label():
    base = base_of(classifier_dense=(16, 8), classifier_out=(4, 16), classifier_bias=(4,))
    found = label_parameters(base.tensors, None, SHARED, 4)
    assert found == {"classifier.out", "classifier.bias"}  # not encoder.weight, [4, 8]


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({"classifier_dense": (16, 8)}, "has 4 rows"),
        ({"classifier_dense": (4, 8), "classifier_out": (4, 4)}, "cannot be told"),
        ({"classifier_dense": (4, 8), "classifier_middle": (16, 4), "classifier_out": (4, 16)}, "cannot be told"),
    ],
)
def test_rows_that_cannot_be_told_from_others_are_nobodys(heads, words):
    with pytest.raises(ArchitectureMismatchError, match=words):
        label_parameters(base_of(**heads).tensors, None, SHARED, 4)


def test_private_heads_have_no_labels_to_name(base):
    with pytest.raises(PolicyViolationError, match="heads: private"):
        require_labels(TrainedLabels(count=LABELS, trained=(0,)), {HEAD}, base, Policy())


def test_labels_of_rows_that_are_not_contributed_are_refused(base):
    labels = TrainedLabels(count=LABELS, trained=(0,))
    require_labels(labels, {HEAD}, base, SHARED)
    with pytest.raises(ArchitectureMismatchError, match="is not contributed"):
        require_labels(labels, {"encoder.layer.0.dense.weight"}, base, SHARED)


# --- what a plan says ------------------------------------------------------------------------------------------------


def draft(model: Path, base: BaseManifest, base_folder: Path | None, labels=None, policy: Policy = SHARED):
    return draft_contribution(model, None, base, policy, base_folder=base_folder, labels=labels)


def warnings(model: Path, base: BaseManifest, base_folder: Path | None, labels=None, policy: Policy = SHARED) -> str:
    return "\n".join(w for w in draft(model, base, base_folder, labels, policy).plan.warnings if "label ids" in w)


def test_the_plan_and_the_manifest_say_which_labels_were_trained(tmp_path, base, base_folder):
    made = draft(write_labelled(tmp_path / "m", 1), base, base_folder, [2, 0, 2])
    assert "you trained 0, 2 of the 5 label ids, which tells the server what your texts are about" in str(made.plan)
    assert made.plan.to_json()["labels"] == {"count": 5, "trained": [0, 2]}
    package = build_package(
        made.plan, leaving_files(made.plan, made.model, None), encoding="stored", measured=None, project="acme.tweets",
        organization="globex", base=base, policy=SHARED, policy_version=1,
    )  # fmt: skip
    assert package.manifest.labels == TrainedLabels(count=5, trained=(0, 2))


@pytest.mark.parametrize("labels", [None, range(LABELS)])
def test_who_trained_all_labels_says_nothing(tmp_path, base, base_folder, labels):
    plan = draft(write_labelled(tmp_path / "m", 1), base, base_folder, labels).plan
    assert plan.labels is None
    assert "label" not in str(plan)
    assert "labels" not in plan.to_json()


def test_many_labels_are_told_by_ranges(tmp_path, base, base_folder):
    plan = draft(write_labelled(tmp_path / "m", 1), base, base_folder, [0, 2, 3, 4]).plan
    assert "you trained 0, 2-4 of the 5 label ids" in str(plan)


def test_who_trained_none_can_say_so(tmp_path, base, base_folder):
    plan = draft(write_labelled(tmp_path / "m", 1), base, base_folder, []).plan
    assert "you trained none of the 5 label ids" in str(plan)


@pytest.mark.parametrize("labels", [[5], [-1]])
def test_a_label_that_is_none_of_the_bases_is_refused(tmp_path, base, base_folder, labels):
    with pytest.raises(DocumentMalformedError, match="labels"):
        draft(write_labelled(tmp_path / "m", 1), base, base_folder, labels)


def test_labels_under_private_heads_are_refused_before_anything_is_asked(tmp_path, base, base_folder):
    with pytest.raises(PolicyViolationError, match="heads: private"):
        draft(write_labelled(tmp_path / "m", 1), base, base_folder, [0], Policy())


def test_rows_that_are_the_bases_still_are_warned_about(tmp_path, base, base_folder):
    model = write_labelled(tmp_path / "m", 1, like_base=(1, 3))
    assert "rows of label ids 1, 3 have the base's values still" in warnings(model, base, base_folder)
    assert warnings(model, base, base_folder, [0, 2, 4]) == ""
    assert "label ids 3 have" in warnings(model, base, base_folder, [0, 3])
    assert warnings(model, base, None) == ""
    assert warnings(model, base, base_folder, policy=Policy()) == ""


def test_a_head_that_cannot_be_compared_is_not_warned_about(tmp_path, base_folder):
    odd = write_labelled(tmp_path / "odd", 0, head=ALL_HEAD | {"classifier.square": ("F32", (LABELS, LABELS))})
    assert warnings(odd, build_base_manifest(odd), odd) == ""
    half = write_labelled(tmp_path / "half", 1, head={HEAD: ("BF16", (LABELS, WIDTH))})
    alone = write_labelled(tmp_path / "alone", 0, head={HEAD: ("F32", (LABELS, WIDTH))})
    assert warnings(half, build_base_manifest(alone), alone) == ""
    assert warnings(half, build_base_manifest(alone), half) != ""  # two models of one dtype can be
    assert warnings(alone, build_base_manifest(base_folder), base_folder) == ""  # it has no bias


def test_differences_from_the_base_are_zero_where_nothing_was_trained(tmp_path, base, base_folder):
    folder = tmp_path / "small"
    folder.mkdir()
    shapes = {HEAD: ("BF16", (LABELS, WIDTH)), "classifier.bias": ("BF16", (LABELS,))}
    content = format_header([(n, *s) for n, s in shapes.items()], {"gramfuse.base": base.content_digest()})
    for length in (2 * WIDTH, 2):
        content += b"".join(bytes(length) if row == 1 else b"\1" * length for row in range(LABELS))
    (folder / "differences.safetensors").write_bytes(content)
    assert "label ids 1 have" in warnings(folder, base, base_folder)
    assert draft(folder, base, base_folder, [0]).plan.labels == TrainedLabels(count=LABELS, trained=(0,))
    with pytest.raises(FileUnreadableError, match=r"config\.json"):
        draft(folder, base, None, [0])
