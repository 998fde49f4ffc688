"""Entity F1 of models on test sets, as JSON on standard output: {"<model>": {"<test set>": F1 in percent}}.

python evaluate.py --model NAME=FOLDER ... --test NAME=SENTENCES.jsonl ...
"""

import argparse
import gc
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from batches import batches, encode
from nervaluate import Evaluator
from sentences import LABELS, Sentence, read_sentences
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def predict(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sentence], *, batch_size: int = 64
) -> list[list[str]]:
    """Tags of each sentence's words, read at a word's first subword; a word beyond the longest input gets `O`."""
    model.eval()
    tags = [["O"] * len(sentence.tokens) for sentence in sentences]
    for batch in batches(encode(sentences, tokenizer), batch_size=batch_size, padding_id=tokenizer.pad_token_id):
        best = model(**batch.inputs).logits.argmax(-1)  # [sentences, subwords]
        for sentence, labels in zip(batch.sentences, best.tolist(), strict=True):
            for word, place in sentence.places.items():
                tags[sentence.position][word] = LABELS[labels[place]]
    return tags


def entity_f1(sentences: Sequence[Sentence], predicted: list[list[str]]) -> float:
    """Micro F1 in percent over entities: kind and both ends must be right (the CoNLL measure)."""
    true = [list(sentence.tags) for sentence in sentences]
    kinds = sorted({label[2:] for label in LABELS if label != "O"})
    overall = Evaluator(true, predicted, tags=kinds, loader="list").evaluate()["overall"]
    return 100 * float(overall["strict"].f1)


def _named_path(text: str) -> tuple[str, Path]:
    name, _, path = text.rpartition("=")
    return name, Path(path)


def main() -> None:
    """Parse, load, predict, print."""
    gc.freeze()  # what the imports made is no garbage: searching it takes a second at the end alone
    parser = argparse.ArgumentParser(description="Measure entity F1.")
    parser.add_argument("--model", type=_named_path, action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--test", type=_named_path, action="append", required=True, metavar="NAME=FILE")
    arguments = parser.parse_args()

    tests = {name: read_sentences(path) for name, path in arguments.test}
    scores: dict[str, dict[str, float]] = {}
    for model_name, folder in arguments.model:
        model = AutoModelForTokenClassification.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        scores[model_name] = {
            test: entity_f1(sentences, predict(model, tokenizer, sentences)) for test, sentences in tests.items()
        }
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
