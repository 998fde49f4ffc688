"""Merge local folders by a recipe with the engine that the service runs: `gramfuse.merge` and `gramfuse merge`.

Each model of the recipe is a `from_pretrained` folder or a PEFT adapter of its base model, with what the method reads
in it: `statistics.safetensors` where that are taps (some may do without where the recipe estimates
`missing_statistics`), `fisher.safetensors` where it is Fisher information.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gramfuse.adapters.adapter import open_adapter
from gramfuse.adapters.weights import AdaptedWeights
from gramfuse.complete_folder import complete_folder
from gramfuse.contributing.labelling import trained_labels
from gramfuse.contributing.loading import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    is_adapter,
    open_fisher_file,
    open_statistics_file,
    read_document,
    read_json_object,
    weight_file_names,
)
from gramfuse.contributing.plan import FISHER_FILE_NAME, STATISTICS_FILE_NAME
from gramfuse.merged_folder import require_free, write_companions
from gramfuse.progress import ReadCount
from gramfuse_shared import limits
from gramfuse_shared.contract.labels import label_count, label_parameters
from gramfuse_shared.contract.manifest import FileEntry, TensorInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.recipe import ModelEntry, Recipe, parse_recipe
from gramfuse_shared.contract.rules import vocabulary_size
from gramfuse_shared.errors import (
    FileUnreadableError,
    GramfuseError,
    RecipeInvalidError,
)
from gramfuse_shared.fusion.methods import METHODS, ElementMethod
from gramfuse_shared.merging.decoding import decode_statistics
from gramfuse_shared.merging.execution import DeviceChoice, MemberReader, choose_device, execute_task
from gramfuse_shared.merging.plan import LabelRows, Member, MergePlan
from gramfuse_shared.merging.planning import DEFAULT_SHARD_BYTES, plan_merge
from gramfuse_shared.merging.steps import GramStep
from gramfuse_shared.merging.streaming import LocalFile, TensorFile, TensorFiles, TensorReader, read_bytes

_CHUNK_BYTES: Final = 4 * limits.MIB
_SAMPLE_BYTES: Final = 64 * limits.KIB
_STRIDE_BYTES: Final = 16 * limits.MIB

OnProgress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes that the whole merge reads."""


