"""The loss whose gradients weigh rows: the model's own predictions, drawn at random, in place of labels.

With labels drawn from the predicted distribution the mean square of a gradient is the Fisher information; with the
true labels of texts that the model has learned it would be near zero (Kunstner et al., 2019).
"""

from collections.abc import Mapping
from typing import Any, Final

import torch

from gramfuse_shared.errors import ConfigurationError

_SEQUENCES: Final = 3
_MULTI_LABEL: Final = "multi_label_classification"


def sampled_loss(
    output: Any,  # noqa: ANN401 - any transformers output
    inputs: Mapping[str, Any],
    generator: torch.Generator,
    *,
    problem: str | None = None,
) -> torch.Tensor:
    """Return Σ −log p(ŷ) over examples, and over their tokens where the model predicts for each, ŷ drawn from p.

    A single number per prediction is read as the mean of a normal distribution of variance 1. Padded tokens count
    nothing.

    Args:
        output: what the model returned: `logits` [B, C] or [B, T, C], or `start_logits` and `end_logits` [B, T].
        inputs: what it was called with; the masks are taken from it.
        generator: on the output's device.
        problem: `problem_type` of the model's config.

    Raises:
        ConfigurationError: the model returns no predictions: it has no head.
    """
    mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
    logits = getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        rows = logits.float().reshape(-1, logits.shape[-1])  # [n, C]
        if logits.dim() == _SEQUENCES and mask is not None and mask.shape == logits.shape[:2]:
            rows = rows[mask.reshape(-1) != 0]
        return _loss(rows, generator, problem)
    start, end = getattr(output, "start_logits", None), getattr(output, "end_logits", None)
    if isinstance(start, torch.Tensor) and isinstance(end, torch.Tensor):
        within = (span.float().masked_fill(inputs["attention_mask"] == 0, float("-inf")) for span in (start, end))
        first, last = (_loss(span, generator, None) for span in within)
        return first + last
    msg = (
        "gradient weighting needs a model that predicts, and this one returns no logits: load it with its task head, "
        "or measure without weighting"
    )
    raise ConfigurationError(msg)


def _loss(logits: torch.Tensor, generator: torch.Generator, problem: str | None) -> torch.Tensor:
    if logits.shape[-1] == 1:  # the gradient of (f − ŷ)²/2 is f − ŷ, which is normal
        noise = torch.randn(logits.shape, generator=generator, device=logits.device)
        return (logits * noise).sum()
    if problem == _MULTI_LABEL:
        drawn = torch.bernoulli(logits.detach().sigmoid(), generator=generator)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, drawn, reduction="sum")
    labels = torch.multinomial(logits.detach().softmax(dim=-1), 1, generator=generator).squeeze(1)  # [n]
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
