"""What stands beside an exported adapter's tensors: PEFT's configuration, the report, and a card for people."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gramfuse.contributing.loading import ADAPTER_CONFIG_FILE
from gramfuse_shared.version import __version__

REPORT_FILE: Final = "gramfuse-export.json"
CARD_FILE: Final = "README.md"


def write_description(folder: Path, configuration: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    """Write `adapter_config.json`, `gramfuse-export.json` and `README.md`; none holds a path of this machine."""
    _write_json(folder / ADAPTER_CONFIG_FILE, configuration)
    _write_json(folder / REPORT_FILE, {"format": "gramfuse/export/1", "gramfuse": __version__, **report})
    (folder / CARD_FILE).write_text(_card(report), "utf-8")


def _card(report: Mapping[str, Any]) -> str:
    lines = [
        "---",
        "library_name: peft",
        "tags: [lora, gramfuse]",
        "---",
        "",
        "# A merged model as an adapter of its base",
        "",
        f"Written by gramfuse {__version__} from a merged model and its base: load it with",
        "`peft.PeftModel.from_pretrained(base, folder)`, on the base that the merge had.",
        "",
        f"Truncation lost {report['error']:.2%} of the merge: ‖Δ − Δ′‖ / ‖Δ‖ over all weights, Δ the merged model's",
        "difference from the base, Δ′ the adapter's. No receipt covers this folder; the merged model's own does.",
        "",
        "| linear layer | rank | of | lost |",
        "|---|---:|---:|---:|",
        *(f"| {e['tensor']} | {e['rank']} | {e['full_rank']} | {e['error']:.2%} |" for e in report["layers"]),
    ]
    if report["whole"]:
        lines += ["", "Held exactly, in whole size: " + ", ".join(report["whole"]) + "."]
    if report["left_out"]:
        lines += ["", "Changed by the merge and **not in this adapter**, where the base's values stand:", ""]
        lines += [f"- {entry['tensor']}: {entry['reason']}" for entry in report["left_out"]]
    return "\n".join(lines) + "\n"


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
