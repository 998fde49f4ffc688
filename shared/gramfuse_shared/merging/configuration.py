"""The one change that a merge makes to the base model's `config.json`: the dtype that was written."""

import json

from gramfuse_shared.contract.recipe import OutputDtype
from gramfuse_shared.errors import FileUnreadableError


def declare_dtype(config: bytes, dtype: OutputDtype) -> bytes:
    """Return `config.json` with its `dtype` (older: `torch_dtype`) replaced, since `from_pretrained` loads in that one.

    A configuration that names no dtype is left as it is: `from_pretrained` then looks at the weights.

    Raises:
        FileUnreadableError: not a JSON object.
    """
    try:
        document = json.loads(config)
    except (ValueError, RecursionError) as error:
        msg = f"config.json is not JSON: {error}"
        raise FileUnreadableError(msg) from error
    if not isinstance(document, dict):
        msg = "config.json does not hold a JSON object"
        raise FileUnreadableError(msg)
    named = [key for key in ("dtype", "torch_dtype") if key in document]
    if not named:
        return config
    changed = document | dict.fromkeys(named, dtype)
    return (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()
