"""Tiny models with random weights, for tests of collecting and merging."""

from typing import Any

import torch
from torch import nn

VOCABULARY = 60
PAD, START = 0, 2

_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 3,
}


def tiny_bert(*, seed: int = 0, **options: Any) -> Any:
    import transformers  # noqa: PLC0415 - heavy, and not every suite needs it

    torch.manual_seed(seed)
    config = transformers.BertConfig(**(_SMALL | {"num_labels": 3} | options))
    return transformers.BertForTokenClassification(config).eval()


def tiny_model(kind: str, *, seed: int = 0) -> Any:
    """Build a tiny model of an architecture, with weights that depend on the seed."""
    import transformers as t  # noqa: PLC0415

    torch.manual_seed(seed)
    heads = {"num_labels": 3}
    causal = _SMALL | {"num_key_value_heads": 2}
    deberta = (
        _SMALL
        | heads
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "max_relative_positions": -1,
            "position_biased_input": False,
        }
    )
    build = {
        "bert": lambda: t.BertForTokenClassification(t.BertConfig(**(_SMALL | heads))),
        "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**(_SMALL | heads))),
        "distilbert": lambda: t.DistilBertForSequenceClassification(
            t.DistilBertConfig(vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=48, **heads)
        ),
        "deberta-v2": lambda: t.DebertaV2ForSequenceClassification(t.DebertaV2Config(**deberta)),
        "deberta-v3": lambda: t.DebertaV2ForTokenClassification(
            t.DebertaV2Config(
                **deberta, share_att_key=True, position_buckets=8, norm_rel_ebd="layer_norm", legacy=False
            )
        ),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(
                vocab_size=VOCABULARY,
                d_model=32,
                d_kv=8,
                d_ff=48,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                decoder_start_token_id=START,
            )
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(
                vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=40, bos_token_id=1, eos_token_id=3
            )
        ),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**causal)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**causal, tie_word_embeddings=True)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**causal, head_dim=8)),
        "vit": lambda: t.ViTForImageClassification(
            t.ViTConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                image_size=16,
                patch_size=4,
                **heads,
            )
        ),
    }
    return build[kind]().eval()


KINDS = ("bert", "roberta", "distilbert", "deberta-v2", "deberta-v3", "t5", "gpt2", "llama", "qwen2", "qwen3", "vit")


def token_batch(lengths: tuple[int, ...] = (9, 6, 4), *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return right-padded ids [B, T] and their mask; the tokens are no special ones."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask + PAD * (1 - mask), "attention_mask": mask}


def example_batch(kind: str, *, seed: int = 0, target: tuple[int, ...] = (5, 7, 2)) -> dict[str, torch.Tensor]:
    """Return a batch that the architecture takes; `target` are the lengths of what T5's decoder reads."""
    if kind == "vit":
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed))}
    batch = token_batch(seed=seed)
    if kind == "t5":
        decoded = token_batch(target, seed=seed + 1)
        batch |= {"decoder_input_ids": decoded["input_ids"], "decoder_attention_mask": decoded["attention_mask"]}
    return batch


class Recorder:
    """The definition: float64 XᵀX of the rows that each linear layer was called with, by plain hooks."""

    def __init__(self, model: nn.Module, keep: Any = None) -> None:
        self.inputs: dict[str, list[torch.Tensor]] = {}
        self._hooks = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                self._hooks.append(module.register_forward_pre_hook(self._recorder(f"{name}.weight", keep)))

    def _recorder(self, name: str, keep: Any) -> Any:
        def record(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            if torch._C._current_graph_task_id() == -1:
                tensor = arguments[0].detach().double()
                self.inputs.setdefault(name, []).append(
                    tensor.reshape(-1, tensor.shape[-1]) if keep is None else keep(name, tensor)
                )

        return record

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def gram(self, name: str) -> torch.Tensor:
        rows = torch.cat(self.inputs[name])
        return rows.T @ rows
