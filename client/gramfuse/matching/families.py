"""How architectures name the weights whose units may change places without changing what the model computes.

What is not listed here is refused: a block with one more matrix than expected may tie units together that look free.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class AttentionNames:
    """The projections of one attention, relative to the layer; of `query` and `key` all but the first may be missing.

    `fused`: queries, keys and values lie in one matrix, in this order. `head_bias`: an embedding with a column per
    head, which one layer has and all of the stack add to their scores, so that heads change places in all at once.
    """

    query: tuple[str, ...]
    key: tuple[str, ...]
    value: str
    out: str
    fused: bool = False
    head_bias: str | None = None


@dataclass(frozen=True, slots=True)
class BlockNames:
    """One kind of layer: a pattern of its name, and everything that it may hold.

    `up` are the matrices with a row per intermediate unit, of which a plain block lacks the gate; `untouched` is what
    knows nothing of hidden units: norms over the residual stream or within a head, masks that old files hold.
    """

    layer: str
    attentions: tuple[AttentionNames, ...]
    up: tuple[str, ...]
    down: str
    untouched: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture. `rotary`: positions turn pairs of query dimensions, so these have to stay where they are.

    `transposed`: weights are stored [in, out].
    """

    blocks: tuple[BlockNames, ...]
    rotary: bool = False
    transposed: bool = False


_BERT: Final = Family(
    (
        BlockNames(
            layer=r"encoder\.layer\.\d+",
            attentions=(
                AttentionNames(
                    ("attention.self.query",),
                    ("attention.self.key",),
                    "attention.self.value",
                    "attention.output.dense",
                ),
            ),
            up=("intermediate.dense",),
            down="output.dense",
            untouched=("attention.output.LayerNorm", "output.LayerNorm"),
        ),
    )
)
_DEBERTA: Final = Family(
    (
        BlockNames(
            layer=r"encoder\.layer\.\d+",
            attentions=(
                AttentionNames(
                    # the projections of relative positions meet queries and keys in the scores
                    ("attention.self.query_proj", "attention.self.pos_query_proj"),
                    ("attention.self.key_proj", "attention.self.pos_key_proj"),
                    "attention.self.value_proj",
                    "attention.output.dense",
                ),
            ),
            up=("intermediate.dense",),
            down="output.dense",
            untouched=("attention.output.LayerNorm", "output.LayerNorm"),
        ),
    )
)
_DISTILBERT: Final = Family(
    (
        BlockNames(
            layer=r"transformer\.layer\.\d+",
            attentions=(
                AttentionNames(("attention.q_lin",), ("attention.k_lin",), "attention.v_lin", "attention.out_lin"),
            ),
            up=("ffn.lin1",),
            down="ffn.lin2",
            untouched=("sa_layer_norm", "output_layer_norm"),
        ),
    )
)
_VIT: Final = Family(
    (
        BlockNames(
            layer=r"encoder\.layer\.\d+",
            attentions=(
                AttentionNames(
                    ("attention.attention.query",),
                    ("attention.attention.key",),
                    "attention.attention.value",
                    "attention.output.dense",
                ),
            ),
            up=("intermediate.dense",),
            down="output.dense",
            untouched=("layernorm_before", "layernorm_after"),
        ),
    )
)


def _t5_attention(path: str, *, head_bias: bool) -> AttentionNames:
    bias = f"{path}.relative_attention_bias" if head_bias else None
    return AttentionNames((f"{path}.q",), (f"{path}.k",), f"{path}.v", f"{path}.o", head_bias=bias)


def _t5_block(stack: str, attentions: tuple[AttentionNames, ...]) -> BlockNames:
    last = len(attentions)
    dense = f"layer.{last}.DenseReluDense"
    return BlockNames(
        layer=rf"{stack}\.block\.\d+",
        attentions=attentions,
        up=(f"{dense}.wi", f"{dense}.wi_0", f"{dense}.wi_1"),
        down=f"{dense}.wo",
        untouched=(
            *(f"layer.{number}.layer_norm" for number in range(last + 1)),
            "layer.1.EncDecAttention.relative_attention_bias",  # in old files; no class reads it
        ),
    )


_T5: Final = Family(
    (
        _t5_block("encoder", (_t5_attention("layer.0.SelfAttention", head_bias=True),)),
        _t5_block(
            "decoder",
            (
                _t5_attention("layer.0.SelfAttention", head_bias=True),
                _t5_attention("layer.1.EncDecAttention", head_bias=False),
            ),
        ),
    )
)
_GPT2: Final = Family(
    (
        BlockNames(
            layer=r"h\.\d+",
            attentions=(AttentionNames(("attn.c_attn",), ("attn.c_attn",), "attn.c_attn", "attn.c_proj", fused=True),),
            up=("mlp.c_fc",),
            down="mlp.c_proj",
            untouched=("ln_1", "ln_2", "attn.bias", "attn.masked_bias"),
        ),
    ),
    transposed=True,
)
_LLAMA: Final = Family(
    (
        BlockNames(
            layer=r"layers\.\d+",
            attentions=(
                AttentionNames(("self_attn.q_proj",), ("self_attn.k_proj",), "self_attn.v_proj", "self_attn.o_proj"),
            ),
            up=("mlp.gate_proj", "mlp.up_proj"),
            down="mlp.down_proj",
            untouched=(
                "input_layernorm",
                "post_attention_layernorm",
                "self_attn.q_norm",
                "self_attn.k_norm",
                "self_attn.rotary_emb.inv_freq",
            ),
        ),
    ),
    rotary=True,
)

FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "bert": _BERT,
        "camembert": _BERT,
        "deberta-v2": _DEBERTA,
        "distilbert": _DISTILBERT,
        "electra": _BERT,
        "gpt2": _GPT2,
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "mt5": _T5,
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "roberta": _BERT,
        "t5": _T5,
        "vit": _VIT,
        "xlm-roberta": _BERT,
    }
)
"""By the `model_type` of a config."""
