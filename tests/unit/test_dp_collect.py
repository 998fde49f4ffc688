"""Noised statistics of a real model: against the definition, what they do not tell, and merged by the engine."""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from gramfuse.cli.main import main
from gramfuse.local_merging import merge
from gramfuse.measuring.inference import open_model
from gramfuse.measuring.scales import collect_scales, save_scales
from gramfuse.measuring.statistics import Statistics
from gramfuse.privacy.collecting import collect_privately, sum_clipped
from gramfuse.privacy.curve import measure_member, privacy_curve
from gramfuse.privacy.ledger import FILE_NAME, Ledger
from gramfuse.privacy.noise import NoiseSource
from gramfuse.privacy.releasing import release_statistics
from gramfuse_shared.contract.privacy import COVERS, Noised, PrivacyBudget
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import ArchitectureMismatchError, ConfigurationError, PrivacyBudgetExceededError
from gramfuse_shared.merging.scales import Scales, load_scales
from support.tiny_models import tiny_bert
from support.tokenizing import save_word_tokenizer

TEXTS = [f"{a} {b} {c}" for a in "abcd" for b in "efg" for c in ("h", "i j k", "l m")]
BUDGET = PrivacyBudget(epsilon=8, delta=1e-5)
KEY = bytes(range(32))


def write_model(folder: Path, seed: int) -> Path:
    save_word_tokenizer(folder)
    tiny_bert(seed=seed).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("base"), 0)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("tuned"), 1)


