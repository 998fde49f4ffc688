"""Tells what a model does, and what its labels are, from its config."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn

from gramfuse.measuring.model_loading import architecture_of
from gramfuse_shared.contract.metrics import Task
from gramfuse_shared.errors import ConfigurationError, FileUnreadableError

_SHOWN: Final = 12
LANGUAGE_TASKS: Final[frozenset[Task]] = frozenset({"causal-lm", "seq2seq-lm"})
"""Tasks whose labels are the texts themselves."""


@dataclass(frozen=True, slots=True)
class LabelNames:
    """The labels of a classifier by their ids."""

    names: tuple[str, ...]

    def id_of(self, label: object, where: str) -> int:
        """Return the id of a label that is given by its name or as its id.

        Raises:
            ConfigurationError: the model has no such label; the message names those it has.
        """
        if isinstance(label, str) and label in self.names:
            return self.names.index(label)
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(self.names):
            return label
        more = f", … ({len(self.names)} in all)" if len(self.names) > _SHOWN else ""
        msg = f"{where}: the model has no label {label!r}; it has {', '.join(self.names[:_SHOWN])}{more}"
        raise ConfigurationError(msg)


def task_of(model: nn.Module | Path) -> Task:
    """Tell the task of a model, or of a `from_pretrained` folder without loading its weights.

    Raises:
        ConfigurationError: nothing that can be scored: no head, a regression, or a class that is not known.
        FileUnreadableError: the folder has no config that transformers can read.
    """
    name = type(model).__name__ if isinstance(model, nn.Module) else architecture_of(model)
    config: Any = model.config if isinstance(model, nn.Module) else _config_of(model)
    if name.endswith("ForTokenClassification"):
        return "token-classification"
    if name.endswith("ForSequenceClassification"):
        problem = getattr(config, "problem_type", None)
        if problem == "regression" or config.num_labels == 1:
            msg = f"{name} predicts a number (problem_type: regression); only labels and texts are known as answers"
            raise ConfigurationError(msg)
        return "multi-label-classification" if problem == "multi_label_classification" else "sequence-classification"
    if config.is_encoder_decoder and name.endswith(("ForConditionalGeneration", "Seq2SeqLM")):
        return "seq2seq-lm"
    if not config.is_encoder_decoder and name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal-lm"
    msg = (
        f"{name} is no model that can be scored, or whose labels are known: its class ends with none of "
        "ForTokenClassification, ForSequenceClassification, ForCausalLM, LMHeadModel, ForConditionalGeneration"
    )
    raise ConfigurationError(msg)


def label_names_of(model: nn.Module) -> LabelNames:
    """Return the labels that a classifier's config names."""
    config: Any = model.config
    return LabelNames(tuple(str(config.id2label[number]) for number in range(config.num_labels)))


def _config_of(folder: Path) -> Any:  # noqa: ANN401 - any transformers config
    import transformers  # noqa: PLC0415 - heavy; a model in memory brings its config

    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        msg = f"{folder}/config.json is not one that transformers knows: {error}"
        raise FileUnreadableError(msg) from error
