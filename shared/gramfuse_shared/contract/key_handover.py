"""How a server's receipt key is followed by another: the old key signs the new one, and the new one the old.

Clients pin a receipt key at first use. A hand-over lets them go on to its successor without asking anybody. Signing and
verifying is `gramfuse_shared.succession`'s; here is what the bytes are.
"""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gramfuse_shared import limits
from gramfuse_shared.contract.document import Document
from gramfuse_shared.identifiers import Key, Signature


class KeyHandover(Document):
    """That one receipt key takes the place of another. `created` is for people: nothing is decided by it."""

    format: Literal["gramfuse/key-handover/1"] = "gramfuse/key-handover/1"
    former: Key
    successor: Key
    created: datetime

    @model_validator(mode="after")
    def _are_two_keys(self) -> Self:
        if self.former == self.successor:
            msg = "a key is handed over to another one"
            raise ValueError(msg)
        return self


class SignedHandover(Document):
    """A hand-over signed by both keys: the former one, which is trusted, and the successor, which answers for it."""

    handover: KeyHandover
    by_former: Signature
    by_successor: Signature


Handovers = Annotated[tuple[SignedHandover, ...], Field(max_length=limits.MAX_HANDOVERS)]
"""Oldest first; each begins with the key that the one before ended with."""


class KeySuccession(Document):
    """All hand-overs of a server, as it keeps them beside its key."""

    format: Literal["gramfuse/key-succession/1"] = "gramfuse/key-succession/1"
    handovers: Handovers = ()
