"""Counts the rows of distinct examples, so that the same text seen twice counts once.

Examples are known by a hash of their input, which is kept in memory and in local checkpoints only: short texts could
be found from their hashes by trying, so a hash never enters a statistics file.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Self

Readers = tuple[str, ...]
"""The weights of the linear layers that read the same tensors, in natural order; twice where one reads it twice."""

Profile = frozenset[tuple[Readers, int]]
"""How many rows one example brought to each set of readers."""

EXAMPLE_BYTES = 16


def example_hash(*parts: bytes) -> bytes:
    """Return the hash by which an example is known again."""
    digest = hashlib.blake2b(digest_size=EXAMPLE_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class DistinctRows:
    """A commutative monoid: examples united by their hash, plus counts of examples whose hashes are not known."""

    __slots__ = ("_interned", "anonymous", "examples")

    def __init__(
        self, examples: Mapping[bytes, Profile] | None = None, anonymous: Mapping[Readers, int] | None = None
    ) -> None:
        self.examples: dict[bytes, Profile] = dict(examples or {})
        self.anonymous: Counter[Readers] = Counter(anonymous or {})
        self._interned: dict[Profile, Profile] = {profile: profile for profile in self.examples.values()}

    def record(self, example: bytes, rows: Iterable[tuple[Readers, int]]) -> None:
        """Note that an example brought these rows. Seen again, it counts by its largest number of rows."""
        profile = frozenset((readers, count) for readers, count in rows if count)
        known = self.examples.get(example)
        if known is not None and known != profile:
            profile = _largest(known, profile)
        self.examples[example] = self._interned.setdefault(profile, profile)

    def count(self) -> Counter[Readers]:
        """Return the distinct rows of each set of readers."""
        total = Counter(self.anonymous)
        for profile, examples in Counter(self.examples.values()).items():
            for readers, rows in profile:
                total[readers] += rows * examples
        return total

    def __add__(self, other: Self) -> Self:
        union = type(self)(self.examples, self.anonymous)
        for example, profile in other.examples.items():
            union.record(example, profile)
        union.anonymous.update(other.anonymous)
        return union


def _largest(one: Profile, other: Profile) -> Profile:
    rows = dict(one)
    for readers, count in other:
        rows[readers] = max(rows.get(readers, 0), count)
    return frozenset(rows.items())
