"""How often somebody may ask: so many times a second on average, and a burst before. In this process's memory alone."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Final

MOST_KEYS: Final = 10_000
"""Whoever has not asked for longest is forgotten first, and begins anew."""
_ONE_SUBSCRIBER: Final = 64
"""Bits of an IPv6 address that say who it is; the others are its owner's to choose."""


@dataclass(slots=True)
class Rate:
    """Grants each key `per_second` on average and `burst` at once; 0 a second is no limit.

    A key is one number: when it will have its whole burst again. That is the generic cell rate algorithm; a bucket of
    tokens, read backwards.
    """

    per_second: float
    burst: float
    monotonic: Callable[[], float] = time.monotonic
    _whole_at: OrderedDict[Hashable, float] = field(default_factory=OrderedDict)

    def wait(self, key: Hashable, *, cost: float = 1.0) -> float:
        """Return the seconds until a key will be granted so much; 0 if it would be now. Takes nothing."""
        if self.per_second == 0:
            return 0.0
        now = self.monotonic()
        owed = max(self._whole_at.get(key, now) - now, 0.0)
        return max(owed + (min(cost, self.burst) - self.burst) / self.per_second, 0.0)

    def take(self, key: Hashable, *, cost: float = 1.0) -> float:
        """Grant a key so much, or nothing if it has to wait; return the seconds that it has to."""
        wait = self.wait(key, cost=cost)
        if wait == 0 and self.per_second > 0:
            now = self.monotonic()
            self._whole_at[key] = max(self._whole_at.get(key, now), now) + cost / self.per_second
            self._whole_at.move_to_end(key)
            if len(self._whole_at) > MOST_KEYS:
                self._whole_at.popitem(last=False)
        return wait


@dataclass(slots=True)
class Remembered:
    """Keys that were seen within a while; those that were seen longest ago are forgotten first."""

    seconds: float
    monotonic: Callable[[], float] = time.monotonic
    _seen: OrderedDict[Hashable, float] = field(default_factory=OrderedDict)

    def add(self, key: Hashable) -> None:
        """Remember a key from now on."""
        self._seen[key] = self.monotonic()
        self._seen.move_to_end(key)
        if len(self._seen) > MOST_KEYS:
            self._seen.popitem(last=False)

    def __contains__(self, key: Hashable) -> bool:
        """Tell whether a key was seen within the time."""
        at = self._seen.get(key)
        return at is not None and self.monotonic() - at <= self.seconds


def subscriber(address: str | None) -> str:
    """Return what of an address says who it is: all of IPv4, the network of IPv6."""
    try:
        parsed = ip_address((address or "").partition("%")[0])
    except ValueError:  # a UNIX socket's, or none
        return address or ""
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return f"{int(parsed) >> _ONE_SUBSCRIBER:x}"
    return str(parsed)
