"""Policies on the command line, read from a file."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from gramfuse.cli import output
from gramfuse.contributing.loading import read_document
from gramfuse_shared import limits
from gramfuse_shared.contract.document import describe_validation
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.requests import requests_in_vain
from gramfuse_shared.errors import DocumentMalformedError


def read_policy(path: Path) -> Policy:
    """Read a policy from YAML or JSON, and warn of requests that nothing could come of.

    Everybody has to accept and push again once another version mends it, so it is told before the first is sent.

    Raises:
        DocumentMalformedError: it does not follow the schema; the message names the places.
        FileUnreadableError, TooLargeError: the file.
    """
    try:
        document = yaml.safe_load(read_document(path, most_bytes=limits.MAX_REQUEST_BYTES))
        policy = Policy.model_validate(document if document is not None else {})
    except (yaml.YAMLError, RecursionError) as error:
        msg = f"{path} is not YAML: {error}"
        raise DocumentMalformedError(msg) from error
    except ValidationError as error:
        raise DocumentMalformedError(describe_validation(str(path), error.errors(), Policy)) from error
    for kind, why in requests_in_vain(policy).items():
        output.note(
            f"Warning: under {path} nobody can be asked for {kind}: {why}. Everybody has to accept that "
            "one, and to push again"
        )
    return policy
