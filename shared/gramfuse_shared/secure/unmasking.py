"""What takes the masks off a sum: plans from the messages of a session which streams remain in it, and removes them.

Bonawitz et al., CCS 2017, figure 4, round 4, the server's part.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gramfuse_shared.contract.secure import (
    KeysMessage,
    MaskedMessage,
    RevealedShare,
    SharesMessage,
    SignedMessage,
    UnmaskMessage,
    roster_digest,
)
from gramfuse_shared.contract.secure_session import SessionManifest
from gramfuse_shared.digest import sha256_hex
from gramfuse_shared.errors import SecureSessionRefusedError
from gramfuse_shared.secure import shamir
from gramfuse_shared.secure.keys import pair_mask, point_of, public_masking_key, self_mask
from gramfuse_shared.secure.masks import Mask, TensorMasks, Words
from gramfuse_shared.secure.signing import require_roster


@dataclass(frozen=True, slots=True)
class Transcript:
    """The signed messages of a session as the server has them; those of `survivors` are between members."""

    keys: Sequence[SignedMessage]
    shares: Sequence[SignedMessage]
    masked: Sequence[SignedMessage]
    unmask: Sequence[SignedMessage]


@dataclass(frozen=True, slots=True)
class Unmasking:
    """Whose words are summed, by their messages, and what is to be added to the sum of their words."""

    masked: tuple[MaskedMessage, ...]
    masks: tuple[Mask, ...]


def plan_unmasking(session: SessionManifest, transcript: Transcript) -> Unmasking:
    """Plan how the masks come off.

      1. every message is its sender's, of this session, and each stage has t of them or more,
      2. each names the messages of the stage before, and is of somebody who spoke there,
      3. of each survivor the seed is put together from t shares, and is the one that it announced,
      4. of everybody else who sent shares the masking key, likewise,
      5. what remains in the sum are survivors' self masks, and their masks with those who sent no words.

    Raises:
        SignatureInvalidError, SecureSessionRefusedError: 1 to 4; the sum is lost, and nothing else is revealed.
    """
    # 1.
    keys = require_roster(transcript.keys, session, KeysMessage)
    shares = require_roster(transcript.shares, session, SharesMessage)
    masked = require_roster(transcript.masked, session, MaskedMessage)
    unmask = require_roster(transcript.unmask, session, UnmaskMessage)
    # 2.
    announced = {message.sender: message.body for message in keys}
    sharing = {message.sender for message in shares}
    surviving = {message.sender for message in masked}
    _require_chain("shares", sharing <= announced.keys(), {message.body.keys for message in shares}, keys)
    _require_chain("masked", surviving <= sharing, {message.body.shares for message in masked}, shares)
    revealing = {message.sender for message in unmask}
    _require_chain("unmask", revealing <= surviving, {message.body.survivors for message in unmask}, masked)
    # 3. and 4.
    seeds = _collected(session, {message.sender: message.body.seeds for message in unmask})
    masking_keys = _collected(session, {message.sender: message.body.masking_keys for message in unmask})
    masks: list[Mask] = []
    for survivor in sorted(surviving):
        seed = _put_together(session, seeds.get(survivor, {}))
        if seed is None or sha256_hex(seed) != announced[survivor].seed:
            raise _not_put_together(survivor, "seed")
        masks.append(self_mask(session, survivor, seed).inverse())
    for dropped in sorted(sharing - surviving):
        key = _put_together(session, masking_keys.get(dropped, {}))
        if key is None or public_masking_key(key) != announced[dropped].masking:
            raise _not_put_together(dropped, "masking key")
        # 5. the mask as the dropped member would have had it is just what is missing
        masks += [pair_mask(session, dropped, key, survivor, announced[survivor]) for survivor in sorted(surviving)]
    return Unmasking(masked, tuple(masks))


class TensorSum:
    """Adds up one tensor of all survivors, chunk by chunk, and takes the masks off."""

    def __init__(self, unmasking: Unmasking, tensor: int) -> None:
        """Begin with the tensor's first word; `tensor` is its number among the session's sums."""
        self._masks = TensorMasks(unmasking.masks, tensor)

    def add(self, chunks: Sequence[Words]) -> Words:
        """Return the sum of the survivors' next words, one chunk of each, without masks."""
        total = np.zeros_like(chunks[0])
        for words in chunks:
            np.add(total, words, out=total)
        self._masks.add_to(total)
        return total


def _require_chain(
    stage: str,
    are_known: bool,
    named: set[str],
    before: Sequence[KeysMessage] | Sequence[SharesMessage] | Sequence[MaskedMessage],
) -> None:
    if not are_known or named != {roster_digest(before)}:
        msg = f"messages of the stage {stage} do not answer the ones before that are here; begin another session"
        raise SecureSessionRefusedError(msg, stage=stage)


def _collected(
    session: SessionManifest, revealed: Mapping[str, Sequence[RevealedShare]]
) -> dict[str, dict[int, bytes]]:
    """Sort what was revealed by owner, and by the points of those who revealed it."""
    found: dict[str, dict[int, bytes]] = {}
    for sender in sorted(revealed):
        for share in revealed[sender]:
            found.setdefault(share.owner, {})[point_of(session, sender)] = base64.b64decode(share.share)
    return found


def _put_together(session: SessionManifest, shares: Mapping[int, bytes]) -> bytes | None:
    if len(shares) < session.threshold:
        return None
    return shamir.combine(dict(list(shares.items())[: session.threshold]))


def _not_put_together(owner: str, what: str) -> SecureSessionRefusedError:
    msg = f"{owner}'s {what} cannot be put together: somebody revealed no share of it, or a wrong one"
    return SecureSessionRefusedError(msg, owner=owner)
