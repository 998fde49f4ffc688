"""Words, shares and masks: each against its definition."""

import base64

import numpy as np
import pytest
import sympy
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given
from hypothesis import strategies as st

from gramfuse_shared.contract.secure_session import SummedTensor
from gramfuse_shared.errors import SecureSessionRefusedError, ValueOutOfBoundsError
from gramfuse_shared.secure import shamir
from gramfuse_shared.secure.keys import Secrets, pair_mask
from gramfuse_shared.secure.masks import BLOCK_WORDS, Mask, TensorMasks
from gramfuse_shared.secure.planning import fraction_bits
from gramfuse_shared.secure.ring import decode, encode
from support.secure_sessions import session_of

SECRETS = st.binary(min_size=32, max_size=32)
KEYS = st.binary(min_size=32, max_size=32)


# --- Shamir -------------------------------------------------------------------------------------------------------


def coefficients(seed: int, count: int) -> bytes:
    return np.random.default_rng(seed).bytes(shamir.COEFFICIENT_BYTES * count)


@st.composite
def sharings(draw: st.DrawFn) -> tuple[bytes, int, dict[int, bytes]]:
    """A secret, its threshold, and all shares by their points."""
    members = draw(st.integers(1, 9))
    threshold = draw(st.integers(1, members))
    secret = draw(SECRETS)
    points = range(1, members + 1)
    shares = shamir.split(secret, points, randomness=coefficients(draw(st.integers(0, 2**20)), threshold - 1))
    return secret, threshold, dict(zip(points, shares, strict=True))


def test_the_field_is_that_of_the_first_prime_above_all_secrets():
    assert sympy.isprime(shamir.PRIME)
    assert sympy.nextprime(2**256 - 1) == shamir.PRIME


@given(sharings(), st.randoms(use_true_random=False))
def test_any_t_shares_give_the_secret_and_so_do_more(sharing, random):
    secret, threshold, shares = sharing
    for count in range(threshold, len(shares) + 1):
        chosen = random.sample(sorted(shares), count)
        assert shamir.combine({point: shares[point] for point in chosen}) == secret


@given(sharings().filter(lambda sharing: sharing[1] > 1), SECRETS, st.randoms(use_true_random=False))
def test_fewer_than_t_shares_fit_every_secret_alike(sharing, other, random):
    """Whatever secret is claimed, there is one value of one more share with which these give it."""
    _, threshold, shares = sharing
    known = {point: shares[point] for point in random.sample(sorted(shares), threshold - 1)}
    missing = len(shares) + 1
    # f(0) is affine in the missing share: two values of it say by how much, the third is solved for
    at_zero, at_one = (_at_zero({**known, missing: value}) for value in (0, 1))
    value = (int.from_bytes(other, "big") - at_zero) * pow(at_one - at_zero, -1, shamir.PRIME) % shamir.PRIME
    fitting = {**known, missing: value.to_bytes(shamir.SHARE_BYTES, "big")}
    assert shamir.combine(fitting) == other


def _at_zero(shares: dict[int, bytes | int]) -> int:
    total = 0
    for point, share in shares.items():
        factor = 1
        for other in shares:
            if other != point:
                factor = factor * other * pow(other - point, -1, shamir.PRIME) % shamir.PRIME
        total += factor * (share if isinstance(share, int) else int.from_bytes(share, "big"))
    return total % shamir.PRIME


@given(sharings(), st.data())
def test_a_wrong_share_never_gives_the_secret(sharing, data):
    secret, threshold, shares = sharing
    chosen = dict(list(shares.items())[:threshold])
    point = data.draw(st.sampled_from(sorted(chosen)))
    chosen[point] = data.draw(st.binary(min_size=33, max_size=33).filter(lambda share: share != shares[point]))
    assert shamir.combine(chosen) != secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_smallest_and_the_largest_secret_are_shared(secret):
    shares = shamir.split(secret, [1, 2, 3], randomness=coefficients(1, 1))
    assert shamir.combine({3: shares[2], 1: shares[0]}) == secret


