"""Turns texts into the token ids that a model reads, and these into padded batches."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from gramfuse.measuring.distinct import example_hash
from gramfuse.measuring.texts import Text

DEFAULT_MAX_TOKENS: Final = 512
_UNLIMITED: Final = 1_000_000
"""Tokenizers without a limit of their own announce a huge one."""


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text as a model reads it.

    `words` says, of a text given as words, at which token each begins; None of a word that was cut off or is empty.
    """

    ids: list[int]
    types: list[int] | None = None
    target: list[int] | None = None
    words: tuple[int | None, ...] | None = None

    @property
    def tokens(self) -> int:
        """Tokens that are read and, by a decoder, written."""
        return len(self.ids) + len(self.target or ())

    @property
    def length(self) -> tuple[int, int]:
        """What texts are sorted by, so that a batch holds little padding."""
        return len(self.ids), len(self.target or ())

    def content_hash(self) -> bytes:
        """Return what the text is known again by: equal for texts that a model reads as the same."""
        return example_hash(json.dumps([self.ids, self.types, self.target]).encode())


def tokenize(
    tokenizer: Any,  # noqa: ANN401 - any transformers tokenizer
    texts: Sequence[Text],
    max_tokens: int,
    *,
    generates: bool,
) -> list[TokenizedText]:
    """Tokenize each text by itself; one may come out without a token."""
    return [_tokenized(tokenizer, text, max_tokens, generates=generates) for text in texts]


def _tokenized(tokenizer: Any, text: Text, max_tokens: int, *, generates: bool) -> TokenizedText:  # noqa: ANN401 - any transformers tokenizer
    options: dict[str, Any] = {
        "truncation": True,
        "max_length": max_tokens,
        "is_split_into_words": isinstance(text, list),
    }
    first, second = text if isinstance(text, tuple) else (text, None)
    target = None
    if generates:
        target = tokenizer(text_target=second if second is not None else first, **options)["input_ids"]
        second = None
    encoded = tokenizer(first, second, **options) if second is not None else tokenizer(first, **options)
    return TokenizedText(
        encoded["input_ids"],
        encoded.get("token_type_ids"),
        target,
        _places(encoded, len(text)) if isinstance(text, list) and getattr(encoded, "is_fast", False) else None,
    )


def _places(encoded: Any, words: int) -> tuple[int | None, ...]:  # noqa: ANN401 - what a tokenizer returns
    first: dict[int, int] = {}
    for place, word in enumerate(encoded.word_ids()):
        if word is not None:
            first.setdefault(word, place)
    return tuple(first.get(word) for word in range(words))


def batch_inputs(model: nn.Module, batch: Sequence[TokenizedText], pad: int, device: torch.device) -> dict[str, Any]:
    """Return what the model is called with: ids and masks [B, T], padded on the right, on the device."""
    inputs: dict[str, Any] = _padded([text.ids for text in batch], pad, device)
    if all(text.types is not None for text in batch):
        inputs["token_type_ids"] = _padded([text.types or [] for text in batch], 0, device)["input_ids"]
    if batch[0].target is not None:
        config: Any = model.config
        shifted = _padded([[config.decoder_start_token_id, *(text.target or [])[:-1]] for text in batch], pad, device)
        inputs |= {f"decoder_{name}": tensor for name, tensor in shifted.items()}
    if hasattr(model.config, "use_cache"):
        inputs["use_cache"] = False
    return inputs


def _padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])  # [B, T]
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])  # [B, T]
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def pad_token(tokenizer: Any) -> int:  # noqa: ANN401 - any transformers tokenizer
    """Return the id that padding is made of."""
    # The mask says what padding is; a model without a padding token gets one that it knows.
    return next((int(token) for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def max_tokens_of(model: nn.Module, tokenizer: Any, wanted: int | None) -> int:  # noqa: ANN401 - any transformers tokenizer
    """Return after how many tokens a text is cut: as wanted, else what the model takes, 512 at most."""
    if wanted is not None:
        return wanted
    config: Any = model.config
    announced = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    return min(DEFAULT_MAX_TOKENS, *(int(limit) for limit in announced if limit and 0 < limit < _UNLIMITED), _UNLIMITED)


def generates_text(model: nn.Module) -> bool:
    """Tell whether a model writes a target text from a source text."""
    return bool(getattr(model.config, "is_encoder_decoder", False)) and hasattr(
        model, "prepare_decoder_input_ids_from_labels"
    )
