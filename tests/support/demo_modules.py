"""The demo's modules, which are programs of a folder and no package."""

import sys

from support.checkout import REPOSITORY

DEMO = REPOSITORY / "examples" / "demo"
if str(DEMO) not in sys.path:
    sys.path.append(str(DEMO))
