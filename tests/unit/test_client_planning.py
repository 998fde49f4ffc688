"""What may leave, what stays and why; virtual files and manifests."""

import itertools
import os
import re
from pathlib import Path

import pytest

from gramfuse.contributing.base_model import build_base_manifest, open_base_folder
from gramfuse.contributing.draft import changed_tensors, draft_contribution
from gramfuse.contributing.loading import open_model_folder, open_statistics_file
from gramfuse.contributing.origin import ORIGIN_KEY, read_origin
from gramfuse.contributing.packaging import build_package, leaving_files, statistics_file, weights_file
from gramfuse.contributing.planning import embedding_names, plan_contribution
from gramfuse.contributing.virtual_files import CHUNK_BYTES, Source, Span, VirtualFile
from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.rules import require_architecture, require_policy
from gramfuse_shared.contract.safetensors_header import parse_header
from gramfuse_shared.contract.statistics_file import (
    METADATA_KEY,
    gram_tensor_name,
    packed_length,
    parse_statistics_metadata,
)
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    FileUnreadableError,
    HeaderMalformedError,
    PolicyViolationError,
    StatisticsMalformedError,
)
from support.client_models import (
    SHAPES,
    TAPS,
    VOCABULARY,
    WIDTH,
    statistics_metadata,
    tap,
    write_model,
    write_safetensors,
    write_statistics,
)

OPEN = Policy(embeddings="average", embedding_taps="send", heads="shared")
EMBEDDING = "encoder.embeddings.word_embeddings.weight"


@pytest.fixture
def base(tmp_path: Path):
    return build_base_manifest(write_model(tmp_path / "base"))


def tensors_of(folder: Path) -> list[TensorInfo]:
    return [tensor.info for tensor in open_model_folder(folder).tensors.values()]


def leaving_names(plan) -> set[str]:
    return {decision.info.name for decision in plan.leaving_weights}


def reasons(plan) -> dict[str, str]:
    return {d.info.name: d.stays_because for d in (*plan.weights, *plan.taps) if d.stays_because is not None}


# --- what leaves -----------------------------------------------------------------------------------------------------


def test_by_default_embeddings_heads_integers_and_embedding_fed_taps_stay_with_a_reason_each(tmp_path, base):
    plan = plan_contribution(tensors_of(write_model(tmp_path / "m", 1)), statistics_metadata(), base, Policy())
    assert leaving_names(plan) == {
        "encoder.layer.0.dense.weight",
        "encoder.layer.0.dense.bias",
        "encoder.layer.1.dense.weight",
        "encoder.layer.1.norm.weight",
    }
    assert [decision.info.name for decision in plan.leaving_taps] == ["encoder.layer.1.dense"]
    why = reasons(plan)
    assert set(why) == {
        EMBEDDING,
        "encoder.embeddings.position_ids",
        "classifier.weight",
        "encoder.layer.0.dense",
        "classifier",
    }
    assert "embeddings" in why[EMBEDDING]
    assert "private" in why["classifier.weight"]
    assert "I64" in why["encoder.embeddings.position_ids"]
    assert "token counts" in why["encoder.layer.0.dense"]


def test_a_policy_that_shares_everything_lets_everything_but_integers_leave(tmp_path, base):
    plan = plan_contribution(tensors_of(write_model(tmp_path / "m", 1)), statistics_metadata(), base, OPEN)
    assert leaving_names(plan) == set(SHAPES) - {"encoder.embeddings.position_ids"}
    assert len(plan.leaving_taps) == 3
    assert any("which tokens your text holds" in warning for warning in plan.warnings)
    assert any("token counts" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distinct_rows": 20 * WIDTH - 1}, "distinct rows"),
        ({"source": "unknown"}, "not known"),
        ({"source": "embeddings"}, "embeddings"),
    ],
)
def test_a_tap_that_the_policy_holds_back_stays(base, changes, words):
    measured = statistics_metadata((tap("t", "encoder.layer.1.dense.weight", **changes),))
    plan = plan_contribution(base.tensors, measured, base, Policy())
    assert plan.leaving_taps == ()
    assert words in reasons(plan)["t"]


