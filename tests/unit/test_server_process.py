"""The API process: what it imports."""

import subprocess
import sys

FORBIDDEN = ("torch", "numpy", "transformers", "safetensors", "gramfuse_shared.fusion", "gramfuse_shared.merging")


def test_the_api_process_never_imports_torch():
    script = (
        "import sys, gramfuse_server.app, gramfuse_server.cli, gramfuse_server.commands\n"
        f"found = [name for name in sys.modules if name.startswith({FORBIDDEN!r})]\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_administrators_command_loads_neither_the_job_engine_nor_the_web_server():
    script = (
        "import sys, gramfuse_server.commands\n"
        "found = [name for name in ('dbos', 'structlog', 'alembic', 'fastapi', 'uvicorn') if name in sys.modules]\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
