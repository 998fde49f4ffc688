"""Metrics of predictions: entities by nervaluate, classes by scikit-learn, both loaded only where they are used."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import torch

from gramfuse.evaluating.language import TextLoss
from gramfuse_shared.contract.metrics import MetricName
from gramfuse_shared.errors import WeightsInvalidError

_OUTSIDE: Final = "O"
_ENTITY_TAG: Final = re.compile("[BILEUS]-.+")
_TWO_PREFIXES: Final = {"S": "B", "U": "B", "E": "I", "L": "I"}
"""Of the schemes with a mark for an entity's last or only word (BIOES, BILOU), what is said in BIO."""
_MOST_NATS: Final = math.log(1e300)


def score_classes(logits: torch.Tensor, true: torch.Tensor) -> dict[MetricName, float]:
    """Score one label per row: macro averages over the classes that occur in `true`.

    Only these, so that models are compared on the same classes, whatever else they predict.

    Args:
        logits: [rows, classes]; a row of NaN predicted nothing, which is wrong.
        true: [rows] of class ids.
    """
    from sklearn import metrics  # noqa: PLC0415 - heavy, and not for every task

    seen = _seen(logits)
    classes = sorted(set(true.tolist()))
    predicted = torch.where(seen, logits.nan_to_num().argmax(dim=1), -1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        true.numpy(), predicted.numpy(), labels=classes, average="macro", zero_division=0
    )
    shares = logits.double().softmax(dim=1).nan_to_num(nan=0.0)
    precisions = [
        metrics.average_precision_score((true == label).numpy(), shares[:, label].numpy()) for label in classes
    ]
    return {
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "accuracy": float((predicted == true).double().mean()),
        "average_precision": float(sum(precisions) / len(precisions)),
        **_loss_of(torch.nn.functional.cross_entropy(logits[seen].double(), true[seen], reduction="none")),
    }


def score_label_sets(logits: torch.Tensor, true: torch.Tensor) -> dict[MetricName, float]:
    """Score any number of labels per row, each predicted where its probability is over a half.

    Macro averages over the labels that occur in `true`; accuracy is the share of rows with all labels right.

    Args:
        logits: [rows, labels]; a row of NaN predicted nothing.
        true: [rows, labels] of booleans.
    """
    from sklearn import metrics  # noqa: PLC0415 - heavy, and not for every task

    seen = _seen(logits)
    occurring = true.any(dim=0)
    predicted = (logits > 0) & seen[:, None]
    of_occurring = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "average_precision": 0.0}
    if bool(occurring.any()):
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            true[:, occurring].int().numpy(), predicted[:, occurring].int().numpy(), average="macro", zero_division=0
        )
        scores = logits.double().sigmoid().nan_to_num(nan=0.0)
        precisions = [
            metrics.average_precision_score(true[:, label].numpy(), scores[:, label].numpy())
            for label in occurring.nonzero()[:, 0].tolist()
        ]
        of_occurring = {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "average_precision": float(sum(precisions) / len(precisions)),
        }
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[seen].double(), true[seen].double(), reduction="none"
    )
    return {
        "f1": of_occurring["f1"],
        "precision": of_occurring["precision"],
        "recall": of_occurring["recall"],
        "accuracy": float((predicted == true).all(dim=1).double().mean()),
        "average_precision": of_occurring["average_precision"],
        **_loss_of(losses.flatten()),
    }


def score_tags(
    logits: Sequence[torch.Tensor], true: Sequence[Sequence[int]], names: Sequence[str]
) -> dict[MetricName, float]:
    """Score the tags of words: as entities where tags are entity tags (BIO, BIOES, BILOU), else as classes.

    An entity is right if its kind and both ends are; precision and recall are over all entities together. A word
    without logits is outside of any entity.

    Args:
        logits: per text [words, tags].
        true: per text a tag id per word.
        names: tag by id.
    """
    rows, ids = torch.cat(list(logits)), torch.tensor([tag for tags in true for tag in tags])
    if not names_entities(names):
        return score_classes(rows, ids)
    from nervaluate import Evaluator  # noqa: PLC0415 - not for every task

    plain = [_in_bio(name) for name in names]
    outside = names.index(_OUTSIDE) if _OUTSIDE in names else -1
    predicted = torch.where(_seen(rows), rows.nan_to_num().argmax(dim=1), outside)
    by_text = torch.split(predicted, [len(tags) for tags in true])
    kinds = sorted({name[2:] for name in plain if name != _OUTSIDE})
    evaluator = Evaluator(
        [[plain[tag] for tag in tags] for tags in true],
        [[plain[tag] if tag >= 0 else _OUTSIDE for tag in tags.tolist()] for tags in by_text],
        tags=kinds,
        loader="list",
    )
    strict = evaluator.evaluate()["overall"]["strict"]
    seen = _seen(rows)
    return {
        "f1": float(strict.f1),
        "precision": float(strict.precision),
        "recall": float(strict.recall),
        "accuracy": float((predicted == ids).double().mean()),
        **_loss_of(torch.nn.functional.cross_entropy(rows[seen].double(), ids[seen], reduction="none")),
    }


def score_texts(losses: Sequence[TextLoss]) -> dict[MetricName, float]:
    """Score a language model: means over all predicted tokens of all texts.

    Raises:
        WeightsInvalidError: a loss is not finite.
    """
    tokens = sum(loss.tokens for loss in losses)
    nats = math.fsum(loss.nats for loss in losses) / max(tokens, 1)
    if not math.isfinite(nats):
        msg = "the model's predictions hold NaN or infinity"
        raise WeightsInvalidError(msg)
    scores: dict[MetricName, float] = {
        "loss": nats,
        "accuracy": sum(loss.right for loss in losses) / max(tokens, 1),
    }
    if nats < _MOST_NATS:
        scores["perplexity"] = math.exp(nats)
    return scores


def names_entities(names: Sequence[str]) -> bool:
    """Tell whether tags mark entities: every one but `O` says where in an entity of which kind a word stands."""
    tags = [name for name in names if name != _OUTSIDE]
    return bool(tags) and all(_ENTITY_TAG.fullmatch(tag) for tag in tags)


def _in_bio(tag: str) -> str:
    return tag if tag == _OUTSIDE else _TWO_PREFIXES.get(tag[0], tag[0]) + tag[1:]


def _seen(logits: torch.Tensor) -> torch.Tensor:
    return ~logits.isnan().all(dim=1)  # [rows]


def _loss_of(losses: torch.Tensor) -> Mapping[MetricName, float]:
    if not len(losses):
        return {}  # every text or word was cut off: there is nothing to take the mean of
    return {"loss": float(losses.mean())}