def test_a_tap_between_the_minimum_and_the_advised_rows_leaves_with_a_warning(base):
    measured = statistics_metadata((tap("t", "encoder.layer.1.dense.weight", distinct_rows=20 * WIDTH),))
    plan = plan_contribution(base.tensors, measured, base, Policy())
    assert len(plan.leaving_taps) == 1
    assert any("fewer than 200 distinct rows" in warning for warning in plan.warnings)


def test_a_tap_is_sent_for_those_of_its_layers_whose_weights_leave(base):
    measured = statistics_metadata((tap("t", "encoder.layer.1.dense.weight", "classifier.weight"),))
    plan = plan_contribution(base.tensors, measured, base, Policy())
    assert [layer.weight for layer in plan.leaving_taps[0].info.layers] == ["encoder.layer.1.dense.weight"]


def test_statistics_stay_where_no_method_uses_them(base):
    plan = plan_contribution(base.tensors, statistics_metadata(), base, Policy(methods=("linear",)))
    assert plan.leaving_taps == ()
    assert "no method" in reasons(plan)["encoder.layer.1.dense"]


def test_that_none_of_the_statistics_leaves_is_told_with_what_follows_for_everybody(base):
    thin = statistics_metadata((tap("t", "encoder.layer.1.dense.weight", distinct_rows=1),))
    plan = plan_contribution(base.tensors, thin, base, OPEN)
    assert not plan.leaving_taps
    assert any("none of your statistics leaves" in warning for warning in plan.warnings)
    assert re.search(r"it has 1 distinct rows, the policy wants \d+ .*: measure [\d.,]+ times as many texts", str(plan))


def test_a_model_that_was_written_after_its_statistics_is_told(tmp_path, base):
    model, statistics = write_model(tmp_path / "m", 1), write_statistics(tmp_path / "statistics.safetensors")
    for age, is_told in ((60, True), (-60, False)):
        moment = model.stat().st_mtime - age
        os.utime(statistics, (moment, moment))
        plan = draft_contribution(model, statistics, base, OPEN, base_folder=None).plan
        assert any("written after its statistics" in warning for warning in plan.warnings) is is_told


def test_the_plan_tells_how_many_measured_layers_regmean_can_merge(tmp_path, base):
    plan = plan_contribution(tensors_of(write_model(tmp_path / "m", 1)), statistics_metadata(), base, Policy())
    assert plan.measured_layers == {"encoder.layer.0.dense.weight", "encoder.layer.1.dense.weight"}
    assert plan.fused_layers == {"encoder.layer.1.dense.weight"}
    assert "RegMean can merge 1 of your 2 measured linear layers" in str(plan)
    assert plan.to_json()["layers"] == {"measured": 2, "regmean": 1}


def test_whatever_is_planned_passes_the_rules_that_the_server_enforces(tmp_path, base):
    model, statistics = write_model(tmp_path / "m", 1), write_statistics(tmp_path / "s.safetensors")
    for embeddings, heads, taps, minimum in itertools.product(
        ("base", "average"), ("private", "shared"), ("withhold", "send"), (0, 20, 5_000)
    ):
        policy = Policy(embeddings=embeddings, heads=heads, embedding_taps=taps, minimum_rows_per_dimension=minimum)
        package = package_of(model, statistics, base, policy)
        require_architecture(package.manifest, base)
        require_policy(package.manifest, base, policy)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_layer_of_another_shape_is_refused_and_named(base):
    tensors = [
        TensorInfo(name=t.name, dtype=t.dtype, shape=(4, 4)) if t.name == "encoder.layer.0.dense.weight" else t
        for t in base.tensors
    ]
    with pytest.raises(ArchitectureMismatchError, match=r"encoder\.layer\.0\.dense\.weight is \[4, 4\]"):
        plan_contribution(tensors, None, base, Policy())


