"""A personal model: whose values each parameter has, what is refused, and that nothing half-done is ever there."""

import json
import stat
from pathlib import Path

import pytest

from gramfuse.contributing.loading import read_header
from gramfuse.contributing.virtual_files import VirtualFile
from gramfuse.heads.attaching import attach_head
from gramfuse.heads.planning import plan_head, require_same_computation
from gramfuse.verification import verify
from gramfuse_shared.contract.manifest import PolicyReference, TensorInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    ConflictError,
    DigestMismatchError,
    FileUnreadableError,
    FileUnwritableError,
    PolicyViolationError,
)
from support.client_models import SHAPES, VOCABULARY, WIDTH, write_model
from support.receipts import KEY, public, receipt_of, signed

OWN_SHAPES = {name: shape for name, shape in SHAPES.items() if not name.startswith("classifier")} | {
    "classifier.dense.weight": ("F32", (WIDTH, WIDTH)),
    "classifier.out_proj.weight": ("BF16", (2, WIDTH)),
}
OWN_CONFIG = {"model_type": "bert", "vocab_size": VOCABULARY, "architectures": ["Other"], "id2label": {"0": "no"}}


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A merged model as it was pulled, in two shards, with a receipt."""
    folder = write_model(tmp_path / "merged", seed=3, shards=2)
    (folder / "README.md").write_text("a card")
    (folder / "diagnostics.json").write_text("[]")
    sign(folder)
    return folder


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """An organization's own model, of another task."""
    folder = write_model(tmp_path / "tuned", seed=7, shapes=OWN_SHAPES)
    (folder / "config.json").write_text(json.dumps(OWN_CONFIG))
    (folder / "tokenizer.json").write_text('{"own": true}')
    return folder


def sign(folder: Path, policy: Policy | None = None) -> None:
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "receipt.json"}
    reference = PolicyReference(version=1, digest=(policy or Policy()).content_digest())
    receipt = receipt_of(files).model_copy(update={"policy": reference})
    (folder / "receipt.json").write_bytes(signed(receipt, KEY).canonical())


def attach(merged: Path, tuned: Path, out: Path, **options):
    return attach_head(merged, tuned, out, trusted_keys={public(KEY): "the server"}, **options)


def values_of(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = {}
    for path in folder.glob("*.safetensors"):
        content = path.read_bytes()
        for entry in read_header(path).tensors.values():
            found[entry.name] = (entry.dtype, entry.shape, content[entry.start : entry.end])
    return found


def infos(shapes) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name=name, dtype=dtype, shape=shape) for name, (dtype, shape) in shapes.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- what it is made of ----------------------------------------------------------------------------------------------


def test_every_parameter_is_bit_by_bit_the_merged_models_or_in_the_head_ones_own(merged, tuned, tmp_path):
    done = attach(merged, tuned, tmp_path / "mine")
    found, theirs, own = values_of(tmp_path / "mine"), values_of(merged), values_of(tuned)
    assert found.keys() == own.keys()
    for name, value in found.items():
        assert value == (own if name.startswith("classifier") else theirs)[name]
    assert done.plan.own == ("classifier.dense.weight", "classifier.out_proj.weight")
    assert set(done.plan.merged) == set(SHAPES) - {"classifier.weight"}
    assert read_header(tmp_path / "mine" / "model.safetensors").metadata == {"format": "pt"}


def test_the_task_is_ones_own_the_tokenizer_is_the_merged_models_and_reports_stay_behind(merged, tuned, tmp_path):
    attach(merged, tuned, tmp_path / "mine")
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", "gramfuse-head.json"}
    assert json.loads((tmp_path / "mine" / "config.json").read_text()) == OWN_CONFIG
    assert (tmp_path / "mine" / "tokenizer.json").read_text() == "{}"


