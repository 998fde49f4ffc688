"""Jobs of ever different cohorts, each submitted twice, and watched to their end."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from benchmarks.soak.gathering import Consortium
from benchmarks.soak.line import Line, require
from benchmarks.soak.records import JobKey, Told
from benchmarks.soak.sizes import Sizes

AT_ONCE: Final = 8
LARGEST_COHORT: Final = 6
TWIN_EVERY: Final = 10
"""Every tenth job is the one before under another name: it has to come to the same bytes."""
LOOK_SECONDS: Final = 2.0


def plan_jobs(consortium: Consortium, sizes: Sizes, chance: random.Random) -> dict[JobKey, Mapping[str, Any]]:
    """Draw the recipes."""
    jobs: dict[JobKey, Mapping[str, Any]] = {}
    before: dict[str, Mapping[str, Any]] = {}
    for number in range(sizes.jobs):
        project = consortium.projects[number % len(consortium.projects)]["id"]
        round_ = number // len(consortium.projects)
        if round_ % TWIN_EVERY == TWIN_EVERY - 1:
            recipe = before[project]
        else:
            members = consortium.members[project]
            cohort = chance.sample(members, chance.randint(2, min(LARGEST_COHORT, len(members))))
            recipe = {
                "merge_method": chance.choice(["linear", "regmean"]),
                "models": [
                    {"model": name, "parameters": {"weight": chance.choice([0.5, 1.0, 2.0])}} for name in sorted(cohort)
                ],
            }
        before[project] = recipe
        jobs[project, f"job-{number:04}"] = recipe
    return jobs


async def submit(line: Line, consortium: Consortium, jobs: Mapping[JobKey, Mapping[str, Any]], told: Told) -> None:
    """Submit every job twice, and note those that were acknowledged."""
    waiting = asyncio.Semaphore(AT_ONCE)

    async def one(key: JobKey, recipe: Mapping[str, Any]) -> None:
        project, job = key
        path, token = f"/v1/projects/{project}/jobs/{job}", consortium.coordinators[project]
        async with waiting:
            answers = await asyncio.gather(*(line.ask("PUT", path, token, {"recipe": recipe}) for _ in range(2)))
        for answer in answers:
            require(answer, HTTPStatus.OK, HTTPStatus.CREATED, what=path)
        told.jobs[key] = recipe
        line.counts["submitted"] += 1

    await asyncio.gather(*(one(key, recipe) for key, recipe in jobs.items()))


@dataclass(slots=True)
class Watch:
    """Follows the service's own counts; jobs that were given up, because their workers ended again and again, go on."""

    line: Line
    consortium: Consortium
    operator: str
    states: Counter[str] = field(default_factory=Counter)
    retried: list[str] = field(default_factory=list)

    @property
    def finished(self) -> int:
        """Jobs that have succeeded."""
        return self.states["succeeded"]

    async def accepted(self, count: int) -> None:
        """Wait until so many contributions are accepted; ends with the line."""
        while time.monotonic() < self.line.until:
            if (await self._overview())["contributions"].get("accepted", 0) >= count:
                return
            await asyncio.sleep(LOOK_SECONDS / 4)

    async def follow(self, count: int, is_over: Callable[[], bool]) -> None:
        """Look again and again until so many jobs have succeeded, or it is over; retry what failed."""
        while not is_over():
            overview = await self._overview()
            self.states = Counter(overview["jobs"])
            if self.finished >= count:
                return
            await asyncio.gather(*(self._retry(job) for job in overview["recent_failures"]))
            await asyncio.sleep(LOOK_SECONDS)

    async def _overview(self) -> Any:  # noqa: ANN401 - any JSON value
        return await self.line.read("/v1/admin/overview", self.operator)

    async def _retry(self, job: Mapping[str, Any]) -> None:
        path = f"/v1/projects/{job['project']}/jobs/{job['id']}/retry"
        require(
            await self.line.ask("POST", path, self.consortium.coordinators[job["project"]]), HTTPStatus.OK, what=path
        )
        self.retried.append(f"{job['project']}/{job['id']}, attempt {job['attempt']}: {job['error']}")
