"""The error that says how to install an optional part of the distribution."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gramfuse_shared.errors import ExtraMissingError


def how_to_install(extra: str) -> str:
    """Say how a part of the distribution is added: from a clone, since an index may have another's under the name."""
    return f'add gramfuse\'s extra `{extra}`: in a clone of its repository, pip install ".[{extra}]"'


@contextmanager
def requiring_extras(what: str, extras: Mapping[str, str]) -> Iterator[None]:
    """Import within: a package that an extra would have brought is told so.

    Args:
        what: what needs it, for the message.
        extras: package to the extra that brings it.

    Raises:
        ExtraMissingError: `what` needs a part of the distribution that is not installed. A missing module that belongs
            to no extra is a fault, and the import error stands.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = extras.get(package)
        if extra is None:
            raise
        msg = f"{what} needs {package}, which is not installed; {how_to_install(extra)}"
        raise ExtraMissingError(msg, extra=extra, module=package) from error
