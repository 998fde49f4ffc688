"""The session manifest and the signed messages: what neither party accepts, whoever sends it."""

import base64
from typing import Any

import pytest

from gramfuse_shared.contract.secure import Keys, KeysMessage, SignedMessage, SurvivorsMessage, Unmask, roster_digest
from gramfuse_shared.contract.secure_session import SessionManifest, SummedTensor, threshold_of
from gramfuse_shared.errors import DocumentMalformedError, SecureSessionRefusedError, SignatureInvalidError
from gramfuse_shared.secure.signing import require_message, require_roster, sign
from support.secure_sessions import DIGEST, ORGANIZATIONS, identity_of, session_of

KEY = base64.b64encode(bytes(32)).decode()


def keys_message(session: SessionManifest, sender: str) -> KeysMessage:
    return KeysMessage(session=session.digest, sender=sender, body=Keys(encryption=KEY, masking=KEY, seed=DIGEST))


def signed_keys(session: SessionManifest, sender: str, signer: str | None = None) -> SignedMessage:
    return sign(keys_message(session, sender), identity_of(signer or sender))


def changed(session: SessionManifest, **fields: Any) -> bytes:
    return SessionManifest.model_construct(**{**dict(session), **fields}).canonical()


@pytest.mark.parametrize(("members", "threshold", "drops"), [(3, 3, 0), (4, 3, 1), (5, 4, 1), (7, 5, 2), (100, 67, 33)])
def test_two_sets_that_are_large_enough_share_more_than_a_third_of_the_members(members, threshold, drops):
    assert threshold_of(members) == threshold
    assert 3 * (2 * threshold - members) > members
    assert members - threshold == drops


def test_of_three_members_none_may_drop_out():
    assert session_of(3).may_drop_out == 0
    assert session_of(7).may_drop_out == 2


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"members": session_of(3).members[:2], "threshold": 2}, "at least 3"),
        ({"members": session_of(3).members[::-1]}, "ascending organization"),
        ({"members": (*session_of(3).members[:2], session_of(3).members[1])}, "once each"),
        ({"threshold": 2}, "the threshold is 3"),
        ({"scales": DIGEST}, "scales file"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(fields, fault):
    with pytest.raises(DocumentMalformedError, match=fault):
        SessionManifest.parse(changed(session_of(3), **fields))


def test_two_members_with_one_identity_key_are_refused():
    members = session_of(3).members
    twin = members[2].model_copy(update={"identity": members[0].identity})
    with pytest.raises(DocumentMalformedError, match="same identity"):
        SessionManifest.parse(changed(session_of(3), members=(*members[:2], twin)))


@pytest.mark.parametrize("method", ["ties", "wudi", "task_arithmetic", "dare_linear"])
def test_a_method_that_looks_at_single_differences_has_no_session(method):
    with pytest.raises(ValueError, match="no function of sums"):
        session_of(3, method=method)


def test_alpha_above_what_words_can_hold_is_refused():
    assert session_of(3, method="regmean", alpha=0.95).alpha_of("any") == 0.95
    with pytest.raises(ValueError, match=r"at most 0\.95"):
        session_of(3, method="regmean", alpha=0.96)


def test_the_largest_sum_of_values_at_their_bound_stays_within_a_word():
    """N·(bound·2^f + ½) < 2^63: at N = 8 the last bit decides."""
    assert SummedTensor(name="a", shape=(1,), fraction_bits=40, bound=2.0**20 - 1).fits(8)
    assert not SummedTensor(name="a", shape=(1,), fraction_bits=40, bound=2.0**20).fits(8)
    with pytest.raises(ValueError, match="beyond a word"):
        session_of(3, sums=(SummedTensor(name="a", shape=(1,), fraction_bits=60, bound=16.0),))


def test_a_changed_copy_of_a_manifest_has_a_digest_of_its_own():
    session = session_of(3)
    assert session.digest == session.content_digest()
    assert session.model_copy(update={"session": "secure-2"}).digest == session_of(3, session="secure-2").digest


def test_a_key_has_one_spelling():
    """The last base64 character of 32 bytes has two unused bits; were they free, one key would be four texts."""
    Keys(encryption=KEY, masking=KEY, seed=DIGEST)
    with pytest.raises(ValueError, match="unused bits"):
        Keys(encryption=KEY[:-2] + "B=", masking=KEY, seed=DIGEST)


def test_a_message_is_its_senders_and_of_its_session():
    session = session_of(3)
    message = keys_message(session, "acme")
    assert require_message(signed_keys(session, "acme"), session, KeysMessage) == message
    with pytest.raises(SignatureInvalidError, match="acme's identity key"):
        require_message(signed_keys(session, "acme", signer="brick"), session, KeysMessage)
    with pytest.raises(SecureSessionRefusedError, match="another session"):
        require_message(signed_keys(session_of(3, session="secure-2"), "acme"), session, KeysMessage)
    with pytest.raises(SecureSessionRefusedError, match="no member"):
        require_message(signed_keys(session, "globex"), session, KeysMessage)
    with pytest.raises(SecureSessionRefusedError, match="where survivors is expected"):
        require_message(signed_keys(session, "acme"), session, SurvivorsMessage)


def test_a_message_that_was_altered_is_not_its_senders():
    session = session_of(3)
    signed = signed_keys(session, "acme")
    other = signed.message.model_copy(update={"body": Keys(encryption=KEY, masking=KEY, seed="0" * 64)})
    with pytest.raises(SignatureInvalidError):
        require_message(signed.model_copy(update={"message": other}), session, KeysMessage)


def test_a_stage_has_one_message_of_each_sender_and_enough_of_them():
    session = session_of(5)
    messages = [signed_keys(session, name) for name in ORGANIZATIONS[:5]]
    assert [m.sender for m in require_roster(messages[::-1], session, KeysMessage)] == list(ORGANIZATIONS[:5])
    assert len(require_roster(messages[1:], session, KeysMessage)) == 4
    with pytest.raises(SecureSessionRefusedError, match="at most 1 may drop out"):
        require_roster(messages[2:], session, KeysMessage)
    with pytest.raises(SecureSessionRefusedError, match="two messages of acme"):
        require_roster([*messages[:4], messages[0]], session, KeysMessage)
    with pytest.raises(SecureSessionRefusedError, match="6 messages"):
        require_roster([*messages, messages[0]], session, KeysMessage)


def test_with_three_members_the_refusal_says_that_none_may_drop_out():
    session = session_of(3)
    with pytest.raises(SecureSessionRefusedError, match="none may drop out"):
        require_roster([signed_keys(session, name) for name in ORGANIZATIONS[:2]], session, KeysMessage)


def test_the_digest_of_a_stage_does_not_hang_on_the_order_of_its_messages():
    session = session_of(3)
    messages = [keys_message(session, name) for name in ORGANIZATIONS[:3]]
    assert roster_digest(messages) == roster_digest(messages[::-1])
    assert roster_digest(messages) != roster_digest(messages[:2])


def test_one_message_never_reveals_both_secrets_of_a_member():
    share = {"owner": "acme", "share": "A" * 44}
    with pytest.raises(ValueError, match="one secret"):
        Unmask.model_validate({"survivors": DIGEST, "seeds": [share], "masking_keys": [share]})
