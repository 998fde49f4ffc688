"""The scales file that a new project is to have: checked against the base model, and named by the policy."""

from dataclasses import dataclass
from pathlib import Path

from gramfuse.contributing.loading import read_header
from gramfuse.contributing.virtual_files import VirtualFile
from gramfuse_shared import limits
from gramfuse_shared.contract.manifest import BaseManifest, FileEntry
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.rules import require_scales_architecture
from gramfuse_shared.contract.scales_file import SCALES_FILE_NAME, parse_scales_metadata
from gramfuse_shared.errors import PolicyViolationError


@dataclass(frozen=True, slots=True)
class ProjectScales:
    """A scales file, ready to be sent."""

    file: VirtualFile
    entry: FileEntry


def open_scales(path: Path, base: BaseManifest) -> ProjectScales:
    """Open a scales file that was measured on a base model.

    Raises:
        FileUnreadableError: there is no such file.
        HeaderMalformedError, HeaderTooLargeError, ScalesMalformedError: it is not a scales file.
        ArchitectureMismatchError: it was measured on another base model.
    """
    require_scales_architecture(parse_scales_metadata(read_header(path)), base)
    file = VirtualFile.of_path(path, SCALES_FILE_NAME)
    digest = file.digest(part_bytes=limits.DEFAULT_PART_BYTES)
    return ProjectScales(file, FileEntry(name=SCALES_FILE_NAME, bytes=file.length, sha256=digest))


def with_scales(policy: Policy, scales: FileEntry | None) -> Policy:
    """Return the policy with the digest of the project's scales file.

    Raises:
        PolicyViolationError: it names another, or one where none is given.
    """
    given = None if scales is None else scales.sha256
    if policy.scales not in {None, given}:
        has = "no scales file is given" if given is None else f"the scales file given is {given}"
        msg = f"the policy names the scales file {policy.scales}, and {has}; leave `scales` out to have it filled in"
        raise PolicyViolationError(msg)
    return policy.model_copy(update={"scales": given})