@dataclass(frozen=True, slots=True)
class MergedModel:
    """A merged folder: where it is, its weight files, and what the engine says of each group of linears."""

    path: Path
    files: tuple[FileEntry, ...]
    diagnostics: tuple[dict[str, Any], ...]

    @property
    def fallbacks(self) -> tuple[dict[str, Any], ...]:
        """The diagnostics of groups that were not solved as the method would."""
        return tuple(entry for entry in self.diagnostics if entry["fallback"] != "none")


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Everything a merge reads, opened."""

    members: tuple[Member, ...]
    readers: Mapping[str, MemberReader]
    base: TensorFiles | None


def merge(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    folder: str | Path | None = None,
    device: DeviceChoice = "auto",
    overwrite: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    on_progress: OnProgress = lambda _done, _total: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> MergedModel:
    """Merge local models by a recipe into a folder that `from_pretrained` loads.

    Configuration and tokenizer are the base model's, or the first model's where the recipe names no base. The folder
    appears when it is complete; an interrupted merge leaves nothing, and running it again is safe.

    Args:
        recipe: a recipe, or the path of one.
        out: the folder to write.
        folder: what the recipe's relative paths start from; the recipe file's own folder, else the working directory.
        device: where to compute.
        overwrite: replace `out` where an earlier merge wrote it.
        shard_bytes: largest weight file, except for what cannot be divided.
        on_progress: called with bytes read and bytes in all.
        is_cancelled: looked at before each read.

    Raises:
        RecipeInvalidError: the recipe names no models, or asks for what they do not allow.
        FileUnreadableError, HeaderMalformedError, StatisticsMalformedError: a model or its statistics cannot be read.
        ArchitectureMismatchError: the models do not fit together.
        ConflictError: `out` exists and is not empty.
        FileUnwritableError: the disk is full or not writable.
        CancelledError: `is_cancelled` said so.
    """
    parsed, origin = _read_recipe(recipe)
    start = Path(folder) if folder is not None else origin
    target = Path(out)
    require_free(target, overwrite=overwrite)
    chosen = choose_device(device)
    with ExitStack() as stack:
        inputs = _open_inputs(parsed, start, stack)
        base = None if inputs.base is None else _tensors_of(inputs.base)
        plan = plan_merge(inputs.members, base, parsed, shard_bytes=shard_bytes)
        _require_statistics_to_fit(plan)
        counter = ReadCount(plan.input_bytes, on_progress)
        with complete_folder(target) as beside:
            files: list[FileEntry] = []
            diagnostics: list[dict[str, Any]] = []
            for task in plan.tasks:
                result = execute_task(
                    plan,
                    task.index,
                    inputs.readers,
                    inputs.base,
                    beside / task.file_name,
                    device=chosen,
                    on_progress=counter.add,
                    is_cancelled=is_cancelled,
                )
                files.append(result.file)
                diagnostics.extend(result.diagnostics)
            write_companions(beside, start / (parsed.base_model or parsed.models[0].model), plan, parsed, diagnostics)
    return MergedModel(target, tuple(files), tuple(diagnostics))


def _read_recipe(recipe: Recipe | str | Path) -> tuple[Recipe, Path]:
    if isinstance(recipe, Recipe):
        return recipe, Path()
    path = Path(recipe)
    try:
        text = read_document(path, most_bytes=limits.MAX_REQUEST_BYTES).decode()
    except UnicodeDecodeError as error:
        msg = f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        raise RecipeInvalidError(msg) from error
    return parse_recipe(text), path.parent


def _open_inputs(recipe: Recipe, start: Path, stack: ExitStack) -> _Inputs:
    if recipe.request is not None:
        msg = "a request is answered by participants of a project; only the service merges with its answers"
        raise RecipeInvalidError(msg)
    if not recipe.models:
        msg = "the recipe names no models; add `models:` with a list of `- model: FOLDER`"
        raise RecipeInvalidError(msg)
    measured = _measured_file(recipe)
    estimates = recipe.parameters.missing_statistics == "estimate"
    members: list[Member] = []
    readers: dict[str, MemberReader] = {}
    keys = _keys_of(recipe.models, start, measured, estimates=estimates)
    for entry, key in zip(recipe.models, keys, strict=True):
        weights = _open_member(start, entry.model, recipe.base_model, stack)
        tensors = _tensors_of(weights)
        configured = start / (recipe.base_model or "") if is_adapter(start / entry.model) else start / entry.model
        rows = None if entry.labels is None else _label_rows(entry.labels, configured, tensors)
        member = Member(key, entry.model, entry.parameters.weight, tensors, labels=rows)
        statistics = fisher = None
        path = start / entry.model / (measured or "")
        if measured == FISHER_FILE_NAME:
            member, fisher = replace(member, fisher=open_fisher_file(path).metadata), _open_file(path, stack)
        if measured == STATISTICS_FILE_NAME and (path.is_file() or not estimates):
            metadata = open_statistics_file(path).metadata
            member = replace(
                member, taps=metadata.taps, encoding=metadata.encoding, weighting=metadata.collector.weighting
            )
            statistics = decode_statistics(_open_file(path, stack), metadata.encoding)
        members.append(member)
        readers[key] = MemberReader(weights, statistics, fisher)
    base = None if recipe.base_model is None else _open_weights(start / recipe.base_model, stack)
    return _Inputs(tuple(members), readers, base)


def _label_rows(trained: Sequence[int], folder: Path, tensors: Mapping[str, TensorInfo]) -> LabelRows:
    """Say which rows of a model's head are those of its trained labels, by its own config.json and the usual heads."""
    config = read_json_object(folder / "config.json")
    labels = trained_labels(trained, label_count(config))
    names = label_parameters(tensors.values(), vocabulary_size(config), Policy(), labels.count)
    return LabelRows(names, frozenset(labels.trained))


def _measured_file(recipe: Recipe) -> str | None:
    """Name the file that the method reads beside the weights."""
    method = METHODS[recipe.merge_method]
    if isinstance(method, ElementMethod):
        return FISHER_FILE_NAME
    return STATISTICS_FILE_NAME if method.reads_taps else None


