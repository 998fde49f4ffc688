"""A worker's own folder, and what dead workers left."""

import os
import signal
import subprocess
import sys

from gramfuse_server.scratch import own_folder


def test_a_folder_is_there_while_it_is_used(tmp_path):
    with own_folder(tmp_path, "a") as folder:
        (folder / "shard").write_bytes(b"half")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_process_that_was_killed_is_removed_and_a_living_ones_is_kept(tmp_path):
    script = (
        "import sys, time, pathlib\n"
        "from gramfuse_server.scratch import own_folder\n"
        "with own_folder(pathlib.Path(sys.argv[1]), 'dead'):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        with own_folder(tmp_path, "alive"):
            assert {path.name for path in tmp_path.iterdir()} == {"alive", "dead"}
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            with own_folder(tmp_path, "third"):
                assert {path.name for path in tmp_path.iterdir()} == {"alive", "third"}


def test_what_is_none_of_ours_is_left_alone(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("x")
    with own_folder(tmp_path, "a"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"notes", "file"}
