"""How much room there is where this process writes, asked of the file systems at each scrape."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gramfuse_server.places import blobs_folder, database_folder, existing
from gramfuse_server.settings import Settings


class Usage(Protocol):
    """What `shutil.disk_usage` returns of a file system."""

    @property
    def free(self) -> int:
        """Bytes that this user may still write."""


class DiskCollector(Collector):
    """Tells the free bytes of folders of this machine, each under the name of what lies in it."""

    def __init__(self, folders: Mapping[str, Path | None], usage: Callable[[Path], Usage] = shutil.disk_usage) -> None:
        self._folders = {place: folder for place, folder in folders.items() if folder is not None}
        self._usage = usage

    def collect(self) -> Iterator[Metric]:
        """Leave out what cannot be looked at."""
        family = GaugeMetricFamily(
            "gramfuse_disk_free_bytes",
            "Room where blobs, database or scratch are a folder.",
            labels=["place"],
        )
        for place, folder in self._folders.items():
            try:
                family.add_metric([place], self._usage(existing(folder)).free)
            except OSError:
                continue
        yield family


def disks_of_api(settings: Settings) -> DiskCollector:
    """Make a collector of where an API process writes."""
    return DiskCollector({"blobs": blobs_folder(settings.blobs), "database": database_folder(settings)})


def disks_of_worker(settings: Settings) -> DiskCollector:
    """Make a collector of where a worker writes."""
    folders = {"blobs": blobs_folder(settings.blobs), "database": database_folder(settings)}
    return DiskCollector(folders | {"scratch": settings.scratch})
