"""What `adapter_config.json` says that changes the weights, and everything that it may say and that is refused."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from gramfuse.contributing.loading import ADAPTER_CONFIG_FILE, read_json_object
from gramfuse_shared.errors import ConfigurationError
from gramfuse_shared.limits import MAX_PATTERNS

N = TypeVar("N", int, float)

WAY_OUT: Final = (
    "make a whole model of it with PEFT: PeftModel.from_pretrained(base, adapter).merge_and_unload(), and save that"
)

_READ: Final = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"})
# Which modules were trained, and how, is seen from the tensors; what names a place or a person is not read at all.
_WITHOUT_EFFECT: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
_PLAIN_BEGINNINGS: Final = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base's weights as they are."""

_MOST_PATTERN_CHARACTERS: Final = 512


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The numbers of an adapter: W = W_base + s·BA with s = α/r, or α/√r where `rslora`; ranks and α by module path."""

    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        """Return r of a module."""
        return _first_match(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return s of a module."""
        rank, alpha = self.rank_of(module), _first_match(self.alphas, module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read `adapter_config.json` of a PEFT adapter. Names and paths in it are not followed.

    Raises:
        FileUnreadableError, TooLargeError: it is missing, no JSON object or too large.
        ConfigurationError: it is no LoRA, or one that does more than add s·BA; the message names setting and way out.
    """
    path = folder / ADAPTER_CONFIG_FILE
    document = read_json_object(path)
    kind = document.get("peft_type")
    if kind != "LORA":
        msg = f"{path}: peft_type is {kind!r}, and only LORA is read; {WAY_OUT}"
        raise ConfigurationError(msg)
    for key, value in sorted(document.items()):
        if key not in _READ | _WITHOUT_EFFECT and value not in (None, False, {}, []):
            msg = f"{path}: {key} does more than add a product of low rank, which is not read here; {WAY_OUT}"
            raise ConfigurationError(msg)
    beginning = document.get("init_lora_weights", True)
    if beginning not in _PLAIN_BEGINNINGS:
        msg = (
            f"{path}: init_lora_weights {beginning!r} trains from changed base weights, which are not stored; save it "
            f"as a plain LoRA (path_initial_model_for_weight_conversion), or {WAY_OUT}"
        )
        raise ConfigurationError(msg)
    return AdapterConfig(
        rank=_rank(path, "r", document.get("r")),
        alpha=_number(path, "lora_alpha", document.get("lora_alpha")),
        rslora=document.get("use_rslora") is True,
        ranks={key: _rank(path, "rank_pattern", value) for key, value in _patterns(path, document, "rank_pattern")},
        alphas={
            key: _number(path, "alpha_pattern", value) for key, value in _patterns(path, document, "alpha_pattern")
        },
    )


def _first_match(patterns: Mapping[str, N], module: str, default: N) -> N:
    """Return the value of the first pattern that is the module's path or the end of it, as PEFT matches them."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _patterns(path: Path, document: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    patterns = document.get(key) or MappingProxyType({})
    if not isinstance(patterns, Mapping) or len(patterns) > MAX_PATTERNS:
        msg = f"{path}: {key} is no object of at most {MAX_PATTERNS} patterns"
        raise ConfigurationError(msg)
    for pattern in patterns:
        try:
            if len(pattern) > _MOST_PATTERN_CHARACTERS:
                msg = f"{path}: a pattern of {key} is longer than {_MOST_PATTERN_CHARACTERS} characters"
                raise ConfigurationError(msg)
            re.compile(pattern)
        except re.error as error:
            msg = f"{path}: {pattern!r} of {key} is no regular expression: {error}"
            raise ConfigurationError(msg) from error
    return list(patterns.items())


def _rank(path: Path, key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = f"{path}: {key} is {value!r}, where a rank of at least 1 is expected"
        raise ConfigurationError(msg)
    return value


def _number(path: Path, key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        msg = f"{path}: {key} is {value!r}, where a number is expected"
        raise ConfigurationError(msg)
    return value
