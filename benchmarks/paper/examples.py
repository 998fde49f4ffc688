"""What a line of a corpus is, and files of such lines."""

import json
from pathlib import Path
from typing import Any, Final, Literal, get_args

Part = Literal["train", "dev", "test"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
Example = dict[str, Any]
"""One line of a corpus: `{"tokens": [...], "tags": [...]}`, or `{"text": ..., "labels": [...]}`.

Tokens with `"user_names": false` come from a corpus in which user names are no entities.
"""


def write_examples(path: Path, examples: list[Example]) -> None:
    """Write JSON lines, the bytes decided by the examples alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(example, ensure_ascii=False, sort_keys=True) + "\n" for example in examples)
    path.write_text("".join(lines), encoding="utf-8")


def read_examples(path: Path) -> list[Example]:
    """Read what `write_examples` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
