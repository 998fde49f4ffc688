"""Load and faults: a real server under many organizations, broken connections and kills: `make soak`."""

import sys
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
TESTS: Final = REPOSITORY / "tests"

# The server as real processes is the system tests'. This reaches this program alone, as in `benchmarks.paper`.
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))
