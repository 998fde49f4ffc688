"""Fine-tune the project's base on one organization's own sentences: an ordinary training loop, nothing of gramfuse.

python finetune.py BASE TRAIN.jsonl OUT --epochs 4
"""

import argparse
import gc
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from batches import IGNORED, batches, encode
from sentences import LABELS, Sentence, read_sentences
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)


@dataclass(frozen=True, slots=True)
class Training:
    """What decides a training run besides the base and the sentences."""

    epochs: int
    learning_rate: float
    batch_size: int = 32
    weight_decay: float = 0.01
    warmup: float = 0.1
    seed: int = 1


def finetune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sentence], training: Training
) -> None:
    """Train in place with AdamW; the learning rate rises over `warmup` of the steps, then falls to nothing."""
    # The project's policy keeps the base's embeddings: a change of them would be thrown away, and would tell which
    # words occur in the private text.
    embeddings = getattr(model.base_model, "embeddings", model.get_input_embeddings())
    for parameter in embeddings.parameters():
        parameter.requires_grad = False
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=training.weight_decay)
    steps = training.epochs * -(-len(sentences) // training.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, round(training.warmup * steps), steps)
    encoded, order = encode(sentences, tokenizer), random.Random(training.seed)
    torch.manual_seed(training.seed)  # dropout
    model.train()
    for epoch in range(training.epochs):
        started, total = time.monotonic(), 0.0
        for batch in batches(encoded, batch_size=training.batch_size, padding_id=tokenizer.pad_token_id, shuffle=order):
            here = batch.on(model.device)
            logits = model(**here.inputs).logits  # [sentences, subwords, labels]
            loss = torch.nn.functional.cross_entropy(
                logits.view(-1, len(LABELS)), here.labels.view(-1), ignore_index=IGNORED
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, max_norm=1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(batch.sentences)
        mean_loss, seconds = total / len(sentences), time.monotonic() - started
        print(f"epoch {epoch + 1}/{training.epochs}: loss {mean_loss:.4f}, {seconds:.0f} s", flush=True)


def main() -> None:
    """Parse, load, train, save."""
    gc.freeze()  # what the imports made is no garbage: searching it takes a second at the end alone
    parser = argparse.ArgumentParser(description="Fine-tune a token classifier.")
    parser.add_argument("base", type=Path)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    arguments = parser.parse_args()

    model = AutoModelForTokenClassification.from_pretrained(arguments.base)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    finetune(
        model,
        tokenizer,
        read_sentences(arguments.sentences),
        Training(epochs=arguments.epochs, learning_rate=arguments.learning_rate),
    )
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
