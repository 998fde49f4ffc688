"""What a member's message of a stage has to be, given those of the stage before: the server's rules at its border.

A message that names other messages than the ones it was shown could only spoil its session, so it is not taken.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from gramfuse_shared.contract.secure import (
    KeysMessage,
    MaskedMessage,
    SessionMessage,
    SharesMessage,
    SignedMessage,
    Stage,
    SurvivorsMessage,
    UnmaskMessage,
    roster_digest,
)
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import SecureSessionRefusedError
from gramfuse_shared.secure.signing import require_message

KINDS: Final[Mapping[Stage, type[SessionMessage]]] = MappingProxyType(
    {
        "keys": KeysMessage,
        "shares": SharesMessage,
        "masked": MaskedMessage,
        "survivors": SurvivorsMessage,
        "unmask": UnmaskMessage,
    }
)


def require_next(
    signed: SignedMessage, session: SessionManifest, stage: Stage, sender: str, shown: Sequence[SignedMessage]
) -> None:
    """Require that a message is the sender's, of this session and stage, and answers the ones that were shown.

    Args:
        signed: the message.
        session: the session that it belongs to.
        stage: the stage that is asked.
        sender: whose it has to be.
        shown: the messages of the stage before.

    Raises:
        SecureSessionRefusedError: it is another's, of another session or stage, or answers others.
        SignatureInvalidError: the sender's identity key did not sign it.
    """
    message = require_message(signed, session, KINDS[stage])
    if message.sender != sender:
        msg = f"the message is {message.sender}'s, the answer {sender}'s"
        raise SecureSessionRefusedError(msg, sender=message.sender)
    before = [each.message for each in shown]
    fits = True
    match message:
        case SharesMessage(body=body):
            others = {each.sender for each in before} - {sender}
            fits = body.keys == roster_digest(before) and {sealed.recipient for sealed in body.sealed} == others
        case MaskedMessage(body=body):
            fits = body.shares == roster_digest(before)
        case SurvivorsMessage(body=body):
            fits = body.masked == roster_digest(before)
            fits = fits and list(body.organizations) == sorted(each.sender for each in before)
        case UnmaskMessage(body=body):
            fits = {body.survivors} == {each.body.masked for each in before if isinstance(each, SurvivorsMessage)}
    if not fits:
        msg = f"{sender}'s message of the stage {stage} does not answer the messages that it was shown"
        raise SecureSessionRefusedError(msg, sender=sender, stage=stage)