def test_a_layer_that_the_base_does_not_have_is_refused(base):
    with pytest.raises(ArchitectureMismatchError, match="not in the base model"):
        plan_contribution(
            [*base.tensors, TensorInfo(name="adapter.weight", dtype="F32", shape=(2, 2))], None, base, OPEN
        )


def test_a_private_head_of_another_shape_is_nobodys_business(base):
    tensors = [t for t in base.tensors if t.name != "classifier.weight"]
    tensors.append(TensorInfo(name="classifier.weight", dtype="F32", shape=(11, WIDTH)))
    assert "classifier.weight" in reasons(plan_contribution(tensors, None, base, Policy()))


def test_statistics_of_another_base_are_refused(base):
    with pytest.raises(ArchitectureMismatchError, match="measured for the base model abab"):
        plan_contribution(base.tensors, statistics_metadata(base="ab" * 32), base, Policy())


def test_statistics_most_of_whose_layers_are_not_in_the_model_are_refused(base):
    foreign = [tap(f"distil.layer.{number}.q", f"distil.layer.{number}.q.weight") for number in range(3)]
    plan = plan_contribution(base.tensors, statistics_metadata((foreign[0], *TAPS)), base, OPEN)
    assert len(plan.leaving_taps) == 3
    with pytest.raises(
        ArchitectureMismatchError, match=r"of another model: 3 of their 4 layers .* as distil\.layer\.0"
    ):
        plan_contribution(base.tensors, statistics_metadata((*foreign, TAPS[-1])), base, OPEN)


def test_what_leaves_does_not_say_on_which_weights_it_was_measured(tmp_path, base):
    described = statistics_metadata().canonical().decode()
    shapes = {gram_tensor_name(one.name): ("F32", (packed_length(one.width),)) for one in TAPS}
    notes = {METADATA_KEY: described, ORIGIN_KEY: "5" * 64}
    source = write_safetensors(tmp_path / "s.safetensors", shapes, 1, notes)
    assert read_origin(source) == "5" * 64
    package = package_of(write_model(tmp_path / "m", 1), source, base, OPEN)
    for file in package.files:
        assert "5" * 64 not in file.header.decode(errors="replace")
    assert set(parse_header(package.files[1].header, package.files[1].length).metadata) == {METADATA_KEY}
    assert "5" * 64 not in package.manifest.model_dump_json()


def test_a_tap_whose_width_does_not_fit_its_layer_is_refused(base):
    measured = statistics_metadata((tap("t", "encoder.layer.1.dense.weight", width=WIDTH + 1),))
    with pytest.raises(ArchitectureMismatchError, match="width 9"):
        plan_contribution(base.tensors, measured, base, Policy())


def test_a_model_of_which_nothing_may_leave_is_refused(base):
    with pytest.raises(PolicyViolationError, match="nothing to contribute"):
        plan_contribution([t for t in base.tensors if t.name == EMBEDDING], None, base, Policy())


def test_the_last_check_refuses_a_plan_that_was_made_under_another_policy(tmp_path, base):
    model = open_model_folder(write_model(tmp_path / "m", 1))
    plan = plan_contribution([t.info for t in model.tensors.values()], None, base, OPEN)
    with pytest.raises(PolicyViolationError, match="may not leave"):
        build_package(
            plan,
            leaving_files(plan, model, None),
            encoding="stored",
            measured=None,
            project="a.p",
            organization="a",
            base=base,
            policy=Policy(),
            policy_version=1,
        )


# --- embeddings that are lost ----------------------------------------------------------------------------------------


