"""What a worker counts: shards, inspections, sweeps, and whether its duties run."""

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0)
"""From a tiny model's shard to a shard of a large one on a CPU."""


class WorkMetrics:
    """The counters of one worker process; without a registry, nobody reads them."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._shards = Counter(
            "gramfuse_worker_shards",
            "Shards that were computed, or stopped by a cancellation.",
            ("outcome",),
            registry=registry,
        )
        self._shard_seconds = Histogram(
            "gramfuse_worker_shard_duration_seconds",
            "From the beginning of a shard to its bytes in the store.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._read = Counter(
            "gramfuse_worker_read_bytes", "Bytes of contributions that shards were computed from.", registry=registry
        )
        self._written = Counter("gramfuse_worker_written_bytes", "Bytes of shards that were stored.", registry=registry)
        self._published = Counter("gramfuse_worker_models_published", "Models that were published.", registry=registry)
        self._failed = Counter(
            "gramfuse_worker_attempts_failed",
            "Attempts at jobs that failed, by error code.",
            ("code",),
            registry=registry,
        )
        self._inspections = Counter(
            "gramfuse_worker_inspections", "Uploads that were inspected.", ("outcome",), registry=registry
        )
        self._inspection_seconds = Histogram(
            "gramfuse_worker_inspection_duration_seconds",
            "From the beginning of an inspection to its decision.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._expired = Counter(
            "gramfuse_worker_sweep_expired_uploads", "Uploads that a sweep let expire.", registry=registry
        )
        self._deleted = Counter("gramfuse_worker_sweep_deleted_files", "Files that a sweep deleted.", registry=registry)
        self._taken_over = Counter(
            "gramfuse_worker_takeovers", "Dead workers whose work was taken over.", registry=registry
        )
        self._duty_failures = Counter(
            "gramfuse_worker_duty_failures",
            "Rounds of a duty that failed; the next one tries again.",
            ("duty",),
            registry=registry,
        )
        self._duty_success = Gauge(
            "gramfuse_worker_duty_last_success_timestamp_seconds",
            "When a duty's round last went well, in Unix time.",
            ("duty",),
            registry=registry,
        )

        # series that begin at their first event hide it from Prometheus' rates
        for outcome in ("finished", "stopped"):
            self._shards.labels(outcome)
        for outcome in ("accepted", "rejected"):
            self._inspections.labels(outcome)

    def shard_finished(self, *, seconds: float, read_bytes: int, written_bytes: int) -> None:
        """Count a shard that is in the store."""
        self._shards.labels("finished").inc()
        self._shard_seconds.observe(seconds)
        self._read.inc(read_bytes)
        self._written.inc(written_bytes)

    def shard_stopped(self) -> None:
        """Count a shard that was stopped because its job is over."""
        self._shards.labels("stopped").inc()

    def model_published(self) -> None:
        """Count a model."""
        self._published.inc()

    def attempt_failed(self, code: str) -> None:
        """Count an attempt that failed."""
        self._failed.labels(code).inc()

    def inspected(self, outcome: str, *, seconds: float) -> None:
        """Count an upload that was decided: the state that it has now."""
        self._inspections.labels(outcome).inc()
        self._inspection_seconds.observe(seconds)

    def swept(self, *, expired_uploads: int, deleted_files: int) -> None:
        """Count what a sweep found to do."""
        self._expired.inc(expired_uploads)
        self._deleted.inc(deleted_files)

    def took_over(self, workers: int) -> None:
        """Count workers that died."""
        self._taken_over.inc(workers)

    def duty_ended(self, duty: str, *, well: bool) -> None:
        """Note how a round of a duty ended."""
        self._duty_failures.labels(duty).inc(0 if well else 1)
        if well:
            self._duty_success.labels(duty).set(time.time())
