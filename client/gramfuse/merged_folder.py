"""What a local merge writes beside the weights, so that `from_pretrained` loads the folder."""

import json
import shutil
from pathlib import Path
from typing import Any

from gramfuse.companions import REPORT_FILE, companion_files
from gramfuse.contributing.loading import INDEX_FILE
from gramfuse_shared.contract.recipe import Recipe
from gramfuse_shared.errors import ConflictError
from gramfuse_shared.merging.configuration import declare_dtype
from gramfuse_shared.merging.plan import MergePlan
from gramfuse_shared.version import __version__


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


def write_companions(
    beside: Path, source: Path, plan: MergePlan, recipe: Recipe, diagnostics: list[dict[str, Any]]
) -> None:
    """Copy configuration and tokenizer, write the index of shards and the report."""
    for path in companion_files(source):
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
