"""Decide which parameters of a personal model are the merged model's and which the organization's own. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gramfuse.naming import few
from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.safetensors_header import FLOAT_DTYPES
from gramfuse_shared.errors import ArchitectureMismatchError

_COMPUTING_KEYS: Final = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "n_heads",
    "n_head",
    "num_heads",
    "hidden_act",
    "hidden_activation",
    "activation",
    "activation_function",
    "feed_forward_proj",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rms_norm_eps",
    "rope_theta",
    "position_embedding_type",
    "relative_attention",
    "max_relative_positions",
    "position_buckets",
    "pos_att_type",
)
"""Keys of config.json that change what a trunk computes without changing the shape of a parameter."""


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """Names of a personal model's parameters, sorted, by where their values come from.

    Attributes:
        merged: from the merged model.
        own: from the organization's own model.
        left_out: parameters of the merged trunk that the organization's model class does not have.
    """

    merged: tuple[str, ...]
    own: tuple[str, ...]
    left_out: tuple[str, ...]


def plan_head(
    merged: Mapping[str, TensorInfo], own: Mapping[str, TensorInfo], policy: Policy, vocabulary_size: int | None
) -> HeadPlan:
    """Plan a model of the parameters of `own`: its own head on the merged model's trunk.

    Of each parameter of the organization's model:
      1. the policy calls it a head: its own,
      2. the merged model stores it: the merged one, of the same shape, and floating-point where its own is,
      3. it is one that never travels (an embedding by the policy, or not floating-point): its own,
      4. else the two trunks are not of one architecture.

    Raises:
        ArchitectureMismatchError: the trunks differ, they share nothing, or the organization's model has no head.
    """
    head, merged_names, kept = [], [], []
    for name, tensor in sorted(own.items()):
        role = policy.role_of(name, tensor.shape, vocabulary_size)
        if role == "head":
            head.append(name)
        elif name in merged:
            _require_alike(tensor, merged[name])
            merged_names.append(name)
        elif role == "embedding" or tensor.dtype not in FLOAT_DTYPES:
            kept.append(name)
        else:
            msg = (
                f"{name} is neither a head's parameter by the policy nor one of the merged model: take the model that "
                "was tuned from the project's base, or name it in the policy's head_parameters"
            )
            raise ArchitectureMismatchError(msg, tensor=name)
    if not head:
        msg = f"no parameter of your model is a head's by the policy ({', '.join(policy.head_parameters[:4])}, …)"
        raise ArchitectureMismatchError(msg)
    if not merged_names:
        msg = f"the two models share no parameter: yours has {few(sorted(own), 'parameter')}"
        raise ArchitectureMismatchError(msg)
    trunk = {name for name, tensor in merged.items() if policy.role_of(name, tensor.shape, vocabulary_size) != "head"}
    return HeadPlan(tuple(merged_names), tuple(sorted(head + kept)), tuple(sorted(trunk - own.keys())))


def require_same_computation(merged: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Require that two config.json have the same trunk, as far as shapes do not tell; a key that one omits is not held
    against it.

    Raises:
        ArchitectureMismatchError: a key differs.
    """
    for key in _COMPUTING_KEYS:
        if key in merged and key in own and merged[key] != own[key]:
            msg = f"config.json: {key} is {own[key]!r} in your model and {merged[key]!r} in the merged one"
            raise ArchitectureMismatchError(msg, key=key)


def _require_alike(own: TensorInfo, merged: TensorInfo) -> None:
    same_kind = own.dtype == merged.dtype or {own.dtype, merged.dtype} <= FLOAT_DTYPES
    if own.shape != merged.shape or not same_kind:
        msg = (
            f"{own.name} is {own.dtype} {list(own.shape)} in your model and {merged.dtype} {list(merged.shape)} in the "
            "merged one; take the model that was tuned from the project's base"
        )
        raise ArchitectureMismatchError(msg, tensor=own.name)
