"""What each optional part of the distribution brings, and the error that says how to install it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from gramfuse_shared.errors import ExtraMissingError

_PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "torch": "collect",
        "transformers": "collect",
        "safetensors": "collect",
        "numpy": "collect",
        "datasets": "collect",
        "tokenizers": "collect",
    }
)


def missing_extra(error: ModuleNotFoundError, what: str) -> ExtraMissingError | None:
    """Translate a failed import into the error that names the install command.

    Returns None where the missing module belongs to no extra: then it is a fault, and the import error stands.
    """
    package = (error.name or "").partition(".")[0]
    extra = _PACKAGES.get(package)
    if extra is None:
        return None
    return ExtraMissingError(
        f'{what} needs {package}, which is not installed: pip install "gramfuse[{extra}]"', extra=extra, module=package
    )