def _keys_of(entries: tuple[ModelEntry, ...], start: Path, measured: str | None, *, estimates: bool) -> list[str]:
    """Name each model by its content, so that neither the recipe's order nor a folder's name can change the result.

    By what was measured, or the weights where none of it is read or there. Where samples are alike, by all of both.
    """
    folders = [start / entry.model for entry in entries]
    weights = [_weights_of(folder) for folder in folders]
    found = [_measured_of(folder, measured, estimates=estimates) if measured else [] for folder in folders]
    samples = [_digest(first or rest, sample=True) for first, rest in zip(found, weights, strict=True)]
    files = [first + rest for first, rest in zip(found, weights, strict=True)]
    return [
        sample if samples.count(sample) == 1 else f"{sample}-{_digest(paths, sample=False)}"
        for sample, paths in zip(samples, files, strict=True)
    ]


def _weights_of(folder: Path) -> list[Path]:
    names = (ADAPTER_FILE, ADAPTER_CONFIG_FILE) if is_adapter(folder) else weight_file_names(folder)
    return [folder / name for name in names]


def _measured_of(folder: Path, name: str, *, estimates: bool) -> list[Path]:
    """Return the file of what was measured; none where estimates may take its place."""
    path = folder / name
    if path.is_file():
        return [path]
    measure = f"--model {folder} --texts FILE --out {path}"
    if name == FISHER_FILE_NAME:
        msg = f"{folder} holds no {name}, which this method reads: gramfuse stats fisher {measure}"
        raise FileUnreadableError(msg)
    if estimates:
        return []
    msg = (
        f"{folder} holds no {name}, which this method reads: gramfuse stats collect {measure}; "
        "or have what is missing estimated, with missing_statistics: estimate among the recipe's parameters"
    )
    raise FileUnreadableError(msg)


def _digest(paths: Sequence[Path], *, sample: bool) -> str:
    """Return the SHA-256 of files, or of their lengths and of 64 KiB in every 16 MiB of them."""
    stride, length = (_STRIDE_BYTES, _SAMPLE_BYTES) if sample else (_CHUNK_BYTES, _CHUNK_BYTES)
    digest = hashlib.sha256()
    for path in paths:
        with LocalFile(path) as file:
            digest.update(file.size.to_bytes(8, "little"))
            for start in range(0, file.size, stride):
                digest.update(read_bytes(file, start, min(start + length, file.size)))
    return digest.hexdigest()


def _open_member(start: Path, model: str, base: str | None, stack: ExitStack) -> TensorReader:
    if not is_adapter(start / model):
        return _open_weights(start / model, stack)
    if base is None:
        msg = f"{model} is an adapter, to be added to a base model, and the recipe names none; add base_model"
        raise RecipeInvalidError(msg)
    return AdaptedWeights.open(open_adapter(start / model, start / base), stack)


def _open_weights(folder: Path, stack: ExitStack) -> TensorFiles:
    return TensorFiles([_open_file(folder / name, stack) for name in weight_file_names(folder)])


def _open_file(path: Path, stack: ExitStack) -> TensorFile:
    try:
        return TensorFile.open(stack.enter_context(LocalFile(path)))
    except GramfuseError as error:
        raise type(error)(f"{path}: {error.message}", **error.facts) from error


def _tensors_of(files: TensorReader) -> dict[str, TensorInfo]:
    return {
        entry.name: TensorInfo.model_validate({"name": entry.name, "dtype": entry.dtype, "shape": entry.shape})
        for entry in files.tensors.values()
    }


def _require_statistics_to_fit(plan: MergePlan) -> None:
    """Refuse what would be a plain average under another name: statistics that fit none of the weights."""
    if METHODS[plan.method].reads_taps and len(plan.labels) > 1:
        steps = [step for task in plan.tasks for step in task.steps]
        if not any(isinstance(step, GramStep) for step in steps):
            msg = (
                f"no weight of the models is fed by taps of all their statistics, so {plan.method} would be an average"
            )
            raise RecipeInvalidError(msg)
