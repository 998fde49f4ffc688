"""The demo's folder: what a run removes, what stays, and whose folder is never touched."""

import subprocess
import sys
from pathlib import Path

import pytest

from support import demo_modules

from folder import MARKER, FolderRefusedError, held  # isort: skip - demo_modules puts it on the path
from settings import SIZES  # isort: skip


def test_a_smoke_run_lives_apart_from_the_full_one():
    assert SIZES["full"].folder == Path(".demo")
    assert SIZES["smoke"].folder == Path(".demo") / "smoke"


def test_a_run_removes_the_last_one_but_not_the_trained_models_nor_a_smoke_run(tmp_path):
    with held(tmp_path):
        pass
    for name in ("btc-f/tuned", "server", "cache/trained", "cache/half.unfinished", "smoke/server"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "btc-f" / "link").symlink_to(tmp_path / "cache" / "trained")
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    (tmp_path / "report.html").touch()
    (tmp_path / "cache" / "trained" / "model.safetensors").touch()
    with held(tmp_path) as right:
        right.clear()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {MARKER, "cache", "cache/trained", "cache/trained/model.safetensors", "smoke", "smoke/server"}


def test_a_folder_with_other_files_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("three years")
    with pytest.raises(FolderRefusedError, match="not the demo's"), held(tmp_path):
        pytest.fail("it was given")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_held_folder_is_refused_with_the_word_that_its_holder_left(tmp_path):
    with held(tmp_path) as right:
        right.leave_word("kill 1 2\n")
        with pytest.raises(FolderRefusedError, match="stop it: kill 1 2"), held(tmp_path):
            pytest.fail("it was given twice")
    with held(tmp_path) as right:
        right.clear()
        assert "kill" not in (tmp_path / MARKER).read_text()


def test_make_clean_empties_the_folders_without_the_environment_that_it_removes(tmp_path):
    """With the standard library alone, and whether or not the folders exist."""
    with held(tmp_path / "full") as right:
        (right.path / "server").mkdir()
    command = [sys.executable, "-I", "-S", str(demo_modules.DEMO / "folder.py")]
    subprocess.run([*command, str(tmp_path / "full"), str(tmp_path / "none")], check=True)
    assert [path.name for path in (tmp_path / "full").iterdir()] == [MARKER]
    assert not (tmp_path / "none").exists()
    with held(tmp_path / "full"):
        refused = subprocess.run([*command, str(tmp_path / "full")], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "is using" in refused.stderr
