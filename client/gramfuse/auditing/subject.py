"""What an audit is of, by digest: every byte that the report hangs on, so that a kept one is known to be current."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gramfuse.auditing.report import Subject
from gramfuse.contributing.draft import Draft
from gramfuse.contributing.finiteness import FiniteStream
from gramfuse.contributing.loading import ADAPTER_FILE, FisherFile, StatisticsFile, is_adapter, read_header
from gramfuse.contributing.origin import digest_of_weights, require_same_model
from gramfuse.contributing.virtual_files import Source, VirtualFile, digests_of_folder
from gramfuse_shared.contract.faults import fisher_fault, gram_fault, weights_fault
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.safetensors_header import TensorEntry
from gramfuse_shared.contract.statistics_file import tensors_of_taps
from gramfuse_shared.digest import document_digest


def subject_of(draft: Draft, base: BaseManifest, policy: Policy, base_folder: Path | None) -> Subject:
    """Read the files of a draft once, for their digests, and see whether what leaves of them is finite, and whether
    the statistics are this model's.

    Raises:
        FileUnreadableError: one cannot be read.
        WeightsInvalidError, StatisticsInvalidError: what would leave holds NaN or infinity.
        ArchitectureMismatchError: the statistics were measured on another model.
    """
    see = _seen(draft)

    def digest(file: StatisticsFile | FisherFile | None) -> str | None:
        return None if file is None else VirtualFile.of_path(file.path).digest(see=see.get(file.path, lambda _: None))

    files = digests_of_folder(draft.model.path, see=see)  # config and tokenizer are run, too
    if draft.statistics is not None:
        require_same_model(draft.statistics.path, draft.model.path, digest_of_weights(draft.model.path, files))
    return Subject(
        weights=document_digest(files),
        statistics=digest(draft.statistics),
        fisher=digest(draft.fisher),
        policy=policy.content_digest(),
        base=base.content_digest(),
        base_at_hand=base_folder is not None,
    )


def digest_of_texts(texts: Sequence[Any]) -> str:
    """Return the SHA-256 of texts in their order."""
    return document_digest([list(text) if isinstance(text, tuple) else text for text in texts])


def _seen(draft: Draft) -> dict[Path, Callable[[bytes], None]]:
    """Return what looks at each file's bytes: whether those tensors of it are finite that leave."""
    plan, model = draft.plan, draft.model
    weights: dict[Path, list[TensorEntry]] = {}
    for decision in plan.leaving_weights:
        tensor = model.tensors[decision.info.name]
        if isinstance(tensor.source, Source):
            info = tensor.info
            entry = TensorEntry(info.name, info.dtype, info.shape, tensor.start, tensor.end)
            weights.setdefault(tensor.path, []).append(entry)
    if is_adapter(model.path):  # its weights are computed of these
        factors = model.path / ADAPTER_FILE
        weights[factors] = list(read_header(factors).tensors.values())
    streams = {path: FiniteStream(entries, weights_fault) for path, entries in weights.items()}
    if draft.statistics is not None:
        taps = tuple(tap.info for tap in plan.leaving_taps)
        wanted = [name for name, _, _ in tensors_of_taps(taps, draft.statistics.metadata.encoding)]
        found = draft.statistics.tensors
        streams[draft.statistics.path] = FiniteStream((found[name] for name in wanted), gram_fault)
    if draft.fisher is not None:
        entries = [draft.fisher.tensors[decision.info.name] for decision in plan.leaving_fisher]
        streams[draft.fisher.path] = FiniteStream(entries, fisher_fault)
    return {path: stream.see for path, stream in streams.items()}
