"""Fisher information on its owner's side: the plan, the package, the commands, the local merge."""

import json
import os
import signal
import stat
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import gramfuse
from gramfuse.cli.main import main
from gramfuse.contributing.base_model import build_base_manifest
from gramfuse.contributing.draft import draft_contribution
from gramfuse.contributing.packaging import build_package, leaving_files
from gramfuse.measuring.fisher import Fisher
from gramfuse.measuring.squared_gradients import SquaredGradients
from gramfuse_shared.contract.fisher_file import parse_fisher_metadata
from gramfuse_shared.contract.manifest import FisherSettings
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.safetensors_header import parse_header
from gramfuse_shared.errors import ArchitectureMismatchError, FileUnreadableError, StatisticsMalformedError
from support.client_models import fisher_metadata, write_fisher, write_model, write_statistics
from support.tiny import write_base, write_texts, write_tuned

ALLOWED = Policy(methods=("linear", "regmean", "fisher"))
LEAVING = ["encoder.layer.1.dense.weight", "encoder.layer.1.norm.weight"]


@pytest.fixture
def folders(tmp_path: Path):
    """A base, a model tuned from it, its statistics and its Fisher information."""
    base, tuned = write_model(tmp_path / "base"), write_model(tmp_path / "tuned", 1)
    write_statistics(tmp_path / "statistics.safetensors")
    write_fisher(tmp_path / "fisher.safetensors")
    return base, tuned, tmp_path


def draft(folders, policy=ALLOWED, *, fisher="fisher.safetensors"):
    base, tuned, folder = folders
    return draft_contribution(
        tuned,
        folder / "statistics.safetensors",
        build_base_manifest(base),
        policy,
        base_folder=base,
        fisher=None if fisher is None else folder / fisher,
    )


# --- the plan --------------------------------------------------------------------------------------------------------


def test_by_default_it_stays_and_the_plan_says_why(folders):
    plan = draft(folders, Policy()).plan
    assert plan.leaving_fisher == ()
    assert "Fisher information (6, " in str(plan)
    assert "no method of the policy reads Fisher information (methods)" in str(plan)
    assert not any("Fisher" in warning for warning in plan.warnings)


def test_where_the_policy_allows_it_the_plan_lists_its_file_and_what_stays_of_it(folders):
    plan = draft(folders).plan
    assert [decision.info.name for decision in plan.leaving_fisher] == LEAVING
    text = str(plan)
    assert "  fisher.safetensors, 268 B" in text
    assert "fisher can weigh 2 of your 4 leaving tensors element by element" in text
    assert "embeddings: base" in text
    assert "heads: private" in text
    leaves = [group for group in plan.to_json()["leaves"] if group["group"] == "fisher"]
    assert leaves == [{"group": "fisher", "count": 2, "bytes": 4 * (64 + 3), "names": LEAVING}]
    assert plan.leaving_bytes == sum(group.bytes for group in plan.leaving())


def test_a_policy_that_reads_it_warns_who_brings_none(folders):
    assert any(
        "no Fisher information of yours leaves" in warning for warning in draft(folders, fisher=None).plan.warnings
    )
    write_fisher(folders[2] / "few.safetensors", examples=5)
    few = draft(folders, fisher="few.safetensors").plan
    assert any("no Fisher information of yours leaves" in warning for warning in few.warnings)
    assert "5 distinct examples, the policy wants 160" in str(few)


def test_what_embeddings_feed_leaves_with_a_warning_where_the_policy_says_so(folders):
    open_policy = ALLOWED.model_copy(update={"embeddings": "average", "embedding_taps": "send", "heads": "shared"})
    write_fisher(folders[2] / "many.safetensors", examples=1_000)
    plan = draft(folders, open_policy, fisher="many.safetensors").plan
    assert len(plan.leaving_fisher) == 6
    assert any("hangs on the tokens of your text" in warning for warning in plan.warnings)


