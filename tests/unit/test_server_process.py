"""The API process: what it imports, and how long it takes to be there."""

import resource
import subprocess
import sys

FORBIDDEN = ("torch", "numpy", "transformers", "safetensors", "gramfuse_shared.fusion", "gramfuse_shared.merging")


def test_the_api_process_never_imports_torch():
    script = (
        "import sys, gramfuse_server.app, gramfuse_server.cli\n"
        f"found = [name for name in sys.modules if name.startswith({FORBIDDEN!r})]\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_api_process_is_imported_within_two_seconds_of_computing():
    # computing time, not the clock's, and the best of four: other tests run on the same cores
    assert min(import_seconds() for _ in range(4)) < 2.0


def import_seconds():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import gramfuse_server.app"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
