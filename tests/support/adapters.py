"""Adapters as PEFT writes them, with weights that are not zero, and the whole models that PEFT makes of them."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from support.tiny_models import tiny_model

TARGETS = {
    "bert": ["query", "key", "value", "dense"],
    "distilbert": ["q_lin", "v_lin"],
    "t5": ["q", "v", "wi_0", "wo"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "k_proj", "v_proj", "gate_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "vit": ["q_proj", "v_proj"],
}


def save_base(folder: Path, kind: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    tiny_model(kind, seed=seed).to(dtype).save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, *, seed: int = 1, merged: Path | None = None, **options: Any) -> Path:
    """Train nothing: draw the adapter's tensors. With `merged`, save there what `merge_and_unload` makes."""
    import peft  # noqa: PLC0415 - heavy, and not every suite needs it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(load_base(base), peft.LoraConfig(**({"r": 4, "lora_alpha": 6} | options)))
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data = (parameter.float() + 0.2 * noise).to(parameter.dtype)
        model.save_pretrained(folder)
        if merged is not None:
            loaded = peft.PeftModel.from_pretrained(load_base(base), folder)
            loaded.merge_and_unload().save_pretrained(merged)
    return folder


def load_with_peft(base: Path, folder: Path) -> Any:
    """Load an adapter over its base with PEFT, whose own warnings about itself are not ours."""
    import peft  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(load_base(base), folder).eval()


def load_base(base: Path) -> Any:
    import transformers  # noqa: PLC0415

    name = json.loads((base / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(base)
