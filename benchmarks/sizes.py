"""Bytes of a statistics file: one full fp32 Gram matrix for each Linear, as published, over ours."""

import math
from pathlib import Path
from typing import Any

import torch
from collecting import make_case
from timing import Effort
from torch import nn

import gramfuse


def measure(folder: Path, effort: Effort) -> dict[str, Any]:
    """Collect a BERT's statistics on a few texts, write the file, and write it again as int16."""
    case = make_case("bert", effort, batches=1)
    case.model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    case.model.save_pretrained(folder / "tuned")
    lossless = folder / "statistics.safetensors"
    gramfuse.collect(case.model, case.texts, tokenizer=case.tokenizer, device="cpu").save(lossless)
    compressed = gramfuse.compress(folder / "tuned", folder / "base", folder / "small", statistics=lossless).folder
    published = sum(4 * module.in_features**2 for module in case.model.modules() if isinstance(module, nn.Linear))
    found = {
        "lossless": published / lossless.stat().st_size,
        "int16": published / (compressed / "statistics.safetensors").stat().st_size,
    }
    if not all(map(math.isfinite, found.values())):
        msg = f"no sizes: {found}"
        raise ValueError(msg)
    return found
