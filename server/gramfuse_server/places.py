"""Which folders of this machine a server writes to, by its settings."""

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from gramfuse_server.database import database_url
from gramfuse_server.settings import Settings
from gramfuse_shared.errors import ConfigurationError


def blobs_folder(blobs: str) -> Path | None:
    """Return the folder of a blob store's URL, None where it is no folder."""
    parts = urlsplit(blobs)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def database_folder(settings: Settings) -> Path | None:
    """Return the folder of SQLite's file, None of a database server, or where the setting is no database."""
    try:
        url = database_url(settings.database_url)
    except ConfigurationError:
        return None  # told by whoever opens it
    return Path(url.database or "").absolute().parent if url.get_backend_name() == "sqlite" else None


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest above it that is there, in whose file system it will be made."""
    return next(path for path in (folder, *folder.parents) if path.exists())
