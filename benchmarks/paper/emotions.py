"""Emotions of a text, any number of them at once: a plain `transformers.Trainer`, macro-F1 and average precision."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from benchmarks.paper.examples import Example
from benchmarks.paper.rows import Scores
from benchmarks.paper.tasks import LONGEST
from sklearn.metrics import average_precision_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

EMOTIONS: Final = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
BATCH: Final = 32


class Emotions:
    """Label texts with emotions; every row of the logits is a text, above zero means yes."""

    name = "emotions"
    architecture: Any = AutoModelForSequenceClassification
    programs: tuple[Path, ...] = (Path(__file__),)

    def configuration(self) -> dict[str, Any]:
        """The labels, each a question of its own."""
        return {
            "id2label": dict(enumerate(EMOTIONS)),
            "label2id": {label: i for i, label in enumerate(EMOTIONS)},
            "problem_type": "multi_label_classification",
        }

    def tokenizing(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def finetune(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        *,
        epochs: int,
        learning_rate: float,
        seed: int,
    ) -> None:
        """Train with AdamW, a tenth of the steps to warm up, batches of texts of similar length.

        The head's bias begins at the log-odds of its labels' shares (Lin et al. 2017, *Focal loss*, section 3.3). AdamW
        moves a bias of zero there by a learning rate a step, too slowly: the encoder learns to say the same of every
        text instead, and has nothing left to tell texts apart by.
        """
        for parameter in model.get_input_embeddings().parameters():
            parameter.requires_grad = False
        truth = _truth(examples)
        with torch.no_grad():
            _head_of(model).bias.copy_(log_odds(truth))
        encoded = [
            tokenizer(example["text"], truncation=True, max_length=LONGEST) | {"labels": labels}
            for example, labels in zip(examples, truth.tolist(), strict=True)
        ]
        with TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=os.fspath(folder),
                num_train_epochs=epochs,
                learning_rate=learning_rate,
                per_device_train_batch_size=BATCH,
                weight_decay=0.01,
                warmup_steps=round(0.1 * epochs * -(-len(encoded) // BATCH)),
                train_sampling_strategy="group_by_length",
                seed=seed,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=model.device.type == "cpu",
            )
            collator = DataCollatorWithPadding(tokenizer)
            Trainer(model, arguments, data_collator=collator, train_dataset=encoded).train()

    def texts(self, examples: Sequence[Example]) -> list[str]:
        """The texts themselves."""
        return [example["text"] for example in examples]

    @torch.inference_mode()
    def logits(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
    ) -> torch.Tensor:
        """Predict in batches of similar length: [texts, emotions]."""
        model.eval()
        order = sorted(range(len(examples)), key=lambda position: len(examples[position]["text"]))
        found = torch.empty(len(examples), len(EMOTIONS))
        for start in range(0, len(order), 2 * BATCH):
            chosen = order[start : start + 2 * BATCH]
            texts = [examples[position]["text"] for position in chosen]
            inputs = tokenizer(texts, truncation=True, max_length=LONGEST, padding=True, return_tensors="pt")
            found[chosen] = model(**inputs.to(model.device)).logits.cpu()
        return found

    def scores(self, examples: Sequence[Example], logits: torch.Tensor) -> Scores:
        """Macro-F1 and macro average precision over the emotions that occur."""
        truth = _truth(examples).bool()
        occur = truth.any(0)
        true, predicted = truth[:, occur].numpy(), logits[:, occur]
        return {
            "f1": 100 * float(f1_score(true, (predicted > 0).numpy(), average="macro", zero_division=0)),
            "average_precision": 100 * float(average_precision_score(true, predicted.numpy(), average="macro")),
        }


def log_odds(truth: torch.Tensor) -> torch.Tensor:
    """log((n₊ + 1)/(n₋ + 1)) of each label: [texts, labels] to [labels]. Finite where one never or always occurs."""
    return ((truth.sum(0) + 1) / ((1 - truth).sum(0) + 1)).log()


def _head_of(model: PreTrainedModel) -> torch.nn.Linear:
    """The layer that yields the logits: the last linear one, of every architecture."""
    *_, head = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    return head


def _truth(examples: Sequence[Example]) -> torch.Tensor:
    return torch.tensor([[float(emotion in example["labels"]) for emotion in EMOTIONS] for example in examples])
