"""What each optional part of the distribution brings, and the error that says how to install it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def requiring_extras(what: str) -> Iterator[None]:
    """Import within: what is missing because of an extra is told so.

    Raises:
        ExtraMissingError: `what` needs a part of the distribution that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = missing_extra(error, what)
        if missing is None:
            raise
        raise missing from error


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
