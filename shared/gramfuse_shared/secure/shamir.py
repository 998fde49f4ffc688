"""Shamir's secret sharing over a prime field: t shares give the secret, t − 1 are independent of it.

Shamir, "How to Share a Secret", CACM 22(11), 1979. The secret is f(0) of a polynomial f of degree t − 1 modulo p whose
other coefficients are random; a share is f(x) at a member's point x ≥ 1.
"""

from collections.abc import Mapping, Sequence
from typing import Final

PRIME: Final = 2**256 + 297
"""The smallest prime above 2^256, so that every 32 bytes are a secret."""

SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33
COEFFICIENT_BYTES: Final = 48
"""Reduced modulo p these are uniform up to 2^-127."""


def split(secret: bytes, points: Sequence[int], *, randomness: bytes) -> tuple[bytes, ...]:
    """Return one share for each point; as many give the secret as `randomness` has coefficients, and one more.

    Args:
        secret: 32 bytes.
        points: distinct, from 1 on, below p.
        randomness: `COEFFICIENT_BYTES` for each of the t − 1 random coefficients; secret, and used for nothing else.

    Raises:
        ValueError: a length is wrong, or the points are not distinct and positive.
    """
    if len(secret) != SECRET_BYTES or len(randomness) % COEFFICIENT_BYTES:
        msg = f"a secret has {SECRET_BYTES} bytes and a coefficient {COEFFICIENT_BYTES}"
        raise ValueError(msg)
    _require_points(points)
    starts = range(0, len(randomness), COEFFICIENT_BYTES)
    coefficients = [int.from_bytes(randomness[start : start + COEFFICIENT_BYTES], "big") % PRIME for start in starts]
    coefficients.insert(0, int.from_bytes(secret, "big"))
    return tuple(_evaluate(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points)


def combine(shares: Mapping[int, bytes]) -> bytes | None:
    """Return the secret from the shares by their points: all that are given are used, so give t.

    f(0) = Σ yᵢ Π_{j≠i} xⱼ/(xⱼ − xᵢ), Lagrange's interpolation at zero.

    Returns:
        32 bytes; None where the shares are of no secret: one of them is wrong, or there are too few. That not every
        wrong share shows itself so: check what comes out against something that its owner said before.

    Raises:
        ValueError: a point is not positive, or there are none.
    """
    _require_points(list(shares))
    total = 0
    for point, share in shares.items():
        value = int.from_bytes(share, "big")
        if len(share) != SHARE_BYTES or value >= PRIME:
            return None
        numerator = denominator = 1
        for other in shares:
            if other != point:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - point) % PRIME
        total += value * numerator * pow(denominator, -1, PRIME)
    secret = total % PRIME
    return secret.to_bytes(SECRET_BYTES, "big") if secret < 2 ** (8 * SECRET_BYTES) else None


def _evaluate(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):  # Horner's rule
        value = (value * point + coefficient) % PRIME
    return value


def _require_points(points: Sequence[int]) -> None:
    # f(0) is the secret itself, and two equal points are one share
    if not points or len(set(points)) != len(points) or not all(0 < point < PRIME for point in points):
        msg = "points of shares are distinct and positive"
        raise ValueError(msg)
