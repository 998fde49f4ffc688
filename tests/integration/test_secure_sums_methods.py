"""What secure sums are of: Fisher information, noised statistics; words that are no words; a server that restarts."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_words
from safetensors.numpy import save_file as save_words
from safetensors.torch import load_file

import gramfuse
from gramfuse.privacy.ledger import FILE_NAME, Ledger
from gramfuse.securing import words as writing
from gramfuse.securing.stages import kept_sessions
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.privacy import PrivacyBudget
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import GramfuseError
from gramfuse_shared.limits import KIB
from support.secret_cohort import POLICY, PROJECT, begin, push, texts_of
from support.worker_world import InProcessWorker

LINEAR = gramfuse.Recipe(merge_method="linear", dtype="float64")
SOLVED = "bert.encoder.layer.1.intermediate.dense.weight"

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True, scope="session")  # sums, no queries


@pytest.fixture
def part_bytes():
    return 64 * KIB  # masked words are many times as long as what others send: hundreds of small parts


@pytest.fixture
def worker(world, settings):
    return InProcessWorker(world, settings)


def summed(cohort, recipe, folder, **options):
    job = cohort.sum(recipe, **options)
    assert job.state == "succeeded"
    with cohort.coordinator.client() as client:
        return load_file(client.pull(PROJECT, "summed", folder / "pulled") / "model.safetensors")


def merged(cohort, recipe, **names):
    """The same merge of the same files in the open, by one process."""
    models = [
        {"model": str(cohort.place(name) / "tuned")}
        | {key: str(cohort.place(name) / file) for key, file in names.items()}
        for name in cohort.machines
    ]
    opened = recipe.model_copy(update={"base_model": str(cohort.folder / "base")})
    document = opened.model_dump(mode="json", exclude_none=True) | {"models": models}
    gramfuse.merge(gramfuse.Recipe.model_validate(document), cohort.folder / "open")
    return load_file(cohort.folder / "open" / "model.safetensors")


def test_fisher_information_is_summed_as_it_would_be_merged(world, worker, tmp_path):
    cohort = begin(world, worker, tmp_path, contribute=False)
    for name, machine in cohort.machines.items():
        place = cohort.place(name)
        gramfuse.collect_fisher(place / "tuned", texts_of(place / "texts.jsonl")).save(place / "fisher.safetensors")
        (place / "tuned" / "fisher.safetensors").write_bytes((place / "fisher.safetensors").read_bytes())
        with machine.client() as client:
            client.push(PROJECT, model=place / "tuned", fisher=place / "fisher.safetensors", confirm=lambda _: True)
    recipe = gramfuse.Recipe.model_validate(
        {"merge_method": "fisher", "dtype": "float64", "parameters": {"normalize": "parameter_norm"}}
    )

    def answer(_):
        for name in cohort.machines:
            cohort.answer(name, statistics=None, fisher=cohort.place(name) / "fisher.safetensors")

    found, wanted = summed(cohort, recipe, tmp_path, on_request=answer), merged(cohort, recipe)
    mean = sum(load_file(cohort.place(name) / "tuned" / "model.safetensors")[SOLVED] for name in cohort.machines) / 3
    assert (wanted[SOLVED] - mean).abs().max() > 1e-3
    torch.testing.assert_close(found[SOLVED], wanted[SOLVED], rtol=1e-6, atol=1e-6)


def test_noised_statistics_are_summed_and_counted_by_each_ledger(world, worker, tmp_path):
    budget = PrivacyBudget(epsilon=8, delta=1e-5)
    policy = POLICY.model_copy(update={"differential_privacy": budget, "methods": ("linear", "regmean")})
    cohort = begin(world, worker, tmp_path, policy=policy, contribute=False)
    for name, machine in cohort.machines.items():
        place = cohort.place(name)
        gramfuse.collect_privately(
            place / "tuned",
            texts_of(place / "texts.jsonl"),
            place / "statistics.safetensors",
            scales=tmp_path / "scales.safetensors",
            budget=budget,
            ledger=Ledger(machine.home.path / FILE_NAME),
            project=PROJECT,
        )
        (place / "tuned" / "statistics.safetensors").write_bytes((place / "statistics.safetensors").read_bytes())
        push(cohort, name)
        assert len(Ledger(machine.home.path / FILE_NAME).releases(PROJECT)) == 1
    recipe = gramfuse.Recipe(merge_method="regmean", dtype="float64")
    found, wanted = summed(cohort, recipe, tmp_path), merged(cohort, recipe)
    mean = sum(load_file(cohort.place(name) / "tuned" / "model.safetensors")[SOLVED] for name in cohort.machines) / 3
    assert (wanted[SOLVED] - mean).abs().max() > 1e-3
    torch.testing.assert_close(found[SOLVED], wanted[SOLVED], rtol=1e-5, atol=1e-5)
    card = " ".join((tmp_path / "pulled" / "README.md").read_text().split())
    assert "The server saw the sum over these organizations alone" in card
    assert "noise" in card


def one_is_missing(tensors):
    return dict(list(tensors.items())[1:])


def one_has_another_shape(tensors):
    name = next(iter(tensors))
    return tensors | {name: np.append(tensors[name].reshape(-1), np.int64(0))}


def one_is_of_floats(tensors):
    name = next(iter(tensors))
    return tensors | {name: tensors[name].view(np.float64)}


def test_words_of_other_tensors_than_the_sessions_are_rejected_and_right_ones_are_taken_after_them(
    world, worker, tmp_path, monkeypatch
):
    cohort = begin(world, worker, tmp_path)
    write, rejected = writing.write_words, []

    def answer(request):
        for change in (one_is_missing, one_has_another_shape, one_is_of_floats) if request.kind == "masked" else ():

            def write_others(path, *others, change=change):
                write(path, *others)
                save_words(change(load_words(path)), path)
                content = path.read_bytes()
                return FileEntry(name="words.safetensors", bytes=len(content), sha256=sha256_hex(content))

            with monkeypatch.context() as patched:
                patched.setattr(writing, "write_words", write_others)
                with pytest.raises(GramfuseError) as error:
                    cohort.answer("initech")
            rejected.append((change.__name__, error.value.code))
            with cohort.machines["initech"].client() as client:
                kept = kept_sessions(client, PROJECT).session(client.session(PROJECT, request.id).digest)
            (kept.folder / "masked.json").unlink()  # as no honest member does
        cohort.answer_all()

    assert cohort.sum(LINEAR, on_request=answer).state == "succeeded"
    assert rejected == [
        (change.__name__, "architecture-mismatch")
        for change in (one_is_missing, one_has_another_shape, one_is_of_floats)
    ]


def test_a_server_that_restarts_between_stages_goes_on(make_world, settings, tmp_path):
    world = make_world()
    cohort = begin(world, InProcessWorker(world, settings), tmp_path)
    stages = []

    def answer(request):
        stages.append(request.kind)
        cohort.answer_all()
        restarted = make_world()
        for machine in cohort.machines.values():
            machine.wire.connect(restarted)

    assert cohort.sum(LINEAR, on_request=answer).state == "succeeded"
    assert len(stages) == 5
