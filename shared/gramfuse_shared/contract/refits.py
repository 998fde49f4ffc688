"""What is refit without training, a head, its biases or layers, and what a policy lets be asked and answered of it."""

from typing import Final

from gramfuse_shared.contract.calibration import CalibrationHistograms
from gramfuse_shared.contract.labels import label_parameters
from gramfuse_shared.contract.manifest import BaseManifest, TensorInfo
from gramfuse_shared.contract.policy import Policy, RequestKind
from gramfuse_shared.contract.rules import weights_that_may_leave
from gramfuse_shared.errors import ArchitectureMismatchError, PolicyViolationError

REFITS: Final[frozenset[RequestKind]] = frozenset({"head", "calibration"})
"""Kinds of requests whose answers change the head that everybody gets."""

WHY_NOT_REFIT: Final = (
    "only matrices outside heads and embeddings are refit whose weight, and bias, the policy lets leave"
)

_MATRIX: Final = 2


def require_shared_head(kind: RequestKind, policy: Policy) -> None:
    """Require, where a request is about the head, that it is shared, or that a secure sum hides each one's own.

    Raises:
        PolicyViolationError: it is private.
    """
    if kind == "head" and policy.aggregation == "secure":
        return
    if kind in REFITS and policy.heads != "shared":
        why = {
            "head": "what a head is refit from reveals each organization's own; with aggregation: secure nobody sees "
            "more than the sum",
            "calibration": "the merged model keeps the base's head, whose biases nobody shifts",
        }
        msg = f"a request of the kind {kind} needs shared heads, and the policy has heads: private: {why[kind]}"
        raise PolicyViolationError(msg, kind=kind)


def require_histograms_may_leave(histograms: CalibrationHistograms, policy: Policy) -> None:
    """Require that each label is borne by as many rows as the policy wants examples, and that as many lack it.

    The client counts distinct examples; rows, which are texts or words, are at least as many.

    Raises:
        PolicyViolationError: they are fewer, or no label has any.
    """
    needed = policy.minimum_evaluation_examples
    if not histograms.classes:
        msg = (
            f"no label is borne, and lacked, by {needed} distinct examples (minimum_evaluation_examples); use more "
            "labelled texts"
        )
        raise PolicyViolationError(msg)
    for one in histograms.classes:
        fewest = min(sum(one.labelled), sum(one.others))
        if fewest < needed:
            msg = (
                f"the scores of label {one.label} are counted of {fewest} examples, the policy wants {needed} that "
                "bear it and as many that do not (minimum_evaluation_examples)"
            )
            raise PolicyViolationError(msg, label=one.label, examples=fewest)


def heads_to_refit(base: BaseManifest, policy: Policy) -> frozenset[str]:
    """Name the weights of which it may be told what a head is refit from: those that may leave, and in sums all heads.

    A head that is refit from a secure sum is everybody's: it says nothing that one organization's own does alone.
    """
    sendable = weights_that_may_leave(base, policy)
    if policy.aggregation != "secure":
        return sendable
    return sendable | {
        tensor.name
        for tensor in base.tensors
        if policy.role_of(tensor.name, tensor.shape, base.vocabulary_size) == "head"
    }


def bias_of_labels(base: BaseManifest, policy: Policy, count: int) -> TensorInfo:
    """Return the base model's parameter that holds a bias for each of `count` labels.

    Raises:
        ArchitectureMismatchError: there is none, or it cannot be told from others.
    """
    rows = label_parameters(base.tensors, base.vocabulary_size, policy, count)
    found = [tensor for tensor in base.tensors if tensor.name in rows and tensor.shape == (count,)]
    if len(found) != 1:
        names = ", ".join(sorted(tensor.name for tensor in found)) or "none of the base model's parameters"
        msg = f"a calibration shifts the head's one bias of {count} labels; {names} could be that"
        raise ArchitectureMismatchError(msg, labels=count)
    return found[0]


def layers_that_may_be_refit(base: BaseManifest, policy: Policy) -> frozenset[str]:
    """Name the weights of those layers of which a refit may be asked and answered.

    Matrices whose weight the policy lets leave, and their bias where there is one: what a layer is refit from tells
    both. No embeddings, of which most rows are of tokens that no text holds, and no heads, which have rows for labels
    that not everybody has, and a round of their own.
    """
    sendable = weights_that_may_leave(base, policy)
    names = {tensor.name for tensor in base.tensors}

    def may_be(tensor: TensorInfo) -> bool:
        bias = bias_beside(tensor.name)
        is_body = policy.role_of(tensor.name, tensor.shape, base.vocabulary_size) == "body"
        return is_body and len(tensor.shape) == _MATRIX and (bias not in names or bias in sendable)

    return frozenset(tensor.name for tensor in base.tensors if tensor.name in sendable and may_be(tensor))


def bias_beside(weight: str) -> str:
    """Name the bias of the layer that a weight belongs to, if it has one."""
    return weight.removesuffix("weight") + "bias"
