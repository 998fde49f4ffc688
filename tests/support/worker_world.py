"""What the worker's tests play with: real weights and Gram matrices, a worker in this process, workers in their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import save

from gramfuse_server.blobs import Blobs, open_blobs
from gramfuse_server.database import reading
from gramfuse_server.intake.inspection import Inspector
from gramfuse_server.merging.attempts import Attempt
from gramfuse_server.merging.merger import Merger
from gramfuse_server.metrics.work import WorkMetrics
from gramfuse_server.receipt_key import load_key
from gramfuse_server.settings import Settings
from gramfuse_server.tables import JobRow, UploadRow
from gramfuse_server.worker import check_numbers
from gramfuse_shared.contract.manifest import CollectorSettings
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.contract.safetensors_header import format_header
from gramfuse_shared.contract.statistics_file import METADATA_KEY, StatisticsMetadata, gram_tensor_name
from gramfuse_shared.fusion.packing import pack
from support.server_world import BODY_TENSORS, OPEN_POLICY, WIDTH, Files, World, make_tap

MEMBERS = ("acme", "globex", "initech")
ROWS = 500


def make_weights(seed: int, **changes: torch.Tensor) -> bytes:
    """Weights of a contribution in the manifest's order, some of them replaced."""
    chooser = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=chooser) for name, _, shape in BODY_TENSORS} | changes
    header = format_header(list(BODY_TENSORS))
    return header + b"".join(tensors[name].contiguous().numpy().tobytes() for name, _, _ in BODY_TENSORS)


def make_gram(seed: int) -> torch.Tensor:
    """XᵀX of random rows."""
    inputs = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1000 + seed))
    return inputs.T @ inputs


def make_statistics(project: Mapping[str, Any], gram: torch.Tensor) -> bytes:
    """A statistics file of one tap, whatever the matrix is."""
    tap = make_tap()
    metadata = StatisticsMetadata(
        base=project["base"], collector=CollectorSettings(collector_version="0.1.0"), taps=(tap,)
    )
    return save({gram_tensor_name(tap.name): pack(gram)}, metadata={METADATA_KEY: metadata.model_dump_json()})


def contribute(world: World, project: Mapping[str, Any], organization: str, seed: int, **changes: Any) -> Files:
    """Push an honest contribution up to its seal, with some of its bytes replaced."""
    honest = {"weights": make_weights(seed), "statistics": make_statistics(project, make_gram(seed))}
    return world.contribute(project, organization, **(honest | changes))


class InProcessWorker:
    """The worker's parts, called by hand."""

    def __init__(
        self, world: World, settings: Settings, *, blobs: Blobs | None = None, name: str = "in-process"
    ) -> None:
        blobs = blobs or open_blobs(settings.blobs)
        self.database = world.services.database
        self.shard_bytes = settings.shard_bytes
        self.registry = CollectorRegistry()
        metrics = WorkMetrics(self.registry)
        self.inspector = Inspector(self.database, blobs, settings.scratch, check_numbers, world.clock, metrics)
        self.merger = Merger(
            database=self.database,
            blobs=blobs,
            key=load_key(settings.receipt_key),
            scratch=settings.scratch,
            worker=name,
            device="cpu",
            clock=world.clock,
            metrics=metrics,
        )

    def inspect_all(self) -> list[str | None]:
        """Inspect every sealed upload; return the states."""
        with reading(self.database) as session:
            sealed = session.query(UploadRow.id).filter(UploadRow.state == "sealed").order_by(UploadRow.created_at)
            uploads = [row.id for row in sealed]
        return [self.inspector.inspect(upload) for upload in uploads]

    def attempt(self, project: str, job: str) -> Attempt:
        """The present attempt at a job."""
        with reading(self.database) as session:
            return Attempt(project, job, session.get_one(JobRow, (project, job)).attempt)

    def run(self, project: str, job: str) -> None:
        """Carry a job out, as the workflows do."""
        attempt = self.attempt(project, job)
        count = self.merger.plan(attempt, shard_bytes=self.shard_bytes)
        assert count is not None
        for number in range(count):
            self.merger.execute(attempt, number, shard_bytes=self.shard_bytes)
        assert self.merger.publish(attempt, shard_bytes=self.shard_bytes)


SKEWED = """
import signal, threading
from datetime import timedelta
from gramfuse_server.clock import system_clock
from gramfuse_server.logs import configure_logs
from gramfuse_server.settings import load_settings
from gramfuse_server.worker import Worker
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
settings = load_settings()
configure_logs(settings)
Worker(settings, stopping, clock=lambda: system_clock() + timedelta(hours={hours})).run()
"""


@contextmanager
def worker_process(
    settings: Settings, log: Path, *, skew_hours: int = 0, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as `gramfuse-server worker` runs it, or one whose clock is off; killed at the end if it still lives."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GRAMFUSE_")}
    variables |= {
        "GRAMFUSE_SERVER_HOME": str(settings.server_home),
        "GRAMFUSE_DATABASE_URL": settings.database_url.get_secret_value(),
        "GRAMFUSE_DEVICE": "cpu",
        "GRAMFUSE_SHARD_BYTES": str(settings.shard_bytes),
        "GRAMFUSE_HEARTBEAT_INTERVAL": "PT0.3S",
        "GRAMFUSE_WORKER_LEASE": "PT2S",
        "GRAMFUSE_SWEEP_INTERVAL": "PT1S",
        "OMP_NUM_THREADS": "1",
    }
    plain = "from gramfuse_server.cli import run; run()"
    command = [sys.executable, "-c", SKEWED.format(hours=skew_hours) if skew_hours else plain, "worker"]
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=variables | environment, stdout=output, stderr=output)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)


def wait_for(
    condition: Callable[[], bool], *, seconds: float = 60.0, every: float = 0.1, what: str = "the condition"
) -> float:
    """Wait until something holds; return the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"{what} did not come within {seconds} s"
        time.sleep(every)
    return time.monotonic() - began


def merge_everybody(world: World, settings: Settings, *, policy: Policy = OPEN_POLICY, job: str = "regmean-1") -> str:
    """A project of all members with a model that RegMean made of their contributions; return the model's id."""
    worker = InProcessWorker(world, settings)
    project = world.project(*MEMBERS, policy=policy)
    for seed, member in enumerate(MEMBERS):
        contribute(world, project, member, seed)
    worker.inspect_all()
    body = {"recipe": {"merge_method": "regmean"}}
    submitted = world.coordinator(MEMBERS[0]).put(f"/v1/projects/{project['id']}/jobs/{job}", json=body)
    assert submitted.status_code == 201, submitted.text
    worker.run(project["id"], job)
    return job


def be_ready(world: World, settings: Settings) -> None:
    """Play a beginning: a project of all members, whose contributions are accepted."""
    project = world.project(*MEMBERS)
    for seed, member in enumerate(MEMBERS):
        contribute(world, project, member, seed)
    assert InProcessWorker(world, settings).inspect_all() == ["accepted"] * len(MEMBERS)
