"""The worker process: inspects uploads, merges, takes over from dead workers. Everything it needs is wired here."""

import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import torch
from dbos import DBOS

from gramfuse_server import heartbeats, outages
from gramfuse_server.belonging import require_own_key_and_store
from gramfuse_server.blobs import open_blobs
from gramfuse_server.clock import Clock, system_clock
from gramfuse_server.database import is_outage, open_database, transaction
from gramfuse_server.departure import Departure
from gramfuse_server.intake.inspection import Inspector
from gramfuse_server.intake.subjects import Manifest
from gramfuse_server.jobs import (
    INSPECT,
    INSPECTIONS,
    MAX_RECOVERY_ATTEMPTS,
    MERGES,
    POLLING_SECONDS,
    SHARDS,
    JobQueue,
    inspection_workflow,
    worker_configuration,
)
from gramfuse_server.merging import workflows
from gramfuse_server.merging.merger import Merger
from gramfuse_server.metrics.disks import disks_of_worker
from gramfuse_server.metrics.serving import new_registry, serving_metrics
from gramfuse_server.metrics.work import WorkMetrics
from gramfuse_server.patience import Patience
from gramfuse_server.receipt_key import load_key
from gramfuse_server.scratch import own_folder
from gramfuse_server.settings import Settings
from gramfuse_server.supervision import Supervisor
from gramfuse_server.tracing import start_tracing
from gramfuse_server.underway import Underway
from gramfuse_shared.contract.fisher_file import parse_fisher_metadata
from gramfuse_shared.contract.manifest import BaseManifest, ContributionManifest
from gramfuse_shared.contract.requests import Answer
from gramfuse_shared.contract.scales_file import SCALES_FILE_NAME
from gramfuse_shared.contract.statistics_file import parse_statistics_metadata
from gramfuse_shared.merging.decoding import decode_statistics
from gramfuse_shared.merging.execution import choose_device
from gramfuse_shared.merging.inspection import inspect_fisher, inspect_statistics, inspect_weights
from gramfuse_shared.merging.scales import load_scales
from gramfuse_shared.merging.streaming import LocalFile, TensorFile
from gramfuse_shared.version import __version__

MERGES_AT_ONCE: Final = 64
"""Merges only wait for their shards. So many may wait on one worker that an urgent one does not wait to be planned."""
SHARDS_AT_ONCE: Final = 1
"""A shard takes the whole device."""
INSPECTIONS_AT_ONCE: Final = 1
INSPECTION_TRIES: Final = 3
DRAIN_SECONDS: Final = 24 * 3600
"""Within which a shard that is being computed must end after SIGTERM; whoever cannot wait kills."""
SUPERVISION_SECONDS: Final = 1.0
ADOPTION_PACE: Final = 120
"""Sweeps for each time that the whole store is listed: once an hour, unless set otherwise."""

_log = structlog.get_logger(__name__)


