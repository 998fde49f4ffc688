"""From the global options to a signed-in client."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gramfuse.cli import output

if TYPE_CHECKING:
    from gramfuse.participation import Client

NO_WORKER: Final = (
    "no worker of the server is alive at the moment, and this waits for one: its operator starts one with "
    "`gramfuse-server worker`. Ctrl-C leaves everything as it is, and the same command goes on from there"
)


@dataclass(frozen=True, slots=True)
class Options:
    """The global options that choose a server."""

    url: str | None = None
    allow_http: bool = False


_options = Options()


def begin() -> None:
    """Begin a command line anew."""
    global _options  # noqa: PLW0603 - one process runs one command line
    _options = Options()


def choose(*, url: str | None = None, allow_http: bool | None = None) -> None:
    """Remember options of this command line; one that was not given changes nothing."""
    global _options  # noqa: PLW0603 - as above
    _options = Options(url=url or _options.url, allow_http=bool(allow_http) or _options.allow_http)


def options() -> Options:
    """Return the global options of this command line."""
    return _options


def open_client() -> "Client":
    """Open a client by the global options and the client's home.

    Raises:
        ConfigurationError: no server is known.
        UnauthenticatedError: no token for it is known.
    """
    from gramfuse.participation import Client  # noqa: PLC0415 - the network library loads only where it is used

    return Client(_options.url, allow_http=_options.allow_http or None, on_no_worker=lambda: output.note(NO_WORKER))