def test_tuned_embeddings_are_found_by_comparing_bytes_and_told(tmp_path, base):
    tuned = open_model_folder(write_model(tmp_path / "m", 1, shards=2))
    tensors = [tensor.info for tensor in tuned.tensors.values()]
    changed = changed_tensors(embedding_names(tensors, base, Policy()), tuned, tmp_path / "base")
    assert changed == {EMBEDDING}
    plan = plan_contribution(tensors, None, base, Policy(), changed=changed)
    assert any("you tuned 1 embedding tensor" in warning and "lost" in warning for warning in plan.warnings)


def test_frozen_embeddings_cause_no_warning_about_embeddings(tmp_path, base):
    frozen = open_model_folder(write_model(tmp_path / "m", 1, same={EMBEDDING}))
    tensors = [tensor.info for tensor in frozen.tensors.values()]
    changed = changed_tensors(embedding_names(tensors, base, Policy()), frozen, tmp_path / "base")
    assert changed == frozenset()
    plan = plan_contribution(tensors, statistics_metadata(), base, Policy(), changed=changed)
    assert not any("embedding" in warning for warning in plan.warnings)


def test_that_nothing_is_known_about_the_embeddings_is_told(base):
    plan = plan_contribution(base.tensors, None, base, Policy())
    assert any("not known here" in warning for warning in plan.warnings)


# --- virtual files ---------------------------------------------------------------------------------------------------


def package_of(model: Path, statistics: Path | None, base, policy: Policy):
    folder = open_model_folder(model)
    measured = None if statistics is None else open_statistics_file(statistics)
    plan = plan_contribution(
        [tensor.info for tensor in folder.tensors.values()], measured.metadata if measured else None, base, policy
    )
    return build_package(
        plan,
        leaving_files(plan, folder, measured),
        encoding="stored",
        measured=measured.metadata if measured else None,
        project="acme.tweets",
        organization="globex",
        base=base,
        policy=policy,
        policy_version=1,
    )


def test_a_virtual_weights_file_holds_each_leaving_tensors_own_bytes(tmp_path, base):
    model = write_model(tmp_path / "m", 1, shards=3)
    package = package_of(model, None, base, OPEN)
    raw = b"".join(package.files[0].chunks())
    header = parse_header(raw, len(raw))
    assert set(header.tensors) == set(SHAPES) - {"encoder.embeddings.position_ids"}
    source = open_model_folder(model).tensors
    for entry in header.tensors.values():
        stored = source[entry.name]
        assert raw[entry.start : entry.end] == stored.path.read_bytes()[stored.start : stored.end]
    assert package.manifest.weights.file.sha256 == sha256_hex(raw)
    assert package.manifest.weights.file.bytes == len(raw)


def test_a_virtual_statistics_file_describes_just_the_taps_that_leave(tmp_path, base):
    source = write_statistics(tmp_path / "s.safetensors")
    package = package_of(write_model(tmp_path / "m", 1), source, base, Policy())
    raw = b"".join(package.files[1].chunks())
    header = parse_header(raw, len(raw))
    metadata = parse_statistics_metadata(header)
    assert metadata.taps == package.manifest.statistics.taps
    assert [tap.name for tap in metadata.taps] == ["encoder.layer.1.dense"]
    stored, entry = (
        open_statistics_file(source).tensors["gram.encoder.layer.1.dense"],
        header.tensors["gram.encoder.layer.1.dense"],
    )
    assert raw[entry.start : entry.end] == source.read_bytes()[stored.start : stored.end]


def test_the_manifest_does_not_depend_on_sharding_or_on_the_run(tmp_path, base):
    statistics = write_statistics(tmp_path / "s.safetensors")
    digests = {
        package_of(
            write_model(tmp_path / f"m{shards}", 1, shards=shards), statistics, base, Policy()
        ).manifest.content_digest()
        for shards in (1, 2, 3)
    }
    assert len(digests) == 1


