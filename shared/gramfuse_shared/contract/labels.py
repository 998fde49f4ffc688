"""Which rows of shared heads belong to label ids, and what a contribution may say of them.

A project's label ids are those of its base model. An organization that has texts for some of them only says which it
trained; the rows of the others are left out of the merge where they come from it.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from gramfuse_shared import limits
from gramfuse_shared.contract.manifest import BaseManifest, TensorInfo, TrainedLabels
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import ArchitectureMismatchError, PolicyViolationError

_UNSAID: Final = 2
"""What transformers takes for the number of labels, and then does not write into config.json."""


def label_count(config: Mapping[str, Any]) -> int:
    """Return a config.json's number of labels as transformers reads it: by id2label, else num_labels, else two.

    Raises:
        ArchitectureMismatchError: it is none that a head can have.
    """
    names, number = config.get("id2label"), config.get("num_labels", _UNSAID)
    count = len(names) if isinstance(names, Mapping) else number
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= limits.MAX_LABELS:
        msg = f"config.json says no number of labels between 1 and {limits.MAX_LABELS}"
        raise ArchitectureMismatchError(msg)
    return count


def label_parameters(
    tensors: Iterable[TensorInfo], vocabulary_size: int | None, policy: Policy, count: int
) -> frozenset[str]:
    """Name the parameters of a base model whose row i belongs to label i.

    They are those of a head whose first dimension is the label count.

    Where the count stands in another dimension of a head's parameter too, a layer inside the head has as many outputs
    as there are labels, and its rows could be taken for labels': then nothing is named.

    Raises:
        ArchitectureMismatchError: there are none, or they cannot be told from others.
    """
    heads = [tensor for tensor in tensors if policy.role_of(tensor.name, tensor.shape, vocabulary_size) == "head"]
    doubtful = next((tensor for tensor in heads if count in tensor.shape[1:]), None)
    if doubtful is not None:
        msg = (
            f"{doubtful.name} is {list(doubtful.shape)}: with {count} labels it cannot be told which rows of the head "
            "belong to labels, so trained labels cannot be named in this project"
        )
        raise ArchitectureMismatchError(msg, tensor=doubtful.name)
    found = frozenset(tensor.name for tensor in heads if tensor.shape[:1] == (count,))
    if not found:
        msg = f"no parameter of the base model's head has {count} rows, one for each label"
        raise ArchitectureMismatchError(msg, labels=count)
    return found


def require_labels(labels: TrainedLabels, contributed: Collection[str], base: BaseManifest, policy: Policy) -> None:
    """Require that the trained labels that a contribution names speak of rows that it contributes.

    Args:
        labels: what is named.
        contributed: names of the weights that leave.
        base: the project's base model.
        policy: the project's policy.

    Raises:
        PolicyViolationError: heads are private, and so is what they were trained on.
        ArchitectureMismatchError: see `label_parameters`, or none of these parameters is contributed.
    """
    if policy.heads != "shared":
        msg = "the labels that were trained may not leave: the policy keeps task heads private (heads: private)"
        raise PolicyViolationError(msg, refused=["labels"])
    rows = label_parameters(base.tensors, base.vocabulary_size, policy, labels.count)
    if rows.isdisjoint(contributed):
        msg = f"trained labels are named, but {', '.join(sorted(rows)[:3])} is not contributed; leave the labels out"
        raise ArchitectureMismatchError(msg)
