"""A compressed contribution: half the bytes, the loss stated, refused where it does not fit."""

import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

import gramfuse
from gramfuse.auditing.subject import subject_of
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.contributing.draft import draft_contribution
from gramfuse.contributing.loading import open_statistics_file
from gramfuse.contributing.packaging import build_package, leaving_files
from gramfuse_shared.errors import (
    ArchitectureMismatchError,
    ConflictError,
    RecipeInvalidError,
    StatisticsMalformedError,
)
from support import tiny

POLICY = gramfuse.Policy(heads="shared", minimum_rows_per_dimension=0)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A base, two models tuned from it, their statistics, and both compressed."""
    folder = tmp_path_factory.mktemp("site")
    tiny.write_base(folder / "base")
    for name, seed in (("one", 1), ("two", 2)):
        tiny.write_tuned(folder / "base", folder / name, seed=seed)
        tiny.write_texts(folder / "texts.jsonl", seed=seed)
        texts = [line[10:-2] for line in (folder / "texts.jsonl").read_text().splitlines()]
        statistics = folder / name / "statistics.safetensors"
        gramfuse.collect(folder / name, texts).save(statistics)
        gramfuse.compress(folder / name, folder / "base", folder / f"{name}-small", statistics=statistics)
    return folder


def test_it_takes_half_the_bytes_and_says_what_is_lost(site, tmp_path):
    done = gramfuse.compress(
        site / "one", site / "base", tmp_path / "out", statistics=site / "one" / "statistics.safetensors"
    )
    assert done.bytes_after < 0.6 * done.bytes_before  # headers weigh much in a tiny model
    base, tuned = (load_file(site / name / "model.safetensors") for name in ("base", "one"))
    differences = load_file(done.folder / "differences.safetensors")
    exact = torch.cat([(tuned[name] - base[name]).flatten() for name in differences])
    sent = torch.cat([value.flatten() for value in differences.values()])
    assert {value.dtype for value in differences.values()} == {torch.bfloat16}
    assert done.weights_error == pytest.approx(float((exact - sent.float()).norm() / exact.norm()), rel=1e-4)
    assert 1e-4 < done.weights_error < 4e-3
    assert done.statistics_error is not None
    assert 0 < done.statistics_error < 1e-3


def test_a_merge_of_rounded_statistics_is_that_of_exact_ones_but_for_a_thousandth_of_its_correction(site, tmp_path):
    for kind in ("exact", "rounded"):
        for name in ("one", "two"):
            (tmp_path / kind / name).mkdir(parents=True)
            for source in (site / name).iterdir():
                origin = site / f"{name}-small" / source.name if kind == "rounded" else source
                chosen = origin if source.name == "statistics.safetensors" else source
                (tmp_path / kind / name / source.name).write_bytes(chosen.read_bytes())

    def merge(kind: str, method: str = "regmean", alpha: float = 0.9) -> torch.Tensor:
        models = tuple({"model": str(tmp_path / kind / name)} for name in ("one", "two"))
        recipe = gramfuse.Recipe.model_validate(
            {"merge_method": method, "models": models, "parameters": {"alpha": alpha}}
        )
        merged = gramfuse.merge(recipe, tmp_path / f"{kind}-{method}-{alpha}").path / "model.safetensors"
        return load_file(merged)["bert.encoder.layer.1.output.dense.weight"].double()

    exact, rounded, mean = merge("exact"), merge("rounded"), merge("exact", "linear")
    assert 0 < float((exact - rounded).norm()) < 2e-3 * float((exact - mean).norm())
    with pytest.raises(RecipeInvalidError, match="rounded to int16"):
        merge("rounded", alpha=1.0)


def test_the_plan_and_the_manifest_of_a_compressed_contribution_say_so(site):
    base = build_base_manifest(site / "base")
    small = site / "one-small"
    draft = draft_contribution(small, small / "statistics.safetensors", base, POLICY, base_folder=site / "base")
    assert any("rounded to int16" in warning for warning in draft.plan.warnings)
    assert any("differences from the base" in warning for warning in draft.plan.warnings)
    assert not any("embedding" in warning for warning in draft.plan.warnings)  # they were frozen: no difference
    files = leaving_files(draft.plan, draft.model, draft.statistics)
    manifest = build_package(
        draft.plan,
        files,
        encoding=draft.model.encoding,
        measured=draft.statistics.metadata,
        project="acme.tweets",
        organization="acme",
        base=base,
        policy=POLICY,
        policy_version=1,
    ).manifest
    assert manifest.weights.encoding == "bf16-delta"
    assert manifest.statistics.encoding == "int16"
    assert sum(file.length for file in files) < 0.6 * sum(
        (site / "one" / name).stat().st_size for name in ("model.safetensors", "statistics.safetensors")
    )


def test_compressed_statistics_are_those_of_the_differences_and_stay_their_owners(site, tmp_path):
    base = build_base_manifest(site / "base")

    def audited(statistics, model):
        draft = draft_contribution(model, statistics, base, POLICY, base_folder=site / "base")
        return subject_of(draft, base, POLICY, site / "base")

    small, exact = (site / f"one{kind}" / "statistics.safetensors" for kind in ("-small", ""))
    audited(small, site / "one-small")
    audited(exact, site / "one")
    assert stat.S_IMODE(small.stat().st_mode) == 0o600
    assert stat.S_IMODE(small.parent.stat().st_mode) == 0o700
    for statistics, model in ((small, site / "one"), (exact, site / "one-small"), (exact, site / "two")):
        with pytest.raises(ArchitectureMismatchError, match="other weights"):
            audited(statistics, model)
    with pytest.raises(ArchitectureMismatchError, match="other weights"):
        gramfuse.compress(site / "two", site / "base", tmp_path / "out", statistics=exact)
    both = gramfuse.Statistics.load(site / "one" / "statistics.safetensors")
    assert (both + gramfuse.Statistics.load(site / "two" / "statistics.safetensors")).measured_on is None
    assert (both + both).measured_on == both.measured_on == (both + gramfuse.Statistics()).measured_on


def test_differences_from_another_base_are_refused(site, tmp_path):
    tiny.write_base(tmp_path / "other", seed=7)
    with pytest.raises(ArchitectureMismatchError, match="differences are those from the base model"):
        draft_contribution(site / "one-small", None, build_base_manifest(tmp_path / "other"), POLICY, base_folder=None)


def test_what_is_rounded_or_there_already_is_not_compressed_again(site, tmp_path):
    rounded = site / "one-small" / "statistics.safetensors"
    with pytest.raises(StatisticsMalformedError, match="rounded already"):
        gramfuse.compress(site / "one", site / "base", tmp_path / "out", statistics=rounded)
    with pytest.raises(ConflictError):
        gramfuse.compress(site / "one", site / "base", site / "one-small")
    assert open_statistics_file(rounded).metadata.encoding == "int16"


def test_integers_and_what_the_base_does_not_store_are_left_out(site, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    tensors = load_file(site / "one" / "model.safetensors")
    tensors["counter"] = torch.arange(3)
    tensors["new_head.weight"] = torch.ones(2, 2)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    done = gramfuse.compress(model, site / "base", tmp_path / "out")
    assert load_file(done.folder / "differences.safetensors").keys() == tensors.keys() - {"counter", "new_head.weight"}
    assert done.statistics_error is None
