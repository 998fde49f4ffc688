"""A contribution as it lies on the disk: opens model, statistics and base, compares them, and plans what leaves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from gramfuse.contributing.labelling import declare_labels, untouched_labels
from gramfuse.contributing.loading import (
    FisherFile,
    ModelFolder,
    StatisticsFile,
    StoredTensor,
    content_of,
    is_adapter,
    open_fisher_file,
    open_model_folder,
    open_statistics_file,
)
from gramfuse.contributing.plan import ContributionPlan
from gramfuse.contributing.planning import embedding_names, plan_contribution
from gramfuse.extras import EXTRAS
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import FileUnreadableError
from gramfuse_shared.extras import requiring_extras


@dataclass(frozen=True, slots=True)
class Draft:
    """A model, what was measured of it if that is given, and the plan of what of them leaves."""

    model: ModelFolder
    statistics: StatisticsFile | None
    plan: ContributionPlan
    fisher: FisherFile | None = None


def draft_contribution(
    model: Path,
    statistics: Path | None,
    base: BaseManifest,
    policy: Policy,
    *,
    base_folder: Path | None,
    labels: Sequence[int] | None = None,
    fisher: Path | None = None,
) -> Draft:
    """Plan a contribution from headers; embeddings and heads are compared with the base's where its folder is known.

    `labels` are the label ids that were trained; None: all.

    Raises:
        ExtraMissingError: the model is an adapter, whose weights torch computes.
        ConfigurationError: it is an adapter that does more than add products of low rank.
        FileUnreadableError, HeaderMalformedError, HeaderTooLargeError, StatisticsMalformedError: a file.
        ArchitectureMismatchError, PolicyViolationError: see `plan_contribution`.
    """
    folder = _open_adapter(model, base_folder) if is_adapter(model) else open_model_folder(model)
    measured = None if statistics is None else open_statistics_file(statistics)
    information = None if fisher is None else open_fisher_file(fisher)
    tensors = [tensor.info for tensor in folder.tensors.values()]
    changed = None
    if base_folder is not None:
        changed = changed_tensors(embedding_names(tensors, base, policy), folder, base_folder)
    plan = plan_contribution(
        tensors,
        measured.metadata if measured else None,
        base,
        policy,
        differs_from=folder.base,
        changed=changed,
        left_out=folder.left_out,
        outdated=any(_is_newer(folder, file.path) for file in (measured, information) if file is not None),
        fisher=information.metadata if information else None,
        labels=None if labels is None else declare_labels(labels, folder, base_folder),
        untouched_labels=untouched_labels(folder, base_folder, base, policy),
    )
    return Draft(folder, measured, plan, information)


def changed_tensors(names: Iterable[str], model: ModelFolder, base_folder: Path) -> frozenset[str]:
    """Compare tensors of a model with the base's, byte for byte; return the names of those that differ.

    Raises:
        FileUnreadableError: a file is gone.
        HeaderMalformedError, HeaderTooLargeError: a base file's header breaks the format.
    """
    if model.left_out == "base":
        return frozenset(names)
    if model.encoding == "bf16-delta":
        return frozenset(
            name for name in names if any(any(chunk) for chunk in content_of(model.tensors[name]).chunks())
        )
    base = open_model_folder(base_folder)
    return frozenset(
        name for name in names if name in base.tensors and _differ(model.tensors[name], base.tensors[name])
    )


def _open_adapter(model: Path, base_folder: Path | None) -> ModelFolder:
    if base_folder is None:
        msg = (
            f"{model} is an adapter, and where its base lies is not known here: name the base's folder (--base), as "
            "`gramfuse project base pull` fetched it"
        )
        raise FileUnreadableError(msg)
    with requiring_extras("a PEFT adapter", EXTRAS):
        from gramfuse.adapters.weights import adapted_folder  # noqa: PLC0415 - torch is an extra
    return adapted_folder(model, base_folder)


def _differ(one: StoredTensor, other: StoredTensor) -> bool:
    if one.info != other.info:
        return True
    pairs = zip_longest(content_of(one).chunks(), content_of(other).chunks())
    return any(mine != theirs for mine, theirs in pairs)


def _is_newer(model: ModelFolder, measured: Path) -> bool:
    written = max((model.path / name).stat().st_mtime_ns for name in model.files)
    return written > measured.stat().st_mtime_ns
