"""One receipt key takes the place of another: what clients follow, and whatever a hostile server tries is refused."""

import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gramfuse import pinning
from gramfuse.config import Home
from gramfuse_server import receipt_key
from gramfuse_shared import limits
from gramfuse_shared.contract.http_api import ServerInfo
from gramfuse_shared.errors import ConfigurationError, DocumentMalformedError, FileUnreadableError, ReceiptInvalidError
from gramfuse_shared.signatures import public_key
from gramfuse_shared.succession import hand_over, require_succession

URL = "https://merge.example.org"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(5)]
FIRST, SECOND, THIRD, STRANGER, OTHER = map(public_key, KEYS)


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home")


def step(former: int, successor: int):
    return hand_over(KEYS[former], KEYS[successor], now=NOW)


def meet(home: Home, present: str, *handovers) -> None:
    """What a client does with a server's answer."""
    pinning.pin(home, URL, present, former=require_succession(handovers, present))


# --- what is pinned ------------------------------------------------------------------------------------------------


def test_the_first_key_of_a_server_is_pinned_and_another_is_refused_from_then_on(home):
    meet(home, FIRST)
    meet(home, FIRST)
    with pytest.raises(ReceiptInvalidError, match=r"another receipt key.*--receipt-key KEY"):
        meet(home, SECOND)
    assert pinning.pinned_key(home, URL) == FIRST


def test_keys_are_pinned_per_server(home):
    meet(home, FIRST)
    pinning.pin(home, "https://other.example.org", SECOND)
    assert pinning.all_keys(home) == {FIRST: URL, SECOND: "https://other.example.org"}
    assert pinning.pinned_key(home, "https://third.example.org") is None
    assert pinning.keys_of(home, "https://third.example.org") == ()


def test_a_pin_that_somebody_else_wrote_in_the_same_moment_is_not_overwritten(home, monkeypatch):
    meet(home, SECOND)
    monkeypatch.setattr(pinning, "_read", lambda *_: None)  # it was not there when it was looked for
    with pytest.raises(ReceiptInvalidError, match="another receipt key"):
        meet(home, FIRST)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"url": "x"}', '{"url": "x", "receipt_key": "y", "former": 1}'])
def test_a_pin_that_cannot_be_read_is_no_first_use(home, text):
    meet(home, FIRST)
    (path,) = (home.path / "receipt-keys").iterdir()
    path.write_text(text)
    with pytest.raises(FileUnreadableError, match="pinned key"):
        meet(home, SECOND)


def test_a_pin_of_before_there_were_hand_overs_is_read(home):
    meet(home, FIRST)
    (path,) = (home.path / "receipt-keys").iterdir()
    path.write_text(f'{{"url": "{URL}", "receipt_key": "{FIRST}"}}\n')
    meet(home, SECOND, step(0, 1))
    assert pinning.keys_of(home, URL) == (SECOND, FIRST)


# --- what is followed ----------------------------------------------------------------------------------------------


def test_a_client_follows_a_hand_over_and_keeps_the_old_key_for_old_receipts(home):
    meet(home, FIRST)
    meet(home, SECOND, step(0, 1))
    assert pinning.keys_of(home, URL) == (SECOND, FIRST)
    meet(home, SECOND, step(0, 1))


def test_a_client_that_was_away_follows_several_at_once(home):
    meet(home, FIRST)
    meet(home, THIRD, step(0, 1), step(1, 2))
    assert pinning.all_keys(home) == {FIRST: URL, SECOND: URL, THIRD: URL}
    assert pinning.pinned_key(home, URL) == THIRD


def test_a_new_client_is_told_the_keys_of_old_receipts_by_the_key_that_it_pins(home):
    meet(home, THIRD, step(0, 1), step(1, 2))
    assert pinning.keys_of(home, URL) == (THIRD, FIRST, SECOND)


def test_hand_overs_that_are_left_out_later_take_no_old_key_away(home):
    meet(home, SECOND, step(0, 1))
    meet(home, SECOND)
    assert pinning.keys_of(home, URL) == (SECOND, FIRST)


# --- what is refused -----------------------------------------------------------------------------------------------


def forged(signed, **changes):
    return signed.model_copy(update=changes)


@pytest.mark.parametrize(
    ("present", "handovers", "because"),
    [
        (STRANGER, [step(4, 3)], "another receipt key"),  # from a key that is not the pinned one
        (STRANGER, [step(4, 0), step(0, 1)], "end with another key"),
        (THIRD, [step(1, 2)], "another receipt key"),  # it skips the step from the pinned key
        (THIRD, [step(0, 1), step(3, 2)], "hand-over 2 .* begins with another key"),
        (THIRD, [step(1, 2), step(0, 1)], "hand-over 2 .* begins with another key"),  # out of order
        (FIRST, [step(0, 1), step(1, 0)], "hand-over 2 .* goes back"),
        (FIRST, [step(0, 1)], "end with another key"),
        (STRANGER, [step(0, 1)], "end with another key"),  # a hand-over to somebody else, shown beside a foreign key
        (SECOND, [forged(step(0, 1), by_former=step(3, 1).by_former)], "not signed by its former key"),
        (SECOND, [forged(step(0, 1), by_successor=step(0, 1).by_former)], "not signed by its successor key"),
        (STRANGER, [forged(step(0, 1), handover=step(0, 3).handover)], "not signed by its former key"),
        (
            STRANGER,  # who has not the old key: its own, with the old one's signature of another hand-over
            [forged(step(0, 3), by_former=step(0, 1).by_former)],
            "not signed by its former key",
        ),
        (
            SECOND,  # another date: nothing is decided by it, but it is signed
            [
                forged(
                    step(0, 1),
                    handover=step(0, 1).handover.model_copy(update={"created": datetime(2027, 1, 1, tzinfo=UTC)}),
                )
            ],
            "not signed by its former key",
        ),
    ],
)
def test_a_forged_skipping_reordered_or_returning_hand_over_changes_nothing(home, present, handovers, because):
    meet(home, FIRST)
    with pytest.raises(ReceiptInvalidError, match=because):
        meet(home, present, *handovers)
    assert pinning.keys_of(home, URL) == (FIRST,)


