"""Kills the service's processes, one every few seconds, and starts the next ones."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Final

from benchmarks.soak.probing import Downtime

from support.deployment import START_SECONDS, Deployment, kill, wait_until

STARTED: Final = "worker started"
"""The line of a worker's log."""


@dataclass(slots=True)
class Killer:
    """SIGKILL: nothing is cleaned up, nothing answered. Whom it meets is chance; in the long run everybody."""

    deployment: Deployment
    chance: random.Random
    kills: dict[str, int] = field(default_factory=lambda: {"api": 0, "worker": 0})
    downtimes: list[Downtime] = field(default_factory=list)

    async def kill_every(self, seconds: float, stopped: asyncio.Event, *, most: int) -> None:
        """Kill on until stopped, or so many times; a kill that has begun is followed by its restart."""
        turn: list[str] = []
        while sum(self.kills.values()) < most:
            try:
                async with asyncio.timeout(seconds * self.chance.uniform(0.75, 1.25)):
                    await stopped.wait()
            except TimeoutError:
                if not turn:
                    turn = ["api", *(["worker"] * len(self.deployment.workers))]
                    self.chance.shuffle(turn)
                await asyncio.to_thread(self._kill_api if turn.pop() == "api" else self._kill_worker)
            else:
                return

    def _kill_api(self) -> None:
        began = time.monotonic()
        self.deployment.kill_api()
        self.kills["api"] += 1
        self.deployment.start_api()
        self.downtimes.append(Downtime(began, time.monotonic()))

    def wait_for_workers(self) -> None:
        """Wait until all that were started have begun to work."""
        everybody = self.kills["worker"] + len(self.deployment.workers)
        wait_until(
            lambda: self.deployment.log_text("worker").count(STARTED) >= everybody,
            seconds=START_SECONDS, what="the workers' start", pause=0.1,
        )  # fmt: skip

    def _kill_worker(self) -> None:
        """Kill the oldest, when all work: who still loads its libraries holds nothing."""
        self.wait_for_workers()
        kill(self.deployment.workers.pop(0))
        self.kills["worker"] += 1
        self.deployment.start_worker()
