"""Which receipt key is a server's: the one that it had at first use, or one that this one handed over to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from gramfuse.config import Home
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import FileUnreadableError, ReceiptInvalidError

_FOLDER: Final = "receipt-keys"


@dataclass(frozen=True, slots=True)
class Pin:
    """What is kept of a server's receipt key: the present one, and those that it took over from, for old receipts."""

    url: str
    key: str
    former: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a pin.

        Raises:
            FileNotFoundError: there is none.
            FileUnreadableError: it cannot be read.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            former = tuple(str(key) for key in document.get("former", ()))
            return cls(str(document["url"]), str(document["receipt_key"]), former)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"the pinned key in {path} cannot be read: {error}"
            raise FileUnreadableError(msg) from error

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps({"url": self.url, "receipt_key": self.key, "former": self.former}) + "\n"


def pin(home: Home, url: str, key: str, *, former: Sequence[str] = ()) -> None:
    """Pin a server's receipt key at first use; later only the same key will do, or one that it handed over to.

    Args:
        home: the client's.
        url: the server.
        key: what it presents.
        former: the keys before, each of which signed the one behind it: `require_succession` has seen it.

    Raises:
        ReceiptInvalidError: another key is pinned for this URL, or the key is one that was handed over.
    """
    pinned = _read(home, url)
    if pinned is None:
        home.create(_name(url), Pin(url, key, tuple(former)).to_json())
        pinned = Pin.read(home.path / _name(url))  # somebody may have pinned in the same moment
    if key in pinned.former:
        msg = f"{url} presents a receipt key that it handed over to another one before: {key}. Do not use it"
        raise ReceiptInvalidError(msg, url=url, pinned=pinned.key, presented=key)
    if key != pinned.key and pinned.key not in former:
        msg = (
            f"{url} presents another receipt key than the one pinned at first use, and no hand-over from that one. Ask "
            f"its operator by another way; if the change is theirs: gramfuse login {url} --receipt-key KEY"
        )
        raise ReceiptInvalidError(msg, url=url, pinned=pinned.key, presented=key)
    known = tuple(dict.fromkeys((*former, *pinned.former)))
    if (pinned.key, pinned.former) != (key, known):
        home.write(_name(url), Pin(url, key, known).to_json())


def replace(home: Home, url: str, key: str, *, former: Sequence[str] = ()) -> None:
    """Pin a key that people compared. What was pinned before is trusted no more, unless it is one of `former`."""
    home.write(_name(url), Pin(url, key, tuple(former)).to_json())


def pinned_key(home: Home, url: str) -> str | None:
    """Return the pinned receipt key of a server, base64, or None before first use."""
    pinned = _read(home, url)
    return None if pinned is None else pinned.key


def keys_of(home: Home, url: str) -> tuple[str, ...]:
    """Return the keys by which a server's receipts may be signed: the pinned one, and those before it."""
    pinned = _read(home, url)
    return () if pinned is None else (pinned.key, *pinned.former)


def all_keys(home: Home) -> dict[str, str]:
    """Return all keys by which receipts may be signed (base64), to the URL of their server."""
    folder = home.path / _FOLDER
    pins = [Pin.read(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    return {key: each.url for each in pins for key in (*each.former, each.key)}


def _read(home: Home, url: str) -> Pin | None:
    try:
        return Pin.read(home.path / _name(url))
    except FileNotFoundError:
        return None


def _name(url: str) -> str:
    return f"{_FOLDER}/{sha256_hex(url.encode())[:24]}.json"