@pytest.mark.parametrize("points", [[], [0, 1], [1, 1], [shamir.PRIME]])
def test_a_share_at_zero_would_be_the_secret_and_is_refused(points):
    with pytest.raises(ValueError, match="distinct and positive"):
        shamir.split(bytes(32), points, randomness=b"")


def test_shares_beyond_the_field_are_of_no_secret():
    assert shamir.combine({1: b"\xff" * 33}) is None
    assert shamir.combine({1: bytes(32)}) is None
    assert shamir.combine({1: (2**256 + 1).to_bytes(33, "big")}) is None
    with pytest.raises(ValueError, match="32 bytes"):
        shamir.split(bytes(31), [1], randomness=b"")


# --- masks --------------------------------------------------------------------------------------------------------


def stream(key: bytes, tensor: int, words: int) -> np.ndarray:
    """By definition: AES-256 of a counter of the tensor's number and the block's, as little-endian words."""
    counter = tensor.to_bytes(8, "big") + bytes(8)
    return np.frombuffer(Cipher(AES(key), CTR(counter)).encryptor().update(bytes(8 * words)), dtype="<u8")


@given(
    st.lists(st.tuples(KEYS, st.sampled_from([1, -1])), max_size=3),
    st.integers(0, 2**32),
    st.lists(st.integers(0, BLOCK_WORDS + 3), max_size=3),
)
def test_masks_are_streams_of_their_keys_however_the_words_are_cut(masks, tensor, chunks):
    total = sum(chunks)
    words = np.arange(total, dtype=np.uint64)
    expected = words.copy()
    for key, sign in masks:
        expected = expected + stream(key, tensor, total) if sign == 1 else expected - stream(key, tensor, total)
    of_tensor = TensorMasks([Mask(key, sign) for key, sign in masks], tensor)
    for start, count in zip(np.cumsum([0, *chunks]), chunks, strict=False):
        of_tensor.add_to(words[start : start + count])
    assert np.array_equal(words, expected)


@given(KEYS, st.sampled_from([1, -1]), st.integers(1, 1000))
def test_a_mask_and_its_inverse_leave_words_as_they_were(key, sign, count):
    words = np.arange(count, dtype=np.uint64)
    mask = Mask(key, sign)
    TensorMasks([mask, mask.inverse()], 3).add_to(words)
    assert np.array_equal(words, np.arange(count, dtype=np.uint64))


def test_two_tensors_have_no_stream_in_common():
    masked = []
    for tensor in range(2):
        words = np.zeros(64, dtype=np.uint64)
        TensorMasks([Mask(bytes(32), 1)], tensor).add_to(words)
        masked.append(words)
    assert not np.intersect1d(*masked).size


def test_a_masks_key_is_not_shown():
    assert "key" not in repr(Mask(b"k" * 32, 1))
    assert "root" not in repr(Secrets(session_of(3), "acme", b"r" * 32))


# --- words --------------------------------------------------------------------------------------------------------


def summed(bound: float, members: int) -> SummedTensor:
    return SummedTensor(name="x", shape=(1,), fraction_bits=fraction_bits(bound, members), bound=bound)


@given(
    st.integers(3, 100),
    st.sampled_from([1e-30, 1e-3, 16.0, 1000.0, 1e12]),
    st.lists(st.floats(-1, 1), min_size=1, max_size=5),
)
def test_words_of_values_up_to_the_bound_add_up_to_their_sum(members, bound, shares):
    tensor = summed(bound, members)
    values = torch.tensor([share * bound for share in shares], dtype=torch.float64)
    quantum = 2.0**-tensor.fraction_bits
    assert bool(((decode(encode(values, tensor), tensor) - values).abs() <= quantum / 2).all())
    total = encode(values, tensor) * members  # wraps, were the sum beyond a word
    exact = [float(value) * members for value in values]
    for found, expected in zip(decode(total, tensor).tolist(), exact, strict=True):
        assert abs(found - expected) <= members * quantum / 2 + abs(expected) * 2**-52


