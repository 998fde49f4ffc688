"""Fine-tunes an encoder's last block and its head on rows that enter them: many organizations' models for little."""

import copy
from collections.abc import Mapping, Sequence

import torch

from gramfuse.measuring.inference import OpenModel

Example = tuple[torch.Tensor, torch.Tensor]
"""The rows of a text at the block's entrance, [k, d], and the labels of its tokens, [k]."""


class BlockTraining:
    """One organization's training, dropout and all, of which models can be taken at any time."""

    def __init__(self, opened: OpenModel, seed: int) -> None:
        model = opened.model
        self._parts = copy.deepcopy(
            torch.nn.ModuleDict({"block": model.bert.encoder.layer[-1], "head": model.classifier})
        )
        self._parts.train()
        self._optimizer = torch.optim.AdamW(self._parts.parameters(), lr=1e-4, weight_decay=0.01)
        self._chance = torch.Generator().manual_seed(seed).get_state()

    def on(self, examples: Sequence[Example], *, batch: int) -> "BlockTraining":
        """Train on examples once, in their order."""
        with torch.random.fork_rng():
            torch.random.set_rng_state(self._chance)
            for start in range(0, len(examples), batch):
                self._step(examples[start : start + batch])
            self._chance = torch.random.get_rng_state()
        return self

    def copied(self) -> "BlockTraining":
        """Return a training that goes on from here by itself."""
        return copy.deepcopy(self)

    def matrices(self) -> dict[str, torch.Tensor]:
        """Return the weights that distances are told of."""
        return matrices_of(self._parts)

    def _step(self, examples: Sequence[Example]) -> None:
        padded = torch.nn.utils.rnn.pad_sequence
        rows = padded([rows for rows, _ in examples], batch_first=True)  # [texts, k, d]
        labels = padded([labels for _, labels in examples], batch_first=True, padding_value=-100)
        found = self._parts["block"](rows, attention_mask=(labels != -100)[:, None, None, :])
        logits = self._parts["head"](found[0] if isinstance(found, tuple) else found)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def matrices_of(parts: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    """Return copies of a module's matrices by name."""
    return {name: value.detach().clone() for name, value in parts.named_parameters() if value.dim() > 1}