@pytest.fixture(scope="module")
def scales_path(base, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scales") / "scales.safetensors"
    save_scales(collect_scales(base, TEXTS, clip_percentile=80, device="cpu"), path)
    return path


@pytest.fixture(scope="module")
def scales(scales_path) -> Scales:
    return load_scales(scales_path)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "home"
    monkeypatch.setenv("GRAMFUSE_HOME", str(path))
    return path


def noised(examples: int = len(TEXTS), budget: PrivacyBudget = BUDGET) -> Noised:
    return Noised(**budget.model_dump(), examples=examples, scales="a" * 64, release="b" * 32)


def collect(model, out, scales_path, home, **changes) -> Noised:
    settings = {"budget": BUDGET, "ledger": Ledger(home / FILE_NAME), "clock": lambda: datetime.now(UTC)}
    return collect_privately(model, TEXTS, out, scales=scales_path, device="cpu", **(settings | changes))


# --- what is released ------------------------------------------------------------------------------------------------


def test_without_noise_worth_speaking_of_a_release_is_the_mean_of_clipped_texts(base, scales):
    """Of a tap, G/n = d·R(mean of s·M)R; as if there were 10⁹ copies of every text."""
    texts, opened = TEXTS[::3], open_model(base, device="cpu")
    run = {"tokenizer": opened.tokenizer, "device": "cpu"}
    sums = sum_clipped(opened.model, texts, scales, **run)
    sums.examples *= 10**9
    for tap in scales.metadata.taps:
        sums.mean(tap.name)
        sums.sums[tap.name].mul_(10**9)
    statistics = release_statistics(sums, noised(sums.examples), source=NoiseSource(KEY))
    alone = [sum_clipped(opened.model, [text], loose(scales), **run) for text in texts]
    moments = {tap.name: torch.stack([one.mean(tap.name) for one in alone]) for tap in scales.metadata.taps}
    norms = sum(moment.square().sum(dim=(1, 2)) for moment in moments.values()).sqrt()
    shrunk = (scales.metadata.clip / norms).clamp(max=1.0)
    assert 0 < int((shrunk < 1).sum()) < len(texts)
    for tap in statistics.taps:
        root = scales.root_mean_squares(tap.info.name)
        moment = (shrunk[:, None, None] * moments[tap.info.name]).mean(dim=0)
        exact = moment * root[:, None] * root * tap.info.width
        assert torch.allclose(tap.unpacked().double() / sums.examples, exact, rtol=1e-4, atol=1e-4 * float(exact.max()))


def loose(scales: Scales) -> Scales:
    return Scales(scales.metadata.model_copy(update={"clip": 1e6}), scales.mean_squares)


def test_a_file_tells_how_many_texts_there_were_and_no_count_of_rows(tuned, scales_path, tmp_path, home):
    out = tmp_path / "statistics.safetensors"
    told = collect(tuned, out, scales_path, home)
    read = Statistics.load(out)
    assert {(tap.info.rows, tap.info.distinct_rows) for tap in read.taps} == {(len(TEXTS), len(TEXTS))}
    assert read.settings is not None
    assert read.settings.noised == told
    assert told.scales == sha256_hex(scales_path.read_bytes())
    assert read.base == load_scales(scales_path).metadata.base


def test_two_runs_draw_other_noise_and_are_two_releases(tuned, scales_path, tmp_path, home):
    ledger = Ledger(home / FILE_NAME)
    told = [collect(tuned, tmp_path / name, scales_path, home) for name in ("one", "two")]
    assert [release.id for release in ledger.releases()] == [noise.release for noise in told]
    one, two = (Statistics.load(tmp_path / name) for name in ("one", "two"))
    assert all(not torch.equal(a.gram, b.gram) for a, b in zip(one.taps, two.taps, strict=True))


def test_nothing_is_measured_or_written_where_the_budget_is_spent(tuned, scales_path, tmp_path, home):
    collect(tuned, tmp_path / "one", scales_path, home, project="acme.tweets", limit=BUDGET)
    with pytest.raises(PrivacyBudgetExceededError):
        collect(tmp_path / "no-model", tmp_path / "two", scales_path, home, project="acme.tweets", limit=BUDGET)
    assert not (tmp_path / "two").exists()


def test_scales_of_another_model_are_refused(scales_path, tmp_path, home):
    save_word_tokenizer(tmp_path / "small")
    tiny_bert(num_hidden_layers=1).save_pretrained(tmp_path / "small")
    with pytest.raises(ArchitectureMismatchError, match="lacks such a layer"):
        collect(tmp_path / "small", tmp_path / "out", scales_path, home)
    assert Ledger(home / FILE_NAME).releases() == ()  # nothing was drawn


_KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from gramfuse.privacy import collecting
from gramfuse.privacy.ledger import Ledger
from gramfuse_shared.contract.privacy import PrivacyBudget
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
collecting.release_statistics = die
model, out, scales, ledger = map(Path, sys.argv[1:])
collecting.collect_privately(model, ["a b c", "d e"], out, scales=scales, ledger=Ledger(ledger), device="cpu",
    budget=PrivacyBudget(epsilon=8, delta=1e-5), clock=lambda: datetime.now(UTC), project="acme.tweets")
"""


def test_a_run_that_is_killed_between_the_ledger_and_the_noise_counts_and_leaves_nothing(tuned, scales_path, tmp_path):
    out, ledger = tmp_path / "statistics.safetensors", tmp_path / "ledger"
    arguments = [sys.executable, "-c", _KILLED, *map(str, (tuned, out, scales_path, ledger))]
    assert subprocess.run(arguments, check=False, capture_output=True, env=os.environ).returncode == -signal.SIGKILL
    assert len(Ledger(ledger).releases("acme.tweets")) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"ledger"}


# --- merged ----------------------------------------------------------------------------------------------------------


def test_noised_files_are_merged_by_the_engine_as_any_others(base, tuned, scales_path, tmp_path, home):
    folders = [Path(shutil.copytree(model, tmp_path / model.name)) for model in (base, tuned)]
    for folder in folders:
        collect(folder, folder / "statistics.safetensors", scales_path, home)
    models = [{"model": str(folder)} for folder in folders]
    recipe = Recipe.model_validate({"merge_method": "regmean", "models": models, "parameters": {"alpha": 0.9}})
    merged = merge(recipe, tmp_path / "merged", device="cpu")
    measured = {layer.weight for tap in load_scales(scales_path).metadata.taps for layer in tap.layers}
    solved = [entry for entry in merged.diagnostics if measured.intersection(entry["parameters"])]
    assert {name for entry in solved for name in entry["parameters"]} == measured
    assert {(entry["fallback"], entry["rows"]) for entry in solved} == {("none", 2 * len(TEXTS))}


def test_more_texts_and_a_larger_epsilon_keep_more_of_the_gain(base, tuned, scales):
    members = [measure_member(model, TEXTS, scales, device="cpu") for model in (base, tuned)]

    def kept(examples: int, epsilon: float) -> float:
        (point,) = privacy_curve(
            members, delta=1e-5, epsilons=(epsilon,), examples=examples, taps=3, source=NoiseSource(KEY)
        )
        return point.kept

    few, many, most = kept(10**3, 1.0), kept(10**5, 1.0), kept(10**9, 1.0)
    assert few < many < most <= 1.0 + 1e-6
    assert most > 0.9
    assert kept(10**4, 16.0) > kept(10**4, 1.0)


def test_a_curve_of_one_model_or_of_equal_ones_says_why_there_is_none(base, scales):
    member = measure_member(base, TEXTS[:6], scales, device="cpu")
    for members, says in (([member], "two models"), ([member, member], "gains nothing")):
        with pytest.raises(ConfigurationError, match=says):
            list(privacy_curve(members, delta=1e-5))


# --- on the command line ---------------------------------------------------------------------------------------------


def test_every_command_that_shows_an_epsilon_says_what_it_does_not_cover(base, tuned, scales_path, tmp_path, capsys):
    texts, out = tmp_path / "mine.txt", tmp_path / "statistics.safetensors"
    texts.write_text("\n".join(TEXTS))
    collecting = ["dp", "collect", "--scales", scales_path, "--model", tuned, "--texts", texts, "--out", out]
    curve = ["dp", "curve", scales_path, "--model", base, "--texts", texts, "--model", tuned, "--texts", texts]
    for command in (
        [*collecting, "--epsilon", 8, "--device", "cpu"],
        ["stats", "show", out],
        ["dp", "ledger"],
        [*curve, "--epsilon", 8, "--examples", 10_000, "--device", "cpu"],
    ):
        assert main([str(word) for word in command]) == 0
        assert COVERS in " ".join(capsys.readouterr().out.split())
    assert main(["dp", "ledger", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["notice"] == COVERS
    assert [round(total["epsilon"], 6) for total in told["totals"]] == [8.0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["collect", "--epsilon", "8"], "--project PROJECT, or --scales FILE"),
        (["collect", "--scales", "SCALES"], "--epsilon"),
        (["collect", "--scales", "SCALES", "--epsilon", "900"], "epsilon must be at most"),
        (["collect", "--scales", "SCALES", "--epsilon", "8", "--delta", "0.5"], "delta must be at most"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_measured(words, says, tuned, scales_path, tmp_path, capsys):
    texts = tmp_path / "mine.txt"
    texts.write_text("a b")
    command = ["dp", *(str(scales_path) if word == "SCALES" else word for word in words)]
    assert main([*command, "--model", str(tuned), "--texts", str(texts), "--out", str(tmp_path / "out")]) != 0
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
