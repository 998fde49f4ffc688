"""Named entities: the demo's training and its measure, and average precision beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from batches import batches, encode
from benchmarks.paper import DEMO
from benchmarks.paper.examples import Example
from benchmarks.paper.rows import Scores
from evaluate import entity_f1
from finetune import Training, finetune
from sentences import LABELS, Sentence
from sklearn.metrics import average_precision_score
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

OUTSIDE: Final = LABELS.index("O")
CERTAIN: Final = 20.0  # the logit of `O` for a word that no model is asked about


class Entities:
    """Label words; every row of the logits is a word. `from_pretrained` names of any encoder do."""

    name = "entities"
    architecture: Any = AutoModelForTokenClassification
    programs: tuple[Path, ...] = tuple(DEMO / program for program in ("finetune.py", "batches.py", "sentences.py"))

    def configuration(self) -> dict[str, Any]:
        """The labels."""
        return {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}

    def tokenizing(self) -> dict[str, Any]:
        """Words are split already, which byte-level tokenizers want to know."""
        return {"add_prefix_space": True}

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
        """Train as the demo does."""
        training = Training(epochs=epochs, learning_rate=learning_rate, seed=seed)
        finetune(model, tokenizer, _sentences(examples), training)

    def texts(self, examples: Sequence[Example]) -> list[list[str]]:
        """Lists of words."""
        return [example["tokens"] for example in examples]

    @torch.inference_mode()
    def logits(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
    ) -> torch.Tensor:
        """A word's logits are those of its first subword: [words, labels]."""
        model.eval()
        sentences = _sentences(examples)
        found = [_beyond().repeat(len(sentence.tokens), 1) for sentence in sentences]
        for batch in batches(encode(sentences, tokenizer), batch_size=64, padding_id=tokenizer.pad_token_id):
            predicted = model(**batch.on(model.device).inputs).logits.cpu()  # [sentences, subwords, labels]
            for sentence, rows in zip(batch.sentences, predicted, strict=True):
                words, places = list(sentence.places), list(sentence.places.values())
                found[sentence.position][words] = rows[places]
        return torch.cat(found)

    def scores(self, examples: Sequence[Example], logits: torch.Tensor) -> Scores:
        """Entity micro-F1, and the mean over the tags but `O` of their average precision over words.

        Where the corpus does not count user names as entities, they are none, whatever a model says of them.
        """
        sentences = _sentences(examples)
        logits = logits.where(_judged(examples)[:, None], _beyond())
        tags = [LABELS[label] for label in logits.argmax(-1).tolist()]
        ends = torch.tensor([len(sentence.tokens) for sentence in sentences]).cumsum(0).tolist()
        predicted = [tags[end - len(sentence.tokens) : end] for sentence, end in zip(sentences, ends, strict=True)]
        truth = torch.tensor([LABELS.index(tag) for sentence in sentences for tag in sentence.tags])  # [words]
        probabilities = logits.softmax(-1)  # [words, labels]
        precisions = [
            float(average_precision_score((truth == label).numpy(), probabilities[:, label].numpy()))
            for label in range(len(LABELS))
            if label != OUTSIDE and bool((truth == label).any())
        ]
        mean = sum(precisions) / len(precisions) if precisions else 0.0
        return {"f1": entity_f1(sentences, predicted), "average_precision": 100 * mean}


def _beyond() -> torch.Tensor:
    """The logits of a word beyond the longest input, which no model ever reads: [labels]."""
    return torch.nn.functional.one_hot(torch.tensor(OUTSIDE), len(LABELS)) * CERTAIN


def _judged(examples: Sequence[Example]) -> torch.Tensor:
    """Whether a word is one that a model is asked about: [words], bool."""
    return torch.tensor(
        [
            example.get("user_names", True) or not word.startswith("@")
            for example in examples
            for word in example["tokens"]
        ]
    )


def _sentences(examples: Sequence[Example]) -> list[Sentence]:
    return [Sentence(tuple(example["tokens"]), tuple(example["tags"])) for example in examples]
