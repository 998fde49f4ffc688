"""One merge shared by two workers, over the same merge by one of them: real processes, PostgreSQL, BERT-base's layers.

Each worker has one thread and one core to itself, its reading, hashing and writing included; the API and the database
run beside them. In rounds by turns, one of the two is suspended, or none. The speed-up cannot reach two: planning,
queueing, noticing that all files are there and publishing happen once, and some file is the last.
"""

import os
import signal
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from timing import Effort
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import gramfuse
from gramfuse_server.database import Database
from gramfuse_shared.limits import MIB
from support import collaboration, tiny
from support.deployment import Deployment, deployed, wait_until
from support.postgres import postgres
from support.soundness import open_database_of, tasks_of, workers_of

MEMBERS: Final = ("acme", "globex", "initech")
POLICY: Final = gramfuse.Policy(heads="shared", minimum_rows_per_dimension=0, advised_rows_per_dimension=0)
RECIPE: Final = gramfuse.Recipe(merge_method="regmean")
SHARD_BYTES: Final = 16 * MIB
"""Two files a layer: BERT-base would be one of two gigabytes, and a larger model has as many of those."""


def measure(folder: Path, effort: Effort) -> dict[str, Any]:
    """Return the speed-up by the clock and by processor time, and what bounds it."""
    settings = {"shard_bytes": str(MIB // 64 if effort.is_smoke else SHARD_BYTES)}
    rounds = 1 if effort.is_smoke else min(3, effort.rounds)
    merges: dict[str, list[dict[str, float]]] = {"one": [], "two": []}
    with postgres() as create, deployed(folder / "site", create(), **settings) as deployment:
        database = open_database_of(deployment)
        try:
            workers = _start_workers(deployment, database)
            project = collaboration.begin(
                deployment, MEMBERS, _write_tiny_base if effort.is_smoke else _write_base, policy=POLICY
            )
            _contribute(project)
            for number in range(rounds):
                with _suspended(workers[1]):
                    merges["one"].append(_merge(project, database, workers[:1], f"one-{number}"))
                merges["two"].append(_merge(project, database, workers, f"two-{number}"))
        finally:
            database.close()
    one, two = (
        {key: statistics.median(merge[key] for merge in found) for key in found[0]} for found in merges.values()
    )
    return {
        "speedup": one["seconds"] / two["seconds"],
        "speedup_by_processor_time": one["busiest_cpu_seconds"] / two["busiest_cpu_seconds"],
        "bound": one["seconds"] / (two["serial_seconds"] + one["task_seconds"] / 2),
        "one_worker": one,
        "two_workers": two,
        "rounds": rounds,
    }


def _write_base(folder: Path) -> None:
    tiny.write_base(folder)
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=256,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=8,
            num_attention_heads=12,
            max_position_embeddings=64,
            num_labels=3,
        )
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_tiny_base(folder: Path) -> None:
    tiny.write_base(folder)


def _contribute(project: collaboration.Collaboration) -> None:
    """Push everybody's, whatever an audit would find in so few texts."""
    for seed, desk in enumerate(project.desks, start=1):
        collaboration.tune(desk, seed=seed)
        model, statistics_file = desk.folder / "tuned", collaboration.measure(desk)
        with desk.client() as client:
            client.push(project.project, model=model, statistics=statistics_file, confirm=lambda _: True, auditing=None)


def _start_workers(deployment: Deployment, database: Database) -> list[subprocess.Popen[bytes]]:
    """Start two, each on a core of its own, and wait for them."""
    workers = [deployment.start_worker(device="cpu") for _ in range(2)]
    cores = sorted(os.sched_getaffinity(0))
    wait_until(lambda: len(workers_of(database)) == len(workers), seconds=120, what="two workers", pause=0.1)
    for number, worker in enumerate(workers):
        for thread in Path(f"/proc/{worker.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {cores[number % len(cores)]})  # threads to come inherit it
    return workers


@contextmanager
def _suspended(worker: subprocess.Popen[bytes]) -> Iterator[None]:
    worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.send_signal(signal.SIGCONT)


def _merge(
    project: collaboration.Collaboration, database: Database, workers: list[subprocess.Popen[bytes]], job: str
) -> dict[str, float]:
    """Merge once; return what it took, all told and by its parts."""
    before = [_cpu_seconds(worker) for worker in workers]
    with project.coordinator.client() as client:
        client.submit(project.project, RECIPE, job=job)
        done = client.wait(project.project, job)
    if done.finished_at is None:
        msg = f"{job} has no end"
        raise RuntimeError(msg)
    seconds = (done.finished_at - done.created_at).total_seconds()
    spent = [_cpu_seconds(worker) - earlier for worker, earlier in zip(workers, before, strict=True)]
    by_worker: dict[str | None, float] = {}
    tasks = tasks_of(database, job).values()
    for task in tasks:
        by_worker[task.worker] = by_worker.get(task.worker, 0.0) + (task.seconds or 0.0)
    return {
        "seconds": seconds,
        "tasks": float(len(tasks)),
        "task_seconds": sum(by_worker.values()),
        "serial_seconds": seconds - max(by_worker.values()),
        "busiest_cpu_seconds": max(spent),
    }


def _cpu_seconds(worker: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{worker.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