@pytest.mark.parametrize("handovers", [[], [step(4, 0)], [step(4, 3), step(3, 0)]])
def test_a_key_that_was_handed_over_never_comes_back(home, handovers):
    """Whoever stole it afterwards presents it, with or without keys of its own before it."""
    meet(home, SECOND, step(0, 1))
    with pytest.raises(ReceiptInvalidError, match="handed over to another one before"):
        meet(home, FIRST, *handovers)
    assert pinning.pinned_key(home, URL) == SECOND


def test_a_second_successor_of_a_key_is_refused_by_who_followed_the_first(home):
    meet(home, SECOND, step(0, 1))
    with pytest.raises(ReceiptInvalidError, match="another receipt key"):
        meet(home, STRANGER, step(0, 3))


def test_a_key_that_people_compared_takes_the_place_of_another_which_is_trusted_no_more(home):
    meet(home, SECOND, step(0, 1))
    pinning.replace(home, URL, THIRD)
    assert pinning.all_keys(home) == {THIRD: URL}
    with pytest.raises(ReceiptInvalidError, match="another receipt key"):
        meet(home, SECOND, step(0, 1))


def test_a_hand_over_of_a_key_to_itself_and_too_many_of_them_are_no_documents():
    with pytest.raises(ValueError, match="to another one"):
        step(0, 0)
    entry = step(0, 1).model_dump(mode="json")
    answer = {"version": "1", "receipt_key": SECOND}
    assert "handovers" not in ServerInfo.model_validate(answer).model_dump()  # as older clients know it
    ServerInfo.model_validate_json(
        ServerInfo(version="1", receipt_key=SECOND, handovers=(step(0, 1),)).model_dump_json()
    )
    with pytest.raises(DocumentMalformedError, match="handovers"):
        ServerInfo.parse(json.dumps(answer | {"handovers": [entry] * (limits.MAX_HANDOVERS + 1)}))


# --- the server's files --------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "keys" / "receipt-key.pem"
    receipt_key.create_key(found)
    return found


def rotate(path):
    receipt_key.create_next_key(path)
    return receipt_key.rotate(path, now=NOW)


def test_a_rotation_leaves_one_private_key_and_what_leads_to_it(path):
    before = receipt_key.load_public_keys(path)
    assert before.handovers == ()
    old = path.read_bytes()
    keys = rotate(path)
    assert keys.former == (before.present,)
    assert require_succession(keys.handovers, keys.present) == (before.present,)
    assert sorted(each.name for each in path.parent.iterdir()) == ["receipt-key.handovers.json", "receipt-key.pem"]
    assert not any(old in each.read_bytes() for each in path.parent.iterdir())
    assert path.stat().st_mode & 0o777 == 0o600
    assert rotate(path).former == (before.present, keys.present)


def test_a_rotation_that_was_killed_anywhere_is_finished_by_the_next_try(path, monkeypatch):
    before = receipt_key.load_public_keys(path)
    successor = public_key(receipt_key.create_next_key(path))

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    for step_of in ("replace_file", "_take_place"):
        with monkeypatch.context() as patch:
            patch.setattr(receipt_key, step_of, kill)
            with pytest.raises(Killed):
                receipt_key.rotate(path, now=NOW)
        assert receipt_key.load_public_keys(path) == before  # the server may start meanwhile
    keys = receipt_key.rotate(path, now=NOW)
    assert (keys.present, keys.former) == (successor, (before.present,))


def test_a_key_whose_next_one_was_lost_in_between_is_handed_over_to_another(path, monkeypatch):
    before = receipt_key.load_public_keys(path)
    receipt_key.create_next_key(path)
    monkeypatch.setattr(receipt_key, "_take_place", lambda _: None)
    receipt_key.rotate(path, now=NOW)
    monkeypatch.undo()
    receipt_key.next_path(path).unlink()
    assert rotate(path).former == (before.present,)


def test_a_replaced_key_leaves_nothing_that_leads_from_it(path):
    rotate(path)
    with pytest.raises(ConfigurationError):
        receipt_key.replace(path)  # without a next key
    successor = public_key(receipt_key.create_next_key(path))
    assert receipt_key.replace(path) == receipt_key.ReceiptKeys(successor)
    assert [each.name for each in path.parent.iterdir()] == ["receipt-key.pem"]


def test_a_key_from_a_backup_beside_hand_overs_of_later_is_told(path):
    old = path.read_bytes()
    rotate(path)
    rotate(path)
    path.write_bytes(old)
    with pytest.raises(ConfigurationError, match="bring back the two files that belong together"):
        receipt_key.load_public_keys(path)
    receipt_key.handovers_path(path).write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        receipt_key.load_public_keys(path)


def test_there_is_a_bound_on_hand_overs(path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_HANDOVERS", 1)
    rotate(path)
    with pytest.raises(ConfigurationError, match="key replace"):
        rotate(path)
