"""Commands about the caller: login, whoami, env."""

import importlib.metadata
import platform
import sys
from typing import Annotated, Any, Final

import typer

from gramfuse import pinning
from gramfuse.cli import output, session
from gramfuse.config import ALLOW_HTTP_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, Home, Token, normalize_url
from gramfuse_shared.errors import ConfigurationError, NotConfirmedError
from gramfuse_shared.version import __version__

_PACKAGES: Final = ("httpx", "pydantic", "cryptography", "torch", "transformers", "safetensors", "numpy", "datasets")

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command()
def login(
    url: Annotated[str, typer.Argument(help="The server, e.g. https://merge.example.org")],
    token: Annotated[
        str | None,
        typer.Option("--token", help="The token; - reads it from standard input. Asked for if left out."),
    ] = None,
    receipt_key: Annotated[
        str | None,
        typer.Option(help="The server's receipt key, told by its operator; pinned in the place of another one, too."),
    ] = None,
) -> None:
    """Sign in: check the token, keep it readable by you alone, and pin the server's receipt key.

    Examples: gramfuse login https://merge.example.org · gramfuse login http://127.0.0.1:8080 --token - < token.txt
    """
    from gramfuse.participation import Client  # noqa: PLC0415 - the network library loads only where it is used

    allow_http = session.options().allow_http
    address = normalize_url(url, allow_http=allow_http)
    secret = Token(_read_token(token))
    home = Home.default()
    with Client(address, secret, home=home, allow_http=allow_http or None) as client:
        info = client.server_info(receipt_key=receipt_key)
        who = client.whoami()
    home.save_credentials(address, secret, allow_http=allow_http)
    output.show(
        {"url": address, "server": info, "identity": who},
        lambda console: console.print(
            f"signed in to {address} as {who.organization or 'operator'} ({who.role})\nreceipt key {info.receipt_key} "
            + (
                "is pinned; compare it with the one that `gramfuse-server init` showed the operator"
                if receipt_key is None
                else "is pinned: it is the one that you gave"
            ),
            markup=False,
        ),
    )


@app.command()
def whoami() -> None:
    """Show whose token is in use.

    Example: gramfuse whoami --format json
    """
    with session.open_client() as client:
        who = client.whoami()
        url = client.url
    expires = f"{who.expires_at:%Y-%m-%d}" if who.expires_at else "never"
    output.show(
        who,
        lambda console: console.print(
            f"{who.organization or '(no organization)'} as {who.role} at {url}, token {who.token}, expires {expires}",
            markup=False,
        ),
    )


@app.command()
def env() -> None:
    """Show versions, paths and settings, for a bug report; tokens are masked.

    Example: gramfuse env --format json
    """
    facts = environment()
    output.show(facts, output.table(("", ""), [(key, str(value)) for key, value in facts.items() if value is not None]))


def environment() -> dict[str, Any]:
    """Return versions, paths and settings, secrets masked."""
    home = Home.default()
    facts: dict[str, Any] = {
        "gramfuse": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "home": str(home.path),
        "url": None,
        "token": None,
    }
    options = session.options()
    try:
        endpoint = home.endpoint(options.url, allow_http=options.allow_http or None)
    except ConfigurationError as error:
        facts["problem"] = error.message
    else:
        facts |= {"url": endpoint.url, "token": str(endpoint.token) if endpoint.token else None}
        facts["receipt key"] = pinning.pinned_key(home, endpoint.url)
    facts["variables"] = f"{URL_VARIABLE}, {TOKEN_VARIABLE}, GRAMFUSE_HOME and {ALLOW_HTTP_VARIABLE} override"
    return facts | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _read_token(option: str | None) -> str:
    if option == "-":
        return sys.stdin.readline()
    if option is not None:
        return option
    if not sys.stdin.isatty():
        msg = "there is no terminal to ask for the token at: give --token -, and the token on standard input"
        raise NotConfirmedError(msg)
    return str(typer.prompt("Token", hide_input=True, err=True))
