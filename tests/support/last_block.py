"""The last block of an encoder and its head, run on the rows that enter them: gradients of single texts for little."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from gramfuse.measuring.example_losses import ExampleLoss
from gramfuse.measuring.inference import OpenModel
from support.tweets import QUERY

HEAD = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True)
class Gradients:
    """Of one text's loss: by parameter, and ‖∂ℓ/∂y‖² of each row, y the queries of the block, [k]."""

    of: dict[str, torch.Tensor]
    rows: torch.Tensor


class LastBlock:
    """Takes the rows [k, d] of one text at the block's entrance."""

    def __init__(self, opened: OpenModel) -> None:
        model: Any = opened.model
        self._block, self._head = model.bert.encoder.layer[-1], model.classifier
        self.depth = len(model.bert.encoder.layer) - 1
        self._queries = self._block.attention.self.query
        self._block.eval()

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the text's logits [k, labels]."""
        found = self._block(rows[None])
        return self._head(found[0] if isinstance(found, tuple) else found)[0]

    def gradients(self, rows: torch.Tensor, loss: ExampleLoss, number: int) -> Gradients:
        """Return the gradients of a text's loss, its place among the texts being `number`."""
        kept: list[torch.Tensor] = []
        hook = self._queries.register_forward_hook(lambda _module, _rows, output: kept.append(output))
        with torch.enable_grad():
            logits = self.logits(rows)
        hook.remove()
        masks = {"attention_mask": torch.ones(1, len(rows), dtype=torch.long)}
        value = loss(number, SimpleNamespace(logits=logits[None]), masks)
        names = {QUERY.format(self.depth): self._queries.weight, HEAD[0]: self._head.weight, HEAD[1]: self._head.bias}
        *found, output = torch.autograd.grad(value, [*names.values(), kept[0]])
        return Gradients(dict(zip(names, found, strict=True)), output[0].square().sum(1))

    def squares(self, texts: Sequence[torch.Tensor], loss: ExampleLoss) -> list[dict[str, torch.Tensor]]:
        """Return each text's squared gradients: what it adds to the diagonal of the Fisher information."""
        return [
            {name: gradient.square() for name, gradient in self.gradients(rows, loss, number).of.items()}
            for number, rows in enumerate(texts)
        ]
