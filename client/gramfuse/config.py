"""The client's home: which server, which token, and the files that other modules keep there."""

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

from gramfuse_shared.creating import create_once, replace_file
from gramfuse_shared.errors import ConfigurationError, UnauthenticatedError

HOME_VARIABLE: Final = "GRAMFUSE_HOME"
URL_VARIABLE: Final = "GRAMFUSE_URL"
TOKEN_VARIABLE: Final = "GRAMFUSE_TOKEN"  # noqa: S105 - the variable's name
ALLOW_HTTP_VARIABLE: Final = "GRAMFUSE_ALLOW_HTTP"
THROUGH_SERVER_VARIABLE: Final = "GRAMFUSE_THROUGH_SERVER"

_CREDENTIALS: Final = "credentials.json"
_PAGE: Final = re.compile(r"/(?:dashboard|v1|healthz|readyz|openapi\.json)(?:/.*)?$")
"""What of an address is one of the server's own pages, copied from a browser."""
_LOOPBACK: Final = frozenset({"localhost", "::1"})


class Token:
    """A secret that shows only its id: in repr, str, logs and errors alike. `reveal` is for the request's header."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        stripped = value.strip()
        if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
            msg = "a token is one word of printable characters, such as gf_<id>_<secret>"
            raise ConfigurationError(msg)
        self._value = stripped

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._value

    def __str__(self) -> str:
        prefix, _, rest = self._value.partition("_")
        name, separator, _ = rest.partition("_")
        return f"gf_{name}_…" if prefix == "gf" and separator else "…"

    def __repr__(self) -> str:
        return f"Token({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and secrets.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address and the token for it. `through_server`: bytes never go to or from the server's store."""

    url: str
    token: Token | None
    allow_http: bool
    through_server: bool = False


