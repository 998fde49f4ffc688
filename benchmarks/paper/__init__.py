"""The shape of the RegMean paper's tables, with every merge made by a real server and worker: `make paper`."""

import sys
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
DEMO: Final = REPOSITORY / "examples" / "demo"
TESTS: Final = REPOSITORY / "tests"

# The demo's programs, and what the tests start servers with, lie in folders and are no packages. This reaches this
# program alone: its children do not inherit it, as they would PYTHONPATH, so that the service never meets the demo's
# module names.
for folder in (DEMO, TESTS):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
