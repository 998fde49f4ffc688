"""Makes `benchmarks.paper` importable."""

import sys

from support.checkout import REPOSITORY

if str(REPOSITORY) not in sys.path:
    sys.path.append(str(REPOSITORY))
