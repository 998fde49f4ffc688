"""A tokenizer of single letters for tiny models."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["[PAD]", "[CLS]", "[unused]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]


def word_tokenizer(*, frame: bool = True) -> PreTrainedTokenizerFast:
    """Return the tokenizer; with `frame`, texts stand between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if frame:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


def save_word_tokenizer(folder: Path, *, frame: bool = True) -> None:
    """Write the tokenizer to a model's folder."""
    word_tokenizer(frame=frame).save_pretrained(folder)
