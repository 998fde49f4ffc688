"""`make clean`, in a fresh clone: what it removes and what it keeps."""

import subprocess

from support.checkout import clone, make_environment

REMOVED = (
    "build", "dist", "htmlcov", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".import_linter_cache",
    "client/gramfuse/__pycache__", ".demo/server", ".demo/smoke/btc-f",
)  # fmt: skip
KEPT = (".demo/cache/trained", ".demo/smoke/cache/trained", ".gramfuse-server/blobs")


def test_make_clean_removes_what_can_be_made_again_and_keeps_what_cannot(tmp_path):
    checkout = clone(tmp_path / "gramfuse")
    for name in (*REMOVED, *KEPT):
        (checkout / name).mkdir(parents=True)
    for folder in (".demo", ".demo/smoke"):
        (checkout / folder / ".gramfuse-demo").touch()
    subprocess.run(["make", "clean"], cwd=checkout, env=make_environment(), capture_output=True, text=True, check=True)
    assert not (checkout / ".venv").exists()
    assert [name for name in REMOVED if (checkout / name).exists()] == []
    assert [name for name in KEPT if not (checkout / name).is_dir()] == []
    changed = subprocess.run(["git", "status", "--short"], cwd=checkout, capture_output=True, text=True, check=True)
    assert changed.stdout == "", "nothing of the repository"
