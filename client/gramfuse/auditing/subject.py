"""What an audit is of, by digest: every byte that the report hangs on, so that a kept one is known to be current."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gramfuse.auditing.report import Subject
from gramfuse.contributing.draft import Draft
from gramfuse.contributing.virtual_files import VirtualFile, digest_of_folder
from gramfuse_shared.contract.manifest import BaseManifest
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.digest import document_digest


def subject_of(draft: Draft, base: BaseManifest, policy: Policy, base_folder: Path | None) -> Subject:
    """Read the files of a draft once, for their digests.

    Raises:
        FileUnreadableError: one cannot be read.
    """
    return Subject(
        weights=digest_of_folder(draft.model.path),  # config and tokenizer are run, too
        statistics=None if draft.statistics is None else VirtualFile.of_path(draft.statistics.path).digest(),
        fisher=None if draft.fisher is None else VirtualFile.of_path(draft.fisher.path).digest(),
        policy=policy.content_digest(),
        base=base.content_digest(),
        base_at_hand=base_folder is not None,
    )


def digest_of_texts(texts: Sequence[Any]) -> str:
    """Return the SHA-256 of texts in their order."""
    return document_digest([list(text) if isinstance(text, tuple) else text for text in texts])
