"""`gramfuse merge` and `gramfuse.merge`: a recipe over local folders."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import gramfuse
from gramfuse import local_merging
from gramfuse.cli.main import main
from gramfuse.local_merging import merge
from gramfuse.merged_folder import REPORT_FILE
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import (
    CancelledError,
    ConflictError,
    DocumentMalformedError,
    FileUnreadableError,
    FileUnwritableError,
    GramfuseError,
    RecipeInvalidError,
)
from gramfuse_shared.merging.configuration import declare_dtype
from support.merging_cases import merge_models, random_models, recipe_of, save_statistics

CONFIG = '{"model_type": "bert", "dtype": "float32"}'


@pytest.fixture
def workshop(tmp_path):
    """A folder with a base, three models with statistics, and a recipe."""
    base, models = random_models(5)
    folders = {"base": base} | {f"m{model.key}": dict(model.weights) for model in models}
    for name, weights in folders.items():
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_text(CONFIG)
        (tmp_path / name / "vocab.txt").write_text(f"[PAD]\n{name}\n")
        (tmp_path / name / "notes.md").write_text("private notes")
    for model in models:
        save_statistics(model, tmp_path / f"m{model.key}" / "statistics.safetensors")
    write_recipe(tmp_path)
    return tmp_path


def write_recipe(folder: Path, **changes: object) -> Path:
    document = {
        "merge_method": "regmean",
        "base_model": "base",
        "models": [{"model": f"m0{index}", "parameters": {"weight": 1.0 + index / 2}} for index in range(3)],
        "parameters": {"alpha": 0.9},
    } | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in document.items() if value is not None}))
    return path


def test_a_recipe_over_folders_gives_what_the_engine_gives(workshop, tmp_path):
    base, models = random_models(5)
    expected = merge_models(tmp_path / "engine", models, base, recipe_of())
    merged = merge(workshop / "recipe.yaml", workshop / "out", device="cpu")
    found = load_file(workshop / "out" / "model.safetensors")
    assert merged.path == workshop / "out"
    for name, tensor in expected.tensors.items():
        assert torch.allclose(found[name].double(), tensor.double(), rtol=1e-6, atol=1e-7)
    assert gramfuse.merge is merge


def test_the_order_of_the_recipe_and_the_names_of_folders_change_no_bit(workshop):
    one = merge(workshop / "recipe.yaml", workshop / "one")
    for index in range(3):
        (workshop / f"m0{index}").rename(workshop / f"z{9 - index}")
    models = [{"model": f"z{9 - i}", "parameters": {"weight": 1.0 + i / 2}} for i in (2, 0, 1)]
    other = merge(write_recipe(workshop, models=models), workshop / "other")
    assert one.files == other.files


def test_configuration_and_tokenizer_are_the_bases(workshop):
    merge(workshop / "recipe.yaml", workshop / "out")
    assert (workshop / "out" / "vocab.txt").read_text() == "[PAD]\nbase\n"
    assert sorted(path.name for path in (workshop / "out").iterdir()) == [
        "config.json",
        REPORT_FILE,
        "model.safetensors",
        "vocab.txt",
    ]


def test_without_a_base_they_are_the_first_models(workshop):
    merge(write_recipe(workshop, base_model=None), workshop / "out")
    assert (workshop / "out" / "vocab.txt").read_text() == "[PAD]\nm00\n"


def test_the_configuration_names_the_dtype_that_was_written(workshop):
    merge(write_recipe(workshop, out_dtype="bfloat16"), workshop / "out")
    assert json.loads((workshop / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_file(workshop / "out" / "model.safetensors")["q.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "declared"),
    [
        (b'{"torch_dtype": "float16", "a": 1}', {"torch_dtype": "bfloat16", "a": 1}),
        (b'{"a": 1}', {"a": 1}),
    ],
)
def test_only_the_dtype_of_a_configuration_changes(config, declared):
    assert json.loads(declare_dtype(config, "bfloat16")) == declared


@pytest.mark.parametrize("config", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_configuration_that_is_no_json_object_is_refused(config):
    with pytest.raises(FileUnreadableError, match=r"config\.json"):
        declare_dtype(config, "bfloat16")


def test_a_recipe_object_starts_from_the_folder_it_is_given(workshop):
    recipe = Recipe.model_validate({"merge_method": "linear", "models": [{"model": "m00"}, {"model": "m01"}]})
    merged = merge(recipe, workshop / "out", folder=workshop)
    mean = sum(load_file(workshop / name / "model.safetensors")["norm.weight"] for name in ("m00", "m01")) / 2
    assert torch.allclose(load_file(workshop / "out" / "model.safetensors")["norm.weight"], mean)
    assert merged.fallbacks == ()
    assert {key for entry in merged.diagnostics for key in entry["distances"]} == {"m00", "m01"}


def test_a_sharded_model_is_read_and_written_sharded(workshop):
    merge(workshop / "recipe.yaml", workshop / "whole")
    merged = merge(workshop / "recipe.yaml", workshop / "sharded", shard_bytes=900)
    assert len(merged.files) > 1
    index = json.loads((workshop / "sharded" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in merged.files}
    recipe = write_recipe(workshop, merge_method="linear", base_model=None, models=[{"model": "sharded"}])
    merge(recipe, workshop / "again")
    whole = load_file(workshop / "whole" / "model.safetensors")
    again = load_file(workshop / "again" / "model.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_report_says_what_was_done(workshop):
    merge(workshop / "recipe.yaml", workshop / "out")
    report = json.loads((workshop / "out" / REPORT_FILE).read_text())
    assert report["method"] == "regmean/1"
    assert {model["model"] for model in report["models"]} == {"m00", "m01", "m02"}
    assert {name for entry in report["diagnostics"] for name in entry["parameters"]} >= {"q.weight", "conv.weight"}


def test_what_each_layer_got_is_written_in_words_where_a_report_is_asked_for(workshop):
    report = workshop / "report.md"
    command = ["merge", str(workshop / "recipe.yaml"), str(workshop / "out"), "--report", str(report)]
    assert main(command) == 0
    text = report.read_text("utf-8")
    assert text.startswith("# out\n\n## Layers\n")
    assert "gained over the average (2 entries)" in text
    assert "`k.weight` and 1 more" in text
    told = [line.split(" ")[1] for line in text.split("## Models")[1].splitlines() if line.startswith("| m0")]
    assert sorted(told) == [
        "m00",
        "m01",
        "m02",
    ]  # in the order of the statistics' digests, which hang on the CPU's rounding


def test_progress_reaches_the_whole(workshop):
    seen: list[tuple[int, int]] = []
    merge(workshop / "recipe.yaml", workshop / "out", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_read(workshop):
    (workshop / "out").mkdir()
    (workshop / "out" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConflictError, match="choose another folder"):
            merge(workshop / "recipe.yaml", workshop / "out", overwrite=overwrite)
    assert (workshop / "out" / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_filled_and_a_merged_one_replaced_on_request(workshop):
    (workshop / "out").mkdir()
    merge(workshop / "recipe.yaml", workshop / "out")
    (workshop / "out" / "stale.txt").write_text("of the first run")
    with pytest.raises(ConflictError, match="--overwrite"):
        merge(workshop / "recipe.yaml", workshop / "out")
    merge(workshop / "recipe.yaml", workshop / "out", overwrite=True)
    assert not (workshop / "out" / "stale.txt").exists()
    assert_nothing_else(workshop)


def assert_nothing_else(workshop: Path) -> None:
    assert not [path.name for path in workshop.iterdir() if path.name.startswith(".")]


def test_what_a_killed_run_left_is_cleared_by_the_next(workshop):
    (workshop / ".out.partial").mkdir()
    (workshop / ".out.partial" / "model.safetensors.partial").write_bytes(b"half")
    merge(workshop / "recipe.yaml", workshop / "out")
    assert_nothing_else(workshop)
    assert not list((workshop / "out").glob("*.partial"))


def test_a_cancelled_merge_leaves_nothing_and_keeps_what_was_there(workshop):
    merge(workshop / "recipe.yaml", workshop / "out")
    before = (workshop / "out" / "model.safetensors").read_bytes()
    with pytest.raises(CancelledError):
        merge(workshop / "recipe.yaml", workshop / "out", overwrite=True, is_cancelled=lambda: True)
    assert (workshop / "out" / "model.safetensors").read_bytes() == before
    assert_nothing_else(workshop)


def test_an_unwritable_place_is_a_clear_error(workshop):
    (workshop / "file").write_text("")
    with pytest.raises(FileUnwritableError, match="cannot be made"):
        merge(workshop / "recipe.yaml", workshop / "file" / "out")


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"models": None}, RecipeInvalidError, "names no models"),
        ({"models": [{"model": "nowhere"}]}, FileUnreadableError, "nowhere"),
        ({"base_model": "nowhere"}, FileUnreadableError, "nowhere is not a folder"),
        ({"models": [{"model": "base"}]}, FileUnreadableError, "gramfuse stats collect --model"),
        ({"merge_method": "dare"}, RecipeInvalidError, "merge_method"),
        ({"base_model": None, "parameters": {"exclude": ["q.*"]}}, RecipeInvalidError, "add base_model"),
    ],
)
def test_what_cannot_be_merged_is_said_plainly_and_leaves_nothing(workshop, changes, error, complaint):
    with pytest.raises(error, match=complaint):
        merge(write_recipe(workshop, **changes), workshop / "out")
    assert not (workshop / "out").exists()
    assert_nothing_else(workshop)


def test_a_recipe_that_is_not_text_is_refused(workshop):
    (workshop / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeInvalidError, match="not UTF-8"):
        merge(workshop / "recipe.yaml", workshop / "out")


def test_a_damaged_model_is_named(workshop):
    (workshop / "m01" / "model.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(GramfuseError, match=r"m01.model\.safetensors: "):
        merge(workshop / "recipe.yaml", workshop / "out")


def test_statistics_of_another_model_are_no_silent_average(workshop):
    _, models = random_models(5)
    for model in models:
        weights = {f"other.{name}": tensor for name, tensor in model.weights.items()}
        save_file(weights, workshop / f"m{model.key}" / "model.safetensors")
    with pytest.raises(RecipeInvalidError, match="would be an average"):
        merge(write_recipe(workshop, base_model=None), workshop / "out")


def test_two_models_with_the_same_statistics_are_told_apart_by_their_weights(workshop):
    for index in (1, 2):
        source = workshop / "m00" / "statistics.safetensors"
        (workshop / f"m0{index}" / "statistics.safetensors").write_bytes(source.read_bytes())
    one = merge(workshop / "recipe.yaml", workshop / "one")
    models = [{"model": f"m0{i}", "parameters": {"weight": 1.0 + i / 2}} for i in (1, 2, 0)]
    assert merge(write_recipe(workshop, models=models), workshop / "other").files == one.files


def test_the_command_prints_what_it_wrote(workshop, capsys):
    assert main(["merge", str(workshop / "recipe.yaml"), str(workshop / "out"), "--device", "cpu"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 weight file(s)" in printed
    assert "3 linear weights by least squares" in printed


def test_the_command_prints_json_for_programs(workshop, capsys):
    arguments = ["merge", str(workshop / "recipe.yaml"), str(workshop / "out"), "--format", "json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["files"][0]["name"] == "model.safetensors"
    assert captured.err == ""
    assert main(arguments) == 1
    assert json.loads(capsys.readouterr().err)["code"] == "conflict"


def test_the_command_names_layers_that_fell_back(workshop, capsys):
    _, models = random_models(5)
    del models[1].taps["mlp"]
    save_statistics(models[1], workshop / "m01" / "statistics.safetensors")
    assert main(["merge", str(workshop / "recipe.yaml"), str(workshop / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "average: conv.weight: 1 of 3 contributions sent no statistics" in printed


def test_a_model_without_statistics_joins_where_the_recipe_estimates_them(workshop, tmp_path, capsys):
    base, models = random_models(5)
    (workshop / "m01" / "statistics.safetensors").unlink()
    models[1] = replace(models[1], taps={})
    estimating = {"alpha": 0.9, "missing_statistics": "estimate"}
    write_recipe(workshop, parameters=estimating)
    assert main(["merge", str(workshop / "recipe.yaml"), str(workshop / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 linear weights by least squares" in printed
    assert "of 3 of them the precision of m01 is an estimate from the weights" in printed
    expected = merge_models(tmp_path / "engine", models, base, recipe_of(**estimating))
    found = load_file(workshop / "out" / "model.safetensors")
    assert all(torch.allclose(found[name], w, rtol=1e-5, atol=1e-6) for name, w in expected.tensors.items())
    report = json.loads((workshop / "out" / REPORT_FILE).read_text())
    assert [entry["estimated"] for entry in report["diagnostics"]] == [["m01"], ["m01"]]


def test_a_model_without_statistics_is_refused_by_default_and_the_way_out_is_named(workshop):
    (workshop / "m01" / "statistics.safetensors").unlink()
    with pytest.raises(FileUnreadableError, match="missing_statistics: estimate among the recipe's parameters"):
        merge(workshop / "recipe.yaml", workshop / "out")


def test_where_no_model_has_statistics_there_is_nothing_to_take_an_estimates_size_from(workshop):
    for index in range(3):
        (workshop / f"m0{index}" / "statistics.safetensors").unlink()
    recipe = write_recipe(workshop, parameters={"missing_statistics": "estimate"})
    with pytest.raises(RecipeInvalidError, match="regmean would be an average"):
        merge(recipe, workshop / "out")


def test_ctrl_c_leaves_nothing_and_exits_130(workshop, monkeypatch):
    execute = local_merging.execute_task

    def interrupted(*arguments, **options):
        options["on_progress"] = lambda _: signal.raise_signal(signal.SIGINT)
        return execute(*arguments, **options)

    monkeypatch.setattr(local_merging, "execute_task", interrupted)
    assert main(["merge", str(workshop / "recipe.yaml"), str(workshop / "out")]) == 130
    assert not (workshop / "out").exists()
    assert_nothing_else(workshop)


def test_a_missing_cuda_device_is_a_clear_error(workshop, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["merge", str(workshop / "recipe.yaml"), str(workshop / "out"), "--device", "cuda"]) == 1
    assert "use --device cpu" in capsys.readouterr().err


def test_labels_that_a_folder_was_not_trained_on_are_left_out_of_its_head(workshop, capsys):
    generator = torch.Generator().manual_seed(1)
    heads = {}
    for name in ("base", "m00", "m01", "m02"):
        heads[name] = torch.randn(3, 4, generator=generator)
        weights = load_file(workshop / name / "model.safetensors") | {"classifier.weight": heads[name]}
        save_file(weights, workshop / name / "model.safetensors", {"format": "pt"})
        (workshop / name / "config.json").write_text('{"model_type": "bert", "num_labels": 3}')
    models = [{"model": "m00", "labels": [0, 1]}, {"model": "m01", "labels": [1]}, {"model": "m02"}]
    assert main(["merge", str(write_recipe(workshop, models=models)), str(workshop / "out")]) == 0
    assert "3 linear weights by least squares" in capsys.readouterr().out
    found = load_file(workshop / "out" / "model.safetensors")["classifier.weight"]
    shared = [("m00", "m02"), ("m00", "m01", "m02"), ("m02",)]
    for row, names in enumerate(shared):
        assert torch.allclose(found[row], sum(heads[name][row] for name in names) / len(names), atol=1e-6)
    report = json.loads((workshop / "out" / REPORT_FILE).read_text())
    assert [entry.get("labels") for entry in report["recipe"]["models"]] == [[0, 1], [1], None]
    wrong = [{"model": "m00", "labels": [3]}, {"model": "m01"}]
    with pytest.raises(DocumentMalformedError, match="the labels end at 2"):
        merge(write_recipe(workshop, models=wrong), workshop / "other")
