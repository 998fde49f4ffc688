"""Programs whose whole file system is read-only but for some folders, as in the compose file's containers."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

_SCRIPT = r"""
while [ "$1" != -- ]; do mount --bind "$1" "$1"; kept="$kept $1 "; shift; done; shift
findmnt --raw --noheadings --output TARGET | while read -r point; do
  case "$point" in /proc*|/sys*|/dev*) continue;; esac
  case "$kept" in *" $point "*) continue;; esac
  mount -o remount,bind,ro "$point" || [ "$point" != / ] || exit 1
done 2>/dev/null
exec "$@"
"""


def launcher(*writable: Path) -> tuple[str, ...]:
    """The words before a command that shall write into these folders alone. It keeps its process id."""
    user = () if os.geteuid() == 0 else ("--user", "--map-current-user")
    return ("unshare", "--mount", *user, "bash", "-euc", f'kept=""{_SCRIPT}', "read-only", *map(str, writable), "--")


def is_possible(folder: Path) -> bool:
    """Tell whether this machine lets one do so."""
    return subprocess.run([*launcher(folder), "true"], capture_output=True, check=False).returncode == 0


def writable_mounts(process: int) -> Sequence[str]:
    """The mount points that a process may write to, but for those of the kernel and of devices."""
    lines = [line.split() for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines()]
    return [
        words[4]
        for words in lines
        if "rw" in words[5].split(",") and not words[4].startswith(("/proc", "/sys", "/dev"))
    ]
