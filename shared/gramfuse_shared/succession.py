"""From one receipt key to the next: hand-overs are signed here, and followed here."""

from collections.abc import Sequence
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gramfuse_shared.contract.key_handover import KeyHandover, SignedHandover
from gramfuse_shared.errors import ReceiptInvalidError
from gramfuse_shared.signatures import is_signed, public_key, sign


def hand_over(former: Ed25519PrivateKey, successor: Ed25519PrivateKey, *, now: datetime) -> SignedHandover:
    """Have a key name its successor, and the successor confirm it."""
    handover = KeyHandover(former=public_key(former), successor=public_key(successor), created=now)
    return SignedHandover(handover=handover, by_former=sign(handover, former), by_successor=sign(handover, successor))


def require_succession(handovers: Sequence[SignedHandover], present: str) -> tuple[str, ...]:
    """Require that hand-overs lead to the key that is presented; return the former keys, oldest first.

    Each was signed by both of its keys and begins where the one before ended, no key comes twice, and the last one ends
    with the present key. So whoever trusts one of the keys may trust the present one, and whoever trusts that one knows
    which keys it answers for.

    Raises:
        ReceiptInvalidError: they do not.
    """
    if not handovers:
        return ()
    keys = [handovers[0].handover.former]
    for number, signed in enumerate(handovers, start=1):
        handover = signed.handover
        if handover.former != keys[-1]:
            msg = f"hand-over {number} of the receipt key begins with another key than the one before ended with"
            raise ReceiptInvalidError(msg)
        if handover.successor in keys:
            msg = f"hand-over {number} of the receipt key goes back to a key that was given up"
            raise ReceiptInvalidError(msg)
        for signature, key, name in (
            (signed.by_former, handover.former, "former"),
            (signed.by_successor, handover.successor, "successor"),
        ):
            if not is_signed(handover, signature, key):
                msg = f"hand-over {number} of the receipt key is not signed by its {name} key"
                raise ReceiptInvalidError(msg)
        keys.append(handover.successor)
    if keys[-1] != present:
        msg = "the hand-overs of the receipt key end with another key than the one that is presented"
        raise ReceiptInvalidError(msg)
    return tuple(keys[:-1])
