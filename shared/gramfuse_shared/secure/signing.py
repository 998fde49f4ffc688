"""Signs and verifies the messages of a session, and sets of them: the rules that both parties hold messages to."""

from collections.abc import Sequence
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gramfuse_shared import signatures
from gramfuse_shared.contract.secure import SessionMessage, SignedMessage, Stage
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.errors import SecureSessionRefusedError, SignatureInvalidError

M = TypeVar("M", bound=SessionMessage)


def sign(message: SessionMessage, key: Ed25519PrivateKey) -> SignedMessage:
    """Sign a message; the same message has the same bytes."""
    return SignedMessage.model_validate({"message": message, "signature": signatures.sign(message, key)})


def stage_of(kind: type[SessionMessage]) -> Stage:
    """Return the stage whose messages are of this kind."""
    stage: Stage = kind.model_fields["stage"].default
    return stage


def of_kind(signed: SignedMessage, kind: type[M]) -> M:
    """Return the message if it is of this kind, whoever signed it; raises SecureSessionRefusedError."""
    message = signed.message
    if not isinstance(message, kind):
        msg = f"{message.sender} sent {message.stage} where {stage_of(kind)} is expected"
        raise SecureSessionRefusedError(msg, sender=message.sender)
    return message


def require_message(signed: SignedMessage, session: SessionManifest, kind: type[M]) -> M:
    """Return a message of this stage that a member of this session signed with its identity key.

    Raises:
        SecureSessionRefusedError: it is of another session or stage, or its sender is no member.
        SignatureInvalidError: the sender's identity key did not sign it.
    """
    message = of_kind(signed, kind)
    if message.session != session.digest:
        msg = f"{message.sender}'s message is of another session; its manifest is not the one that was agreed on"
        raise SecureSessionRefusedError(msg, sender=message.sender)
    member = session.member(message.sender)
    if member is None:
        msg = f"{message.sender} is no member of the session {session.session}"
        raise SecureSessionRefusedError(msg, sender=message.sender)
    if not signatures.is_signed(message, signed.signature, member.identity):
        msg = f"{message.sender}'s identity key did not sign this message of the stage {signed.message.stage}"
        raise SignatureInvalidError(msg, sender=message.sender)
    return message


def require_roster(signed: Sequence[SignedMessage], session: SessionManifest, kind: type[M]) -> tuple[M, ...]:
    """Return the messages of one stage by ascending sender: each as above, one of a sender, and enough for a sum.

    Raises:
        SecureSessionRefusedError: a message does not belong here, a sender spoke twice, or fewer than t did.
        SignatureInvalidError: a signature is wrong.
    """
    if len(signed) > len(session.members):
        msg = f"{len(signed)} messages were shown, the session has {len(session.members)} members"
        raise SecureSessionRefusedError(msg)
    messages = sorted((require_message(each, session, kind) for each in signed), key=lambda message: message.sender)
    senders = [message.sender for message in messages]
    if len(set(senders)) < len(senders):
        twice = next(sender for sender in senders if senders.count(sender) > 1)
        msg = f"two messages of {twice} were shown in one stage"
        raise SecureSessionRefusedError(msg, sender=twice)
    if len(messages) < session.threshold:
        drops = session.may_drop_out
        msg = (
            f"{len(messages)} of {len(session.members)} members go on, a sum needs {session.threshold}: "
            f"{'none' if drops == 0 else f'at most {drops}'} may drop out; begin another session"
        )
        raise SecureSessionRefusedError(msg, members=len(messages), threshold=session.threshold)
    return tuple(messages)
