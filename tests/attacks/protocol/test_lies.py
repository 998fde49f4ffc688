"""What a server that lies may show, and what its members answer: nothing, or what they answered before."""

import hashlib

import numpy as np
import pytest

from gramfuse.securing.kept import KeptSessions
from gramfuse_shared.contract.secure import STAGES, MaskedMessage, SharesMessage, Survivors, SurvivorsMessage
from gramfuse_shared.errors import FileUnwritableError, SecureSessionRefusedError, SignatureInvalidError
from gramfuse_shared.secure.signing import sign
from support.secure_cohorts import Cohort, Member, words_of
from support.secure_sessions import ORGANIZATIONS, identity_of, session_of

FIVE = ORGANIZATIONS[:5]


def complete(folder, members: int = 5, **session: object) -> Cohort:
    cohort = Cohort.of(session_of(members, **session), folder)
    cohort.run()
    return cohort


def test_messages_that_come_twice_or_in_another_order_are_answered_with_the_same_bytes(tmp_path):
    cohort = complete(tmp_path)
    acme = cohort.members["acme"]
    for stage, before in [("shares", "keys"), ("masked", "shares"), ("survivors", "masked"), ("unmask", "survivors")]:
        shown = list(getattr(cohort, before).values())
        assert getattr(acme, stage)(shown[::-1]) == getattr(cohort, stage)["acme"]
        assert getattr(acme, stage)(shown).canonical() == getattr(cohort, stage)["acme"].canonical()
    assert acme.keys() == cohort.keys["acme"]


def test_a_message_of_another_session_is_no_message_of_this_one(tmp_path):
    before, now = complete(tmp_path / "1", session="secure-0"), complete(tmp_path / "2")
    replayed = [before.keys["brick"], *(signed for name, signed in now.keys.items() if name != "brick")]
    with pytest.raises(SecureSessionRefusedError, match="another session"):
        now.members["acme"].shares(replayed)


def test_a_message_of_another_stage_is_none_of_this_one(tmp_path):
    cohort = complete(tmp_path)
    with pytest.raises(SecureSessionRefusedError, match="where keys is expected"):
        cohort.members["acme"].shares([*list(cohort.keys.values())[:4], cohort.shares["eagle"]])


def test_keys_that_the_server_puts_in_a_members_place_are_refused(tmp_path):
    """It does not have the member's identity key, so it signs with its own."""
    cohort = Cohort.of(session_of(5), tmp_path)
    mallory = Cohort.of(session_of(5), tmp_path / "mallory")
    keys = [cohort.members[name].keys() for name in FIVE]
    forged = sign(mallory.members["brick"].keys().message, identity_of("mallory"))
    with pytest.raises(SignatureInvalidError, match="brick's identity key"):
        cohort.members["acme"].shares([keys[0], forged, *keys[2:]])


def test_keys_that_replace_ones_own_are_refused(tmp_path):
    cohort = Cohort.of(session_of(5), tmp_path)
    keys = [cohort.members[name].keys() for name in FIVE]
    twin = Member(cohort.session, "acme", tmp_path / "twin").keys()  # signed by the right key, as after a restored copy
    with pytest.raises(SecureSessionRefusedError, match="left out or replaced"):
        cohort.members["acme"].shares([twin, *keys[1:]])


def test_two_halves_of_a_cohort_that_saw_different_keys_send_no_words(tmp_path):
    """One member is the server's and says one thing to some and another to others."""
    cohort = Cohort.of(session_of(5), tmp_path)
    keys = {name: cohort.members[name].keys() for name in FIVE}
    other = {**keys, "eagle": Member(cohort.session, "eagle", tmp_path / "other").keys()}
    shares = [cohort.members[name].shares(list(keys.values())) for name in ("acme", "brick")]
    shares += [cohort.members[name].shares(list(other.values())) for name in ("corex", "dunder")]
    eagle = cohort.members["eagle"].shares(list(keys.values()))
    for name in ("acme", "corex"):
        with pytest.raises(SecureSessionRefusedError, match="do not all answer"):
            cohort.members[name].masked([*shares, eagle])


def test_shares_that_cannot_be_decrypted_end_the_session_before_any_words(tmp_path):
    cohort = Cohort.of(session_of(5), tmp_path)
    cohort.run(masked=())
    message = cohort.shares["eagle"].message
    swapped = tuple(
        sealed.model_copy(update={"ciphertext": message.body.sealed[1].ciphertext})
        if sealed.recipient == "acme"
        else sealed
        for sealed in message.body.sealed
    )
    hostile = SharesMessage(
        session=message.session, sender="eagle", body=message.body.model_copy(update={"sealed": swapped})
    )
    shown = [*list(cohort.shares.values())[:4], sign(hostile, identity_of("eagle"))]
    with pytest.raises(SecureSessionRefusedError, match="cannot be decrypted"):
        cohort.members["acme"].masked(shown)
    assert cohort.members["acme"].participant().kept.step("masked") is None


