"""Which files beside the weights make a `from_pretrained` folder whole: configuration and tokenizer, no reports."""

from pathlib import Path
from typing import Final

from gramfuse.contributing.loading import INDEX_FILE
from gramfuse_shared.contract.receipt import RECEIPT_FILE_NAME

REPORT_FILE: Final = "gramfuse-merge.json"
"""Written into every folder that a local merge made: recipe, models, diagnostics."""

HEAD_NOTE_FILE: Final = "gramfuse-head.json"
"""Written into every folder that a head was attached in: where the trunk came from, which parameters are one's own."""

ALIGNMENT_NOTE_FILE: Final = "gramfuse-alignment.json"
"""Written into every folder of a model whose units were brought into another model's order: whose, and by what."""

_SUFFIXES: Final = frozenset({".json", ".jinja", ".model", ".tiktoken", ".txt"})
_LEFT_OUT: Final = frozenset(
    {
        REPORT_FILE,
        HEAD_NOTE_FILE,
        ALIGNMENT_NOTE_FILE,
        RECEIPT_FILE_NAME,
        INDEX_FILE,
        "diagnostics.json",
        "pytorch_model.bin.index.json",
        "trainer_state.json",
    }
)


def companion_files(folder: Path) -> list[Path]:
    """List a model folder's configuration and tokenizer files by name; what speaks of its making is left out."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in _SUFFIXES and path.name not in _LEFT_OUT
    ]
