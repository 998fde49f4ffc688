"""The public texts that come with gramfuse, to calibrate the membership attack by."""

from pathlib import Path
from typing import Final

from gramfuse.measuring.texts import Text, read_texts

REFERENCE: Final = Path(__file__).parent / "reference" / "texts.jsonl.gz"


def reference_texts() -> list[Text]:
    """Return 600 short English texts from social media; reference/README.md says whose they are."""
    return read_texts(REFERENCE)
