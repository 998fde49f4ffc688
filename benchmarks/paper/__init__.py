"""The shape of the RegMean paper's tables, with every merge made by a real server and worker: `make paper`."""

import sys
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
DEMO: Final = REPOSITORY / "examples" / "demo"

# The demo's programs lie in a folder and are no package. This reaches this program alone: its children do not inherit
# it, as they would PYTHONPATH, so that the service never meets the demo's module names.
if str(DEMO) not in sys.path:
    sys.path.append(str(DEMO))