def test_any_range_of_a_virtual_file_equals_the_same_range_of_its_bytes(tmp_path):
    sources = [tmp_path / "a", tmp_path / "b"]
    for path in sources:
        path.write_bytes(bytes(range(97)))
    a, b = (Source.of(path) for path in sources)
    spans = [Span(a, 3, 10), Span(a, 10, 20), Span(b, 0, 0), Span(b, 90, 97), Span(a, 50, 51)]
    file = VirtualFile("f", b"head", spans)
    whole = b"head" + b"".join(bytes(range(97))[span.start : span.end] for span in spans)
    assert file.length == len(whole)
    for start in range(len(whole) + 1):
        for end in range(start, len(whole) + 1):
            assert b"".join(file.chunks(start, end)) == whole[start:end]


def test_a_file_larger_than_a_chunk_is_read_in_chunks(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (CHUNK_BYTES // 128))
    chunks = list(VirtualFile.of_path(path).chunks(5))
    assert b"".join(chunks) == path.read_bytes()[5:]
    assert max(map(len, chunks)) <= CHUNK_BYTES


def test_a_source_that_changes_after_the_plan_is_refused(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"before")
    file = VirtualFile.of_path(path)
    path.write_bytes(b"afterwards")
    with pytest.raises(FileUnreadableError, match="changed while it was being sent"):
        list(file.chunks())


def test_digesting_reads_the_file_once_and_tells_every_byte(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * (CHUNK_BYTES + 7))
    told: list[int] = []
    assert VirtualFile.of_path(path).digest(told.append) == sha256_hex(path.read_bytes())
    assert told == [CHUNK_BYTES, 7]


def test_files_of_a_plan_without_taps_hold_no_statistics(tmp_path, base):
    model = open_model_folder(write_model(tmp_path / "m", 1))
    measured = open_statistics_file(write_statistics(tmp_path / "s.safetensors", TAPS[:1]))
    plan = plan_contribution([t.info for t in model.tensors.values()], measured.metadata, base, Policy())
    assert statistics_file(plan, measured) is None
    assert weights_file(plan, model).length > 0


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_base_manifest_lists_files_sorted_with_tensors_and_the_vocabulary(tmp_path):
    folder = write_model(tmp_path / "base", shards=2)
    (folder / "checkpoint-10").mkdir()
    (folder / ".gitattributes").write_text("x")
    write_statistics(folder / "statistics.safetensors")
    found = open_base_folder(folder)
    names = [file.name for file in found.manifest.files]
    assert names == sorted(names)
    assert found.left_out == (".gitattributes", "checkpoint-10/", "statistics.safetensors")
    assert {tensor.name for tensor in found.manifest.tensors} == set(SHAPES)
    assert found.manifest.vocabulary_size == VOCABULARY
    for file, entry in zip(found.files, found.manifest.files, strict=True):
        assert sha256_hex(b"".join(file.chunks())) == entry.sha256 == sha256_hex((folder / entry.name).read_bytes())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "modeling.py"])
def test_a_base_with_pickles_or_code_is_refused(tmp_path, name):
    folder = write_model(tmp_path / "base")
    (folder / name).write_bytes(b"x")
    with pytest.raises(PolicyViolationError, match=name):
        build_base_manifest(folder)


def test_a_link_out_of_a_base_folder_is_refused(tmp_path):
    folder = write_model(tmp_path / "base")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(FileUnreadableError, match="link out of the folder"):
        build_base_manifest(folder)


def test_a_folder_without_safetensors_says_how_to_save_one(tmp_path):
    with pytest.raises(FileUnreadableError, match="save_pretrained"):
        open_model_folder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = write_model(tmp_path / "m", shards=2)
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(HeaderMalformedError, match="lies in two files"):
        open_model_folder(folder)


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')
    with pytest.raises(FileUnreadableError, match="not shards beside it"):
        open_model_folder(tmp_path)


def test_a_weights_file_is_not_a_statistics_file(tmp_path):
    with pytest.raises(StatisticsMalformedError):
        open_statistics_file(write_model(tmp_path / "m") / "model.safetensors")