def test_whoever_shares_with_some_alone_shares_with_nobody(tmp_path):
    cohort = Cohort.of(session_of(5), tmp_path)
    cohort.run(masked=())
    message = cohort.shares["eagle"].message
    fewer = message.body.model_copy(update={"sealed": message.body.sealed[:3]})
    hostile = sign(SharesMessage(session=message.session, sender="eagle", body=fewer), identity_of("eagle"))
    with pytest.raises(SecureSessionRefusedError, match="with each other member once"):
        cohort.members["acme"].masked([*list(cohort.shares.values())[:4], hostile])


def test_a_second_set_of_survivors_is_not_signed(tmp_path):
    cohort = Cohort.of(session_of(5), tmp_path)
    cohort.run(unmask=())
    masked = list(cohort.masked.values())
    with pytest.raises(SecureSessionRefusedError, match="each stage has one answer"):
        cohort.members["acme"].survivors(masked[:4])
    assert cohort.members["acme"].survivors(masked) == cohort.survivors["acme"]


def test_two_sets_shown_to_two_halves_are_unmasked_by_nobody(tmp_path):
    """With five members four must sign one set; each honest member signs one."""
    cohort = Cohort.of(session_of(5), tmp_path)
    cohort.run(survivors=())
    masked = cohort.masked
    first = [masked[name] for name in FIVE]
    second = [masked[name] for name in FIVE[:4]]
    signed = [cohort.members[name].survivors(first) for name in FIVE[2:]]
    signed += [cohort.members[name].survivors(second) for name in FIVE[:2]]
    for name in FIVE:
        with pytest.raises(SecureSessionRefusedError, match="signed for other survivors"):
            cohort.members[name].unmask(signed)
        with pytest.raises(SecureSessionRefusedError, match="a sum needs 4"):
            cohort.members[name].unmask([s for s in signed if s.message.body == signed[0].message.body])


def test_masked_words_that_name_other_shares_are_not_summed(tmp_path):
    cohort = Cohort.of(session_of(5), tmp_path)
    cohort.run(survivors=())
    message = cohort.masked["eagle"].message
    other = message.body.model_copy(update={"shares": hashlib.sha256(b"others").hexdigest()})
    hostile = sign(MaskedMessage(session=message.session, sender="eagle", body=other), identity_of("eagle"))
    with pytest.raises(SecureSessionRefusedError, match="do not all answer"):
        cohort.members["acme"].survivors([*list(cohort.masked.values())[:4], hostile])


def test_signatures_of_those_who_are_not_in_the_set_do_not_count(tmp_path):
    cohort = Cohort.of(session_of(5), tmp_path)
    cohort.run(masked=FIVE[:4], unmask=())
    body = cohort.survivors["acme"].message.body
    outsider = SurvivorsMessage(session=cohort.session.digest, sender="eagle", body=Survivors(**dict(body)))
    shown = [*list(cohort.survivors.values())[:3], sign(outsider, identity_of("eagle"))]
    with pytest.raises(SecureSessionRefusedError, match="eagle signed for other survivors"):
        cohort.members["acme"].unmask(shown)


def test_a_contribution_is_unmasked_in_one_session(tmp_path):
    """Two sums of the same contribution, with other survivors, would differ by a member."""
    first = Cohort.of(session_of(5), tmp_path)
    second = Cohort.of(session_of(5, session="secure-2"), tmp_path)
    first.run(unmask=())
    second.run(masked=FIVE[1:], unmask=())
    acme, brick = "acme", "brick"
    assert first.members[acme].unmask(list(first.survivors.values()))
    with pytest.raises(SecureSessionRefusedError, match="completed in the session"):
        second.members[acme].keys()
    assert second.members[brick].unmask(list(second.survivors.values()))
    with pytest.raises(SecureSessionRefusedError, match="completed in the session"):
        first.members[brick].unmask(list(first.survivors.values()))


def test_a_sum_that_is_completed_is_completed_again_with_the_same_bytes_and_no_others(tmp_path):
    cohort = complete(tmp_path)
    signed = list(cohort.survivors.values())
    assert cohort.members["acme"].unmask(signed[1:]) == cohort.unmask["acme"]
    with pytest.raises(SecureSessionRefusedError, match="each stage has one answer"):
        cohort.members["acme"].survivors(list(cohort.masked.values())[:4])


