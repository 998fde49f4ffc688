"""Which sources decide what: results are kept under their digests, so that a change measures anew."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from benchmarks.paper import REPOSITORY

MEASURING: Final = (REPOSITORY / "client" / "gramfuse" / "measuring",)
"""What statistics are made by."""

_DRAWING: Final = frozenset({"__main__.py", "epochs.py", "page.py", "plots.py", "results.py"})
PROGRAMS: Final = (
    *(REPOSITORY / folder for folder in ("shared", "client", "server")),
    *(file for file in sorted(Path(__file__).parent.glob("*.py")) if file.name not in _DRAWING),
)
"""What scores are made by, the service among them."""


def digest_of(places: Iterable[Path]) -> str:
    """Identify the Python files in these places."""
    digest = hashlib.sha256()
    for place in places:
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
