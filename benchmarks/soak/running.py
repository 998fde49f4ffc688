"""One run, from an empty server to its verdict."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.soak import REPOSITORY
from benchmarks.soak.finding import Models, find
from benchmarks.soak.gathering import Consortium, contributions, gather
from benchmarks.soak.killing import Killer
from benchmarks.soak.line import Line
from benchmarks.soak.memory import Samples, growth_mb
from benchmarks.soak.merging import Watch, plan_jobs, submit
from benchmarks.soak.planting import plant
from benchmarks.soak.probing import judge_health, read_probes
from benchmarks.soak.records import Found, Told, Verdict, judge
from benchmarks.soak.sizes import KIB, Sizes
from benchmarks.soak.uploading import contribute

from support import guard
from support.deployment import Deployment, call, kill, wait_until

LOOK_SECONDS: Final = 1.0
DRAIN_SECONDS: Final = 60.0
PATIENCE_SECONDS: Final = 300.0
"""Beside the jobs' time, until a request that is not answered ends the run."""


@dataclass(slots=True)
class Run:
    """Everybody on the stage."""

    sizes: Sizes
    deployment: Deployment
    line: Line
    chance: random.Random
    say: Callable[[str], None]
    told: Told = field(default_factory=Told)
    samples: Samples = field(default_factory=Samples)
    marks: dict[str, float] = field(default_factory=dict)

    def mark(self, name: str) -> float:
        """Note the time under a name."""
        self.marks[name] = time.monotonic()
        return self.marks[name]

    def between(self, one: str, other: str) -> float:
        """Seconds between two marks."""
        return self.marks[other] - self.marks[one]


async def run(sizes: Sizes, deployment: Deployment, say: Callable[[str], None], *, seed: int = 1) -> dict[str, Any]:
    """Load, kill, calm down, look, judge; return the results."""
    began = time.monotonic()
    line = Line(deployment.port, until=began + sizes.job_seconds + PATIENCE_SECONDS)
    this = Run(sizes, deployment, line, random.Random(seed), say)
    for _ in range(sizes.workers):
        deployment.start_worker()
    killer = Killer(deployment, random.Random(seed))
    say(f"{sizes.organizations} organizations enter {sizes.projects} projects")
    consortium = await gather(line, deployment.operator_token, sizes)
    watch = Watch(line, consortium, deployment.operator_token)
    key = call(deployment.url, "GET", "/v1/server", deployment.operator_token)["receipt_key"]
    models = Models(line, consortium, key)
    probes, idle = deployment.folder / "probes", deployment.folder / "idle-probes"
    this.mark("load")
    with _probed(deployment, probes, idle):
        await _load(this, consortium, watch, killer, models)
    say("the workers end in good order; looking at what is there")
    await asyncio.to_thread(_drain, deployment)  # else what is asked one after the other is of different moments
    found = await find(line, deployment, consortium, models)
    verdict = judge(this.told, found)
    results = _results(this, verdict, found, killer, models, read_probes(probes))
    results["idle_p99_ms"] = judge_health(read_probes(idle), []).p99
    results["jobs_retried"] = len(watch.retried)
    results["planted"] = await _plant(this, found, consortium, models)
    return results | {"seconds": time.monotonic() - began, "verdict": _words(verdict), "given_up": watch.retried}


async def _load(this: Run, consortium: Consortium, watch: Watch, killer: Killer, models: Models) -> None:
    """Everything between the first upload and the last merge."""
    async with _sampled(this), _told_of(this, watch, killer):
        stopped = asyncio.Event()
        killing = asyncio.create_task(killer.kill_every(this.sizes.kill_seconds, stopped, most=this.sizes.most_kills))
        await _upload(this, consortium, watch)
        await _merge(this, consortium, watch)
        stopped.set()
        await killing
        await asyncio.to_thread(killer.wait_for_workers)  # what they load is no growth
        this.mark("calm")
        await _calm(this, watch, models)
        this.mark("end")


async def _upload(this: Run, consortium: Consortium, watch: Watch) -> None:
    waiting = list(contributions(consortium, this.sizes))
    everybody = asyncio.Barrier(len(waiting))
    await asyncio.gather(
        *(
            contribute(
                this.line, consortium.tokens[name], project, upload, this.told, everybody=everybody,
                chance=random.Random(this.chance.random()),
            )
            for project, name, upload in waiting
        )
    )  # fmt: skip
    this.mark("uploaded")
    await watch.accepted(len(waiting))
    this.mark("accepted")


async def _merge(this: Run, consortium: Consortium, watch: Watch) -> None:
    """Submit everything and merge under kills, for their time."""
    began = this.mark("jobs")
    await submit(this.line, consortium, plan_jobs(consortium, this.sizes, this.chance), this.told)
    over = this.mark("submitted") + this.sizes.faulty_seconds
    await watch.follow(this.sizes.jobs, lambda: time.monotonic() > min(over, began + this.sizes.job_seconds))


async def _calm(this: Run, watch: Watch, models: Models) -> None:
    """Merge on without kills while models are downloaded, and stay at least the calm time."""
    least, most = time.monotonic() + this.sizes.calm_seconds, this.marks["jobs"] + this.sizes.job_seconds
    following = asyncio.create_task(watch.follow(this.sizes.jobs, lambda: time.monotonic() > max(most, least)))
    while time.monotonic() < least or not following.done():
        listed = await this.line.read_all("/v1/admin/models", this.deployment.operator_token)
        await models.download([(row["project"], row["id"]) for row in listed])
        await asyncio.sleep(LOOK_SECONDS)
    await following