@given(st.integers(3, 100), st.floats(1e-30, 1e30))
def test_the_fraction_bits_are_the_most_that_fit(members, bound):
    tensor = summed(bound, members)
    assert tensor.fits(members)
    assert not tensor.model_copy(update={"fraction_bits": tensor.fraction_bits + 1}).fits(members)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 16.001, -16.001])
def test_a_value_over_its_bound_or_not_finite_is_refused(value):
    tensor = summed(16.0, 3)
    assert encode(torch.tensor([16.0, -16.0], dtype=torch.float64), tensor).tolist() == [2**60 * 2, -(2**60) * 2]
    with pytest.raises(ValueOutOfBoundsError, match="bound of 16"):
        encode(torch.tensor([0.0, value], dtype=torch.float64), tensor)


def test_nothing_is_encoded_as_nothing():
    assert encode(torch.empty(0, dtype=torch.float64), summed(16.0, 3)).shape == (0,)


# --- keys ---------------------------------------------------------------------------------------------------------


@given(SECRETS, SECRETS)
def test_two_members_have_one_mask_and_of_it_both_signs(first, second):
    session = session_of(3)
    acme, brick = Secrets(session, "acme", first), Secrets(session, "brick", second)
    added = pair_mask(session, "acme", acme.masking_key, "brick", brick.public())
    taken = pair_mask(session, "brick", brick.masking_key, "acme", acme.public())
    assert (added.key, added.sign, taken.sign) == (taken.key, 1, -1)
    other = session_of(3, session="secure-2")
    assert pair_mask(other, "acme", acme.masking_key, "brick", brick.public()).key != added.key


def test_shares_are_for_one_member_of_one_session():
    session, other = session_of(3), session_of(3, session="secure-2")
    acme, brick, corex = (Secrets(session, name, name.encode().ljust(32)) for name in ("acme", "brick", "corex"))
    sealed = acme.seal("brick", brick.public())
    assert brick.unseal("acme", acme.public(), sealed) == acme.share_for("brick")
    for receiver, sender, public in [
        (corex, "acme", acme.public()),
        (brick, "corex", acme.public()),
        (brick, "acme", corex.public()),
        (Secrets(other, "brick", brick.root), "acme", acme.public()),
    ]:
        with pytest.raises(SecureSessionRefusedError, match="cannot be decrypted"):
            receiver.unseal(sender, public, sealed)


def test_all_that_a_member_says_follows_from_its_secret_and_the_session():
    session = session_of(3)
    first, again = Secrets(session, "acme", bytes(32)), Secrets(session, "acme", bytes(32))
    assert first.public() == again.public()
    assert first.share_for("brick") == again.share_for("brick") != first.share_for("corex")
    assert first.public() != Secrets(session_of(3, session="secure-2"), "acme", bytes(32)).public()
    secrets = {first.masking_key, first.seed, first.encryption_key.private_bytes_raw(), first.root}
    assert len(secrets) == 4


@pytest.mark.parametrize("low_order", [bytes(32), bytes([1]) + bytes(31)])
def test_a_public_key_that_gives_everybody_the_same_secret_is_refused(low_order):
    session = session_of(3)
    acme = Secrets(session, "acme", bytes(32))
    hostile = acme.public().model_copy(
        update={"masking": base64.b64encode(low_order).decode(), "encryption": base64.b64encode(low_order).decode()}
    )
    with pytest.raises(SecureSessionRefusedError, match="gives no secret"):
        acme.masks([("brick", hostile)])
    with pytest.raises(SecureSessionRefusedError, match="gives no secret"):
        acme.seal("brick", hostile)
