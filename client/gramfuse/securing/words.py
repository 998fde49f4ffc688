"""Writes a session's file of masked words into its folder, from the organization's own weights and statistics."""

import secrets
from collections.abc import Sequence
from pathlib import Path

from gramfuse.securing.kept import KeptSession
from gramfuse.securing.participant import WriteWords
from gramfuse_shared.contract.manifest import FileEntry
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.creating import sync_folder
from gramfuse_shared.secure.masks import Mask
from gramfuse_shared.secure.words import Values, write_words


def words_of(session: SessionManifest, values: Values) -> WriteWords:
    """Return what writes the masked words of these numbers; they lie under their digest, so none replace others."""

    def write(kept: KeptSession, masks: Sequence[Mask]) -> FileEntry:
        beside: Path = kept.folder / f"words-{secrets.token_hex(8)}"
        entry = write_words(beside, session, masks, values)
        beside.replace(kept.words(entry.sha256))
        sync_folder(kept.folder)
        return entry

    return write
