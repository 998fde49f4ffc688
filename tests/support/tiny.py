"""Tiny models with random weights, and texts for them: quick to make, whole enough for the entire story."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = tuple(f"word{number}" for number in range(60))


def write_base(folder: Path, *, hidden: int = 32, layers: int = 2, seed: int = 0, max_shard_size: str = "1GB") -> None:
    """Write a task-ready `from_pretrained` folder: a small BERT with a classification head, and its tokenizer."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *WORDS))}
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=64,
            num_labels=3,
        )
    )
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


def write_tuned(base: Path, folder: Path, *, seed: int) -> None:
    """Write the base as if fine-tuned: every parameter but the embeddings a little off."""
    model = BertForSequenceClassification.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".embeddings." not in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(base).save_pretrained(folder)


def write_texts(path: Path, *, count: int = 80, words: int = 30, seed: int = 0) -> None:
    """Write JSON lines of random texts, all different."""
    chance = random.Random(seed)
    lines = (json.dumps({"text": " ".join(chance.choices(WORDS, k=words))}) for _ in range(count))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