def test_what_given_labels_told_stays_or_leaves_with_a_warning(folders):
    given = fisher_metadata().model_copy(update={"collector": FisherSettings(collector_version="0", labels="given")})
    write_fisher(folders[2] / "given.safetensors", metadata=given)
    plan = draft(folders, fisher="given.safetensors").plan
    assert plan.leaving_fisher == ()
    assert "given_labels: withhold): measure it with sampled ones" in str(plan)
    sending = ALLOWED.model_copy(update={"given_labels": "send"})
    plan = draft(folders, sending, fisher="given.safetensors").plan
    assert [decision.info.name for decision in plan.leaving_fisher] == LEAVING
    assert any("of your texts' own labels leaves" in warning for warning in plan.warnings)
    assert not any("own labels" in warning for warning in draft(folders, sending).plan.warnings)


def test_a_model_that_is_newer_than_what_was_measured_is_told(folders):
    os.utime(folders[2] / "fisher.safetensors", (1, 1))
    assert any("written after its statistics" in warning for warning in draft(folders).plan.warnings)


def test_information_of_another_base_or_model_is_refused(folders):
    write_fisher(folders[2] / "other.safetensors", base="b" * 64)
    with pytest.raises(ArchitectureMismatchError, match="the Fisher information was measured for the base model bbbb"):
        draft(folders, fisher="other.safetensors")
    other = Fisher.load(folders[2] / "fisher.safetensors")
    other.values["encoder.layer.1.norm.weight"] = torch.ones(4)
    other.values = {name: torch.ones(value.shape) for name, value in other.values.items()}
    other.save(folders[2] / "shape.safetensors")
    with pytest.raises(ArchitectureMismatchError, match=r"norm\.weight is \[4\], the project's base has \[3\]"):
        draft(folders, fisher="shape.safetensors")
    with pytest.raises(StatisticsMalformedError, match="not a file of Fisher information"):
        draft(folders, fisher="statistics.safetensors")
    with pytest.raises(FileUnreadableError):
        draft(folders, fisher="nowhere.safetensors")


def test_a_private_head_may_be_of_another_task_and_its_information_stays(folders):
    other = Fisher.load(folders[2] / "fisher.safetensors")
    labels, width = other.values["classifier.weight"].shape
    other.values = {name: torch.ones(value.shape) for name, value in other.values.items()}
    other.values["classifier.weight"] = torch.ones(labels + 3, width)
    other.save(folders[2] / "task.safetensors")
    plan = draft(folders, fisher="task.safetensors").plan
    assert [decision.info.name for decision in plan.leaving_fisher] == LEAVING
    with pytest.raises(ArchitectureMismatchError, match=r"classifier\.weight is"):
        draft(folders, ALLOWED.model_copy(update={"heads": "shared"}), fisher="task.safetensors")


# --- the package -----------------------------------------------------------------------------------------------------


def package(folders, policy=ALLOWED):
    made = draft(folders, policy)
    return build_package(
        made.plan,
        leaving_files(made.plan, made.model, made.statistics, made.fisher),
        encoding="stored",
        measured=made.statistics.metadata,
        fisher=made.fisher.metadata,
        project="acme.tweets",
        organization="acme",
        base=build_base_manifest(folders[0]),
        policy=policy,
        policy_version=1,
    )


def test_the_file_that_leaves_holds_just_what_the_plan_lists(folders):
    made = package(folders)
    names = [file.name for file in made.files]
    assert names == [file.name for file in made.manifest.files]
    assert names == ["weights.safetensors", "statistics.safetensors", "fisher.safetensors"]
    content = b"".join(made.files[2].chunks())
    told = parse_fisher_metadata(parse_header(content, len(content)))
    assert [parameter.name for parameter in told.parameters] == LEAVING
    assert told.parameters == made.manifest.fisher.parameters
    assert (told.examples, told.distinct_examples) == (200, 200)
    path = folders[2] / "sent.safetensors"
    path.write_bytes(content)
    whole, sent = load_file(folders[2] / "fisher.safetensors"), load_file(path)
    assert all(torch.equal(sent[name].view(torch.int32), whole[name].view(torch.int32)) for name in LEAVING)


