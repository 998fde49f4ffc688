"""The collector in loops that are not ours: a Trainer in training and evaluation, and a pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, pipeline

from gramfuse.measuring.collection import Collector
from support.tiny_models import VOCABULARY, tiny_bert

LENGTHS = (9, 6, 4, 8, 3)


class Sentences(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        length = LENGTHS[index]
        ids = torch.randint(5, VOCABULARY, (length,), generator=torch.Generator().manual_seed(index))
        spare = max(LENGTHS) - length
        return {
            "input_ids": ids.tolist() + [0] * spare,
            "attention_mask": [1] * length + [0] * spare,
            "labels": [1] * length + [-100] * spare,
        }


def trainer(model: Any, folder: Path, **options: Any) -> Trainer:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        num_train_epochs=2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **options,
    )
    return Trainer(model=model, args=arguments, train_dataset=Sentences(), eval_dataset=Sentences())


@pytest.mark.filterwarnings("default")
def test_a_trainer_that_trains_is_measured_and_trains_as_without(tmp_path):
    expected = tiny_bert()
    trainer(expected, tmp_path, seed=3).train()
    model = tiny_bert()
    with Collector(model) as statistics:
        trainer(model, tmp_path, seed=3).train()
    rows = {(tap.info.rows, tap.info.distinct_rows) for tap in statistics.taps}
    assert rows == {(2 * sum(LENGTHS), sum(LENGTHS))}
    for one, two in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.filterwarnings("default")
def test_a_trainer_that_evaluates_is_measured(tmp_path):
    model = tiny_bert()
    with Collector(model) as statistics:
        trainer(model, tmp_path).evaluate()
    assert {tap.info.rows for tap in statistics.taps} == {sum(LENGTHS)}
    assert {tap.info.source for tap in statistics.taps} == {"embeddings", "mixed"}


@pytest.mark.filterwarnings("default")
def test_a_pipeline_is_measured():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, **{chr(97 + n): n + 5 for n in range(26)}}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")
    model = tiny_bert()
    classify = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
    with Collector(model) as statistics:
        classify(["a b c d", "e f", "a b c d"], batch_size=2)
    assert {(tap.info.rows, tap.info.distinct_rows) for tap in statistics.taps} == {(10, 6)}
