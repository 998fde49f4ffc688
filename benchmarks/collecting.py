"""The statistics pass: hooks in the user's own loop, and the SDK's own run, beside the plain forward pass.

All on the same texts: 32 to a batch in the order given, padded to the longest of the batch, about half of it padding,
as with texts of people. The SDK's run gets the texts and may order them; its time includes the tokenizer's.
"""

import random
from dataclasses import dataclass
from typing import Any

import torch
from published import PublishedHooks
from timing import Effort, median_seconds
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import gramfuse

BATCH = 32
KINDS = ("bert", "distil", "llama")


@dataclass(frozen=True)
class Case:
    """A model, its tokenizer, and texts with the batches that they make in the order given."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    texts: list[str]
    batches: list[dict[str, torch.Tensor]]


def make_case(kind: str, effort: Effort, *, layers: int | None = None, batches: int | None = None) -> Case:
    """Make a model of BERT-base's, MiniLM's or a small Llama's shapes with random weights, and texts for it."""
    torch.manual_seed(0)
    small = effort.is_smoke
    vocabulary = 1_000 if small else {"bert": 5_000, "distil": 5_000, "llama": 32_000}[kind]
    model = _model(kind, vocabulary, small=small, layers=layers).eval()
    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{number}": number for number in range(2, vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 - a token of a vocabulary
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")  # noqa: S106
    chance = random.Random(1)
    longest = 24 if small else 112
    count = BATCH * (batches or (2 if small else 3))
    lengths = [12 + int((longest - 12) * chance.random() ** 1.5) for _ in range(count)]
    texts = [" ".join(f"w{chance.randrange(2, vocabulary)}" for _ in range(length)) for length in lengths]
    made = []
    for start in range(0, len(texts), BATCH):
        encoded = tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt")
        made.append({name: encoded[name] for name in ("input_ids", "attention_mask")})
    return Case(model, tokenizer, texts, made)


def measure(effort: Effort) -> dict[str, Any]:
    """Return the ratios of each kind of model, and the share of tokens that are no padding."""
    found: dict[str, Any] = {"hooks_only_over_forward": {}, "sdk_over_forward": {}, "published_over_ours": {}}
    kept: dict[str, float] = {}
    for kind in KINDS:
        case = make_case(kind, effort)
        collector = gramfuse.Collector(case.model)

        def forward(case: Case = case) -> None:
            with torch.no_grad():
                for batch in case.batches:
                    case.model(**batch)

        def hooks(collector: gramfuse.Collector = collector, forward: Any = forward) -> None:  # noqa: ANN401
            with collector:
                forward()

        def published(case: Case = case, forward: Any = forward) -> None:  # noqa: ANN401
            with PublishedHooks(case.model):
                forward()

        def sdk(case: Case = case) -> None:
            gramfuse.collect(case.model, case.texts, tokenizer=case.tokenizer, batch_size=BATCH, device="cpu")

        seconds = median_seconds(
            {"forward": forward, "hooks": hooks, "published": published, "sdk": sdk}, effort.rounds
        )
        found["hooks_only_over_forward"][kind] = seconds["hooks"] / seconds["forward"]
        found["sdk_over_forward"][kind] = seconds["sdk"] / seconds["forward"]
        found["published_over_ours"][kind] = seconds["published"] / seconds["sdk"]
        masks = [batch["attention_mask"] for batch in case.batches]
        kept[kind] = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    return found | {"kept_share_of_tokens": kept}


def _model(kind: str, vocabulary: int, *, small: bool, layers: int | None) -> nn.Module:
    if kind == "llama":
        width = 64 if small else 512
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=11 * width // 4,
                num_hidden_layers=layers or (1 if small else 4),
                num_attention_heads=8,
                use_cache=False,
            )
        )
    width = 48 if small else {"bert": 768, "distil": 384}[kind]
    depth = layers or (1 if small else {"bert": 3, "distil": 6}[kind])
    return BertForTokenClassification(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=depth,
            num_attention_heads=12,
            num_labels=9,
        )
    )
