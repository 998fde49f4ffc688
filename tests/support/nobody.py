"""Acting as a user whom modes bind: root, who runs many a suite, may do everything."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534


class AsNobody:
    """Acts as a user who is not root, for whom modes count; its folder is one that this user may enter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.was_root = os.geteuid() == 0

    def __enter__(self) -> None:
        if self.was_root:
            os.seteuid(NOBODY)

    def __exit__(self, *_: object) -> None:
        if self.was_root:
            os.seteuid(0)


@contextlib.contextmanager
def nobody() -> Iterator[AsNobody]:
    """Make a folder that everybody may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="gramfuse-nobody-") as folder:
        Path(folder).chmod(0o755)
        yield AsNobody(Path(folder))
