"""How well a language model predicts texts: the loss of each written token, given those before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gramfuse.measuring.batching import TokenizedText
from gramfuse.measuring.inference import OpenModel, Progress, run


@dataclass(frozen=True, slots=True)
class TextLoss:
    """Of one text: the sum of −log p over its predicted tokens, how many these are, and how many were likeliest."""

    nats: float = 0.0
    tokens: int = 0
    right: int = 0


def text_losses(
    opened: OpenModel,
    texts: Sequence[TokenizedText],
    *,
    batch_size: int,
    on_progress: Callable[[Progress], None],
    is_cancelled: Callable[[], bool],
) -> list[TextLoss]:
    """Predict each token from the true ones before it: of the text, or of the target where there is one.

    A text's first token is given, a target's is predicted.
    """
    found = [TextLoss()] * len(texts)
    for batch in run(opened, texts, batch_size=batch_size, on_progress=on_progress, is_cancelled=is_cancelled):
        for row, at in enumerate(batch.positions):
            ids, target = texts[at].ids, texts[at].target
            written = ids[1:] if target is None else target
            # one text at a time: a batch's logits once more in F32 would be the largest tensor by far
            logits = batch.output.logits[row, : len(written)].float()  # [tokens, vocabulary]
            found[at] = _loss(logits, torch.tensor(written, device=logits.device, dtype=torch.long))
    return found


def _loss(logits: torch.Tensor, written: torch.Tensor) -> TextLoss:
    nats = torch.nn.functional.cross_entropy(logits, written, reduction="none")
    right = int((logits.argmax(dim=-1) == written).sum())
    return TextLoss(float(nats.double().sum()), len(written), right)