def _drain(deployment: Deployment) -> None:
    """Have the workers end as they do at SIGTERM: at the next boundary, with what they did not begin handed back."""
    for worker in deployment.workers:
        worker.terminate()
    for worker in deployment.workers:
        worker.wait(DRAIN_SECONDS)
        guard.forget(worker.pid)
    deployment.workers.clear()


async def _plant(this: Run, found: Found, consortium: Consortium, models: Models) -> dict[str, int]:
    """Damage what was found whole, look again, and say what the same judge finds."""
    url = this.deployment.database_url or f"sqlite:///{this.deployment.folder / 'server' / 'gramfuse.sqlite'}"
    await asyncio.to_thread(plant, found, this.deployment.folder, url)
    again = await find(this.line, this.deployment, consortium, models, downloading=False)
    return judge(this.told, again).counts


@contextmanager
def _probed(deployment: Deployment, api: Path, idle: Path) -> Iterator[None]:
    """Probe the API, and a server that does nothing else, each by a process of its own, into one file each."""
    port_file = deployment.folder / "idle-port"
    with _running("benchmarks.soak.idling", port_file):
        port = wait_until(
            lambda: port_file.exists() and port_file.read_text("ascii"), seconds=20, what="an idle server"
        )
        with (
            _running("benchmarks.soak.probing", deployment.port, api),
            _running("benchmarks.soak.probing", port.strip(), idle),
        ):
            yield


@contextmanager
def _running(module: str, *arguments: object) -> Iterator[None]:
    words = [sys.executable, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(words, cwd=REPOSITORY)  # noqa: S603 - our own modules
    guard.watch(process.pid)
    try:
        yield
    finally:
        kill(process)


@asynccontextmanager
async def _sampled(this: Run) -> AsyncIterator[None]:
    async def sample() -> None:
        while True:
            processes = [*this.deployment.workers, *([this.deployment.api] if this.deployment.api else [])]
            this.samples.take([process.pid for process in processes], time.monotonic())
            await asyncio.sleep(LOOK_SECONDS / 2)

    async with _beside(sample):
        yield


@asynccontextmanager
async def _told_of(this: Run, watch: Watch, killer: Killer) -> AsyncIterator[None]:
    async def tell() -> None:
        while True:
            counts, kills = this.line.counts, sum(killer.kills.values())
            this.say(
                f"{time.monotonic() - this.marks['load']:4.0f} s: {counts['uploads']} uploads, "
                f"{counts['submitted']} jobs submitted, {watch.finished} done, "
                f"{counts['dropped']} connections dropped, {kills} kills"
            )
            await asyncio.sleep(5 * LOOK_SECONDS)

    async with _beside(tell):
        yield


@asynccontextmanager
async def _beside(work: Callable[[], Any]) -> AsyncIterator[None]:
    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _results(
    this: Run, verdict: Verdict, found: Found, killer: Killer, models: Models, probes: list[Any]
) -> dict[str, Any]:
    counts, sizes = this.line.counts, this.sizes
    finished = sum(state == "succeeded" for _, state in found.jobs)
    health = judge_health(probes, killer.downtimes)
    downtime = [gap.ended - gap.began for gap in killer.downtimes]
    return verdict.counts | {
        "healthz_p99_ms": health.p99,
        "rss_growth_mb": growth_mb(this.samples.by_pid, this.marks["calm"], this.marks["end"]),
        "kills": sum(killer.kills.values()),
        "api_kills": killer.kills["api"],
        "worker_kills": killer.kills["worker"],
        "downtime_s": sum(downtime),
        "longest_downtime_s": max(downtime, default=0.0),
        "healthz_p50_ms": health.p50,
        "healthz_most_ms": health.most,
        "healthz_probes": health.probes,
        "healthz_failed": health.failed,
        "rss_most_mb": this.samples.most(),
        "organizations": sizes.organizations,
        "projects": sizes.projects,
        "workers": sizes.workers,
        "uploads": counts["uploads"],
        "uploaded_mb": sizes.uploads * sizes.layers * 64 * KIB / 1e6,
        "parts": counts["parts"],
        "dropped_connections": counts["dropped"],
        "broken_connections": counts["broken"],
        "repeated_parts": counts["repeated"],
        "requests": counts["requests"],
        "server_errors": {key: count for key, count in counts.items() if key.startswith(("5", "PUT", "GET", "POST"))},
        "jobs": len(this.told.jobs),
        "jobs_finished": finished,
        "downloaded_mb": models.bytes / 1e6,
        "upload_seconds": this.between("load", "uploaded"),
        "submit_seconds": this.between("jobs", "submitted"),
        "merge_seconds": this.between("jobs", "end"),
        "calm_seconds": this.between("calm", "end"),
        "jobs_per_second": finished / this.between("jobs", "end"),
    }


def _words(verdict: Verdict) -> dict[str, list[str]]:
    """What was found, as far as one reads it."""
    return {name: list(getattr(verdict, name))[:20] for name in ("lost", "duplicated", "corrupt")}
