"""Whether two machines agree on the time."""

from datetime import datetime, timedelta
from typing import Final

from gramfuse_server.doctor.findings import Finding, failed, ok, warning

WARN_OFF: Final = timedelta(seconds=3)
"""Above it a worker that lives can look dead to the API; stores that tell whole seconds only stay below."""
FAIL_OFF: Final = timedelta(minutes=5)
"""Above it tokens and uploads expire at wrong times, and at 15 minutes S3 refuses every request."""


def check_clock(name: str, theirs: datetime, ours: datetime) -> Finding:
    """Compare two clocks that were read at the same moment."""
    off = theirs - ours
    seconds = off.total_seconds()
    found = f"it is {abs(seconds):.0f} s {'behind' if seconds < 0 else 'ahead of'} this machine's"
    advice = "have NTP set both machines' clocks (chrony, systemd-timesyncd)"
    if abs(off) > FAIL_OFF:
        return failed(name, found, advice)
    if abs(off) > WARN_OFF:
        return warning(name, found, advice)
    return ok(name, "it is this machine's, as far as can be told")
