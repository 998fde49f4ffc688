"""Finds the layer that makes a model's logits, and what it reads: watches it while the model runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

from gramfuse_shared.errors import ConfigurationError

_BY_TOKEN: Final = 3
"""Dimensions of logits per token, [B, T, C]; per text they are [B, C]."""


@dataclass(frozen=True, slots=True)
class HeadRows:
    """What the head of a model reads in one forward pass: `features` [rows, d], of which text, by the layer `weight`.

    `places` picks the same rows from anything that is as the logits are, [B, C] or [B, T, C]. `counts` [B] says how
    many rows each text has.
    """

    weight: str
    features: torch.Tensor
    counts: torch.Tensor
    places: torch.Tensor | None

    def pick(self, logits: torch.Tensor) -> torch.Tensor:
        """Return [rows, C] of logits of the same texts."""
        return logits if self.places is None else logits[self.places]


@dataclass(slots=True)
class HeadWatch:
    """What the linear layers with an output per label read and returned in the last forward pass, by name."""

    candidates: tuple[str, ...]
    passes: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def rows(self, logits: torch.Tensor, mask: torch.Tensor) -> HeadRows:
        """Return what the layer whose output the logits are has read; of padded tokens nothing.

        Args:
            logits: [B, C], or [B, T, C] of a model that predicts for tokens.
            mask: [B, T], zero where a token is padding.

        Raises:
            ConfigurationError: they are no linear layer's output.
        """
        seen = mask != 0
        for name, (read, returned) in self.passes.items():
            if returned.shape == logits.shape and (returned is logits or torch.equal(returned, logits)):
                if logits.dim() != _BY_TOKEN:
                    return HeadRows(f"{name}.weight", read, torch.ones_like(mask[:, 0]), None)
                if logits.shape[:2] == mask.shape:
                    return HeadRows(f"{name}.weight", read[seen], seen.sum(dim=1), seen)
            # a decoder's classifier scores every token, and keeps the last one's
            if returned.dim() == _BY_TOKEN and returned.shape[:2] == mask.shape:
                texts = torch.arange(len(mask), device=mask.device)
                last = (torch.arange(mask.shape[1], device=mask.device) * seen).argmax(dim=1)
                if torch.equal(returned[texts, last], logits):
                    return HeadRows(f"{name}.weight", read[texts, last], torch.ones_like(texts), None)
        tried = f" (it is not that of {', '.join(self.candidates)})" if self.candidates else ""
        msg = (
            f"the model's logits are no linear layer's output{tried}, so there is no head to fit: a head is refit of "
            "models that classify texts or tokens by a last linear layer"
        )
        raise ConfigurationError(msg)


@contextmanager
def watched_head(model: nn.Module) -> Iterator[HeadWatch]:
    """Watch the linear layers that have an output per label, until the block ends."""
    config: Any = model.config
    labels = getattr(config, "num_labels", None)
    candidates = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == labels
    }
    watch = HeadWatch(tuple(candidates))

    def note(name: str, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        watch.passes[name] = (arguments[0].detach(), output)

    hooks = [
        module.register_forward_hook(lambda _, arguments, output, name=name: note(name, arguments, output))
        for name, module in candidates.items()
    ]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