def run_worker(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT, then end at the next task boundary.

    Raises:
        ConfigurationError: a setting does not work, the database is of another version, or key or store are another's.
    """
    require_own_key_and_store(settings)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    Worker(settings, stopping, traced=start_tracing("gramfuse-worker")).run()


class Worker:
    """One worker, named after its host and by chance, so that no two are taken for each other."""

    def __init__(
        self, settings: Settings, stopping: threading.Event, *, clock: Clock = system_clock, traced: bool = False
    ) -> None:
        """Open everything; nothing is claimed yet."""
        self.name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._settings = settings
        self._clock = clock
        self._traced = traced
        self._stopping = stopping
        self._ended = threading.Event()
        self._database = open_database(settings.database_url)
        patience = Patience(stopping)
        self._underway = Underway()
        self._failures = outages.Repeats()
        blobs = open_blobs(settings.blobs, persistence="minutes")
        scratch = settings.scratch / self.name
        self._device = choose_device(settings.device)
        self._registry = new_registry()
        self._registry.register(disks_of_worker(settings))
        self._metrics = WorkMetrics(self._registry)
        self._merger = Merger(
            database=self._database,
            blobs=blobs,
            key=load_key(settings.receipt_key),
            scratch=scratch,
            worker=self.name,
            device=settings.device,
            clock=clock,
            metrics=self._metrics,
            patience=patience,
        )
        self._inspector = Inspector(
            self._database, blobs, scratch, partial(check_numbers, device=self._device), clock, self._metrics, patience
        )
        self._supervisor = Supervisor(
            database=self._database,
            blobs=blobs,
            inspector=self._inspector,
            worker=self.name,
            watch=heartbeats.Watch(settings.worker_lease),
            clock=clock,
            metrics=self._metrics,
            underway=self._underway,
            blob_grace=settings.blob_grace,
        )

    def run(self) -> None:
        """Work until `stopping` is set, then drain and leave."""
        departure = Departure(self._database, self.name)
        with (
            own_folder(self._settings.scratch, self.name),
            serving_metrics(self._settings, self._registry),
            departure.watched(self._stopping),
        ):
            self._run()

    def _run(self) -> None:
        settings = self._settings
        host = describe_host(self._device)
        with transaction(self._database) as session:
            heartbeats.enter(session, self.name, host, self._clock())
        DBOS(config=worker_configuration(settings, self._database, self.name, traced=self._traced))
        workflows.register(
            self._merger,
            shard_bytes=settings.shard_bytes,
            stopping=self._stopping,
            underway=self._underway,
            traced=self._traced,
        )
        _register_inspection(self._inspector, self._underway, worker=self.name)
        DBOS.launch()
        for queue, at_once in (
            (INSPECTIONS, INSPECTIONS_AT_ONCE),
            (MERGES, MERGES_AT_ONCE),
            (SHARDS, SHARDS_AT_ONCE),
        ):
            DBOS.register_queue(
                queue,
                worker_concurrency=at_once,
                polling_interval_sec=POLLING_SECONDS,
                on_conflict="always_update",
            )
        duties = [
            self._every(settings.heartbeat_interval.total_seconds(), self._beat, until=self._ended),
            self._every(SUPERVISION_SECONDS, self._supervisor.take_over, until=self._stopping),
            self._every(SUPERVISION_SECONDS * 5, self._supervisor.end_abandoned, until=self._stopping),
            self._every(settings.sweep_interval.total_seconds(), self._supervisor.sweep, until=self._stopping),
            self._every(
                settings.sweep_interval.total_seconds() * ADOPTION_PACE, self._supervisor.adopt, until=self._stopping
            ),
        ]
        _log.info("worker started", worker=self.name, device=host.device)
        self._stopping.wait()
        _log.info("worker drains", worker=self.name)
        DBOS.destroy(workflow_completion_timeout_sec=DRAIN_SECONDS, destroy_registry=True)
        handed_back = JobQueue(self._database).hand_back(self.name)
        self._ended.set()
        for duty in duties:
            duty.join()
        with transaction(self._database) as session:
            heartbeats.leave(session, self.name, self._clock())
        self._database.close()
        _log.info("worker stopped", worker=self.name, handed_back=handed_back)

    def _beat(self) -> None:
        with transaction(self._database) as session:
            heartbeats.beat(session, self.name, self._clock())

    def _every(self, seconds: float, duty: Callable[[], object], *, until: threading.Event) -> threading.Thread:
        name = duty.__name__.lstrip("_")

        def repeat() -> None:
            structlog.contextvars.bind_contextvars(worker=self.name)  # this thread's own
            while not until.wait(seconds):
                try:
                    duty()
                except Exception as error:  # noqa: BLE001 - the border of a duty, see below
                    # the border of a duty: the database may be away for a while, the next round tries again
                    self._tell_failure(name, error)
                    self._metrics.duty_ended(name, well=False)
                else:
                    self._metrics.duty_ended(name, well=True)
                    if self._failures.over(name):
                        _log.info("a duty goes on", duty=name)

        thread = threading.Thread(target=repeat, name=name, daemon=True)
        thread.start()
        return thread

    def _tell_failure(self, duty: str, error: Exception) -> None:
        if not is_outage(error):
            _log.error("a duty failed", duty=duty, error=type(error).__name__, exc_info=True)
        elif (left_out := self._failures.due(duty)) is not None:
            reason = outages.describe(error)
            _log.error("a duty failed", duty=duty, error=type(error).__name__, reason=reason, left_out=left_out)


def check_numbers(manifest: Manifest, paths: Mapping[str, Path], *, device: torch.device | None = None) -> None:
    """Check every value of the assembled files of a manifest; matrices are factorized on the device.

    Raises:
        WeightsInvalidError: weights hold NaN or infinity.
        StatisticsInvalidError: statistics are not the Gram matrices, or the squares, of anything.
        ScalesMalformedError: scales hold what nothing can be divided by.
    """
    if isinstance(manifest, BaseManifest) and SCALES_FILE_NAME in paths:
        load_scales(paths[SCALES_FILE_NAME])
    for name in _weight_files(manifest):
        with LocalFile(paths[name]) as source:
            inspect_weights(TensorFile.open(source))
    if not isinstance(manifest, BaseManifest) and manifest.statistics is not None:
        with LocalFile(paths[manifest.statistics.file.name]) as source:
            file = TensorFile.open(source)
            metadata = parse_statistics_metadata(file.header, kind=manifest.statistics.kind)
            inspect_statistics(decode_statistics(file, metadata.encoding), metadata, device=device)
    if isinstance(manifest, ContributionManifest) and manifest.fisher is not None:
        with LocalFile(paths[manifest.fisher.file.name]) as source:
            file = TensorFile.open(source)
            inspect_fisher(file, parse_fisher_metadata(file.header))


def _weight_files(manifest: Manifest) -> list[str]:
    match manifest:
        case BaseManifest():
            return [file.name for file in manifest.files if file.tensors is not None]
        case ContributionManifest():
            return [manifest.weights.file.name]
        case Answer():
            return []


def describe_host(device: torch.device) -> heartbeats.Host:
    """Say where this worker computes, and how much memory there is."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described, memory = f"{device} ({properties.name})", properties.total_memory
    else:
        threads = torch.get_num_threads()
        described = f"cpu ({threads} thread{'' if threads == 1 else 's'})"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return heartbeats.Host(name=socket.gethostname(), device=described, memory_bytes=memory, version=__version__)


def _register_inspection(inspector: Inspector, underway: Underway, *, worker: str) -> None:
    @DBOS.workflow(name=INSPECT, max_recovery_attempts=MAX_RECOVERY_ATTEMPTS)
    def inspect(upload: str) -> None:
        # tried again, because what fails here and is not the upload's fault is the store or the database
        told = structlog.contextvars.bound_contextvars(worker=worker, upload=upload)
        with told, underway.carrying_out(inspection_workflow(upload)):
            DBOS.run_step(
                {"name": "inspect", "retries_allowed": True, "max_attempts": INSPECTION_TRIES},
                lambda: inspector.inspect(upload),
            )
