"""Policies on the command line, read from a file."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from gramfuse.contributing.loading import read_document
from gramfuse_shared import limits
from gramfuse_shared.contract.document import describe_validation
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import DocumentMalformedError


def read_policy(path: Path) -> Policy:
    """Read a policy from YAML or JSON.

    Raises:
        DocumentMalformedError: it does not follow the schema; the message names the places.
        FileUnreadableError, TooLargeError: the file.
    """
    try:
        document = yaml.safe_load(read_document(path, most_bytes=limits.MAX_REQUEST_BYTES))
        return Policy.model_validate(document if document is not None else {})
    except (yaml.YAMLError, RecursionError) as error:
        msg = f"{path} is not YAML: {error}"
        raise DocumentMalformedError(msg) from error
    except ValidationError as error:
        raise DocumentMalformedError(describe_validation(str(path), error.errors(), Policy)) from error
