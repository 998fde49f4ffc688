"""A measurement that breaks off goes on where it was kept last, and ends at the bytes that it would have had."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import gramfuse
from gramfuse.measuring.batching import TokenizedText
from gramfuse.measuring.checkpoint import Checkpoint, Unfinished, read_checkpoint, read_seed, write_checkpoint
from gramfuse.measuring.inference import Progress
from gramfuse.measuring.resuming import ResumableRun, run_digest
from gramfuse.measuring.statistics import Statistics
from gramfuse.measuring.statistics_checkpoint import keep_statistics
from gramfuse_shared.errors import CancelledError, ConflictError, StateError, StatisticsMalformedError
from support.tiny import write_base, write_texts
from support.tiny_models import tiny_model

BATCHES = 6
MEASUREMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Gram matrices": ("collect", {}),
    "gradient-weighted Gram matrices": ("collect", {"weighting": "output_gradient", "seed": 7}),
    "Fisher information": ("collect_fisher", {"seed": 7}),
    "empirical Fisher information": ("collect_fisher", {"labels": [number % 3 for number in range(2 * BATCHES)]}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_base(path)
    return path


def texts_of(folder: Path) -> list[str]:
    path = folder / "texts.jsonl"
    write_texts(path, count=2 * BATCHES, words=5)
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_a_run_that_broke_off_resumes_to_identical_bytes(folder, tmp_path, kind):
    """It breaks off behind its fourth batch, before that is kept. tests/system does it with a signal."""
    name, options = MEASUREMENTS[kind]
    run: Callable[..., Any] = getattr(gramfuse, name)
    texts, options = texts_of(tmp_path), options | {"batch_size": 2}

    def break_off(progress: Progress) -> None:
        if progress.tokens == 4 * 2 * 7:
            raise BrokenPipeError

    kept = {"checkpoint": tmp_path / "partial", "checkpoint_every": timedelta(0)}
    with pytest.raises(BrokenPipeError):
        run(folder, texts, on_progress=break_off, **kept, **options)
    progress: list[Progress] = []
    resumed = run(folder, texts, on_progress=progress.append, **kept, **options)
    assert len(progress) == BATCHES - 3
    assert (progress[0].resumed, progress[-1].tokens) == (3 * 2 * 7, BATCHES * 2 * 7)
    resumed.save(tmp_path / "resumed")
    run(folder, texts, **options).save(tmp_path / "whole")
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_gives_back_what_was_kept(tmp_path):
    tensors = {
        "sums": torch.randn(3, 4).T,
        "hashes": torch.tensor([[1, 255]], dtype=torch.uint8),
        "none": torch.empty(0, dtype=torch.int32),
        "scalar": torch.tensor(2.5),
    }
    write_checkpoint(tmp_path / "c", Checkpoint("run", 7, Unfinished({"words": ["ä"], "count": 1}, tensors), 2**127))
    found = read_checkpoint(tmp_path / "c", "run")
    assert (found.run, found.batches, found.measured.document) == ("run", 7, {"words": ["ä"], "count": 1})
    assert (found.seed, read_seed(tmp_path / "c")) == (2**127, 2**127)
    assert found.measured.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.measured.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.measured.tensors[name], tensor)
    assert read_checkpoint(tmp_path / "other", "run") is None
    assert read_seed(tmp_path / "other") is None


def test_a_checkpoint_of_another_run_or_version_is_not_continued(tmp_path):
    write_checkpoint(tmp_path / "c", Checkpoint("run", 1, Unfinished({}, {"a": torch.zeros(1)})))
    with pytest.raises(ConflictError, match="delete it to start anew"):
        ResumableRun(tmp_path / "c", "another", every=timedelta(0))
    tiny_model("bert").save_pretrained(tmp_path / "model")
    with pytest.raises(StatisticsMalformedError, match="no checkpoint of this version"):
        read_checkpoint(tmp_path / "model" / "model.safetensors", "run")


def test_statistics_of_nothing_are_not_kept():
    with pytest.raises(StateError, match="nothing was measured"):
        keep_statistics(Statistics())


# --- the run ---------------------------------------------------------------------------------------------------------


def over(run: ResumableRun, *, cancelled: Callable[[], bool] = lambda: False) -> list[int]:
    """Run over four batches of 1, 2, 3 and 4 tokens; what is measured is how many there were."""
    seen = [] if run.kept is None else list(run.kept.document["seen"])
    measured = run.over(
        "abcd",
        [1, 2, 3, 4],
        measured=lambda: Unfinished({"seen": seen}, {}),
        on_progress=lambda progress: seen.append(progress.tokens),
        is_cancelled=cancelled,
    )
    assert [letter for _, letter in measured] == list("abcd"[run.done :])
    return seen


def test_a_cancelled_run_keeps_its_batches_even_when_no_checkpoint_is_due(tmp_path):
    answers = iter([False, True])
    run = ResumableRun(tmp_path / "c", "run", every=timedelta(hours=1))
    with pytest.raises(CancelledError, match=r"2 of 4 batches are kept in .*c"):
        over(run, cancelled=lambda: next(answers))
    again = ResumableRun(tmp_path / "c", "run", every=timedelta(hours=1))
    assert (again.done, again.kept.document) == (2, {"seen": [1, 3]})
    assert over(again) == [1, 3, 6, 10]


def test_without_a_file_nothing_is_kept(tmp_path):
    run = ResumableRun(None, "run", every=timedelta(0))
    assert (run.done, run.kept) == (0, None)
    with pytest.raises(CancelledError, match="1 of 4 batches were measured, and nothing is kept"):
        over(run, cancelled=lambda: True)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_written_when_it_is_due(tmp_path):
    assert over(ResumableRun(tmp_path / "c", "run", every=timedelta(0))) == [1, 3, 6, 10]
    assert ResumableRun(tmp_path / "c", "run", every=timedelta(0)).done == 4
    assert over(ResumableRun(tmp_path / "d", "run", every=timedelta(hours=1))) == [1, 3, 6, 10]
    assert not (tmp_path / "d").exists()


def test_a_run_is_known_by_its_model_its_tokens_and_its_settings(folder):
    model, examples = tiny_model("bert"), [TokenizedText([1, 2, 3])]
    digests = [
        run_digest([], model, examples, [1]),
        run_digest([], model, examples, [2]),
        run_digest([], model, [TokenizedText([1, 2, 4])], [1]),
        run_digest([], tiny_model("bert", seed=1), examples, [1]),
        run_digest([folder], model, examples, [1]),
    ]
    assert len(set(digests)) == len(digests)
    assert run_digest([], tiny_model("bert"), [TokenizedText([1, 2, 3])], [1]) == digests[0]


@pytest.mark.parametrize("kind", ["gradient-weighted Gram matrices", "Fisher information"])
def test_a_run_without_a_seed_draws_one_keeps_it_until_it_is_done_and_tells_it_to_no_file(folder, tmp_path, kind):
    name, options = MEASUREMENTS[kind]
    run: Callable[..., Any] = getattr(gramfuse, name)
    texts, options = texts_of(tmp_path), options | {"batch_size": 4, "seed": None}
    interrupted = options | {"is_cancelled": lambda: True, "checkpoint_every": timedelta(hours=1)}
    for path in ("one", "other"):
        with pytest.raises(CancelledError):
            run(folder, texts, checkpoint=tmp_path / path, **interrupted)
    seed, other = (read_seed(tmp_path / path) for path in ("one", "other"))
    assert len({seed, other, 0, None}) == 4
    assert min(seed, other) > 2**64
    with pytest.raises(CancelledError):  # behind one more batch: it still has to go on
        run(folder, texts, checkpoint=tmp_path / "one", **interrupted)
    assert read_seed(tmp_path / "one") == seed
    run(folder, texts, checkpoint=tmp_path / "one", **options).save(tmp_path / "resumed")
    run(folder, texts, **options | {"seed": seed}).save(tmp_path / "whole")
    run(folder, texts, **options | {"seed": other}).save(tmp_path / "otherwise")
    resumed, whole, otherwise = ((tmp_path / path).read_bytes() for path in ("resumed", "whole", "otherwise"))
    assert resumed == whole != otherwise
    assert str(seed).encode() not in resumed
    assert b"seed" not in resumed


def test_what_draws_nothing_has_no_seed(folder, tmp_path):
    texts = texts_of(tmp_path)
    for number, options in enumerate(({}, {"labels": [0] * 2 * BATCHES})):
        run = gramfuse.collect_fisher if options else gramfuse.collect
        kept = {"checkpoint": tmp_path / str(number), "is_cancelled": lambda: True, "batch_size": 4}
        with pytest.raises(CancelledError):
            run(folder, texts, seed=3, **kept, **options)
        assert read_seed(tmp_path / str(number)) is None


def test_labels_and_their_places_are_part_of_a_run_of_fisher_information(folder, tmp_path):
    """Labels are drawn by place: other places would go on with other labels."""
    others = texts_of(tmp_path)
    longest = others.pop() + " word1 word2"
    options = {"batch_size": 4, "checkpoint": tmp_path / "c", "is_cancelled": lambda: True}
    with pytest.raises(CancelledError):
        gramfuse.collect_fisher(folder, [longest, *others], **options)
    with pytest.raises(ConflictError):  # measured in the same order: longest first
        gramfuse.collect_fisher(folder, [*others, longest], **options)
    with pytest.raises(ConflictError):
        gramfuse.collect_fisher(folder, [longest, *others], labels=[0] * 2 * BATCHES, **options)
    with pytest.raises(ConflictError):
        gramfuse.collect_fisher(folder, [longest, *others], seed=0, **options)
    with pytest.raises(ConflictError):
        gramfuse.collect(folder, [longest, *others], **options)
    with pytest.raises(CancelledError, match="2 of 3"):
        gramfuse.collect_fisher(folder, [longest, *others], **options)
