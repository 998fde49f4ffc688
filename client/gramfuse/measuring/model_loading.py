"""Loads a `from_pretrained` folder with the class that its config names, so that the head is there too."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from gramfuse_shared.errors import ArchitectureMismatchError, ConfigurationError, FileUnreadableError


def load_model(folder: Path, device: torch.device) -> transformers.PreTrainedModel:
    """Load a model; on the CPU in fp32, since half precision is slow and imprecise there.

    Raises:
        FileUnreadableError: no config, or no weights that transformers can read.
        ConfigurationError: the config names no class, or one that this transformers does not have.
        ArchitectureMismatchError: the folder lacks weights of that class.
    """
    kind = _model_class(folder)
    name = kind.__name__
    dtype: Any = torch.float32 if device.type == "cpu" else "auto"
    try:
        model, loading = kind.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        msg = f"{folder} cannot be loaded as {name}: {error}"
        raise FileUnreadableError(msg) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        msg = (
            f"{folder} lacks {missing[0]!r} ({len(missing)} weights of {name} in all), so they would be random: "
            "fine-tune the model with its head, and save it with save_pretrained"
        )
        raise ArchitectureMismatchError(msg, missing=missing[:20])
    return model  # type: ignore[no-any-return] # from_pretrained is untyped here


def empty_model(folder: Path) -> transformers.PreTrainedModel:
    """Build the model that the config names without its weights: its modules on the meta device.

    Raises:
        FileUnreadableError: no config, or one that transformers cannot read.
        ConfigurationError: the config names no class, or one that this transformers does not have.
    """
    kind = _model_class(folder)
    try:
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return kind(config)  # type: ignore[no-any-return] # a class found by its name
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        msg = f"{folder}/config.json cannot be read as that of {kind.__name__}: {error}"
        raise FileUnreadableError(msg) from error


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - any transformers tokenizer
    """Load the folder's tokenizer.

    Raises:
        FileUnreadableError: there is none.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        msg = f"{folder} holds no tokenizer that can be loaded; save it there with tokenizer.save_pretrained: {error}"
        raise FileUnreadableError(msg) from error


def _model_class(folder: Path) -> Any:  # noqa: ANN401 - a class of transformers, which is untyped here
    name = architecture_of(folder)
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        msg = f"{folder}/config.json names the class {name}, which transformers {transformers.__version__} lacks"
        raise ConfigurationError(msg)
    return kind


def architecture_of(folder: Path) -> str:
    """Return the class that a folder's config names.

    Raises:
        FileUnreadableError: no config, or one that is not JSON.
        ConfigurationError: it names no class.
    """
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}; --model names a folder that save_pretrained wrote"
        raise FileUnreadableError(msg) from error
    except ValueError as error:
        msg = f"{path} is not JSON: {error}"
        raise FileUnreadableError(msg) from error
    names = document.get("architectures") if isinstance(document, dict) else None
    if not names or not isinstance(names[0], str):
        msg = f"{path} names no architecture: load the model with its class and save it with save_pretrained"
        raise ConfigurationError(msg)
    return names[0]