def test_a_stage_is_not_answered_before_the_one_before_it(tmp_path):
    cohort = complete(tmp_path / "1")
    stranger = Member(cohort.session, "acme", tmp_path / "2")
    for stage, before in [("shares", "keys"), ("masked", "shares"), ("survivors", "masked"), ("unmask", "survivors")]:
        with pytest.raises(SecureSessionRefusedError, match="has not answered the stage"):
            getattr(stranger, stage)(list(getattr(cohort, before).values()))


def test_other_words_under_the_same_masks_are_not_sent(tmp_path):
    """The difference of the two would be the difference of the values."""
    cohort = Cohort.of(session_of(5), tmp_path)
    cohort.run(survivors=())
    acme = cohort.members["acme"]
    cohort.files["acme"].unlink()
    assert acme.masked(list(cohort.shares.values())) == cohort.masked["acme"]  # they are written again, the same
    cohort.files["acme"].unlink()
    acme.words = words_of("acme") + np.uint64(1)
    with pytest.raises(SecureSessionRefusedError, match="changed since"):
        acme.masked(list(cohort.shares.values()))


def test_wrong_shares_lose_the_sum_and_are_found_out(tmp_path):
    cohort = complete(tmp_path)
    message = cohort.unmask["acme"].message
    wrong = message.body.seeds[1].model_copy(update={"share": message.body.seeds[0].share})
    body = message.body.model_copy(update={"seeds": (message.body.seeds[0], wrong, *message.body.seeds[2:])})
    cohort.unmask["acme"] = sign(message.model_copy(update={"body": body}), identity_of("acme"))
    with pytest.raises(SecureSessionRefusedError, match="brick's seed cannot be put together"):
        cohort.sum()


def test_a_wrong_share_of_a_dropped_members_key_is_found_out_too(tmp_path):
    cohort = Cohort.of(session_of(5), tmp_path)
    cohort.run(masked=FIVE[1:])
    message = cohort.unmask["brick"].message
    wrong = message.body.masking_keys[0].model_copy(update={"share": message.body.seeds[0].share})
    body = message.body.model_copy(update={"masking_keys": (wrong,)})
    cohort.unmask["brick"] = sign(message.model_copy(update={"body": body}), identity_of("brick"))
    with pytest.raises(SecureSessionRefusedError, match="acme's masking key cannot be put together"):
        cohort.sum()
    empty = message.body.model_copy(update={"masking_keys": ()})
    cohort.unmask["brick"] = sign(message.model_copy(update={"body": empty}), identity_of("brick"))
    with pytest.raises(SecureSessionRefusedError, match="acme's masking key cannot be put together"):
        cohort.sum()


def test_a_server_that_leaves_members_out_of_a_completed_session_gets_no_other_sum(tmp_path):
    """Its own arithmetic fails: shares are of the one set that was signed."""
    cohort = complete(tmp_path)
    del cohort.masked["acme"]
    with pytest.raises(SecureSessionRefusedError, match="do not answer the ones before"):
        cohort.sum()


@pytest.mark.parametrize("stage", STAGES)
def test_an_answer_that_cannot_be_kept_is_not_given_and_the_next_try_gives_it(tmp_path, monkeypatch, stage):
    import os  # noqa: PLC0415 - what is made to fail

    cohort = Cohort.of(session_of(3), tmp_path)
    link = os.link

    def full(source, target, **options):
        if str(target).endswith(f"{stage}.json"):
            raise OSError(28, "No space left on device")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(FileUnwritableError, match="No space left"):
        cohort.run()
    assert getattr(cohort, stage) == {}
    folder = KeptSessions(tmp_path / "acme").session(cohort.session.digest).folder
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    root = (folder / "root").read_bytes()
    monkeypatch.undo()
    cohort.run()
    assert (folder / "root").read_bytes() == root
    assert np.array_equal(cohort.sum(), cohort.expected(ORGANIZATIONS[:3]))


def test_what_is_kept_is_its_owners_alone(tmp_path):
    cohort = complete(tmp_path, 3)
    folder = KeptSessions(tmp_path / "acme").session(cohort.session.digest).folder
    assert folder.stat().st_mode & 0o077 == 0
    kept = [path for path in folder.iterdir() if path.suffix != ".safetensors"]
    assert {path.name for path in kept} == {
        "root",
        *(f"{s}.json" for s in ("keys", "shares", "masked", "survivors", "unmask")),
    }
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)
