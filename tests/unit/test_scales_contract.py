"""The scales file on the wire: what it must hold, every way in which it can lie, and whose base model it is of."""

import json
import math
import struct

import pytest

from gramfuse_shared.contract.http_api import ProjectCreate
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.rules import require_scales_architecture
from gramfuse_shared.contract.safetensors_header import format_header, parse_header
from gramfuse_shared.contract.scales_file import METADATA_KEY, ScalesMetadata, parse_scales_metadata, tensors_of_scales
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    DocumentMalformedError,
    FileUnreadableError,
    GramfuseError,
    HeaderMalformedError,
    ScalesMalformedError,
)
from gramfuse_shared.merging.scales import load_scales
from support.scales import scales_bytes, scales_metadata
from support.server_world import WIDTH, entry, make_base, make_tap

BASE = make_base()
HONEST = scales_metadata(BASE.id)
LAYOUT = [("mean_square.encoder.query", "F32", (WIDTH,))]


def write(tmp_path, raw: bytes):
    path = tmp_path / "scales.safetensors"
    path.write_bytes(raw)
    return path


def made_of(layout, metadata=None, size=4 * WIDTH) -> bytes:
    texts = {METADATA_KEY: HONEST.canonical().decode()} if metadata is None else metadata
    return format_header(layout, texts) + struct.pack("<f", 0.25) * (size // 4)


def test_an_honest_file_is_read_to_the_last_bit(tmp_path):
    scales = load_scales(write(tmp_path, scales_bytes(HONEST, value=0.25)))
    assert scales.metadata == HONEST
    assert scales.mean_squares["encoder.query"].tolist() == [0.25] * WIDTH
    assert scales.root_mean_squares("encoder.query").tolist() == [0.5] * WIDTH
    assert tensors_of_scales(HONEST.taps) == LAYOUT
    require_scales_architecture(HONEST, BASE.manifest)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_value_that_nothing_can_be_divided_by_is_refused(tmp_path, value):
    with pytest.raises(ScalesMalformedError, match=r"tap encoder\.query is not a finite number above zero"):
        load_scales(write(tmp_path, scales_bytes(HONEST, value=value)))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (made_of(LAYOUT, {"format": "pt"}), "not a scales file"),
        (made_of(LAYOUT, {METADATA_KEY: "{}"}), "base is missing"),
        (made_of(LAYOUT, {METADATA_KEY: "[" * 100_000}), "not JSON"),
        (made_of(LAYOUT, {METADATA_KEY: HONEST.canonical().decode(), "note": "hello"}), "more than"),
        (made_of([("mean_square.other", "F32", (WIDTH,))]), "found .*mean_square.other"),
        (made_of([("mean_square.encoder.query", "F32", (1, WIDTH))]), "found .*encoder.query"),
        (made_of([("mean_square.encoder.query", "F32", (WIDTH - 1,))], size=4 * WIDTH - 4), "found .*encoder.query"),
        (made_of([("mean_square.encoder.query", "I32", (WIDTH,))]), "found .*I32"),
        (made_of([*LAYOUT, ("spare", "F32", (1,))], size=4 * WIDTH + 4), "2 tensors for 1 taps"),
    ],
)
def test_a_file_that_is_not_what_its_metadata_says_is_refused(tmp_path, raw, says):
    with pytest.raises(ScalesMalformedError, match=says):
        load_scales(write(tmp_path, raw))


def test_a_file_that_ends_early_or_is_no_safetensors_file_is_refused(tmp_path):
    raw = scales_bytes(HONEST)
    for cut in range(0, len(raw), 7):
        with pytest.raises((HeaderMalformedError, FileUnreadableError)):
            load_scales(write(tmp_path, raw[:cut]))


def test_every_changed_byte_of_a_header_is_found_or_changes_only_what_is_said(tmp_path):
    raw = scales_bytes(HONEST)
    begin = parse_header(raw, len(raw)).header_bytes
    for place in range(0, begin, 3):
        damaged = raw[:place] + bytes([raw[place] ^ 0x01]) + raw[place + 1 :]
        try:
            found = load_scales(write(tmp_path, damaged))
        except GramfuseError:
            continue
        assert found.metadata != HONEST or damaged[begin:] == raw[begin:]


@pytest.mark.parametrize(
    "changes",
    [{"clip": 0.0}, {"clip": 1e7}, {"clip_percentile": 0.0}, {"clip_percentile": 101.0}, {"examples": 0}, {"taps": []}],
)
def test_what_would_bound_nothing_or_be_of_nothing_is_no_scales(changes):
    with pytest.raises(DocumentMalformedError):
        ScalesMetadata.parse(json.dumps(HONEST.model_dump(mode="json") | changes))


def test_a_tap_or_a_layer_is_named_once():
    twice = (make_tap(), make_tap(name="other"))
    with pytest.raises(ValueError, match="named twice"):
        scales_metadata(BASE.id, twice)


def test_scales_of_another_base_model_or_of_other_layers_do_not_fit():
    with pytest.raises(ArchitectureMismatchError, match="another base model"):
        require_scales_architecture(HONEST, make_base(seed=9).manifest)
    for tap in (make_tap(width=WIDTH + 1), make_tap(layers=[{"weight": "encoder.nowhere.weight"}])):
        with pytest.raises(ArchitectureMismatchError, match="encoder"):
            require_scales_architecture(scales_metadata(BASE.id, (tap,)), BASE.manifest)


def test_a_project_is_created_with_just_the_scales_that_its_policy_names():
    raw = scales_bytes(HONEST)
    base = BASE.manifest.model_dump(mode="json")
    scales, digest = entry("scales.safetensors", raw), sha256_hex(raw)
    made = ProjectCreate.model_validate({"base": base, "policy": {"scales": digest}, "scales": scales})
    assert [file.name for file in made.files][-1] == "scales.safetensors"
    for document in (
        {"base": base, "scales": scales},
        {"base": base, "policy": {"scales": digest}},
        {"base": base, "policy": {"scales": "0" * 64}, "scales": scales},
        {"base": base, "policy": {"scales": digest}, "scales": scales | {"name": "other.safetensors"}},
    ):
        with pytest.raises(ValueError, match="scales file"):
            ProjectCreate.model_validate(document)


def test_a_base_models_own_file_never_passes_for_the_projects_scales():
    base = BASE.manifest.model_dump(mode="json")
    base["files"].append(entry("scales.safetensors", b"x") | {"tensors": []})
    with pytest.raises(ValueError, match=r"is called scales\.safetensors"):
        ProjectCreate.model_validate({"base": base})


def test_policies_without_scales_keep_their_digest():
    assert b"scales" not in Policy().canonical()
    assert Policy(scales="a" * 64).content_digest() != Policy().content_digest()


def test_a_header_alone_tells_whether_it_is_a_scales_file():
    raw = scales_bytes(HONEST)
    assert parse_scales_metadata(parse_header(raw, len(raw))) == HONEST