@dataclass(frozen=True, slots=True)
class Home:
    """The folder with the client's credentials and pinned keys."""

    path: Path

    @classmethod
    def default(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return GRAMFUSE_HOME, or the platform's folder for settings."""
        configured = environment.get(HOME_VARIABLE)
        if configured:
            return cls(Path(configured).expanduser())
        import platformdirs  # noqa: PLC0415 - not there on a machine with only the collector's packages

        return cls(Path(platformdirs.user_config_dir("gramfuse", appauthor=False)))

    # --- credentials -------------------------------------------------------------------------------------------

    def save_credentials(self, url: str, token: Token, *, allow_http: bool = False) -> None:
        """Keep a token for a server, readable by its owner only, and make that server the default."""
        credentials = self._read_credentials()
        servers = {**credentials["servers"], url: {"token": token.reveal(), "allow_http": allow_http}}
        self.write(_CREDENTIALS, json.dumps({"default": url, "servers": servers}, indent=2) + "\n")

    def endpoint(
        self,
        url: str | None = None,
        token: str | Token | None = None,
        *,
        allow_http: bool | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Endpoint:
        """Choose the server and the token: the argument, else the environment, else what `login` kept.

        Raises:
            ConfigurationError: no server is known, or its URL would send the token in the clear.
        """
        credentials = self._read_credentials()
        chosen = url or environment.get(URL_VARIABLE) or credentials["default"]
        if not chosen:
            msg = f"no server is known: run `gramfuse login URL`, or set {URL_VARIABLE}"
            raise ConfigurationError(msg)
        known = credentials["servers"].get(normalize_url(chosen, allow_http=True), {})
        if allow_http is None:
            allow_http = _is_set(environment, ALLOW_HTTP_VARIABLE) or bool(known.get("allow_http"))
        secret = token or environment.get(TOKEN_VARIABLE) or known.get("token")
        return Endpoint(
            url=normalize_url(chosen, allow_http=allow_http),
            token=secret if isinstance(secret, Token) or secret is None else Token(secret),
            allow_http=allow_http,
            through_server=_is_set(environment, THROUGH_SERVER_VARIABLE),
        )

    def _read_credentials(self) -> dict[str, Any]:
        path = self.path / _CREDENTIALS
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"default": None, "servers": {}}
        except NotADirectoryError as error:
            msg = f"the client's home {self.path} is no folder, or below a file; set {HOME_VARIABLE} to a folder"
            raise ConfigurationError(msg) from error
        except (OSError, ValueError) as error:
            msg = f"{path} cannot be read: {type(error).__name__}; delete it and run `gramfuse login URL` again"
            raise ConfigurationError(msg) from error
        if not isinstance(document, dict) or not isinstance(document.get("servers"), dict):
            msg = f"{path} does not hold credentials; delete it and run `gramfuse login URL` again"
            raise ConfigurationError(msg)
        return {"default": document.get("default"), "servers": document["servers"]}

    # --- where base models lie -----------------------------------------------------------------------------------

    def remember_base(self, fingerprint: str, folder: Path) -> None:
        """Remember where a base model was pulled to, so that a push can compare the embeddings with it."""
        self.write(f"bases/{fingerprint}", str(folder.resolve()) + "\n")

    def base_folder(self, fingerprint: str) -> Path | None:
        """Return the folder a base model was last pulled to, if it is still there."""
        try:
            folder = Path((self.path / "bases" / fingerprint).read_text(encoding="utf-8").strip())
        except OSError:
            return None
        return folder if folder.is_dir() else None

    def folder(self, name: str) -> Path:
        """Return a folder of the home, for its owner only; made where it is not there yet."""
        made = self.path / name
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return made

    # --- files ---------------------------------------------------------------------------------------------------

    def write(self, name: str, text: str) -> None:
        """Write a file of the home: a reader sees the old file or the new one."""
        with self._writing(name) as path:
            replace_file(path, text.encode())

    def create(self, name: str, text: str) -> None:
        """Write a file of the home unless there is one: the first writer wins, and nobody sees half a file."""
        with self._writing(name) as path:
            create_once(path, text.encode)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        path = self.path / name
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            yield path
        except OSError as error:
            raise _unwritable(self.path, error) from error


def normalize_url(url: str, *, allow_http: bool) -> str:
    """Return a server's URL in the one form under which it is remembered.

    Raises:
        ConfigurationError: not a plain http(s) URL, or http:// to another machine without permission.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        msg = f"{url!r} is not a URL: {error}"
        raise ConfigurationError(msg) from error
    if parts.scheme not in {"http", "https"} or not host:
        msg = f"{url!r} is not a server's URL; it starts with https:// (or http:// on this machine)"
        raise ConfigurationError(msg)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        msg = "a server's URL holds no user, query or fragment; tokens are given apart"
        raise ConfigurationError(msg)
    if parts.scheme == "http" and not allow_http and not is_loopback(host):
        msg = f"http://{host} would send the token in the clear: use https://, or --allow-http on a network you trust"
        raise ConfigurationError(msg)
    authority = f"[{host}]" if ":" in host else host
    path = _PAGE.sub("", parts.path).rstrip("/")
    return f"{parts.scheme}://{authority}{f':{port}' if port else ''}{path}"


def _is_set(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in {"1", "true", "yes"}


def is_loopback(host: str) -> bool:
    """Tell whether a host name stands for this machine without asking a name server."""
    octets = host.split(".")
    is_v4_loopback = len(octets) == 4 and octets[0] == "127" and all(octet.isdecimal() for octet in octets)  # noqa: PLR2004
    return host in _LOOPBACK or is_v4_loopback


def require_token(endpoint: Endpoint) -> Token:
    """Return the endpoint's token.

    Raises:
        UnauthenticatedError: there is none.
    """
    if endpoint.token is None:
        msg = f"no token for {endpoint.url}"
        raise UnauthenticatedError(msg)
    return endpoint.token


def _unwritable(home: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"the client's home {home} cannot be written: {error.strerror}; set {HOME_VARIABLE}")
