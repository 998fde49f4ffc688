"""Measurements that are killed: the same call goes on where it was kept last, and ends at the same bytes."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gramfuse
from gramfuse.measuring.checkpoint import read_seed
from gramfuse.measuring.inference import Progress
from support.tiny import write_base, write_texts

BATCHES = 6
MEASUREMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Gram matrices": ("collect", {}),
    "Fisher information": ("collect_fisher", {}),
    "empirical Fisher information": ("collect_fisher", {"labels": [number % 3 for number in range(2 * BATCHES)]}),
}

KILLED = """
import json, os, signal, sys
from datetime import timedelta
import torch
import gramfuse

name, folder, texts, checkpoint, options, moment, count = json.loads(sys.argv[1])
torch.set_num_threads(1)
left = count

def one_less(*_):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

if moment == "writing":
    os.fsync = one_less
getattr(gramfuse, name)(
    folder,
    texts,
    batch_size=2,
    device="cpu",
    checkpoint=checkpoint,
    checkpoint_every=timedelta(0),
    on_progress=one_less if moment == "measuring" else lambda _: None,
    **options,
)
"""


@pytest.mark.parametrize(
    ("kind", "moment"), [*((kind, "measuring") for kind in MEASUREMENTS), ("Fisher information", "writing")]
)
def test_a_killed_run_resumes_to_identical_bytes(tmp_path, kind, moment):
    """Killed behind its fourth batch, before that is kept; or when its fourth checkpoint has not yet got its name.

    The seed that nobody can guess is kept, too.
    """
    name, options = MEASUREMENTS[kind]
    folder, checkpoint = tmp_path / "model", tmp_path / "partial"
    write_base(folder)
    texts = _texts_of(tmp_path)
    told = json.dumps([name, str(folder), texts, str(checkpoint), options, moment, 4])
    died = subprocess.run([sys.executable, "-c", KILLED, told], check=False, capture_output=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()

    progress: list[Progress] = []
    run: Callable[..., Any] = getattr(gramfuse, name)
    options = options | {"batch_size": 2, "device": "cpu"}
    seed = read_seed(checkpoint)
    assert (seed is None) is (kind != "Fisher information")
    resumed = run(folder, texts, checkpoint=checkpoint, on_progress=progress.append, **options)
    assert len(progress) == BATCHES - 3
    assert (progress[0].resumed, progress[-1].tokens) == (3 * 2 * 7, BATCHES * 2 * 7)
    resumed.save(tmp_path / "resumed")
    run(folder, texts, seed=seed, **options).save(tmp_path / "whole")
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


def _texts_of(folder: Path) -> list[str]:
    path = folder / "texts.jsonl"
    write_texts(path, count=2 * BATCHES, words=5)
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
