"""The folder that a local merge writes: complete or not there, with everything that `from_pretrained` reads."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gramfuse.contributing.loading import INDEX_FILE
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import ConflictError, FileUnwritableError
from gramfuse_shared.merging.configuration import declare_dtype
from gramfuse_shared.merging.plan import MergePlan
from gramfuse_shared.version import __version__

REPORT_FILE: Final = "gramfuse-merge.json"
"""Written into every merged folder: recipe, models, diagnostics. `overwrite` replaces only folders that hold it."""

_COPIED_SUFFIXES: Final = frozenset({".json", ".jinja", ".model", ".tiktoken", ".txt"})
_NOT_COPIED: Final = frozenset({REPORT_FILE, INDEX_FILE, "pytorch_model.bin.index.json", "trainer_state.json"})


def require_free(target: Path, *, overwrite: bool) -> None:
    """Require that the folder is not there, empty, or one that a merge wrote and `overwrite` gives up.

    Raises:
        ConflictError: it holds something else.
    """
    replaced = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if replaced and not overwrite:
        msg = f"{target} exists and is not empty; choose another folder, or --overwrite a folder that a merge wrote"
        raise ConflictError(msg)
    if replaced and not (target / REPORT_FILE).is_file():
        msg = f"{target} holds no {REPORT_FILE}, so no merge wrote it and it is not replaced; choose another folder"
        raise ConflictError(msg)


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Give a folder beside the target, which takes the target's place on a clean exit and vanishes on any other."""
    target = target.absolute()
    beside = target.with_name(f".{target.name}.partial")
    try:
        if beside.exists():  # an earlier run was killed
            shutil.rmtree(beside)
        beside.mkdir(parents=True)
    except OSError as error:
        msg = f"{beside} cannot be made: {error.strerror}; choose another folder"
        raise FileUnwritableError(msg) from error
    try:
        yield beside
        _swap(beside, target)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        msg = f"{target} cannot be written: {error.strerror}"
        raise FileUnwritableError(msg) from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _swap(beside: Path, target: Path) -> None:
    """Put the new folder in the target's place; the old one is deleted last, so that one of them always exists."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        if old.exists():
            shutil.rmtree(old)
        target.rename(old)
    beside.rename(target)
    if old.exists():
        shutil.rmtree(old)


def write_companions(
    beside: Path, source: Path, plan: MergePlan, recipe: Recipe, diagnostics: list[dict[str, Any]]
) -> None:
    """Copy configuration and tokenizer, write the index of shards and the report."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _COPIED_SUFFIXES and path.name not in _NOT_COPIED:
            shutil.copyfile(path, beside / path.name)
    config = beside / "config.json"
    if recipe.out_dtype is not None and config.is_file():
        config.write_bytes(declare_dtype(config.read_bytes(), recipe.out_dtype))
    index = plan.index_json()
    if index is not None:
        (beside / INDEX_FILE).write_bytes(index)
    report = {
        "gramfuse": __version__,
        "method": plan.method_version,
        "recipe": recipe.model_dump(mode="json"),
        "models": [{"model": label, "key": key} for key, label in plan.labels.items()],
        "diagnostics": diagnostics,
    }
    (beside / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