def test_the_note_says_what_is_ones_own_and_describes_the_files(merged, tuned, tmp_path):
    attach(merged, tuned, tmp_path / "mine")
    note = json.loads((tmp_path / "mine" / "gramfuse-head.json").read_text())
    assert note["merged"] == "acme.tweets/regmean-1"
    assert note["own"] == ["classifier.dense.weight", "classifier.out_proj.weight"]
    for entry in note["files"]:
        path = tmp_path / "mine" / entry["name"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (path.stat().st_size, VirtualFile.of_path(path).digest()) == (entry["bytes"], entry["sha256"])


def test_the_merged_folder_still_verifies_and_the_personal_one_says_why_it_does_not(merged, tuned, tmp_path):
    before = contents(merged)
    attach(merged, tuned, tmp_path / "mine")
    assert contents(merged) == before
    assert verify(merged, trusted_keys={public(KEY): "the server"}).signer == "the server"
    with pytest.raises(FileUnreadableError, match="head of your own"):
        verify(tmp_path / "mine")


def test_what_a_local_merge_wrote_has_no_receipt_and_serves_as_well(tuned, tmp_path):
    merged = write_model(tmp_path / "local", seed=4)
    attach_head(merged, tuned, tmp_path / "mine")
    note = json.loads((tmp_path / "mine" / "gramfuse-head.json").read_text())
    assert (note["merged"], note["receipt"]) == (None, None)


def test_a_parameter_that_never_travels_is_ones_own_and_one_that_the_class_lacks_is_left_out():
    own = dict(OWN_SHAPES) | {"lm_head.weight": ("F32", (VOCABULARY, WIDTH)), "counter": ("I64", (1,))}
    del own["encoder.layer.1.norm.weight"]
    plan = plan_head(infos(SHAPES), infos(own), Policy(), VOCABULARY)
    assert {"lm_head.weight", "counter"} < set(plan.own)
    assert plan.left_out == ("encoder.layer.1.norm.weight",)


def test_the_policys_patterns_say_what_a_head_is(merged, tuned, tmp_path):
    policy = Policy(head_parameters=("classifier.*", "encoder.layer.1.*"))
    sign(merged, policy)
    done = attach(merged, tuned, tmp_path / "mine", policy=policy)
    assert "encoder.layer.1.dense.weight" in done.plan.own


def test_progress_ends_with_all_bytes(merged, tuned, tmp_path):
    seen = []
    done = attach(merged, tuned, tmp_path / "mine", on_progress=lambda *pair: seen.append(pair))
    assert seen[-1] == (done.bytes, done.bytes)
    assert (tmp_path / "mine" / "model.safetensors").stat().st_size == done.bytes


# --- what is refused -------------------------------------------------------------------------------------------------


def test_an_altered_merged_folder_is_refused(merged, tuned, tmp_path):
    (merged / "config.json").write_bytes((merged / "config.json").read_bytes() + b" ")
    with pytest.raises(DigestMismatchError):
        attach(merged, tuned, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_another_policy_than_the_receipts_is_refused(merged, tuned, tmp_path):
    with pytest.raises(PolicyViolationError, match="give that policy"):
        attach(merged, tuned, tmp_path / "mine", policy=Policy(head_parameters=("encoder.*",)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder.layer.0.dense.bias": ("F32", (WIDTH + 1,))}, "encoder.layer.0.dense.bias is F32"),
        ({"encoder.layer.0.dense.bias": ("I32", (WIDTH,))}, "encoder.layer.0.dense.bias is I32"),
        ({"encoder.layer.9.dense.bias": ("F32", (WIDTH,))}, "neither a head"),
        ({"encoder.embeddings.word_embeddings.weight": ("F32", (VOCABULARY + 1, WIDTH))}, "word_embeddings"),
    ],
)
def test_another_trunk_is_refused(changes, words):
    with pytest.raises(ArchitectureMismatchError, match=words):
        plan_head(infos(SHAPES), infos(OWN_SHAPES | changes), Policy(), VOCABULARY)


def test_a_model_without_a_head_or_without_a_trunk_is_refused():
    headless = {name: shape for name, shape in SHAPES.items() if not name.startswith("classifier")}
    with pytest.raises(ArchitectureMismatchError, match="no parameter of your model is a head's"):
        plan_head(infos(SHAPES), infos(headless), Policy(), VOCABULARY)
    with pytest.raises(ArchitectureMismatchError, match="share no parameter"):
        plan_head(infos(SHAPES), infos({"score.weight": ("F32", (2, WIDTH))}), Policy(), VOCABULARY)


def test_a_trunk_of_one_shape_that_computes_otherwise_is_refused():
    require_same_computation({"model_type": "bert", "num_attention_heads": 4}, {"model_type": "bert"})
    with pytest.raises(ArchitectureMismatchError, match="num_attention_heads is 2 in your model and 4"):
        require_same_computation({"num_attention_heads": 4}, {"num_attention_heads": 2})


def test_differences_from_a_base_are_no_whole_model(merged, tuned, tmp_path):
    (tuned / "model.safetensors").rename(tuned / "differences.safetensors")
    with pytest.raises(ArchitectureMismatchError, match="whole model"):
        attach(merged, tuned, tmp_path / "mine")


# --- again, and half-done --------------------------------------------------------------------------------------------


def test_running_it_again_leaves_the_folder_as_it_is(merged, tuned, tmp_path):
    attach(merged, tuned, tmp_path / "mine")
    written = (tmp_path / "mine" / "model.safetensors").stat().st_mtime_ns
    attach(merged, tuned, tmp_path / "mine")
    assert (tmp_path / "mine" / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["altered", "missing", "note", "other head"])
def test_another_head_or_a_damaged_folder_is_replaced_only_when_told(merged, tuned, tmp_path, damage):
    attach(merged, tuned, tmp_path / "mine")
    if damage == "altered":
        (tmp_path / "mine" / "config.json").write_text("{}")
    elif damage == "missing":
        (tmp_path / "mine" / "model.safetensors").unlink()
    elif damage == "note":
        (tmp_path / "mine" / "gramfuse-head.json").write_text("{}")
    else:
        write_model(tmp_path / "later", seed=8, shapes=OWN_SHAPES)
        (tmp_path / "later" / "config.json").write_text(json.dumps(OWN_CONFIG))
        tuned = tmp_path / "later"
    with pytest.raises(ConflictError, match="other inputs, or was changed"):
        attach(merged, tuned, tmp_path / "mine")
    attach(merged, tuned, tmp_path / "mine", overwrite=True)
    fresh = attach(merged, tuned, tmp_path / "fresh")
    assert contents(tmp_path / "mine") == contents(fresh.path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_it_did_not_write_is_never_replaced(merged, tuned, tmp_path, overwrite):
    before = contents(tuned)
    with pytest.raises(ConflictError, match=r"holds no gramfuse-head\.json"):
        attach(merged, tuned, tuned, overwrite=overwrite)
    assert contents(tuned) == before


def test_what_was_killed_half_way_is_begun_anew(merged, tuned, tmp_path):
    half = tmp_path / ".mine.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    attach(merged, tuned, tmp_path / "mine")
    assert not half.exists()
    assert contents(tmp_path / "mine") == contents(attach(merged, tuned, tmp_path / "other").path)


def test_an_input_that_changes_meanwhile_leaves_nothing(merged, tuned, tmp_path):
    def change(done: int, _total: int) -> None:
        if done:
            (tuned / "model.safetensors").write_bytes(b"changed")

    with pytest.raises(FileUnreadableError, match="was changed"):
        attach(merged, tuned, tmp_path / "mine", on_progress=change)
    assert {path.name for path in tmp_path.iterdir()} == {"merged", "tuned"}


def test_a_folder_that_cannot_be_written_is_said_so(merged, tuned, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileUnwritableError):
        attach(merged, tuned, tmp_path / "file" / "mine")