def test_without_it_the_manifest_is_the_one_that_it_was(folders):
    made = package(folders, Policy())
    assert [file.name for file in made.files] == ["weights.safetensors", "statistics.safetensors"]
    assert b"fisher" not in made.manifest.canonical()


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A base, two models tuned from it, and texts for each."""
    folder = tmp_path_factory.mktemp("tiny")
    write_base(folder / "base")
    for seed in (1, 2):
        write_tuned(folder / "base", folder / f"tuned-{seed}", seed=seed)
        write_texts(folder / f"texts-{seed}.jsonl", count=12, words=5, seed=seed)
    return folder


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def measure(capsys, tiny, seed, *more):
    model, texts = tiny / f"tuned-{seed}", tiny / f"texts-{seed}.jsonl"
    return run(capsys, "stats", "fisher", "--model", model, "--texts", texts, *more)


def test_stats_fisher_writes_a_file_and_show_and_audit_tell_what_it_says(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GRAMFUSE_HOME", str(tmp_path / "home"))
    out = tmp_path / "fisher.safetensors"
    code, printed, _ = measure(capsys, tiny, 1, "--out", out, "--base", tiny / "base", "--format", "json")
    assert code == 0
    result = json.loads(printed)
    assert (result["examples"], result["distinct_examples"], result["parameters"]) == (12, 12, 41)
    assert result["bytes"] == out.stat().st_size
    assert Fisher.load(out).base == build_base_manifest(tiny / "base").content_digest()
    assert [path.name for path in tmp_path.iterdir()] == ["fisher.safetensors"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600

    code, printed, error = measure(capsys, tiny, 1, "--out", out)
    assert code == 1
    assert "--overwrite" in error
    code, printed, _ = measure(capsys, tiny, 1, "--out", out, "--overwrite")
    assert "41 parameters, 12 texts (12 distinct)" in printed

    code, printed, _ = run(capsys, "stats", "show", out, "--format", "json")
    assert code == 0
    assert json.loads(printed)["collector"]["labels"] == "sampled"
    code, printed, _ = run(capsys, "stats", "show", out)
    assert "bert.encoder.layer.*.output.dense.weight × 2" in printed
    assert "32 × 128" in printed
    assert "labels sampled" in printed

    (tmp_path / "policy.yaml").write_text("methods: [fisher]\nminimum_rows_per_dimension: 0.1\n")
    rules = ("--policy", tmp_path / "policy.yaml", "--base", tiny / "base")
    code, printed, _ = run(capsys, "audit", "--model", tiny / "tuned-1", "--fisher", out, *rules)
    assert code == 0
    assert "fisher.safetensors" in printed
    assert "hangs on which tokens the text holds" in " ".join(printed.split())
    assert "Not attacked: Fisher information" in printed


def test_stats_fisher_takes_the_labels_that_the_texts_bear(tiny, tmp_path, capsys):
    records = [json.loads(line) for line in (tiny / "texts-1.jsonl").read_text().splitlines()]
    labelled, out = tmp_path / "labelled.jsonl", tmp_path / "fisher.safetensors"
    labelled.write_text("\n".join(json.dumps(record | {"mood": n % 3}) for n, record in enumerate(records)))
    command = ("stats", "fisher", "--model", tiny / "tuned-1", "--texts", labelled, "--out", out)
    code, printed, _ = run(
        capsys, *command, "--labels", "given", "--label-field", "mood", "--examples", 9, "--format", "json"
    )
    assert code == 0
    assert (json.loads(printed)["labels"], json.loads(printed)["examples"]) == ("given", 9)
    texts = [record["text"] for record in records[:9]]
    expected = gramfuse.collect_fisher(tiny / "tuned-1", texts, labels=[n % 3 for n in range(9)])
    assert torch.equal(Fisher.load(out).values["classifier.bias"], expected.values["classifier.bias"])
    assert "labels given" in run(capsys, "stats", "show", out)[1]

    code, _, error = run(capsys, *command, "--overwrite", "--label-field", "mood")
    assert code == 1
    assert "add --labels given" in error
    code, _, error = run(capsys, *command, "--overwrite", "--labels", "given")
    assert code == 1
    assert "none of the fields label, labels" in error


def test_ctrl_c_ends_behind_the_batch_and_the_same_command_finishes(tiny, tmp_path, capsys, monkeypatch):
    add = SquaredGradients.add

    def interrupted(self, batch):
        add(self, batch)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(SquaredGradients, "add", interrupted)
    out = tmp_path / "fisher.safetensors"
    code, _, printed = measure(capsys, tiny, 1, "--out", out, "--batch-size", 4)
    assert code == 130
    assert "1 of 3 batches are kept in" in " ".join(printed.split())
    assert [path.name for path in tmp_path.iterdir()] == ["fisher.safetensors.partial"]
    monkeypatch.setattr(SquaredGradients, "add", add)
    code, _, error = measure(capsys, tiny, 1, "--out", out, "--batch-size", 4, "--seed", 1)
    assert code == 1
    assert "belongs to a run with another model, other texts or settings" in " ".join(error.split())
    assert measure(capsys, tiny, 1, "--out", out, "--batch-size", 4)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["fisher.safetensors"]


@pytest.mark.filterwarnings("default:the texts are passed one by one")
def test_warnings_are_told_to_people_at_once(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SquaredGradients, "_differs_from_alone", lambda *_: "here a reason")
    code, _, printed = measure(capsys, tiny, 1, "--out", tmp_path / "f")
    assert code == 0
    assert "Warning: the texts are passed one by one" in " ".join(printed.split())


def test_a_local_merge_reads_the_fisher_information_in_each_folder(tiny, tmp_path, capsys):
    for seed in (1, 2):
        measure(capsys, tiny, seed, "--out", tiny / f"tuned-{seed}" / "fisher.safetensors", "--overwrite")
    recipe = {"merge_method": "fisher", "base_model": "base", "models": [{"model": "tuned-1"}, {"model": "tuned-2"}]}
    (tiny / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, printed, _ = run(capsys, "merge", tiny / "recipe.yaml", tmp_path / "out", "--device", "cpu")
    assert code == 0, printed
    merged = load_file(tmp_path / "out" / "model.safetensors")
    weights = [load_file(tiny / f"tuned-{seed}" / "model.safetensors") for seed in (1, 2)]
    fisher = [Fisher.load(tiny / f"tuned-{seed}" / "fisher.safetensors").values for seed in (1, 2)]
    for name in ("classifier.weight", "bert.encoder.layer.0.attention.self.query.weight"):
        products = sum(f[name].double() * w[name].double() for f, w in zip(fisher, weights, strict=True))
        expected = products / sum(f[name].double() for f in fisher)
        assert float((merged[name].double() - expected).norm() / expected.norm()) < 2e-7


def test_a_folder_without_it_is_told_how_to_measure(tiny, tmp_path):
    (tiny / "tuned-1" / "fisher.safetensors").unlink(missing_ok=True)
    recipe = gramfuse.Recipe(merge_method="fisher", models=[{"model": "tuned-1"}, {"model": "tuned-2"}])
    with pytest.raises(FileUnreadableError, match=r"holds no fisher\.safetensors.*gramfuse stats fisher --model"):
        gramfuse.merge(recipe, tmp_path / "out", folder=tiny)


def test_what_is_told_of_norms_is_what_the_values_have():
    told = fisher_metadata()
    assert {parameter.norm for parameter in told.parameters} == {1.0}
