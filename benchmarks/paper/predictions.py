"""Logits of models on sets of examples, kept by the weights and the examples; scores of logits."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from benchmarks.paper.examples import Example
from benchmarks.paper.rows import Scores
from benchmarks.paper.tasks import Task
from cache import Cache
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from gramfuse_shared.merging.exact_products import exact_products


@dataclass(slots=True)
class Predictions:
    """What models say. A model that was asked once is not asked again, not even by a later run."""

    cache: Cache
    device: str
    _digests: dict[Path, str] = field(default_factory=dict)

    def logits(self, task: Task, model: Path, examples: Sequence[Example]) -> torch.Tensor:
        """The model's logits: [rows, labels]."""
        key = f"logits-{_digest([self._weights(model), task.name, self.device, list(examples)])}"
        if not self.cache.kept(key).exists():
            with exact_products():
                loaded = task.architecture.from_pretrained(model).to(self.device)
                found = task.logits(loaded, AutoTokenizer.from_pretrained(model), examples)
            save_file({"logits": found.contiguous()}, self.cache.begin(key) / "logits.safetensors")
            self.cache.finish(key)
        return load_file(self.cache.kept(key) / "logits.safetensors")["logits"]

    def scores(self, task: Task, models: Sequence[Path], examples: Sequence[Example]) -> Scores:
        """Scores of a model, or of the mean of several models' logits."""
        logits = torch.stack([self.logits(task, model, examples) for model in models]).mean(0)
        return task.scores(examples, logits)

    def _weights(self, model: Path) -> str:
        if model not in self._digests:
            files = sorted(model.glob("*.safetensors"))
            self._digests[model] = _digest([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
        return self._digests[model]


def _digest(document: object) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]
